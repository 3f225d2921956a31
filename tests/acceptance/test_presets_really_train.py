"""Every shipped preset is a real configuration: it has the published size, and it trains.

What the training runs change, and why: the number of layers (1) and the vocabulary, so that a 16B width fits this memory; and, because
128 rows of 2,048 tokens through a layer of 453 M parameters take hours on two cores, rows per step (2) and their length (64). Width, heads,
rotary, recomputation, optimizer, ZeRO-3 and precision are as shipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import CodeGenConfig

from moss_train.model.codegen import CodeGenLM
from tests.forked import forked
from tests.launch import REPOSITORY, losses, metrics, python, succeeded

# Preset -> parameters of the model it names; None: settled by the tokenizer that is trained on the data.
PRESETS = {"tiny_sft": None, "moss_moon_003_sft": 16_717_980_160, "moss_moon_003_sft_plugin": 16_717_980_160}


def test_no_preset_is_left_out() -> None:
    assert {path.stem for path in (REPOSITORY / "configs" / "config").glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize(("preset", "parameters"), [(name, count) for name, count in PRESETS.items() if count])
def test_size_on_the_meta_device(preset: str, parameters: int) -> None:
    shown = yaml.safe_load(succeeded(python("scripts/sft.py", f"+config={preset}", "--cfg", "job")).stdout)
    shape = shown["model"]
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
        model = CodeGenLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert shown["train"]["epochs"] == 2
    assert shown["train"]["global_batch_size"] == 128
    assert shown["optim"]["lr"] == 1.5e-5


def test_tiny_preset_with_no_other_argument(tmp_path: Path) -> None:
    """As it is shipped, all steps; only the run directory is another."""
    succeeded(forked(2, "scripts/sft.py", "+config=tiny_sft", f"run.dir={tmp_path}/run"))
    evaluations = [event["eval/valid/loss"] for event in metrics(tmp_path / "run") if "eval/valid/loss" in event]
    assert len(losses(tmp_path / "run")) == 60
    assert evaluations[-1] < evaluations[0] - 2


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
