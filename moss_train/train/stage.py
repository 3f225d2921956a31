"""From a model and its rows to an export: what the mains of all stages share.

build under the engine's partitioning -> initialize -> fit -> evaluate -> export -> release
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage
from moss_train.config import ExportDtype, StageConfig
from moss_train.data.loader import StepPlan
from moss_train.train import engine as distributed
from moss_train.train import loop
from moss_train.train.optim import learning_rate
from moss_train.train.run import Run
from moss_train.train.tracking import Tracker

# Dense bf16 peak of one device, FLOP/s, from the vendors' data sheets, by the exact name the driver gives. A device that is
# not here gets no MFU: a guessed peak makes a wrong figure.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
}


@dataclass
class StageData:
    """The rows of a stage, ready for the loop."""

    step_batches: Callable[[int], Sequence[Any]]
    rows: int
    """Of one epoch."""
    valid: Mapping[str, Sequence[Any]]
    """Validation set -> this rank's batches; as many on every rank."""
    sources: list[lineage.Source]
    weight_name: str
    """What a batch's weight counts, as in metrics.jsonl."""
    mean_context: float
    """Keys a token attends to, on average, its own included."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the lineage: what shaped the rows."""


def total_samples(config: StageConfig, rows: int) -> int:
    """Samples of the run: whole steps, or a number of epochs, which may end in the middle of one (at least one sample)."""
    if config.train.steps is not None:
        return config.train.steps * config.train.global_batch_size
    return max(1, round((config.train.epochs or 0) * rows))


def total_steps(config: StageConfig, rows: int) -> int:
    """Optimizer steps of the run; the last one may be partly filled."""
    return math.ceil(total_samples(config, rows) / config.train.global_batch_size)


Export = Callable[[Iterable[tuple[str, torch.Tensor | None]], Any, str, lineage.Lineage], str | None]
"""Writes whole parameters, the model's configuration, the name of a number format and the lineage; see `artifacts.export.write_export`."""


def train_stage(
    run: Run, config: StageConfig, build_model: Callable[[], torch.nn.Module], data: StageData, export: Export
) -> dict[str, float]:
    """Trains, evaluates and exports one model.

    Args:
        run: The open run.
        config: Its configuration.
        build_model: Makes the model; called on every rank while parameters are being divided over ranks as they are made.
        data: Rows and where they came from.
        export: Called at the end on every rank, with `out` already settled.

    Returns:
        The last metrics on validation data, or on the last training step where there is none.
    """
    steps = total_steps(config, data.rows)
    plan = StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
    ds_config = distributed.deepspeed_config(
        config.deepspeed, config.train.precision, plan.micro_batch_size, plan.accumulation, config.optim.clip
    )
    parents = run.together(
        lambda: [lineage.parent_of(Path(config.init_from), "init")] if config.init_from and distributed.rank() == 0 else []
    )
    with distributed.building(ds_config):
        model = run.together(build_model)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    run.log(
        f"{parameters:,} parameters | {distributed.world_size()} ranks on {distributed.device().type} "
        f"| ZeRO-{ds_config['zero_optimization']['stage']} | {config.train.precision.value} "
        f"| {steps} steps of {config.train.global_batch_size} rows"
    )
    engine = distributed.initialize(model, ds_config, config.optim)
    flops_per_token = training_flops_per_token(model.config, parameters, data.mean_context)
    seen, last = _train(run, config, engine, data, steps, flops_per_token)
    if config.export.enabled:
        record = lineage.Lineage(
            kind="export",
            stage=run.stage,
            parents=parents,
            data=data.sources,
            config=run.config,
            tokens_seen=int(seen["tokens"]),
            supervised_tokens=int(seen["weight"]),
            flops=float(seen["tokens"]) * flops_per_token,
            flops_formula=FLOPS_FORMULA,
            metrics=last,
            details={"parameters": parameters, "world_size": distributed.world_size(), **data.details},
        )
        trained = config.train.precision.value
        dtype = trained if config.export.dtype is ExportDtype.auto else config.export.dtype.value
        whole = distributed.full_parameters(engine, master_weights=dtype != trained)
        identity = run.together(lambda: export(whole, model.config, dtype, record))
        out = run.dir / "export"
        run.log(f"\nexported to {out} ({identity})")
        run.log(f'try it:      python scripts/generate.py model={out} prompt="..."')
        run.log(f'or anywhere: AutoModelForCausalLM.from_pretrained("{out}")')
    distributed.release(engine)
    return last


def _train(
    run: Run, config: StageConfig, engine: Any, data: StageData, steps: int, flops_per_token: float
) -> tuple[dict[str, float], dict[str, float]]:
    """The loop with its reports; returns what was seen, as `tokens` and `weight`, and the last metrics."""
    tracker = None
    if distributed.rank() == 0:
        tracker = Tracker(
            config.tracking,
            run.dir,
            steps,
            config.train.log_every,
            data.weight_name,
            run.config,
            peak_flops=peak_flops(),
            flops_per_token=flops_per_token,
        )
    if config.train.eval_every and not data.valid:
        run.log(f"no validation data: train.eval_every={config.train.eval_every} has nothing to evaluate; set data.valid or data.holdout")
    last: dict[str, float] = {}
    seen = {"tokens": 0.0, "weight": 0.0}

    def evaluate() -> dict[str, float]:
        return {
            f"{name}/{metric}": value
            for name, batches in data.valid.items()
            for metric, value in loop.evaluate_batches(engine, batches).items()
        }

    def report(done: loop.StepReport) -> None:
        seen["tokens"] += done.tokens
        seen["weight"] += done.weight
        last.clear()
        last.update(done.evaluations or {f"train/{name}": value for name, value in done.metrics.items()})
        if tracker is not None:
            tracker.step(done)

    plan = loop.Plan(steps, config.train.eval_every, partial(learning_rate, config.optim, total_steps=steps))
    try:
        if config.train.eval_at_start and data.valid:
            before = evaluate()
            if tracker is not None:
                tracker.evaluation(0, before)
        loop.fit(engine, data.step_batches, evaluate, plan, report)
    finally:
        if tracker is not None:
            tracker.close()
    return seen, dict(last)


FLOPS_FORMULA = "tokens * (6 * parameters without the input embedding + 12 * layers * hidden_size * mean context)"


def training_flops_per_token(model_config: Any, parameters: int, mean_context: float) -> float:
    """Forward and backward FLOPs a token: 6 for each parameter that multiplies, and 12 for each key a token attends to (PaLM, appendix B).

    The mean context is counted from the documents themselves: causal attention counts once, and other documents of a row do not count.
    """
    multiplying = parameters - model_config.vocab_size * model_config.n_embd
    return 6.0 * multiplying + 12.0 * model_config.n_layer * model_config.n_embd * mean_context


def peak_flops() -> float | None:
    """Peak of all ranks together, FLOP/s, or None for a device that is not in the table."""
    if distributed.device().type != "cuda":
        return None
    one = PEAK_FLOPS.get(torch.cuda.get_device_name())
    return one * distributed.world_size() if one else None
