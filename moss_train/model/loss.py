"""The output projection and its cross-entropy in one pass, a chunk of tokens at a time.

The logits of a batch are its largest tensor (16,384 tokens x 107,008 rows in float32: 6.5 GiB, and as much again for their gradient).
Here they exist for one chunk only: each chunk's logits become losses, and, where gradients are wanted, at once the gradients of the
hidden states, the weight and the bias. Nothing of vocabulary size is kept for the backward pass, which only multiplies by the gradient of
the loss.

Shape legend: M supervised tokens, C tokens of a chunk, D hidden_size, V vocabulary.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch

from moss_train.model.linear import linear, widens

IGNORE_INDEX = -100
"""Target of a token that is not supervised."""

_LOGITS_PER_CHUNK = {"cpu": 2**24, "cpu, narrow": 2**27, "cuda": 2**28}
"""Elements of a chunk's logits. On CUDA 2**28 is 1 GiB in float32 and 2,432 tokens at V = 107,008: enough rows for the matrix products
to run at full speed. On the CPU 64 MiB is enough in float32, where the weight's gradient adds up inside the product. In bfloat16 it is
read and written once more for each chunk, which is to be rare: 256 MiB."""

_LOGITS_PER_BLOCK = 2**19
"""Elements of the softmax that is made at once on a CPU: 2 MiB in float32, what the cache of a core holds. Each of the ten passes over
them would otherwise go to memory."""

_CHUNK_MULTIPLE = 128
"""Rows of a chunk are a multiple of this, the tile of the matrix kernels."""

_ROWS_PER_PRODUCT = 16384
"""Vocabulary rows of one product for the weight's gradient on CUDA: 0.4 GiB in float32 at D = 6144."""

_ROWS_PER_SUM = 256
"""Vocabulary rows of one sum for the weight's gradient on a CPU: 1 MiB in float32 at D = 1024."""


def block_size(vocab_size: int, device_type: str) -> int:
    """Tokens whose softmax is made at once: on a CPU as many as its caches hold, elsewhere all of a chunk."""
    return max(1, _LOGITS_PER_BLOCK // vocab_size) if device_type == "cpu" else sys.maxsize


def chunk_size(vocab_size: int, device_type: str, is_narrow: bool = False) -> int:
    """Tokens of a chunk whose logits stay within the bound of the device, at least 128.

    Args:
        vocab_size: V. device_type: `cpu` or `cuda`. is_narrow: Whether products are made in a 16-bit type.
    """
    kind = "cpu, narrow" if device_type == "cpu" and is_narrow else device_type
    limit = _LOGITS_PER_CHUNK.get(kind, _LOGITS_PER_CHUNK["cuda"])
    return max(_CHUNK_MULTIPLE, limit // vocab_size // _CHUNK_MULTIPLE * _CHUNK_MULTIPLE)


class HeadLoss(NamedTuple):
    """Losses of the supervised tokens of a batch.

    Attributes:
        loss_sum: Scalar float32, the objective, and the only one with a gradient.
        token_loss: float32 [M], cross-entropy in nats; neither weighted nor with the z-loss.
        token_correct: bool [M], whether the most probable token is the target.
        token_log_z: float32 [M], log(sum(exp(logits))).
    """

    loss_sum: torch.Tensor
    token_loss: torch.Tensor
    token_correct: torch.Tensor
    token_log_z: torch.Tensor


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    chunk_tokens: int | None = None,
    *,
    token_weight: torch.Tensor | None = None,
    z_loss: float = 0.0,
) -> HeadLoss:
    """Summed cross-entropy of `hidden @ weight.T + bias`, weighted by token and with the z-loss where they are asked for.

    loss_sum = sum of w * (cross-entropy + z_loss * log_z^2) over tokens, log_z = log(sum(exp(logits))). The second term holds the
    normalizer near 1, so that logits do not drift to where their number format is coarse (PaLM, arXiv 2204.02311, section 5).

    The product runs in the type of the inputs, as the plain projection would, so the losses are those of the logits that the model returns
    elsewhere; logarithm, softmax and the sums over tokens are float32. Call it inside the forward of the module that owns the weight: under
    ZeRO-3 the weight is whole only there.

    Args:
        hidden: [M, D]; M may be 0, then the loss is a 0 that still gives every input a gradient of zeros.
        weight: [V, D].
        bias: [V].
        targets: int64 [M], each in [0, V); none is `IGNORE_INDEX` (drop those rows before).
        chunk_tokens: C; by default from `chunk_size`.
        token_weight: w, float32 [M]; by default 1 each. It takes no gradient.
        z_loss: Coefficient of the z-loss.
    """
    is_narrow = hidden.dtype != torch.float32 and not widens(hidden)
    chunk_tokens = chunk_tokens or chunk_size(weight.shape[0], hidden.device.type, is_narrow)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad or bias.requires_grad):
        return HeadLoss(*_LinearCrossEntropy.apply(hidden, weight, bias, targets, chunk_tokens, token_weight, z_loss))
    losses, _ = _losses_and_gradients(hidden, weight, bias, targets, chunk_tokens, token_weight, z_loss, (False, False, False))
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes the gradients in the forward pass, where the logits of each chunk exist anyway."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        targets: torch.Tensor,
        chunk_tokens: int,
        token_weight: torch.Tensor | None,
        z_loss: float,
    ) -> tuple[torch.Tensor, ...]:
        losses, ctx.gradients = _losses_and_gradients(
            hidden, weight, bias, targets, chunk_tokens, token_weight, z_loss, ctx.needs_input_grad[:3]
        )
        ctx.dtypes = (hidden.dtype, weight.dtype, bias.dtype)
        ctx.mark_non_differentiable(*losses[1:])
        ctx.set_materialize_grads(False)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor | None, *_: Any) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy: backward ran a second time; its gradients are scaled in place and kept for one pass only"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if grad_loss is None:
            return (None,) * 7
        # In place: the weight's gradient is the largest tensor of the step. Scaled in float32 before it is rounded to the parameter's type.
        scaled = [None if g is None else g.mul_(grad_loss).to(dtype) for g, dtype in zip(gradients, ctx.dtypes)]
        return (*scaled, None, None, None, None)


