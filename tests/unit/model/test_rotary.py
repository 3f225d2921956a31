"""The rotary table is float32 and right, however and in whatever precision the model is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig
from transformers.models.codegen.modeling_codegen import apply_rotary_pos_emb, create_sinusoidal_positions

from moss_train.model.codegen import CodeGenLM, init_model
from moss_train.model.rotary import build_rotary_table, split_and_rotate

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def check_exact(model: CodeGenLM) -> None:
    table = model.transformer.rotary_table
    assert table.dtype == torch.float32
    assert torch.equal(table, create_sinusoidal_positions(model.config.n_positions, model.config.rotary_dim))


def test_table_is_the_published_one_and_near_the_true_values() -> None:
    table = build_rotary_table(2048, 64)
    assert torch.equal(table, create_sinusoidal_positions(2048, 64))
    true = torch.tensor([[math.sin(p * 10000 ** (-2 * i / 64)) for i in range(32)] for p in range(2048)], dtype=torch.float64)
    # Angles reach 2047 rad, whose spacing in float32 is 1.2e-4.
    torch.testing.assert_close(table[:, :32].double(), true, atol=3e-4, rtol=0)


@pytest.mark.parametrize("dtype", TYPES)
def test_table_does_not_depend_on_the_default_dtype(dtype: torch.dtype) -> None:
    expected = build_rotary_table(2048, 64)
    torch.set_default_dtype(dtype)
    try:
        found = build_rotary_table(2048, 64)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_every_way_to_make_a_model(make_config: Callable[..., CodeGenConfig], dtype: torch.dtype, tmp_path: Path) -> None:
    config = make_config(n_positions=2048)
    check_exact(CodeGenLM(config).to(dtype))
    check_exact(CodeGenLM._from_config(config, dtype=dtype))
    model = init_model(config, seed=0, dtype=dtype)
    check_exact(model)
    model.save_pretrained(tmp_path)
    check_exact(CodeGenLM.from_pretrained(tmp_path, dtype=dtype))
    check_exact(CodeGenLM.from_pretrained(tmp_path).bfloat16().half().float())
    with torch.device("meta"):
        hollow = CodeGenLM(config)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    torch.set_default_dtype(dtype)
    try:
        model = CodeGenLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    check_exact(model)


def test_one_table_outside_the_state(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model()
    assert [name for name, _ in model.named_buffers()] == ["transformer.rotary_table"]
    assert not [name for name in model.state_dict() if "rotary" in name]


def published(qkv: torch.Tensor, num_heads: int, sin: torch.Tensor, cos: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Queries, keys and values as the published code takes them apart and turns them."""
    rotary_dim = 2 * sin.shape[-1]
    q, v, k = (x.reshape(*qkv.shape[:2], num_heads, -1) for x in qkv.reshape(*qkv.shape[:2], 4, -1).chunk(3, dim=-1))
    turned = [torch.cat((apply_rotary_pos_emb(x[..., :rotary_dim], sin, cos), x[..., rotary_dim:]), dim=-1) for x in (q, k)]
    return turned[0], turned[1], v


def rotation(rotary_dim: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of five positions in each row; each [rows, 5, R/2]."""
    sin, cos = build_rotary_table(32, rotary_dim)[torch.tensor([[0, 1, 2, 3, 4], [7, 9, 0, 1, 31]][:rows])].chunk(2, dim=-1)
    return sin, cos


@pytest.mark.parametrize("rotary_dim", [8, 16])
@pytest.mark.parametrize("rows", [1, 2])
def test_rotation_and_its_gradient_are_the_published_ones(rotary_dim: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 8 * 16, generator=generator)
    sin, cos = rotation(rotary_dim, rows)
    ours, theirs = (qkv.clone().requires_grad_() for _ in range(2))
    found = split_and_rotate(ours, 8, sin[:, :, None], cos[:, :, None], torch.float32)
    expected = published(theirs, 8, sin, cos)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
    weights = [torch.randn(one.shape, generator=generator) for one in found]
    for parts in (found, expected):
        sum((one * weight).sum() for one, weight in zip(parts, weights, strict=True)).backward()  # type: ignore[union-attr]
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-6)


def test_narrow_numbers_are_turned_in_float32_and_rounded_once() -> None:
    qkv = torch.randn(2, 5, 3 * 8 * 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    sin, cos = rotation(16, 2)
    low = split_and_rotate(qkv, 8, sin[:, :, None], cos[:, :, None], torch.bfloat16)
    high = split_and_rotate(qkv.float(), 8, sin[:, :, None], cos[:, :, None], torch.float32)
    for one, other in zip(low, high, strict=True):
        assert torch.equal(one, other.bfloat16())
