"""Quantised weights, kept packed in memory: a linear layer that widens its weight at each product, and reading what others wrote.

    gptq      qweight, qzeros, scales, g_idx of a layer, as GPTQ's first format has them (`quantization_config`, and MOSS's `wbits`)
    torchao   _weight_qdata, _weight_scale, _weight_zero_point: int8, a scale for each row

Nothing but torch is needed to read either. The product is made of the widened weight in the type of the input, by the same `linear` as any
other layer: a variant computes what its weights say, to rounding, on every device, and a row does not depend on the rows beside it.

Shape legend: N outputs, K inputs, G groups of inputs that share a scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CodeGenConfig

from moss_train.errors import CheckpointError
from moss_train.model.linear import Linear, linear
from moss_train.model.shapes import parameter_shapes

GPTQ, TORCHAO = "gptq", "torchao"
PACKED_LAYERS = (".attn.qkv_proj", ".attn.out_proj", ".mlp.fc_in", ".mlp.fc_out")
"""What is quantised: the products of the blocks. Embeddings, LayerNorms and heads stay as they are."""
_WORD = 32
_INTEGERS = {"I32", "I16", "I8", "U8"}


@dataclass(frozen=True)
class Packing:
    """How weights are packed.

    Attributes:
        method: GPTQ or TORCHAO. bits: Of a weight.
        group_size: Inputs that share a scale; None where a whole row does.
        is_moss: MOSS's own configuration says so, whose `wbits` has been wrong: the tensors decide.
    """

    method: str
    bits: int
    group_size: int | None
    is_moss: bool = False

    def __str__(self) -> str:
        group = f", groups of {self.group_size}" if self.group_size else ""
        return f"{self.method}, {self.bits} bits{group}"


def read_packing(raw: Mapping[str, Any], where: str) -> Packing | None:
    """What a config.json says about quantised weights, or None where they are not.

    Args:
        raw: The file as JSON.
        where: For messages.

    Raises:
        CheckpointError: They are, in a way that this model does not read.
    """
    said = raw.get("quantization_config")
    if not said:
        wbits = raw.get("wbits")
        if not isinstance(wbits, int) or wbits >= 16:
            return None
        return Packing(GPTQ, wbits, int(raw.get("groupsize") or 128), is_moss=True)
    method, bits = said.get("quant_method"), said.get("bits")
    if method == TORCHAO:
        kind = ((said.get("quant_type") or {}).get("default") or {}).get("_type")
        if kind == "Int8WeightOnlyConfig":
            return Packing(TORCHAO, 8, None)
        problem = f"torchao's {kind}; expected Int8WeightOnlyConfig"
    elif method == GPTQ:
        group = said.get("group_size")
        if bits in (4, 8) and isinstance(group, int) and group > 0 and said.get("checkpoint_format", "gptq") == "gptq":
            return Packing(GPTQ, bits, group)
        problem = (
            f"GPTQ with bits {bits}, group_size {group}, format {said.get('checkpoint_format')}; expected 4 or 8 bits, a group size, gptq"
        )
    else:
        problem = f"{method or 'an unnamed method'}; expected gptq or torchao"
    raise CheckpointError(
        f"{where}: the weights are quantised by {problem}. Take the directory it was made of, and scripts/quantize.py for a variant of it"
    )


def packed_shapes(config: CodeGenConfig, packing: Packing) -> dict[str, tuple[tuple[int, ...], set[str] | None]]:
    """Name of every stored tensor -> its shape, and its types by safetensors' names; None for any floating type."""
    found: dict[str, tuple[tuple[int, ...], set[str] | None]] = {}
    for name, shape in parameter_shapes(config).items():
        layer = name.removesuffix(".weight")
        if not is_packed(layer) or layer == name:
            found[name] = (shape, None)
            continue
        outputs, inputs = shape
        if packing.method == TORCHAO:
            found[f"{layer}._weight_qdata"] = (shape, {"I8"})
            found[f"{layer}._weight_scale"] = ((outputs, 1), None)
            found[f"{layer}._weight_zero_point"] = ((outputs, 1), {"I8"})
            continue
        groups = -(-inputs // (packing.group_size or inputs))
        found[f"{layer}.qweight"] = ((inputs * packing.bits // _WORD, outputs), {"I32"})
        found[f"{layer}.qzeros"] = ((groups, outputs * packing.bits // _WORD), {"I32"})
        found[f"{layer}.scales"] = ((groups, outputs), None)
        found[f"{layer}.g_idx"] = ((inputs,), {"I32"})
    return found


def packed_bytes(config: CodeGenConfig, packing: Packing, itemsize: int) -> int:
    """Memory of a model with packed layers, whose other weights take `itemsize` bytes each."""
    total = 0.0
    for name, shape in parameter_shapes(config).items():
        count = math.prod(shape)
        if name.endswith(".weight") and is_packed(name.removesuffix(".weight")):
            # A scale in float32 and a zero in a byte for each group.
            total += count * packing.bits / 8 + 5 * count / (packing.group_size or shape[1])
        else:
            total += count * itemsize
    return int(total)


def is_packed(layer: str) -> bool:
    """Whether the layer of this name is quantised."""
    return layer.startswith("transformer.h.") and layer.endswith(PACKED_LAYERS)


class PackedLinear(nn.Module):
    """A linear layer whose weight is (code - zero) * scale.

    Args:
        codes: uint8 [N, K], or [N, K / 2] of four bits: the first input is in the low ones.
        scales: float32 [N, G]. zeros: uint8 [N, G]. bias: [N], or None.
        bits: Of a code. dtype: Of the weight, once widened.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bias: torch.Tensor | None, bits: int, dtype: torch.dtype
    ):
        super().__init__()
        self.bits, self.dtype = bits, dtype
        self.out_features, self.in_features = codes.shape[0], codes.shape[1] * 8 // bits
        for name, tensor in (("codes", codes), ("scales", scales), ("zeros", zeros), ("bias", bias)):
            self.register_buffer(name, tensor)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        """Scales stay float32 through `.to(bfloat16)` and the like; devices are followed."""
        scales = self.scales
        super()._apply(fn, recurse)
        self.scales = scales.to(self.scales.device)
        return self

    @property
    def weight(self) -> torch.Tensor:
        """[N, K], widened anew each time."""
        codes = self.codes
        if self.bits == 4:
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(1)
        # [N, G, K / G]; integers up to 255 are exact in float32, so the product is rounded once.
        values = codes.view(*self.scales.shape, -1).float()
        values = values.sub_(self.zeros[..., None].float()).mul_(self.scales[..., None])
        return values.view(self.out_features, self.in_features).to(self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        bias: torch.Tensor | None = self.bias  # type: ignore[assignment]  # a buffer
        return linear(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def extra_repr(self) -> str:
        """Shape and bits, for people."""
        return f"{self.in_features} -> {self.out_features}, {self.bits} bits, {self.scales.shape[1]} groups"


def make_layer(stored: Mapping[str, torch.Tensor], bias: torch.Tensor | None, packing: Packing, dtype: torch.dtype) -> PackedLinear:
    """A layer from what is stored of it, by the last part of each tensor's name.

    Raises:
        CheckpointError: Inputs are grouped in another order (`desc_act`).
    """
    if packing.method == TORCHAO:
        # Signed in the file.
        codes = (stored["_weight_qdata"].to(torch.int16) + 128).to(torch.uint8)
        zeros = (stored["_weight_zero_point"].to(torch.int16) + 128).to(torch.uint8)
        return PackedLinear(codes, stored["_weight_scale"].float(), zeros, bias, 8, dtype)
    bits, inputs = packing.bits, stored["g_idx"].shape[0]
    group = packing.group_size or inputs
    if not torch.equal(stored["g_idx"].cpu().long(), torch.arange(inputs) // group):
        raise CheckpointError("the inputs of a layer are grouped in another order (desc_act); this model reads groups of neighbours only")
    codes = unpack_words(stored["qweight"].t(), bits)
    # Stored less one, so that a zero of 2^bits fits.
    zeros = unpack_words(stored["qzeros"], bits).t() + 1
    if bits == 4:
        pairs = codes.view(codes.shape[0], -1, 2)
        codes = pairs[..., 0] | (pairs[..., 1] << 4)
    return PackedLinear(codes.contiguous(), stored["scales"].t().float().contiguous(), zeros.contiguous(), bias, bits, dtype)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [R, W] -> uint8 [R, W * 32 / bits]: low bits first."""
    shifts = torch.arange(0, _WORD, bits, device=words.device, dtype=torch.int32)
    values = torch.bitwise_right_shift(words.contiguous()[..., None], shifts).bitwise_and_((1 << bits) - 1)
    return values.to(torch.uint8).flatten(1)


def put_layers(model: nn.Module, layers: Iterator[tuple[str, PackedLinear]]) -> None:
    """Puts packed layers in the place of a model's linear ones, by name."""
    for name, layer in layers:
        parent, _, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        if not isinstance(getattr(owner, attribute), Linear):
            raise TypeError(f"{name} is no linear layer")
        setattr(owner, attribute, layer)
