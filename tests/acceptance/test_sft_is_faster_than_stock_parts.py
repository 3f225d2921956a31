"""Useful tokens a second against the published recipe on stock parts: both sides compute the same; the figures are `slow`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from transformers import CodeGenForCausalLM

from moss_train.benchmark.sft_sides import STOCK_BATCH, model_config, packed_batch, stock_batch
from moss_train.data.dialogue import read_dialogues
from moss_train.data.render import render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM
from tests.launch import deepspeed, succeeded

SEQ_LEN = 512


def test_both_sides_compute_the_same_loss_and_gradient() -> None:
    """What is timed is the same work: padded batches through the stock class, and the same dialogues packed through ours."""
    path = resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"
    dialogues, _ = read_dialogues(str(path))
    tokenizer = MossTokenizer.train((turn.moss or "" for dialogue in dialogues for turn in dialogue.turns), 600)
    rendered, _ = render_all(dialogues, tokenizer, "generated", SEQ_LEN)
    chosen = rendered[:STOCK_BATCH]
    config = model_config(tokenizer.vocab_size, SEQ_LEN, hidden_size=128, num_layers=2, head_dim=32)
    # Wide enough that positions and neighbours matter to the loss.
    config.initializer_range = 0.1
    torch.manual_seed(0)
    stock = CodeGenForCausalLM(config)
    ours = CodeGenLM(config)
    ours.load_state_dict(stock.state_dict())

    batch = packed_batch(chosen, SEQ_LEN, tokenizer.endoftext)
    assert batch.weight == sum(dialogue.supervised_tokens for dialogue in chosen)
    assert len(batch.cu_seqlens) - 1 >= STOCK_BATCH
    padded = stock_batch(chosen, tokenizer.endoftext)
    assert len({len(dialogue.input_ids) for dialogue in chosen}) > 1
    expected = stock(**padded).loss
    loss = ours(**batch.inputs).loss_sum / batch.weight
    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
    expected.backward()
    loss.backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        assert parameter.grad is not None
        scale = parameter.grad.abs().max()
        assert (gradients[name].grad - parameter.grad).abs().max() <= 1e-5 * scale, name


@pytest.mark.slow
def test_speed_and_memory_against_stock_parts(real_data: Path, tmp_path: Path) -> None:
    """Needs two cores and a quiet machine; takes 25 minutes."""
    out = tmp_path / "speed.json"
    data = real_data / "moss-003-sft-sample" / "train.jsonl"
    result = succeeded(deepspeed(2, "moss_train/benchmark/sft_speed.py", str(data), "--dialogues", "72", "--out", str(out), timeout=3600))
    print(result.stdout[-3000:])
    for precision, found in json.loads(out.read_text())["results"].items():
        assert found["ratio_over_all"] >= 3.5, precision
        assert max(found["ours"]["memory_mib"]) < min(found["stock"]["memory_mib"]), precision
