"""Variants of a trained model with 4 and 8 bits: they open in stock transformers and in this project, differ far less than rounding makes
them, come out byte for byte again, and say what they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moss_train.artifacts import lineage
from moss_train.artifacts.lineage_verify import verify
from moss_train.artifacts.quantize_check import open_stock
from moss_train.artifacts.quantize_compare import difference, source_values
from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference.config import GenerateConfig
from moss_train.inference.speaker import Speaker
from moss_train.model.loading import load_model, load_pm, read_model_config
from moss_train.model.packed import PackedLinear
from tests import trained_models
from tests.launch import python, succeeded

pytestmark = pytest.mark.xdist_group("variants")
DAMP = "damp=0.01"
"""Less caution than by default, which large models with odd layers need: 4.8 times less divergence than rounding here, instead of 4.4."""
NOT_COMPARED = {"lineage.json"}
"""It has the time, and what the run took."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained_models.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: tuple[Path, Path]) -> Path:
    return trained_models.train_model(tmp_path_factory.mktemp("trained") / "export", texts[0])


def quantize(model: Path, texts: tuple[Path, Path], *arguments: str) -> str:
    shown = succeeded(
        python("scripts/quantize.py", f"model={model}", f"data={texts[0]}", f"heldout={texts[1]}", "heldout_seq_len=512", *arguments)
    )
    return shown.stdout + shown.stderr


@pytest.fixture(scope="module")
def int4(trained: Path, texts: tuple[Path, Path]) -> Path:
    trained_models.need("gptqmodel", "optimum")
    quantize(trained, texts, "bits=4", DAMP)
    return trained.with_name("export-int4")


@pytest.fixture(scope="module")
def int8(trained: Path, texts: tuple[Path, Path]) -> Path:
    trained_models.need("torchao")
    quantize(trained, texts, "bits=8", "method=torchao")
    return trained.with_name("export-int8")


def rows_of(model: Path, texts: tuple[Path, Path]) -> list[list[int]]:
    tokenizer = MossTokenizer.load(model)
    said = [json.loads(line) for line in texts[1].read_text(encoding="utf-8").splitlines()[:8]]
    return [tokenizer.encode(json.dumps(one, ensure_ascii=False))[:100] for one in said]


def test_int4_differs_four_times_less_than_rounding(int4: Path) -> None:
    measured = json.loads((int4 / "quantization.json").read_text(encoding="utf-8"))["measured"]
    assert measured["heldout/kl_round_to_nearest"] >= 4 * measured["heldout/kl"], measured
    assert measured["heldout/kl"] < 0.02
    assert measured["count"] > 2000


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_stock_transformers_and_this_project_compute_the_same(
    name: str, trained: Path, texts: tuple[Path, Path], request: pytest.FixtureRequest
) -> None:
    variant: Path = request.getfixturevalue(name)
    rows = rows_of(trained, texts)
    stock = open_stock(variant, "cpu")
    ours = load_model(variant, torch.float32)
    assert isinstance(ours.transformer.h[0].mlp.fc_in, PackedLinear), "weights stay packed"
    with torch.inference_mode():
        expected, found = (torch.cat([model(torch.tensor([row])).logits[0] for row in rows]) for model in (stock, ours))
    between = difference(expected, found, is_pm=False).kl
    source = difference(source_values(trained, read_model_config(trained), rows), found, is_pm=False).kl
    # The kernel of the library rounds scales to bfloat16.
    assert between < 0.1 * source + 1e-6
    assert (source < 0.02) if name == "int4" else (source < 1e-3)


def test_generate_answers_with_a_variant_alike_in_any_batch(int4: Path) -> None:
    replies = []
    for batch_size in (1, 4):
        speaker = Speaker(GenerateConfig(model=str(int4), prompt="-", temperature=0.0, max_new_tokens=12, system=""), batch_size)
        assert speaker.memory.weights < 2 * 10**7
        from moss_train.data.dialogue import Dialogue, Turn

        asked = [(n, Dialogue(str(n), "", (Turn(human=f" What is {n} + {n}?"),), origin=f"prompt {n}")) for n in range(4)]
        replies.append({number: reply.moss for number, reply in speaker.reply_all(asked)})
    assert replies[0] == replies[1]


