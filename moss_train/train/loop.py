"""fit(): the loop of every stage.

A stage hands it an engine and its batches. The model's forward returns a loss *sum* and a dictionary of `name: (sum, weight)`; a batch
carries its weight (supervised tokens, tokens, comparisons), known before any forward. One optimizer step divides the summed loss of all
micro-batches of all ranks by their summed weight, so that 1 rank with 8 rows, 8 times 1 row, and 2 ranks with 4 rows give the same
gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from moss_train.train import engine as distributed
from moss_train.train.guard import SpikeGuard


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


class Batches(Protocol):
    """A number of batches, gone through once."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Plan:
    """What `fit` is asked to do; all numbers in optimizer steps."""

    total_steps: int
    samples_per_step: int
    eval_every: int
    """0: at the end only."""
    save_every: int
    """0: at the end only."""
    learning_rate: Callable[[Progress], float]
    """Of the step that comes after a progress."""
    seed: int
    stop_after: int | None = None
    """Save and stop after this step, as if asked by a signal."""
    end: int | None = None
    """The first sample that is not used, in the middle of the last step where that is partly filled."""
    changes: Callable[[int, int], bool] = lambda first, end: False
    """(first sample of a step, the one after its last) -> whether other data begin there, whose losses are at another height."""


@dataclass
class Progress:
    """Where a run is, over all ranks; part of its checkpoints."""

    step: int = 0
    """Optimizer steps done, skipped updates included."""
    samples: int = 0
    """Samples taken."""
    tokens: int = 0
    weight: float = 0.0
    guard: SpikeGuard = field(default_factory=lambda: SpikeGuard())


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
    skipped: bool = False
    """The spike guard left the update out."""


class StopAskedError(Exception):
    """Some rank was asked to stop while all were evaluating."""


@dataclass(frozen=True)
class Actions:
    """What the loop calls, on every rank."""

    evaluate: Callable[[], None]
    """Evaluates on validation data and reports it. A collective; raises StopAskedError."""
    save: Callable[[], None]
    """Commits a checkpoint of the progress, or begins to, unless that step has one. A collective."""
    report: Callable[[StepReport], None]
    """Told of every step, before it is saved: what is saved has been reported."""
    stop_asked: Callable[[], bool]
    """Whether this rank was asked to stop."""
    beat: Callable[[str], None]
    """Told what is being done: the sign that the run makes progress."""
    is_writing: Callable[[], bool] = lambda: False
    """Whether this rank is still writing what it began to save."""
    settle: Callable[[], None] = lambda: None
    """Called when no rank is: ends a save that was begun, if there is one, or raises what became of it. A collective."""


class NonFiniteStepError(Exception):
    """A step's loss or gradient is not finite. Raised on all ranks, before any weight changed.

    Attributes:
        step: Number of the step, from 1. loss, grad_norm: Over all ranks; the norm is nan where the gradient was not yet complete.
        suspects: Micro-batches of this rank whose loss is not finite, or all where every loss is finite and the gradient is not.
    """

    def __init__(self, step: int, loss: float, grad_norm: float, suspects: list[int]):
        self.step, self.loss, self.grad_norm, self.suspects = step, loss, grad_norm, suspects
        super().__init__(f"step {step}: loss {loss}, gradient norm {grad_norm}")


def fit(engine: Any, batches_from: Callable[[int], Sequence[Batch]], plan: Plan, progress: Progress, actions: Actions) -> bool:
    """Trains from `progress` to `plan.total_steps`.

    Args:
        engine: From `engine.initialize`.
        batches_from: Number of a step's first sample -> this rank's micro-batches; as many on every rank.
        plan: Length, rhythm and learning rate.
        progress: Where to begin; moved along.
        actions: What is called on the way.

    Returns:
        Whether it came to the end. False: asked to stop; a checkpoint of where it is has been saved.

    Raises:
        NonFiniteStepError: A loss or gradient is not finite. The weights are those of the step before.
        NonFiniteError: The loss keeps jumping.
    """
    while progress.step < plan.total_steps:
        started = time.perf_counter()
        step = progress.step
        batches = batches_from(progress.samples)
        flags = [float(actions.stop_asked()), float(actions.is_writing())]
        weight, tokens, stopping, writing = distributed.all_reduce_sum(
            [sum(b.weight for b in batches), sum(b.tokens for b in batches), *flags]
        )
        if not writing:
            actions.settle()
        if stopping or (plan.stop_after is not None and step >= plan.stop_after):
            actions.save()
            return False
        rate = plan.learning_rate(progress)
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        distributed.seed_step(plan.seed, step)
        if plan.changes(progress.samples, progress.samples + plan.samples_per_step):
            progress.guard.forget()
        metrics, skipped = _accumulate(engine, batches, weight, progress, actions.beat)
        norm = float(engine.get_global_grad_norm() or 0.0)
        if not skipped and not engine.was_step_applied():
            raise NonFiniteStepError(step + 1, metrics["loss"], norm, list(range(len(batches))))
        end = progress.samples + plan.samples_per_step
        # A run that is made longer begins with the first sample that was not used, not after the places that were filled up.
        progress.step, progress.samples = step + 1, end if plan.end is None else min(end, plan.end)
        progress.tokens, progress.weight = progress.tokens + int(tokens), progress.weight + weight
        done = StepReport(step + 1, metrics, rate, norm, weight, int(tokens), time.perf_counter() - started, skipped)
        actions.report(done)
        at_end = progress.step == plan.total_steps
        # Saved before evaluating: what can go wrong in an evaluation costs no training.
        if at_end or (plan.save_every and progress.step % plan.save_every == 0):
            actions.save()
        try:
            if at_end or (plan.eval_every and progress.step % plan.eval_every == 0):
                actions.evaluate()
        except StopAskedError:
            actions.save()
            return False
    return True


