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
from moss_train.errors import NonFiniteError, PreemptedError
from moss_train.model.shapes import LM, head_of
from moss_train.train import checkpoint, loop
from moss_train.train import engine as distributed
from moss_train.train.forecast import Forecast, forecast
from moss_train.train.guard import SpikeGuard
from moss_train.train.optim import freeze, learning_rate
from moss_train.train.resident import give_back, restart_peak
from moss_train.train.resume import Saver, check_identity, finished_metrics, identity_of, progress_of, say_what_rounds_otherwise
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

    batches: Callable[[int, int], Sequence[Any]]
    """(number of a step's first sample, number of samples of the whole run) -> this rank's micro-batches of that step."""
    rows: int
    """Of one epoch."""
    valid: Mapping[str, loop.Batches]
    """Validation set -> this rank's batches; as many on every rank."""
    sources: list[lineage.Source]
    weight_name: str
    """What a batch's weight counts, as in metrics.jsonl."""
    mean_context: float
    """Keys a token attends to, on average, its own included."""
    fingerprint: str
    """Of the training rows: equal ones are the same samples in the same order."""
    tokenizer_fingerprint: str
    write_tokenizer: Callable[[Path], Any]
    """Writes the tokenizer's files into a directory."""
    origins: Callable[[int], list[str]]
    """Number of a sample -> where its records came from, as `file:line`."""
    position: Callable[[int], dict[str, Any]]
    """Number of samples taken -> where a run is in its data, as JSON; what its checkpoints remember."""
    changes: Callable[[int, int], bool] = lambda first, end: False
    """Whether another mixture begins among these samples, the second not included."""
    tokens_per_sample: int | None = None
    """Where every sample holds so many tokens the learning rate follows tokens, and another batch size does not bend it."""
    details: dict[str, Any] = field(default_factory=dict)
    """For the lineage: what shaped the rows."""
    parents: list[lineage.Parent] = field(default_factory=list)
    """Artefacts that the rows come from; on rank 0."""
    identity: dict[str, Any] = field(default_factory=dict)
    """What else of the stage must not change within a run."""
    kind: str = "export"
    """Of the artefact that is exported."""
    row_tokens: int | None = None
    """Tokens of the largest sample, where that is not `data.seq_len`."""
    finish: Callable[[Any], dict[str, float]] | None = None
    """Called with the engine when training has ended, before the export; a collective. What it measured goes into the metrics."""


@dataclass(frozen=True)
class Length:
    """Where a run ends."""

    steps: int
    samples: int
    """Number of the first sample that is not used; the last step may be partly filled."""


def run_length(config: StageConfig, rows: int, done: loop.Progress | None = None) -> Length:
    """The end of a run: after whole steps, or after a number of epochs, which may be in the middle of a step (at least one sample)."""
    steps, samples = (done.step, done.samples) if done is not None else (0, 0)
    size = config.train.global_batch_size
    if config.train.steps is not None:
        return Length(config.train.steps, samples + max(0, config.train.steps - steps) * size)
    last = max(1, round((config.train.epochs or 0) * rows))
    return Length(steps + math.ceil(max(0, last - samples) / size), last)


Export = Callable[[Iterable[tuple[str, torch.Tensor | None]], Any, str, lineage.Lineage], str | None]
"""Writes whole parameters, the model's configuration, the name of a number format and the lineage; see `artifacts.export.write_export`."""
BuildModel = Callable[[Path | None], torch.nn.Module]
"""Makes the model, with the weights of a directory, or with those the stage starts from. Called on every rank while parameters are being
divided over ranks as they are made."""


