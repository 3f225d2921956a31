"""Model directories: the published layouts load, and a damaged one is refused with all that is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moss_train.errors import CheckpointError
from moss_train.model.codegen import CodeGenLM
from moss_train.model.loading import check_weights, load_model, read_model_config

MOSS_EXTRAS: dict[str, Any] = {
    "architectures": ["MossForCausalLM"], "model_type": "moss", "auto_map": {"AutoConfig": "configuration_moss.MossConfig"},
    "n_inner": None, "scale_attn_weights": True, "summary_type": "cls_index", "task_specific_params": None,
    "tokenizer_class": "GPT2Tokenizer", "torch_dtype": "float32", "transformers_version": "4.25.1", "gradient_checkpointing": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Keys of the published config.json that CodeGen's has not, or has otherwise."""


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


@pytest.fixture
def stored(make_model: Callable[..., CodeGenLM], tmp_path: Path) -> tuple[CodeGenLM, Path]:
    """A small model and a sharded safetensors directory of it."""
    model = make_model()
    model.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return model, tmp_path / "model"


def as_moss(model: CodeGenLM, directory: Path, suffix: str) -> Path:
    """Write a model as the published ones are: fp16 shards with masks in uint8, and its own config.json."""
    directory.mkdir()
    state = {name: value.half() for name, value in model.state_dict().items()}
    for layer in range(model.config.n_layer):
        state[f"transformer.h.{layer}.attn.causal_mask"] = torch.ones(1, 1, 128, 128, dtype=torch.uint8).tril()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    state["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e9)
    names = sorted(state)
    stem, weight_map = ("model", {}) if suffix == "safetensors" else ("pytorch_model", {})
    for part, chosen in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"{stem}-{part:05d}-of-00002.{suffix}"
        shard = {name: state[name].contiguous() for name in chosen}
        if suffix == "safetensors":
            save_file(shard, directory / file)
        else:
            torch.save(shard, directory / file)
        weight_map |= dict.fromkeys(chosen, file)
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        key: getattr(model.config, key) for key in ("vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "rotary_dim")
    }
    (directory / "config.json").write_text(json.dumps({**config, **MOSS_EXTRAS}))
    return directory


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_published_moss_layout(stored: tuple[CodeGenLM, Path], tmp_path: Path, suffix: str) -> None:
    model, _ = stored
    directory = as_moss(model, tmp_path / "moss", suffix)
    config = read_model_config(directory)
    assert (config.model_type, config.n_inner, config.activation_function) == ("codegen", None, "gelu_new")
    loaded = load_model(directory, torch.bfloat16, allow_pickle=suffix == "bin")
    assert loaded.training
    for (name, a), b in zip(model.named_parameters(), loaded.parameters()):
        assert torch.equal(a.half().bfloat16(), b), name
    assert loaded.transformer.rotary_table.dtype == torch.float32
    assert load_model(directory, "auto", allow_pickle=suffix == "bin").dtype == torch.float16


def test_pickle_files_need_permission_and_run_no_code(stored: tuple[CodeGenLM, Path], tmp_path: Path) -> None:
    directory = as_moss(stored[0], tmp_path / "moss", "bin")
    with pytest.raises(CheckpointError, match=r"pickle files \(pytorch_model-00001-of-00002.bin\).*allow_pickle"):
        load_model(directory, torch.float32)

    class Payload:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    torch.save({"lm_head.weight": Payload()}, directory / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model-00001-of-00002.bin .* cannot be read"):
        load_model(directory, torch.float32, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_single_file_and_salesforce_keys(stored: tuple[CodeGenLM, Path], tmp_path: Path) -> None:
    model, _ = stored
    model.save_pretrained(tmp_path / "single")
    check_weights(tmp_path / "single", model.config)
    assert torch.equal(load_model(tmp_path / "single", torch.float32).lm_head.weight, model.lm_head.weight)


def test_every_problem_is_in_one_error(stored: tuple[CodeGenLM, Path]) -> None:
    model, directory = stored
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shard = directory / index["weight_map"]["lm_head.bias"]
    tensors = load_file(shard)
    tensors["lm_head.bias"] = torch.zeros(300)
    tensors["lm_head.qweight"] = torch.zeros(3, dtype=torch.int32)
    save_file(tensors, shard)
    other = directory / index["weight_map"]["transformer.wte.weight"]
    tensors = load_file(other)
    del tensors["transformer.wte.weight"]
    save_file(tensors or {"transformer.h.0.ln_1.bias": torch.zeros(64, dtype=torch.int64)}, other)
    with pytest.raises(CheckpointError) as caught:
        check_weights(directory, model.config)
    message = str(caught.value)
    for problem in (
        f"transformer.wte.weight is not in {other.name}, where the index places it",
        "transformer.wte.weight is missing; expected [307, 64]",
        f"lm_head.bias in {shard.name} is [300], expected [307]",
        f"lm_head.qweight in {shard.name} is not part of this model",
        "must come from the same model",
    ):
        assert problem in message, message
    with pytest.raises(CheckpointError, match="must come from the same model"):
        load_model(directory, torch.float32)


def test_another_vocabulary_and_another_depth(stored: tuple[CodeGenLM, Path]) -> None:
    _, directory = stored
    edit_json(directory / "config.json", vocab_size=311, n_layer=3)
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, torch.float32)
    assert "is [307, 64], expected [311, 64]" in str(caught.value)
    assert "transformer.h.2.attn.qkv_proj.weight is missing; expected [192, 64]" in str(caught.value)
    edit_json(directory / "config.json", vocab_size=307, n_layer=1)
    with pytest.raises(CheckpointError, match=r"transformer.h.1.attn.out_proj.weight in .* is not part of this model"):
        load_model(directory, torch.float32)


def test_hundreds_of_problems_are_counted_and_not_all_printed(stored: tuple[CodeGenLM, Path]) -> None:
    _, directory = stored
    edit_json(directory / "config.json", n_layer=30)
    with pytest.raises(CheckpointError, match=r"224 problems") as caught:
        load_model(directory, torch.float32)
    assert "and 204 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) < 30


def test_missing_and_truncated_shards(stored: tuple[CodeGenLM, Path]) -> None:
    _, directory = stored
    first, second = sorted(directory.glob("model-*.safetensors"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    with pytest.raises(CheckpointError) as caught:
        load_model(directory, torch.float32)
    assert f"{first.name} is named in the index and missing" in str(caught.value)
    assert f"{second.name} (" in str(caught.value)
    assert "cannot be read, it may be incomplete" in str(caught.value)


def test_integer_weights_are_refused(stored: tuple[CodeGenLM, Path]) -> None:
    model, directory = stored
    shard = next(path for path in directory.glob("model-*.safetensors") if "lm_head.bias" in load_file(path))
    save_file({**load_file(shard), "lm_head.bias": torch.zeros(307, dtype=torch.int32)}, shard)
    with pytest.raises(CheckpointError, match=r"lm_head.bias in .* has type I32, expected one of BF16, F16, F32, F64"):
        check_weights(directory, model.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', expected codegen or moss"),
        ({"model_type": None}, "model_type is None"),
        ({"n_embd": None, "n_head": None}, "2 problems(.|\n)*n_embd is missing(.|\n)*n_head is missing"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
        ({"n_head": 6}, "n_head is 6, expected a multiple of 4"),
        ({"n_inner": "wide"}, "not a CodeGen configuration"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            r"qkv_proj\.qweight is missing; expected .8, 192.",
        ),
        ({"wbits": 4, "groupsize": 128}, r"qkv_proj\.qweight is missing; expected .8, 192."),
    ],
)
def test_configurations_that_are_refused(stored: tuple[CodeGenLM, Path], changes: dict[str, Any], message: str) -> None:
    _, directory = stored
    edit_json(directory / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(directory, torch.float32)


def test_full_precision_moss_says_wbits_32(stored: tuple[CodeGenLM, Path], tmp_path: Path) -> None:
    directory = as_moss(stored[0], tmp_path / "moss", "safetensors")
    edit_json(directory / "config.json", wbits=32, groupsize=128)
    load_model(directory, torch.float32)


def test_directories_that_are_none(stored: tuple[CodeGenLM, Path], tmp_path: Path) -> None:
    _, directory = stored
    with pytest.raises(CheckpointError, match="no such directory"):
        load_model(tmp_path / "nowhere", torch.float32)
    with pytest.raises(CheckpointError, match="is a file, expected a model directory"):
        load_model(directory / "config.json", torch.float32)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path / "empty", torch.float32)
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_model(tmp_path / "empty", torch.float32)
    (tmp_path / "empty" / "config.json").write_text((directory / "config.json").read_text())
    (tmp_path / "empty" / "adapter.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no weights; expected model.safetensors .* found adapter.safetensors"):
        load_model(tmp_path / "empty", torch.float32)
    (tmp_path / "empty" / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(CheckpointError, match="not an index of weights"):
        load_model(tmp_path / "empty", torch.float32)


def test_what_trains_or_rewrites_takes_no_quantised_weights(stored: tuple[CodeGenLM, Path]) -> None:
    _, directory = stored
    edit_json(directory / "config.json", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    with pytest.raises(CheckpointError, match=r"quantised .gptq, 4 bits, groups of 128.*float16 or bfloat16"):
        check_weights(directory, read_model_config(directory))
