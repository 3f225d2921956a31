"""Packed weights: what is read from the files of others is what was packed, and what computes nothing wrong."""

from __future__ import annotations

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.errors import CheckpointError
from moss_train.model.packed import GPTQ, TORCHAO, Packing, make_layer, packed_bytes, packed_shapes, read_packing, unpack_words

INT8 = {"default": {"_type": "Int8WeightOnlyConfig"}}


def pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers [R, C] -> int32 [R, C * bits / 32], low bits first: written apart from what reads it."""
    per_word = 32 // bits
    words = torch.zeros(values.shape[0], values.shape[1] // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= values[:, place::per_word].long() << (bits * place)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def gptq_tensors(bits: int, outputs: int, inputs: int, group: int, seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer as GPTQ stores it, and its weight."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (outputs, inputs), generator=generator)
    zeros = torch.randint(1, 2**bits, (outputs, inputs // group), generator=generator)
    scales = (torch.rand(outputs, inputs // group, generator=generator) / 10).half()
    weight = (codes - zeros.repeat_interleave(group, 1)) * scales.float().repeat_interleave(group, 1)
    stored = {
        "qweight": pack_words(codes, bits).t().contiguous(),
        "qzeros": pack_words(zeros.t() - 1, bits).contiguous(),
        "scales": scales.t().contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }
    return stored, weight


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_a_layer_is_what_was_packed(bits: int, group: int) -> None:
    stored, weight = gptq_tensors(bits, 32, 128, group)
    bias = torch.randn(32)
    layer = make_layer(stored, bias, Packing(GPTQ, bits, group), torch.float32)
    assert torch.equal(layer.weight, weight), "to the bit"
    x = torch.randn(3, 5, 128)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight, bias))
    assert layer.codes.nbytes == 32 * 128 * bits // 8, "it stays packed"


def test_int8_of_torchao_is_what_was_packed() -> None:
    codes = torch.randint(-128, 128, (16, 64), dtype=torch.int8)
    scale, zero = torch.rand(16, 1), torch.zeros(16, 1, dtype=torch.int8)
    stored = {"_weight_qdata": codes, "_weight_scale": scale, "_weight_zero_point": zero}
    layer = make_layer(stored, None, Packing(TORCHAO, 8, None), torch.float32)
    assert torch.equal(layer.weight, codes.float() * scale)


def test_scales_are_kept_exact_when_the_model_is_cast() -> None:
    stored, weight = gptq_tensors(4, 32, 64, 32)
    layer = make_layer(stored, None, Packing(GPTQ, 4, 32), torch.float32).to(torch.bfloat16)
    assert layer.scales.dtype == torch.float32
    assert torch.equal(layer.weight, weight)


def test_inputs_in_another_order_are_refused() -> None:
    stored, _ = gptq_tensors(4, 32, 64, 32)
    stored["g_idx"] = stored["g_idx"].flip(0)
    with pytest.raises(CheckpointError, match="desc_act"):
        make_layer(stored, None, Packing(GPTQ, 4, 32), torch.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_words_hold_low_bits_first(bits: int) -> None:
    values = torch.randint(2**bits, (3, 64))
    assert torch.equal(unpack_words(pack_words(values, bits), bits).long(), values)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, None),
        ({"wbits": 32}, None),
        ({"wbits": 4, "groupsize": 128}, Packing(GPTQ, 4, 128, is_moss=True)),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 64}}, Packing(GPTQ, 8, 64)),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": INT8}}, Packing(TORCHAO, 8, None)),
    ],
)
def test_what_configurations_say(raw: dict, expected: Packing | None) -> None:
    assert read_packing(raw, "DIR") == expected


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 3, "group_size": 128},
        {"quant_method": "gptq", "bits": 4, "group_size": -1},
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}},
    ],
)
def test_what_is_not_read_is_refused_with_what_to_do(said: dict) -> None:
    with pytest.raises(CheckpointError, match=r"scripts/quantize\.py"):
        read_packing({"quantization_config": said}, "DIR")


def test_memory_of_sixteen_billion_parameters() -> None:
    config = CodeGenConfig(
        vocab_size=107008, n_positions=2048, n_embd=6144, n_layer=34, n_head=24, rotary_dim=64, tie_word_embeddings=False
    )
    # 15.4 billion in half a byte, embeddings and head in two.
    assert packed_bytes(config, Packing(GPTQ, 4, 128), 2) == pytest.approx(10.9e9, rel=0.01)
    assert packed_shapes(config, Packing(GPTQ, 4, 128))["transformer.h.0.attn.qkv_proj.qweight"] == ((768, 18432), {"I32"}), "as published"