def train_stage(
    run: Run, config: StageConfig, build_model: BuildModel, data: StageData, export: Export, saved: checkpoint.Saved | None
) -> dict[str, float]:
    """Trains, evaluates and exports one model, from the beginning or from a checkpoint.

    Args:
        run: The open run.
        config: Its configuration.
        build_model: Makes the model.
        data: Rows and where they came from.
        export: Called at the end on every rank, with `out` already settled.
        saved: From `find_checkpoint`.

    Returns:
        The last metrics on validation data, or on the last training step where there is none.

    Raises:
        ResumeError: Something differs from the checkpoint that must not.
        PreemptedError: Asked to stop; a checkpoint is saved.
    """
    plan = StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
    ds_config = distributed.deepspeed_config(
        config.deepspeed, config.train.precision, plan.micro_batch_size, plan.accumulation, config.optim.clip
    )
    started_from = run.together(
        lambda: [lineage.parent_of(Path(config.init_from), "init")] if config.init_from and distributed.rank() == 0 else []
    )
    progress = loop.Progress(guard=SpikeGuard(config.train.spike_sigmas))
    if saved is not None:
        progress = progress_of(saved.state, config.train.spike_sigmas)
    length = run_length(config, data.rows, progress)
    identity = distributed.gather(identity_of(config, length.steps, data, started_from))[0]
    if saved is not None:
        check_identity(saved, identity, config.run.allow_changes, run)
        run.together(run.write_config)
        metrics = finished_metrics(run, config, progress, length)
        if metrics is not None:
            return metrics
    give_back()
    restart_peak()
    with distributed.building(ds_config):
        # What is frozen is not in the checkpoint.
        weights = saved.path if saved is not None and not saved.state.frozen else None
        model = run.together(partial(build_model, weights))
    if config.optim.freeze:
        run.log(f"frozen: {freeze(model.named_parameters(), config.optim.freeze)} of {len(list(model.parameters()))} parameters")
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    run.log(
        f"{parameters:,} parameters | {distributed.world_size()} ranks on {distributed.device().type} "
        f"| ZeRO-{ds_config['zero_optimization']['stage']} | {config.train.precision.value} "
        f"| {length.steps} steps of {config.train.global_batch_size} rows"
    )
    engine = distributed.initialize(model, ds_config, config.optim)
    give_back()
    if saved is not None:
        run.together(partial(checkpoint.restore, engine, saved, run.beat))
        run.log(f"going on from {saved.path}: step {progress.step} of {length.steps}, sample {progress.samples}")
        say_what_rounds_otherwise(run, engine, saved)
    flops_per_token = training_flops_per_token(model.config, parameters, data.mean_context)

    def record(kind: str, origins: list[lineage.Parent], metrics: dict[str, float], number_format: str) -> lineage.Lineage:
        return lineage.Lineage(
            kind=kind,
            stage=run.stage,
            parents=[*origins, *started_from, *data.parents],
            data=data.sources,
            config=run.config,
            tokens_seen=progress.tokens,
            supervised_tokens=int(progress.weight),
            flops=progress.tokens * flops_per_token,
            flops_formula=FLOPS_FORMULA,
            metrics=metrics,
            details={"parameters": parameters, "world_size": distributed.world_size(), "step": progress.step, **data.details},
            number_format=number_format,
        )

    saver = Saver(run, config, engine, progress, identity, data, partial(record, "checkpoint", [], {}, "fp32"), saved)
    tracker = _start_tracker(run, config, data, length, flops_per_token, progress, saved is not None) if distributed.rank() == 0 else None
    try:
        if tracker is not None:
            tracker.uses([*started_from, *data.parents])
        on_cuda = distributed.device().type == "cuda"
        steps = length.steps - progress.step
        outlook = forecast(config, model.config, distributed.world_size(), on_cuda, steps, run.log, distributed.gather, data.row_tokens)
        last = _train(run, config, engine, data, plan, length, progress, saver, tracker, outlook, resumed=saved is not None)
        if tracker is not None and saver.last_path is not None:
            tracker.made(saver.last_path)
        if data.finish is not None:
            last |= data.finish(engine)
        if config.export.enabled:
            _export(run, config, engine, model.config, export, saver, partial(record, data.kind), last)
            if tracker is not None:
                tracker.made(run.dir / "export")
    except PreemptedError:
        # All ranks are here, and another run may follow in this process.
        distributed.release(engine)
        raise
    finally:
        if tracker is not None:
            tracker.finish()
    distributed.release(engine)
    return last


def _export(
    run: Run,
    config: StageConfig,
    engine: Any,
    model_config: Any,
    export: Export,
    saver: Saver,
    record: Callable[[list[lineage.Parent], dict[str, float], str], lineage.Lineage],
    last: dict[str, float],
) -> None:
    """Writes the export, and says where it is. A collective."""
    run.rest("exporting")
    trained = config.train.precision.value
    dtype = trained if config.export.dtype is ExportDtype.auto else config.export.dtype.value
    whole = distributed.full_parameters(engine, master_weights=dtype != trained)
    run.together(partial(_move_stale_export, run))
    source = []
    if saver.last_path is not None:
        source = [lineage.Parent("source", saver.last_id, saver.last_path.name, str(saver.last_path.resolve()))]
    identity = run.together(lambda: export(whole, model_config, dtype, record(source, last, dtype)))
    out = run.dir / "export"
    run.log(f"\nexported to {out} ({identity})")
    if head_of(model_config) != LM:
        run.log(f"try it:      python scripts/score.py model={out} responses=FILE out=scored.jsonl")
        return
    run.log(f'try it:      python scripts/generate.py model={out} prompt="..."')
    run.log(f'or anywhere: AutoModelForCausalLM.from_pretrained("{out}")')


def _move_stale_export(run: Run) -> None:
    """Makes way for an export: one from before the run was extended, or trained again from an earlier checkpoint, is kept beside it."""
    out = run.dir / "export"
    if distributed.rank() == 0 and out.is_dir():
        step = ((lineage.read(out) or {}).get("details") or {}).get("step", "unknown")
        number = 1
        while (aside := out.with_name(f"export.step-{step}" + (f".{number}" if number > 1 else ""))).exists():
            number += 1
        out.rename(aside)
        run.log(f"the earlier export, of step {step}, is now {aside.name}")