_Gradients = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def _losses_and_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    chunk_tokens: int,
    token_weight: torch.Tensor | None,
    z_loss: float,
    wanted: tuple[bool, bool, bool],
) -> tuple[HeadLoss, _Gradients]:
    """The losses, and the gradients of their sum for hidden (its type), weight and bias (float32) where wanted."""
    tokens = hidden.shape[0]
    token_loss = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
    token_log_z = torch.empty_like(token_loss)
    token_correct = torch.empty(tokens, dtype=torch.bool, device=hidden.device)
    # `new_zeros` and `empty_like` on purpose: DeepSpeed's construction context patches torch.zeros and torch.empty.
    grad_hidden = torch.empty_like(hidden) if wanted[0] else None
    grad_weight: torch.Tensor | None = None
    grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] else None
    factor = weight.float() if widens(hidden) and any(wanted) else weight
    block_tokens = min(block_size(weight.shape[0], hidden.device.type), chunk_tokens, max(1, tokens))
    # The softmax is made here, in float32, and goes back to the logits' place in their type.
    buffer = None if factor.dtype == torch.float32 else weight.new_empty(block_tokens, weight.shape[0], dtype=torch.float32)
    for start in range(0, tokens, chunk_tokens):
        chunk = slice(start, min(start + chunk_tokens, tokens))
        h = hidden[chunk]
        logits = linear(h, weight, bias)
        if factor.dtype != logits.dtype:
            logits = logits.float()
        for first in range(chunk.start, chunk.stop, block_tokens):
            # Of the batch, and of this chunk.
            rows = slice(first, min(first + block_tokens, chunk.stop))
            part = logits[rows.start - start : rows.stop - start]
            target = targets[rows, None]
            block = part if buffer is None else buffer[: len(part)].copy_(part)
            highest, best = block.max(dim=-1, keepdim=True)
            token_correct[rows] = (best == target).squeeze(1)
            aimed_at = block.gather(1, target)
            # From here in the memory of the logits, with one exponential for the loss and its gradient.
            exponentials = block.sub_(highest).exp_()
            total = exponentials.sum(dim=-1, keepdim=True)
            log_total = total.log()
            token_loss[rows] = (highest - aimed_at + log_total).squeeze(1)
            log_z = highest + log_total
            token_log_z[rows] = log_z.squeeze(1)
            if not any(wanted):
                continue
            # d loss / d logits = w * ((1 + 2 * z_loss * log_z) * softmax(logits) - onehot(target)); w is 1 where it is not given.
            w = torch.ones_like(total) if token_weight is None else token_weight[rows, None]
            if token_weight is None and not z_loss:
                grad_logits = exponentials.div_(total)
            else:
                grad_logits = exponentials.mul_(w * (1 + 2 * z_loss * log_z) / total)
            grad_logits.scatter_add_(1, target, -w)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            if buffer is not None:
                part.copy_(grad_logits)
        # What was the logits is their gradient now, in the type that products are made in.
        if grad_hidden is not None:
            if factor.dtype == grad_hidden.dtype:
                torch.mm(logits, factor, out=grad_hidden[chunk])
            else:
                grad_hidden[chunk] = torch.mm(logits, factor)
        if wanted[1]:
            grad_weight = _add_outer(grad_weight, logits, h)
    if wanted[1] and grad_weight is None:
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    objective = token_loss + z_loss * token_log_z.square() if z_loss else token_loss
    loss_sum = objective.sum() if token_weight is None else (token_weight * objective).sum()
    return HeadLoss(loss_sum, token_loss, token_correct, token_log_z), (grad_hidden, grad_weight, grad_bias)


def _add_outer(total: torch.Tensor | None, grad_logits: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """total [V, D] + grad_logits [C, V].T @ hidden [C, D], in the memory of the total; it is float32, but for that of a single chunk."""
    if grad_logits.dtype == torch.float32:
        hidden = hidden.float()
        return torch.mm(grad_logits.t(), hidden) if total is None else total.addmm_(grad_logits.t(), hidden)
    if hidden.device.type != "cuda":
        # Accumulated in float32 inside a product, and over products; rounded once for each, of which there are few: chunks are large here.
        product = torch.mm(grad_logits.t(), hidden)
        if total is None:
            return product
        total = total.float()
        # A slice at a time, or the product would be widened as a whole.
        for own, other in zip(total.split(_ROWS_PER_SUM), product.split(_ROWS_PER_SUM), strict=True):
            own += other
        return total
    # Tensor cores accumulate in float32; out_dtype keeps that. By slices of the vocabulary, so that the product is not a second [V, D]
    # float32.
    if total is None:
        total = hidden.new_zeros(grad_logits.shape[1], hidden.shape[1], dtype=torch.float32)
    for start in range(0, grad_logits.shape[1], _ROWS_PER_PRODUCT):
        rows = slice(start, start + _ROWS_PER_PRODUCT)
        total[rows] += torch.mm(grad_logits[:, rows].t(), hidden, out_dtype=torch.float32)
    return total
