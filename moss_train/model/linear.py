"""Matrix products of low-precision tensors, fast on processors that have no instructions for them.

Where the CPU cannot multiply bfloat16, torch's kernel for it is many times slower than the float32 one. The product is then made in
float32 and rounded once: never less exact than the kernel it replaces. Everywhere else this is torch's own product.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_FEWEST_ROWS = 8
"""Below this many rows (generation token by token) widening the weight costs more than the product."""


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether torch hands bfloat16 products to oneDNN here; it does from AVX-512 on."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widens(x: torch.Tensor) -> bool:
    """Whether products of `x` are better made in float32."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _cpu_multiplies_bfloat16()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x @ weight.T + bias`, in the type of `x`.

    Args:
        x: [..., K].
        weight: [N, K], of the type of `x`.
        bias: [N], or None.

    Returns:
        [..., N].
    """
    if not widens(x) or x.numel() < _FEWEST_ROWS * x.shape[-1]:
        return F.linear(x, weight, bias)
    product: torch.Tensor = _WidenedLinear.apply(x, weight, bias)
    return product


class _WidenedLinear(torch.autograd.Function):
    """Keeps the narrow tensors for the backward pass, and widens them again there."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        rows, wide = x.reshape(-1, x.shape[-1]).float(), weight.float().t()
        product = torch.mm(rows, wide) if bias is None else torch.addmm(bias.float(), rows, wide)
        return product.to(x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted_x, wanted_weight, wanted_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1]).float()
        grad_x = torch.mm(rows, weight.float()).to(x.dtype).view(x.shape) if wanted_x else None
        grad_weight = torch.mm(rows.t(), x.reshape(-1, x.shape[-1]).float()).to(weight.dtype) if wanted_weight else None
        grad_bias = rows.sum(0).to(weight.dtype) if wanted_bias else None
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """torch's layer, its product made by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]."""
        return linear(x, self.weight, self.bias)
