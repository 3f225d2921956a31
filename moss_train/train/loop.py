"""fit(): the loop of every stage.

A stage hands it an engine and its batches. The model's forward returns a loss *sum* and a dictionary of `name: (sum, weight)`; a batch
carries its weight (supervised tokens, tokens, comparisons), known before any forward. One optimizer step divides the summed loss of all
micro-batches of all ranks by their summed weight, so that 1 rank with 8 rows, 8 times 1 row, and 2 ranks with 4 rows give the same
gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from moss_train.errors import NonFiniteError
from moss_train.train import engine as distributed


class Batch(Protocol):
    """What the loop asks of a batch."""

    @property
    def weight(self) -> float:
        """What this batch counts in the mean: supervised tokens, tokens or comparisons."""
        ...

    @property
    def tokens(self) -> int:
        """Input tokens, padding not counted."""
        ...

    @property
    def inputs(self) -> dict[str, Any]:
        """Keyword arguments of the forward."""
        ...

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        ...


@dataclass(frozen=True)
class Plan:
    """What `fit` is asked to do; all numbers in optimizer steps."""

    total_steps: int
    eval_every: int
    """0: at the end only."""
    learning_rate: Callable[[int], float]


@dataclass
class StepReport:
    """One optimizer step, over all ranks."""

    step: int
    """Steps done, this one included."""
    metrics: dict[str, float]
    learning_rate: float
    grad_norm: float
    weight: float
    tokens: int
    seconds: float
    evaluations: dict[str, float] = field(default_factory=dict)


def fit(
    engine: Any,
    step_batches: Callable[[int], Sequence[Batch]],
    evaluate: Callable[[], dict[str, float]],
    plan: Plan,
    report: Callable[[StepReport], None],
) -> None:
    """Trains for `plan.total_steps` optimizer steps.

    Args:
        engine: From `engine.initialize`.
        step_batches: Optimizer step -> this rank's micro-batches; the same number of them on every rank.
        evaluate: Metrics on validation data; a collective, called on every rank.
        plan: Length, rhythm and learning rate.
        report: Told of every step, on every rank.

    Raises:
        NonFiniteError: A loss or gradient is not finite. DeepSpeed has left the weights as they were.
    """
    world_size, device = distributed.world_size(), distributed.device()
    for step in range(plan.total_steps):
        started = time.perf_counter()
        batches = step_batches(step)
        weight, tokens = distributed.all_reduce_sum([sum(b.weight for b in batches), sum(b.tokens for b in batches)])
        rate = plan.learning_rate(step)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        totals: dict[str, list[float]] = {}
        for batch in batches:
            output = engine(**batch.to(device).inputs)
            # DeepSpeed averages gradients over ranks; the sum over ranks, divided by the weight over ranks, is wanted.
            engine.backward(output.loss_sum * (world_size / weight), scale_wrt_gas=False)
            engine.step()
            add_metrics(totals, output.metrics)
        metrics = reduce_metrics(totals)
        norm = float(engine.get_global_grad_norm() or 0.0)
        if not engine.was_step_applied() or not math.isfinite(metrics["loss"]):
            raise NonFiniteError(
                f"step {step + 1}: the loss is {metrics['loss']}, the gradient norm {norm}. This step was "
                f"{'applied' if engine.was_step_applied() else 'not applied; the weights are those of the step before'}. "
                "Lower optim.lr, lengthen optim.warmup, or look at the records of this step"
            )
        done = StepReport(step + 1, metrics, rate, norm, weight, int(tokens), time.perf_counter() - started)
        if step + 1 == plan.total_steps or (plan.eval_every and (step + 1) % plan.eval_every == 0):
            done.evaluations = evaluate()
        report(done)


def add_metrics(totals: dict[str, list[float]], metrics: dict[str, tuple[Any, Any]]) -> None:
    """Adds `name: (sum, weight)` to running totals."""
    for name, (value, weight) in metrics.items():
        total = totals.setdefault(name, [0.0, 0.0])
        total[0] += float(value)
        total[1] += float(weight)


def reduce_metrics(totals: dict[str, list[float]]) -> dict[str, float]:
    """Weighted means over all ranks. Names are the same on every rank: they come from the model and its configuration."""
    names = sorted(totals)
    sums = distributed.all_reduce_sum([value for name in names for value in totals[name]])
    return {name: sums[2 * i] / sums[2 * i + 1] if sums[2 * i + 1] else math.nan for i, name in enumerate(names)}


def evaluate_batches(engine: Any, batches: Sequence[Batch]) -> dict[str, float]:
    """Mean metrics of the model on `batches`, which are as many on every rank: under ZeRO-3 each forward is a collective."""
    totals: dict[str, list[float]] = {}
    device = distributed.device()
    engine.eval()
    with torch.no_grad():
        for batch in batches:
            add_metrics(totals, engine(**batch.to(device).inputs).metrics)
    engine.train()
    return reduce_metrics(totals)
