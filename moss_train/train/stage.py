"""From a model and its rows to an export: what the mains of all stages share.

build under the engine's partitioning -> initialize -> fit -> evaluate -> export -> release
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage
from moss_train.artifacts.export import DTYPES, write_export
from moss_train.config import ExportDtype, StageConfig
from moss_train.data.tokenizer import MossTokenizer
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
    valid: Mapping[str, Sequence[Any]]
    """Validation set -> this rank's batches; as many on every rank."""
    sources: list[lineage.Source]
    weight_name: str
    """What a batch's weight counts, as in metrics.jsonl."""
    seq_len: int
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


def accumulation_steps(config: StageConfig, world_size: int) -> int:
    """Forwards per optimizer step on each rank."""
    return config.train.global_batch_size // (config.train.micro_batch_size * world_size)


def train_stage(
    run: Run,
    config: StageConfig,
    build_model: Callable[[], torch.nn.Module],
    tokenizer: MossTokenizer,
    data: StageData,
    steps: int,
) -> dict[str, float]:
    """Trains, evaluates and exports one model.

    Returns:
        The last metrics on validation data, or on the last training step where there is none.
    """
    ds_config = distributed.deepspeed_config(
        config.deepspeed,
        config.train.precision,
        config.train.micro_batch_size,
        accumulation_steps(config, distributed.world_size()),
        config.optim.clip,
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
    flops_per_token = training_flops_per_token(model.config, parameters, data.seq_len)
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
    last: dict[str, float] = {}
    seen = {"tokens": 0, "weight": 0.0}

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
            metrics=dict(last),
            details={"parameters": parameters, "world_size": distributed.world_size(), **data.details},
        )
        dtype = DTYPES[config.train.precision.value if config.export.dtype is ExportDtype.auto else config.export.dtype.value]
        out = run.dir / "export"
        identity = run.together(
            lambda: write_export(
                out,
                distributed.full_parameters(engine),
                model.config,
                tokenizer,
                dtype,
                int(config.export.max_shard_gb * 1e9),
                record,
                writes=distributed.rank() == 0,
            )
        )
        run.log(f"\nexported to {out} ({identity})")
        run.log(f'try it:      python scripts/generate.py model={out} prompt="..."')
        run.log(f'or anywhere: AutoModelForCausalLM.from_pretrained("{out}")')
    distributed.release(engine)
    return last


FLOPS_FORMULA = "tokens * (6 * parameters without the input embedding + 6 * layers * hidden_size * seq_len)"


def training_flops_per_token(model_config: Any, parameters: int, seq_len: int) -> float:
    """Forward and backward FLOPs a token: 6 for each parameter that multiplies, and causal attention counted once (PaLM, appendix B,
    halved)."""
    multiplying = parameters - model_config.vocab_size * model_config.n_embd
    return 6.0 * multiplying + 6.0 * model_config.n_layer * model_config.n_embd * seq_len


def peak_flops() -> float | None:
    """Peak of all ranks together, FLOP/s, or None for a device that is not in the table."""
    if distributed.device().type != "cuda":
        return None
    one = PEAK_FLOPS.get(torch.cuda.get_device_name())
    return one * distributed.world_size() if one else None
