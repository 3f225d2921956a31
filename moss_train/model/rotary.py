"""Rotary position embedding as GPT-J and CodeGen have it: interleaved pairs, part of each head, float32.

Shape legend: B batch (rows), T tokens of a row, N heads, H head_dim, R rotary_dim.
"""

from __future__ import annotations

import torch


def build_rotary_table(positions: int, rotary_dim: int) -> torch.Tensor:
    """Sines, then cosines, of position * 10000^(-2i/R): float32 [positions, R] on the CPU.

    Every step is explicit about type and device. The published code divides integers, which gives the *default* dtype: built under
    float16 or bfloat16 its table is wrong by up to 0.8 at long positions. Integer aranges, because DeepSpeed's construction context casts
    new floating-point tensors to the type of the model.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / rotary_dim
    inverse_frequency = 1.0 / torch.pow(10000, exponent)
    angle = torch.arange(positions, dtype=torch.int64, device="cpu").to(torch.float32)[:, None] * inverse_frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)


def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rotate the pairs (0, 1), (2, 3), ... of the first R entries of each head, in float32.

    Args:
        x: [B, T, N, H].
        sin: float32 [B or 1, T, 1, R/2].
        cos: The same shape.
        dtype: Type of the result.

    Returns:
        [B, T, N, H] of type `dtype`; the entries after R are only cast.
    """
    rotary_dim = 2 * sin.shape[-1]
    # `split`, not slices: its backward is one concatenation instead of two tensors of zeros and their sum.
    turned, passed = x.split((rotary_dim, x.shape[-1] - rotary_dim), dim=-1)
    even, odd = turned.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((rotated.to(dtype), passed.to(dtype)), dim=-1)