def _start_tracker(
    run: Run, config: StageConfig, data: StageData, length: Length, flops_per_token: float, progress: loop.Progress, resumed: bool
) -> Tracker:
    return Tracker(
        config.tracking,
        run.dir,
        length.steps,
        config.train.log_every,
        data.weight_name,
        run.config,
        peak_flops=peak_flops(),
        flops_per_token=flops_per_token,
        resumed_step=progress.step if resumed else None,
        tokens_seen=progress.tokens,
    )


def _train(
    run: Run,
    config: StageConfig,
    engine: Any,
    data: StageData,
    plan: StepPlan,
    length: Length,
    progress: loop.Progress,
    saver: Saver,
    tracker: Tracker | None,
    outlook: Forecast,
    resumed: bool,
) -> dict[str, float]:
    """The loop with its reports; returns the last metrics."""
    eval_every = config.train.eval_every
    if eval_every and not data.valid:
        run.log(f"no validation data: train.eval_every={eval_every} has nothing to evaluate; set data.valid or data.holdout")
    last: dict[str, float] = {}

    def evaluate() -> None:
        if not data.valid:
            return
        found = {
            f"{name}/{metric}": value
            for name, batches in data.valid.items()
            for metric, value in loop.evaluate_batches(engine, batches, actions).items()
        }
        last.clear()
        last.update(found)
        if tracker is not None:
            tracker.evaluation(progress.step, found)

    def report(done: loop.StepReport) -> None:
        last.clear()
        last.update({f"train/{name}": value for name, value in done.metrics.items()})
        measured = outlook.after(done.tokens, done.seconds)
        if tracker is not None:
            tracker.step(done, measured)

    def report_save(figures: dict[str, float]) -> None:
        if tracker is not None:
            tracker.figures(progress.step, figures)

    saver.report = report_save
    actions = loop.Actions(evaluate, saver.save, report, lambda: run.stop.reason is not None, run.beat, saver.is_writing, saver.settle)
    steps = loop.Plan(
        length.steps,
        config.train.global_batch_size,
        eval_every,
        config.train.save_every,
        _schedule(config, length, data.tokens_per_sample),
        config.run.seed,
        config.run.stop_after,
        length.samples,
        data.changes,
    )
    run.stop.at_once = False
    finished = False
    try:
        # A run that was killed between saving and evaluating still owes the evaluation.
        due = progress.step == length.steps or (eval_every and progress.step and progress.step % eval_every == 0)
        owed = distributed.gather(resumed and due and tracker is not None and not tracker.has_evaluation(progress.step))[0]
        if owed or (config.train.eval_at_start and not resumed):
            evaluate()
        elif resumed and tracker is not None:
            last.update(tracker.last_metrics)
        finished = loop.fit(engine, lambda first: data.batches(first, length.samples), steps, progress, actions)
        saver.finish()
    except loop.StopAskedError:
        saver.save()
        saver.finish()
    except loop.NonFiniteStepError as error:
        raise _name_records(error, plan, progress, data, length) from error
    finally:
        saver.leave()
        if tracker is not None:
            tracker.close()
    if not finished:
        reasons = [reason for reason in distributed.gather(run.stop.reason) if reason]
        why = reasons[0] if reasons else f"run.stop_after={config.run.stop_after}"
        saved = f"saved {saver.last_path}" if config.train.keep else "nothing is saved, as train.keep=0 asks,"
        raise PreemptedError(f"{why}: {saved} at step {progress.step} of {length.steps}; the same command goes on from there")
    return dict(last)


def _name_records(
    error: loop.NonFiniteStepError, plan: StepPlan, progress: loop.Progress, data: StageData, length: Length
) -> NonFiniteError:
    """What a user needs to know of a step that is not finite; a collective."""
    numbers = plan.sample_numbers(progress.samples, distributed.rank())
    mine = [origin for micro in error.suspects for number in numbers[micro] if number < length.samples for origin in data.origins(number)]
    found = list(dict.fromkeys(origin for part in distributed.gather(mine) for origin in part))
    shown = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    return NonFiniteError(
        f"step {error.step}: the loss is {error.loss}, the gradient norm {error.grad_norm}. The update was not applied; the weights are "
        f"those of the step before, and the newest checkpoint is untouched. Records of the micro-batches concerned: {shown}. Look at "
        "them, lower optim.lr, or lengthen optim.warmup"
    )


def _schedule(config: StageConfig, length: Length, tokens_per_sample: int | None) -> Callable[[loop.Progress], float]:
    """The learning rate after a progress: by tokens where samples are of one size, else by steps."""
    if tokens_per_sample is None:
        return lambda progress: learning_rate(config.optim, progress.step, length.steps)
    total, per_step = length.samples * tokens_per_sample, config.train.global_batch_size * tokens_per_sample
    return lambda progress: learning_rate(config.optim, progress.samples * tokens_per_sample, total, per_step)


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