def test_quantising_again_gives_the_same_bytes(int4: Path, trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    again = tmp_path / "export-int4"
    quantize(trained, texts, "bits=4", DAMP, f"out={again}")
    names = {path.name for path in int4.iterdir()}
    assert names == {path.name for path in again.iterdir()}
    assert not [name for name in names - NOT_COMPARED if (int4 / name).read_bytes() != (again / name).read_bytes()]
    assert [path.name for path in tmp_path.iterdir()] == ["export-int4"], "nothing is left beside it"


def test_int8_again_gives_the_same_bytes(int8: Path, trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    quantize(trained, texts, "bits=8", "method=torchao", f"out={tmp_path / 'export-int8'}")
    for name in {path.name for path in int8.iterdir()} - NOT_COMPARED:
        assert (int8 / name).read_bytes() == (tmp_path / "export-int8" / name).read_bytes(), name


def test_the_record_says_what_it_is(int4: Path, trained: Path, texts: tuple[Path, Path]) -> None:
    record = lineage.load(int4)
    assert record is not None
    made = record.lineage
    source = lineage.load(trained)
    assert source is not None
    assert [(parent.role, parent.id) for parent in made.parents] == [("source", source.id)]
    assert made.kind == "variant"
    assert {key: made.details[key] for key in ("bits", "scheme", "group_size", "sym", "desc_act", "damp")} == {
        "bits": 4, "scheme": "gptq", "group_size": 128, "sym": True, "desc_act": False, "damp": 0.01,
    }  # fmt: skip
    assert made.details["calibration"]["samples"] == 256
    assert set(made.details["calibration"]) == {"samples", "tokens", "sha256", "order", "seq_len"}
    assert made.details["libraries"]["gptqmodel"].startswith("7.6")
    assert made.metrics["heldout/kl"] > 0
    assert {source.name: source.role for source in made.data} == {texts[0].name: "calibration", texts[1].name: "heldout"}
    assert not verify(int4).problems


@pytest.mark.parametrize(
    ("file", "key"),
    [("config.json", "quantization_config"), ("quantize_config.json", None), ("quantization.json", None), ("lineage.json", "details")],
)
def test_verify_catches_an_edited_bit_width(int4: Path, tmp_path: Path, file: str, key: str | None) -> None:
    """By its hash, and, where whoever edited it wrote the record anew, by the shapes of the tensors."""
    copy = tmp_path / "copy"
    shutil.copytree(int4, copy)
    stated = json.loads((copy / file).read_text(encoding="utf-8"))
    (stated[key] if key else stated)["bits"] = 8
    (copy / file).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")
    assert [problem.kind for problem in verify(copy, ancestors=False).problems] == ["changed"]
    raw = json.loads((copy / "lineage.json").read_text(encoding="utf-8"))
    (copy / "lineage.json").unlink()
    raw["files"] = lineage.hash_files(copy)
    raw["id"] = lineage.record_id(raw)
    (copy / "lineage.json").write_bytes(lineage.spell(raw))
    found = verify(copy, ancestors=False).problems
    assert found
    assert all(problem.kind == "declared" for problem in found)
    assert "says 8 bits" in found[0].message


def test_a_published_moss_directory_is_read_by_its_tensors(int4: Path, trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    """Its own configuration, weights pickled with causal masks, and a bit width that is wrong: as one of them was published."""
    published = tmp_path / "moss-int4"
    published.mkdir()
    state = {name: tensor for path in int4.glob("*.safetensors") for name, tensor in load_file(path).items()}
    state |= {f"transformer.h.{layer}.attn.causal_mask": torch.ones(1, 1, 8, 8, dtype=torch.bool) for layer in range(2)}
    torch.save(state, published / "pytorch_model.bin")
    stated = json.loads((int4 / "config.json").read_text(encoding="utf-8"))
    del stated["quantization_config"]
    (published / "config.json").write_text(json.dumps(stated | {"model_type": "moss", "wbits": 8, "groupsize": 128}), encoding="utf-8")
    found = load_model(published, torch.float32, allow_pickle=True)
    expected = load_model(int4, torch.float32)
    ids = torch.tensor(rows_of(trained, texts)[:1])
    with torch.inference_mode():
        assert torch.equal(found(ids).logits, expected(ids).logits)


def test_too_large_a_difference_is_refused_and_nothing_is_kept(trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    trained_models.need("torchao")
    out = tmp_path / "out"
    shown = python("scripts/quantize.py", f"model={trained}", f"data={texts[0]}", "bits=8", "method=torchao", "max_kl=1e-9", f"out={out}")
    assert shown.returncode == 10, shown.stderr
    assert "max_kl=1e-09" in shown.stderr
    assert not list(tmp_path.iterdir())


def test_training_from_a_variant_is_refused(int8: Path, tmp_path: Path) -> None:
    shown = python("scripts/sft.py", "+config=tiny_sft", f"init_from={int8}", f"run.dir={tmp_path / 'run'}")
    assert shown.returncode == 4, shown.stderr
    assert "quantised" in shown.stderr


def test_a_preference_model_keeps_its_head_and_its_rewards(trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    trained_models.need("gptqmodel", "optimum")
    pm = trained_models.make_pm(tmp_path / "pm", trained)
    quantize(pm, texts, "bits=8")
    variant = tmp_path / "pm-int8"
    before, after = load_pm(pm, torch.float32), load_pm(variant, torch.float32)
    assert torch.equal(before.score.weight, after.score.weight), "the head is not quantised"
    assert isinstance(after.transformer.h[0].attn.qkv_proj, PackedLinear)
    rows = rows_of(trained, texts)
    with torch.inference_mode():
        rewards = [
            torch.cat([model(torch.tensor([row]), reward_index=torch.tensor([len(row) - 1])).rewards for row in rows])
            for model in (before.eval(), after)
        ]
    assert (rewards[0] - rewards[1]).abs().max() < 0.05 * rewards[0].std()
    assert not verify(variant).problems


@pytest.mark.gpu
def test_a_gpu_quantises_alike(trained: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    trained_models.need("gptqmodel", "optimum")
    quantize(trained, texts, "bits=4", "device=cuda", f"out={tmp_path / 'cuda'}")
    measured = json.loads((tmp_path / "cuda" / "quantization.json").read_text(encoding="utf-8"))["measured"]
    assert measured["heldout/kl_round_to_nearest"] >= 3 * measured["heldout/kl"]
    model = load_model(tmp_path / "cuda", torch.bfloat16).to("cuda")
    assert bool(model(torch.arange(20, device="cuda")[None]).logits.isfinite().all())
