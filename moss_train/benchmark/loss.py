"""The suite `loss`: output projection and cross-entropy, forward and backward, at the vocabulary of MOSS.

Sides: *plain*, the logits of all tokens at once and torch's cross-entropy of them in float32, as transformers computes it; *ours*
(`model/loss.py`); torch's `linear_cross_entropy` where this torch has one; Liger's fused kernel where it is installed and a GPU is there.

Shape legend: M supervised tokens, D hidden_size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import FailedError, apart, in_turns, peak_growth
from moss_train.model.loss import linear_cross_entropy

_PLAIN, _OURS, _TORCH, _LIGER = "plain", "ours", "torch", "Liger"

_FIRST_TOKENS, _MOST_TIMES = 256, 8
"""A side that takes so many times as long as the plain one for a few tokens is told, and not timed."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make(tokens: int, hidden_size: int, vocab_size: int, dtype: str, device: str) -> Tensors:
    """hidden [M, D], weight [V, D] and bias [V], which want gradients, and targets [M]."""
    generator = torch.Generator().manual_seed(0)
    chosen = getattr(torch, dtype)
    hidden = torch.randn(tokens, hidden_size, generator=generator)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) * 0.02
    bias = torch.randn(vocab_size, generator=generator) * 0.02
    targets = torch.randint(vocab_size, (tokens,), generator=generator)
    hidden, weight, bias = (x.to(device, chosen).requires_grad_() for x in (hidden, weight, bias))
    return hidden, weight, bias, targets.to(device)


def _plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets)


def _ours(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return linear_cross_entropy(hidden, weight, bias, targets).loss_sum / len(targets)


def _torch(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Without options it is the plain computation, in the type of the inputs.
    options = torch.nn.LinearCrossEntropyOptions()
    loss: torch.Tensor = F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, options=options)
    return loss


def _liger(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: torch.Tensor = LigerFusedLinearCrossEntropyLoss()(weight, hidden, targets, bias)
    return loss


LOSSES: dict[str, Callable[..., torch.Tensor]] = {_PLAIN: _plain, _OURS: _ours, _TORCH: _torch, _LIGER: _liger}


def obstacle(side: str, device: str) -> str | None:
    """Why a side cannot be run here, or None."""
    if side == _TORCH and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return f"torch {torch.__version__} has no linear_cross_entropy in chunks"
    if side == _LIGER:
        if device != "cuda":
            return "its kernels are Triton's, which need a GPU"
        try:
            import liger_kernel  # noqa: F401
        except ImportError:
            return "liger-kernel is not installed (pip install 'moss-train[gpu]')"
    return None


def step(side: str, tensors: Tensors) -> float:
    """Loss and gradients, once; the gradients are left in the tensors."""
    for tensor in tensors[:3]:
        tensor.grad = None
    loss = LOSSES[side](*tensors)
    loss.backward()
    return float(loss.detach())


def _seconds(side: str, tensors: Tensors) -> float:
    """Of one step, after one that is not timed."""
    step(side, make(8, tensors[0].shape[1], len(tensors[2]), str(tensors[0].dtype).removeprefix("torch."), tensors[0].device.type))
    started = time.perf_counter()
    step(side, tensors)
    return time.perf_counter() - started


def measure_peak(side: str, device: str, **shape: Any) -> int:
    """Bytes by which memory grows over the inputs, the gradients included."""
    tensors = make(device=device, **shape)
    # Kernels are loaded by a small one, which is not counted.
    step(side, make(device=device, **{**shape, "tokens": 8}))
    return peak_growth(lambda: step(side, tensors), device)


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Time and peak memory of every side that can run."""
    shape = {
        "tokens": config.loss_tokens,
        "hidden_size": config.shape.hidden_size,
        "vocab_size": config.loss_vocab_size,
        "dtype": "bfloat16" if config.dtype == "bf16" else "float32",
    }
    outcome = Outcome("loss", "tokens/s", _PLAIN, settings=shape)
    outcome.not_run = {side: why for side in LOSSES if (why := obstacle(side, device))}
    tensors = make(device=device, **shape)  # type: ignore[arg-type]
    sides: dict[str, Callable[[], Any]] = {}
    seconds: dict[str, float] = {}
    for side in LOSSES:
        if side not in outcome.not_run:
            try:
                small = make(**{**shape, "tokens": _FIRST_TOKENS}, device=device)  # type: ignore[arg-type]
                seconds[side] = _seconds(side, small)
                if seconds[side] > _MOST_TIMES * seconds[_PLAIN]:
                    told = f"{seconds[side]:.0f} s for {_FIRST_TOKENS} tokens, {seconds[side] / seconds[_PLAIN]:.0f} times plain: not timed"
                    outcome.not_run[side] = told
                    continue
                sides[side] = lambda side=side: step(side, tensors)  # type: ignore[misc]
            except (RuntimeError, NotImplementedError, TypeError) as error:
                if side in (_PLAIN, _OURS):
                    raise
                outcome.not_run[side] = str(error).splitlines()[0]
    timed = in_turns(sides, config.rounds, device)
    peaks: dict[str, int] = {}
    for side in sides:
        try:
            peak: int | None = int(apart("moss_train.benchmark.loss:measure_peak", {"side": side, "device": device, **shape}))
            peaks[side] = peak or 0
        except FailedError as error:
            peak, outcome.not_run[f"memory of {side}"] = None, str(error)
        ratio = None if side == _PLAIN else timed.ratio(side)
        case = f"{shape['tokens']} tokens, {shape['hidden_size']} x {shape['vocab_size']}, {config.dtype}"
        outcome.rows.append(Row(case, side, config.loss_tokens / timed.median(side), ratio, peak, side == _OURS))
    outcome.figures["time over plain"] = 1 / timed.ratio(_OURS)["median"]
    if _PLAIN in peaks and _OURS in peaks:
        outcome.figures["peak memory over plain"] = peaks[_OURS] / peaks[_PLAIN]
    outcome.figures["largest difference of gradients, float32"] = largest_difference(device)
    return outcome


def largest_difference(device: str) -> float:
    """Of our gradients from the plain ones in float32, over the largest plain one; on a small problem of several chunks."""
    given = make(700, 64, 50_000, "float32", device)
    found = {}
    for side in (_PLAIN, _OURS):
        step(side, given)
        found[side] = [tensor.grad for tensor in given[:3]]
    pairs = zip(found[_PLAIN], found[_OURS], strict=True)
    return max(float((own - theirs).abs().max() / theirs.abs().max()) for theirs, own in pairs if own is not None and theirs is not None)
