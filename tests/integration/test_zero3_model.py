"""Partitioned over ranks the model is the same: weights, logits, gradients; and new weights do not depend on the number of ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig

from moss_train.model.codegen import CodeGenLM, init_model, set_attention
from moss_train.model.loading import load_model
from tests.forked import forked

pytest.importorskip("deepspeed")

CONFIG = {
    "vocab_size": 251, "n_positions": 64, "n_ctx": 64, "n_embd": 36, "n_layer": 2, "n_head": 4, "rotary_dim": 4,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""Sizes that two ranks do not divide evenly: 251 x 36 rows, a bias of 251."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in safetensors, the same one in pickle shards with masks as MOSS has them, and a packed batch."""
    folder = tmp_path_factory.mktemp("source")
    model = init_model(CodeGenConfig(**CONFIG), seed=3, dtype=torch.float32)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "model", max_shard_size="30KB")
    (folder / "moss").mkdir()
    state = {**model.state_dict(), "transformer.h.0.attn.causal_mask": torch.ones(1, 1, 64, 64, dtype=torch.uint8)}
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, folder / "moss" / file)
    (folder / "moss" / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "moss" / "config.json").write_text(json.dumps({**CONFIG, "model_type": "moss", "torch_dtype": "float32"}))
    targets = torch.randint(0, 251, (2, 24), generator=generator)
    targets[:, ::3] = targets[1, 15:] = -100
    batch = {
        "input_ids": torch.randint(0, 251, (2, 24), generator=generator),
        "targets": targets,
        "cu_seqlens": torch.tensor([0, 5, 24, 39, 48], dtype=torch.int32),
    }
    save_file(batch, folder / "batch.safetensors")
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["1-rank", "2-ranks"])
def results(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """What the ranks wrote."""
    out = tmp_path_factory.mktemp(f"ranks-{request.param}")
    run = forked(request.param, "tests/integration/zero3_model_worker.py", str(source), str(out), OMP_NUM_THREADS="1")
    assert (out / "done.json").is_file(), run.stdout[-6000:] + run.stderr[-6000:]
    assert json.loads((out / "done.json").read_text()) == {"world": request.param}
    return {path.stem: load_file(path) for path in out.glob("*.safetensors")}


def test_a_process_group_comes_first(source: Path) -> None:
    from transformers.integrations import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    try:
        with pytest.raises(RuntimeError, match="initialise the process group"):
            load_model(source / "model", torch.float32)
        with pytest.raises(RuntimeError, match="initialise the process group"):
            init_model(CodeGenConfig(**CONFIG), seed=0, dtype=torch.float32)
    finally:
        del alive


def check_equal(found: dict[str, torch.Tensor], expected: CodeGenLM) -> None:
    parameters = dict(expected.named_parameters())
    assert found.keys() == parameters.keys()
    for name, value in found.items():
        assert torch.equal(value, parameters[name]), name


def test_new_weights_do_not_depend_on_the_ranks(results: dict[str, dict[str, torch.Tensor]]) -> None:
    check_equal(results["init"], init_model(CodeGenConfig(**CONFIG), seed=11, dtype=torch.float32))


def test_loaded_weights_go_to_the_partitions(results: dict[str, dict[str, torch.Tensor]], source: Path) -> None:
    check_equal(results["load"], load_model(source / "model", torch.float32))
    for name in ("model", "moss"):
        check_equal(results[f"bfloat16-{name}"], load_model(source / "model", torch.bfloat16))


def test_logits_are_equal(results: dict[str, dict[str, torch.Tensor]], source: Path) -> None:
    model, batch = load_model(source / "model", torch.float32), load_file(source / "batch.safetensors")
    for backend, found in results["logits"].items():
        set_attention(model, backend)
        with torch.no_grad():
            expected = model(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def test_gradients_flow_with_a_micro_batch_without_targets(results: dict[str, dict[str, torch.Tensor]], source: Path) -> None:
    model, batch = load_model(source / "model", torch.float32), load_file(source / "batch.safetensors")
    loss_sum = model(batch["input_ids"], targets=batch["targets"], cu_seqlens=batch["cu_seqlens"]).loss_sum
    (loss_sum / (batch["targets"] != -100).sum()).backward()
    for recompute in (False, True):
        found = results[f"gradients-recompute-{recompute}"]
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-7, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