def _accumulate(
    engine: Any, batches: Sequence[Batch], weight: float, progress: Progress, beat: Callable[[str], None]
) -> tuple[dict[str, float], bool]:
    """Forward and backward of every micro-batch, and the update; returns mean metrics over all ranks, and whether the update was left
    out."""
    world_size, device = distributed.world_size(), distributed.device()
    # DeepSpeed averages gradients over ranks; the sum over ranks, divided by the weight over ranks, is wanted.
    # A step of nothing but sources that count nothing has no gradient.
    scale = world_size / weight if weight else 0.0
    totals: dict[str, list[float]] = {}
    metrics: dict[str, float] = {}
    suspects = []
    for number, batch in enumerate(batches):
        inputs = batch.to(device).inputs
        beat(f"step {progress.step + 1}, micro-batch {number + 1} of {len(batches)}: {list(inputs['input_ids'].shape)} tokens")
        output = engine(**inputs)
        add_metrics(totals, output.metrics)
        if not math.isfinite(float(output.loss_sum.detach())):
            suspects.append(number)
        if number + 1 == len(batches):
            # All losses are known here, and no weight has changed yet.
            metrics = reduce_metrics(totals)
            if not math.isfinite(metrics["loss"]):
                raise NonFiniteStepError(progress.step + 1, metrics["loss"], math.nan, suspects)
            if progress.guard.is_spike(progress.step + 1, metrics["loss"]):
                # DeepSpeed leaves out an update whose gradient is not finite, on every ZeRO stage, and counts it as such.
                scale = math.nan
        engine.backward(output.loss_sum * scale, scale_wrt_gas=False)
        engine.step()
    return metrics, math.isnan(scale)


def add_metrics(totals: dict[str, list[float]], metrics: dict[str, tuple[Any, Any]]) -> None:
    """Adds `name: (sum, weight)` to running totals."""
    for name, (value, weight) in metrics.items():
        total = totals.setdefault(name, [0.0, 0.0])
        total[0] += float(value)
        total[1] += float(weight)


def reduce_metrics(totals: dict[str, list[float]]) -> dict[str, float]:
    """Weighted means over all ranks. Names are the same on every rank: they come from the model and its configuration.

    What has no weight on any rank, such as the loss of a source that had no row in a step, is left out; but for the loss itself.
    """
    names = sorted(totals)
    sums = distributed.all_reduce_sum([value for name in names for value in totals[name]])
    return {
        name: sums[2 * i] / sums[2 * i + 1] if sums[2 * i + 1] else math.nan
        for i, name in enumerate(names)
        if sums[2 * i + 1] or name == "loss"
    }


def evaluate_batches(engine: Any, batches: Batches, actions: Actions) -> dict[str, float]:
    """Mean metrics of the model on `batches`, which are as many on every rank: under ZeRO-3 each forward is a collective.

    Raises:
        StopAskedError: Some rank was asked to stop. On all ranks.
    """
    totals: dict[str, list[float]] = {}
    device = distributed.device()
    engine.eval()
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches):
                actions.beat(f"evaluating batch {number + 1} of {len(batches)}")
                if distributed.all_reduce_sum([float(actions.stop_asked())])[0]:
                    raise StopAskedError
                add_metrics(totals, engine(**batch.to(device).inputs).metrics)
    finally:
        engine.train()
    return reduce_metrics(totals)
