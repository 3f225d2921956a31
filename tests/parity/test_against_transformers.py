"""The same numbers as transformers' CodeGenForCausalLM: logits, gradients, generation, and files that both can open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, CodeGenConfig, CodeGenForCausalLM

from moss_train.model.codegen import CodeGenLM, set_attention
from moss_train.model.loading import load_model

HEADS = {64: 32, 80: 64, 256: 64}
"""head_dim -> rotary_dim, as the published sizes have them (350M, 2B, 6B and 16B)."""


def make_pair(head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[CodeGenForCausalLM, CodeGenLM]:
    """The stock model with random weights, and ours with the same ones."""
    config = CodeGenConfig(
        vocab_size=515, n_positions=96, n_ctx=96, n_embd=4 * head_dim, n_layer=3, n_head=4, rotary_dim=HEADS[head_dim],
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(head_dim)
    stock = CodeGenForCausalLM(config)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    ours = CodeGenLM(config)
    assert str(ours.load_state_dict(stock.state_dict())) == "<All keys matched successfully>"
    table = stock.transformer.h[0].attn.embed_positions.clone()
    stock = stock.to(dtype)
    for block in stock.transformer.h:  # the stock class rounds its table in .to(); a loaded one has it exact
        block.attn.embed_positions = table
    return stock.eval(), ours.to(dtype).eval()


def make_ids(rows: int = 3, tokens: int = 40) -> torch.Tensor:
    return torch.randint(3, 515, (rows, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", ["auto", "eager", "sdpa"])
@pytest.mark.parametrize("head_dim", HEADS)
def test_float32_logits(head_dim: int, backend: str) -> None:
    stock, ours = make_pair(head_dim)
    set_attention(ours, backend)
    with torch.no_grad():
        expected = stock(make_ids(), use_cache=False).logits
        torch.testing.assert_close(ours(make_ids()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head_dim", HEADS)
def test_bfloat16_logits(head_dim: int) -> None:
    """Eager differs only where the activation function is one operation and not eight, each rounded."""
    stock, ours = make_pair(head_dim, torch.bfloat16)
    exact = make_pair(head_dim)[0](make_ids(), use_cache=False).logits.detach()
    with torch.no_grad():
        expected = stock(make_ids(), use_cache=False).logits.float()
        error_stock = (expected - exact).norm() / exact.norm()
        for backend in ("eager", "sdpa"):
            set_attention(ours, backend)
            error = (ours(make_ids()).logits.float() - exact).norm() / exact.norm()
            assert error < 1.1 * error_stock


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("head_dim", HEADS)
def test_float32_gradients(head_dim: int, backend: str) -> None:
    stock, ours = make_pair(head_dim)
    set_attention(ours, backend)
    input_ids = make_ids()
    targets = input_ids.roll(-1, 1)
    targets[:, -1] = targets[1, :25] = -100
    expected = F.cross_entropy(stock(input_ids, use_cache=False).logits.flatten(0, 1), targets.flatten(), reduction="sum")
    expected.backward()
    loss = ours(input_ids, targets=targets).loss_sum
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    gradients = dict(ours.named_parameters())
    for name, parameter in stock.named_parameters():
        scale = parameter.grad.abs().max()
        assert (gradients[name].grad - parameter.grad).abs().max() <= 5e-6 * scale, name


@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("head_dim", HEADS)
def test_greedy_generation(head_dim: int, backend: str) -> None:
    stock, ours = make_pair(head_dim)
    set_attention(ours, backend)
    input_ids = make_ids()
    mask = torch.ones_like(input_ids)
    mask[0, :9] = mask[2, :31] = 0
    for attention_mask in (None, mask):
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "attention_mask": attention_mask}
        expected = stock.generate(input_ids, **settings)
        assert torch.equal(ours.generate(input_ids, **settings), expected)
        assert torch.equal(ours.generate(input_ids, **settings, use_cache=False), expected)


@pytest.mark.parametrize("head_dim", HEADS)
def test_our_directory_opens_in_stock_transformers(head_dim: int, tmp_path: Path) -> None:
    _, ours = make_pair(head_dim)
    ours.save_pretrained(tmp_path, max_shard_size="1MB")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "codegen"
    assert config["architectures"] == ["CodeGenForCausalLM"]
    assert "auto_map" not in config
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is CodeGenForCausalLM
    assert not any(report.values()), report
    with torch.no_grad():
        torch.testing.assert_close(stock(make_ids(), use_cache=False).logits, ours(make_ids()).logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(load_model(tmp_path, torch.float32).eval()(make_ids()).logits, ours(make_ids()).logits)


def test_a_stock_directory_opens_in_ours(tmp_path: Path) -> None:
    stock, ours = make_pair(64)
    stock.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, torch.float32)
    assert loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(make_ids()).logits, ours(make_ids()).logits)
    assert load_model(tmp_path, torch.bfloat16).dtype == torch.bfloat16
