"""Every shipped preset is a real configuration: it has the published size, and it trains.

What the training runs change, and why: the number of layers (1) and the vocabulary, so that a 16B width fits this memory; and, because
128 rows of 2,048 tokens through a layer of 453 M parameters take hours on two cores, rows per step (2) and their length (64). Width, heads,
rotary, recomputation, optimizer, ZeRO-3 and precision are as shipped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import CodeGenConfig

from moss_train.model.codegen import CodeGenLM
from moss_train.model.pm import CodeGenPM, pm_config
from tests.forked import forked
from tests.launch import REPOSITORY, losses, metrics, python, succeeded
from tests.small_corpora import write_corpus

# Preset -> parameters of the model it names; None: settled by the tokenizer that is trained on the data.
PRESETS = {"tiny_sft": None, "moss_moon_003_sft": 16_717_980_160, "moss_moon_003_sft_plugin": 16_717_980_160}
PRETRAINING = {"tiny_pretrain": None, "moss_moon_003_base": 16_717_980_160, "codegen_2b_zh": 2_779_356_160}
# `tiny_preference` is trained in tests/integration/test_preference.py, on replies with levels.
PREFERENCE = {"tiny_preference": None, "moss_moon_003": 16_717_980_160, "moss_moon_003_plugin": 16_717_980_160}
PREFERENCE_MODELS = {"tiny_pm": None, "moss_moon_003_pm": 16_060_422_144}


def test_no_preset_is_left_out() -> None:
    known = {*PRESETS, *PRETRAINING, *PREFERENCE, *PREFERENCE_MODELS}
    assert {path.stem for path in (REPOSITORY / "configs" / "config").glob("*.yaml")} == known


def test_size_of_the_preference_model() -> None:
    """The trunk of 16.7 B without its output projection of 107,008 rows, and the reward head."""
    shown = yaml.safe_load(succeeded(python("scripts/pm.py", "+config=moss_moon_003_pm", "--cfg", "job")).stdout)
    assert parameters_of(shown["model"], CodeGenPM) == PREFERENCE_MODELS["moss_moon_003_pm"] == 16_717_980_160 - 107_008 * 6_145 + 6_144
    assert shown["train"]["epochs"] == 1


@pytest.mark.parametrize(("preset", "parameters"), [(name, count) for name, count in PRESETS.items() if count])
def test_size_on_the_meta_device(preset: str, parameters: int) -> None:
    shown = yaml.safe_load(succeeded(python("scripts/sft.py", f"+config={preset}", "--cfg", "job")).stdout)
    assert parameters_of(shown["model"]) == parameters
    assert shown["train"]["epochs"] == 2
    assert shown["train"]["global_batch_size"] == 128
    assert shown["optim"]["lr"] == 1.5e-5


@pytest.mark.parametrize(("preset", "parameters"), [(name, count) for name, count in PREFERENCE.items() if count])
def test_size_of_what_is_trained_on_levels(preset: str, parameters: int) -> None:
    shown = yaml.safe_load(succeeded(python("scripts/preference.py", f"+config={preset}", "--cfg", "job")).stdout)
    assert parameters_of(shown["model"]) == parameters
    assert shown["data"]["tag_dropout"] == 0.1


@pytest.mark.parametrize(("preset", "parameters"), [(name, count) for name, count in PRETRAINING.items() if count])
def test_size_of_what_is_pretrained(preset: str, parameters: int) -> None:
    shown = yaml.safe_load(succeeded(python("scripts/pretrain.py", f"+config={preset}", "--cfg", "job")).stdout)
    assert parameters_of(shown["model"]) == parameters
    if preset == "moss_moon_003_base":
        assert shown["train"]["tokens"] == pytest.approx(133.3e9)
        assert shown["data"]["weights"]["zh"] == 5 * shown["data"]["weights"]["en"]


def parameters_of(shape: dict[str, Any], model_class: Any = CodeGenLM) -> int:
    """Of a model as a configuration describes it, on the meta device."""
    config = CodeGenConfig(
        vocab_size=shape["vocab_size"],
        n_positions=shape["max_positions"],
        n_ctx=shape["max_positions"],
        n_embd=shape["hidden_size"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        rotary_dim=shape["rotary_dim"],
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = model_class(config if model_class is CodeGenLM else pm_config(config))
    return sum(parameter.numel() for parameter in model.parameters())


def test_tiny_preset_with_no_other_argument(tmp_path: Path) -> None:
    """As it is shipped, all steps; only the run directory is another."""
    succeeded(forked(2, "scripts/sft.py", "+config=tiny_sft", f"run.dir={tmp_path}/run"))
    evaluations = [event["eval/valid/loss"] for event in metrics(tmp_path / "run") if "eval/valid/loss" in event]
    assert len(losses(tmp_path / "run")) == 60
    assert evaluations[-1] < evaluations[0] - 2


def test_tiny_preference_model_with_no_other_argument(tmp_path: Path) -> None:
    """As it is shipped, all steps; only the run directory is another. From random weights it learns the comparisons it sees."""
    succeeded(forked(2, "scripts/pm.py", "+config=tiny_pm", f"run.dir={tmp_path}/run"))
    found = losses(tmp_path / "run")
    # Half of the pairs are ties, whose loss is log 2 at least.
    assert sum(found[-20:]) / 20 < 0.9 * math.log(2)
    evaluations = [event for event in metrics(tmp_path / "run") if "eval/valid/accuracy" in event]
    assert [event["step"] for event in evaluations] == [0, len(found)]
    assert (tmp_path / "run" / "export" / "pm_report.json").is_file()


def test_tiny_pretraining_with_no_other_argument(tmp_path: Path) -> None:
    """As it is shipped, all steps; only the run directory is another."""
    succeeded(forked(2, "scripts/pretrain.py", "+config=tiny_pretrain", f"run.dir={tmp_path}/run"))
    events = [event for event in metrics(tmp_path / "run") if "eval/valid/loss" in event]
    assert len(losses(tmp_path / "run")) == 60
    for language in ("zh", "en"):
        name = f"eval/valid/bits_per_byte/{language}"
        assert events[-1][name] < 0.7 * events[0][name]


@pytest.mark.parametrize("preset", ["moss_moon_003_base", "codegen_2b_zh"])
def test_pretraining_presets_train_at_a_small_size(preset: str, tmp_path: Path) -> None:
    """Mixture, phases, schedule, z-loss, recomputation, optimizer and ZeRO-3 as shipped."""
    corpus = write_corpus(tmp_path)
    shape = ("model.num_layers=1", "model.num_heads=4", "model.hidden_size=64", "model.rotary_dim=16", "model.vocab_size=1024")
    sizes = ("data.seq_len=64", "train.global_batch_size=4", "train.micro_batch_size=1", "data.max_epochs=null", "optim.lr=1e-3")
    length = ("train.tokens=1024",) if preset == "moss_moon_003_base" else ("train.steps=4",)
    run = ("init_from=null", f"data.train={corpus}", f"run.dir={tmp_path}/run", "train.keep=0", "export.enabled=false")
    succeeded(forked(2, "scripts/pretrain.py", f"+config={preset}", *shape, *sizes, *length, *run))
    found = losses(tmp_path / "run")
    assert len(found) == 4
    assert found[-1] < found[0]
    assert all("train/z_loss" in event for event in metrics(tmp_path / "run") if "train/loss" in event)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["moss_moon_003_sft", "moss_moon_003_sft_plugin"])
def test_three_steps_at_full_width(tmp_path: Path, preset: str) -> None:
    """A minute and a half each: 465 M parameters through gloo."""
    data = tmp_path / "short.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(30):
            turn = {"Human": f"<|Human|>: Hello {number}, 你好吗<eoh>\n", "MOSS": f"<|MOSS|>: I am fine, {number}. 我很好，谢谢。<eom>\n"}
            file.write(json.dumps({"meta_instruction": "You are MOSS.\n", "chat": {"turn_1": turn}}, ensure_ascii=False) + "\n")
    reduced = ("model.num_layers=1", "model.vocab_size=1024", "tokenizer.train_vocab_size=1024", "data.seq_len=64")
    arguments = (f"+config={preset}", "init_from=null", *reduced, "train.global_batch_size=2", "train.micro_batch_size=1")
    run = ("train.epochs=null", "train.steps=3", "export.enabled=false", "train.keep=0", f"data.train={data}", f"run.dir={tmp_path}/run")
    shown = succeeded(forked(2, "scripts/sft.py", *arguments, *run, timeout=580)).stdout
    # One layer: 12 * 6144^2 + 7 * 6144 of matrices, biases and LayerNorm; embeddings, head and its bias; the last LayerNorm.
    assert f"{12 * 6144**2 + 7 * 6144 + 2 * 1024 * 6144 + 1024 + 2 * 6144:,} parameters" in shown
    found = losses(tmp_path / "run")
    assert len(found) == 3
    assert found[2] < found[0]
