"""Rotary position embedding as GPT-J and CodeGen have it: interleaved pairs, part of each head, float32.

Shape legend: B batch (rows), T tokens of a row, N heads, H head_dim, R rotary_dim.
"""

from __future__ import annotations

from typing import Any

import torch

from moss_train.model.shapes import QKV_BLOCKS


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


def split_and_rotate(
    qkv: torch.Tensor, num_heads: int, sin: torch.Tensor, cos: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a fused projection; queries and keys turned by their positions.

    One operation for autograd, whose gradient is written into one tensor; of a dozen each would be a kernel, and one or two more in the
    backward pass.

    Args:
        qkv: [B, T, 3 * N * H], as CodeGen lays it out: `QKV_BLOCKS` blocks, each of queries, values, keys of N / QKV_BLOCKS heads.
        num_heads: N.
        sin: float32 [B or 1, T, 1, R/2].
        cos: The same shape.
        dtype: Of the queries and keys. They are turned in float32, and rounded once.

    Returns:
        q, k of type `dtype`, and v of the type of `qkv`: each [B, T, N, H], contiguous.
    """
    q, k, v = _SplitAndRotate.apply(qkv, num_heads, sin, cos, dtype)
    return q, k, v


class _SplitAndRotate(torch.autograd.Function):
    """Keeps the rotation only: what the gradient needs besides."""

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, num_heads: int, sin: torch.Tensor, cos: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        cos, sin = _by_entry(sin, cos)
        ctx.save_for_backward(sin, cos)
        q, v, k = _parts(qkv.contiguous(), num_heads)
        whole = (*qkv.shape[:2], num_heads, qkv.shape[-1] // (3 * num_heads))
        turned = [torch.empty(whole, dtype=dtype, device=qkv.device) for _ in range(2)]
        for out, x in zip(turned, (q, k), strict=True):
            _rotate(x, sin, cos, out.view(x.shape))
        # With as many heads as blocks that would be a view, which keeps all of `qkv`.
        return turned[0], turned[1], v.reshape(whole).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sin, cos = ctx.saved_tensors
        grad_q, grad_k, grad_v = grads
        whole = (*grad_v.shape[:2], 3 * grad_v.shape[2] * grad_v.shape[3])
        grad_qkv = torch.empty(whole, dtype=grad_v.dtype, device=grad_v.device)
        q, v, k = _parts(grad_qkv, grad_v.shape[2])
        # The inverse of a rotation is its transpose.
        for out, grad in ((q, grad_q), (k, grad_k)):
            _rotate(grad.reshape(out.shape), -sin, cos, out)
        v.copy_(grad_v.reshape(v.shape))
        return grad_qkv, None, None, None, None


def _parts(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, ...]:
    """Views of queries, values, keys: each [B, T, QKV_BLOCKS, N / QKV_BLOCKS, H]."""
    return qkv.view(*qkv.shape[:2], QKV_BLOCKS, 3, num_heads // QKV_BLOCKS, -1).unbind(3)


def _by_entry(sin: torch.Tensor, cos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the entries of a head are multiplied with, and what their neighbours are: [B or 1, T, 1, 1, R] each.

    (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    return tuple(torch.stack(pair, dim=-1).flatten(-2)[:, :, None] for pair in ((cos, cos), (-sin, sin)))  # type: ignore[return-value]


def _rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, out: torch.Tensor) -> None:
    """Writes into `out` the heads of `x`, the first R entries of each turned in float32, the rest only cast."""
    rotary_dim = sin.shape[-1]
    turned = x[..., :rotary_dim].float()
    neighbours = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    out[..., :rotary_dim] = (turned * cos).add_(neighbours.mul_(sin))
    out[..., rotary_dim:] = x[..., rotary_dim:]
