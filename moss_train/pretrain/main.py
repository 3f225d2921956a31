"""Continued pretraining: corpora -> a mixture of windows -> the loop -> an export."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train.pretrain.config import PlanPretrainConfig, PretrainConfig, VerifyPretrainConfig

if TYPE_CHECKING:
    import torch

    from moss_train.train.loop import Progress


def main(config: PretrainConfig) -> float:
    """Runs one pretraining job.

    Returns:
        The final validation loss per token (the training loss where there is no validation data): what a sweep minimises.
    """
    from moss_train.artifacts.export import write_export
    from moss_train.data.loader import StepPlan
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.pretrain.data import check_passes, go_on, open_windows
    from moss_train.pretrain.inputs import find_corpora, open_cache
    from moss_train.train import engine as distributed
    from moss_train.train.auto import settle
    from moss_train.train.resume import find_checkpoint, progress_of
    from moss_train.train.run import open_run
    from moss_train.train.stage import run_length, train_stage
    from moss_train.train.start import architecture, build, fit_vocabulary, verify_start

    with open_run(config, "pretrain") as run:
        StepPlan(config.train.global_batch_size, config.train.micro_batch_size, distributed.world_size())
        distributed.check_section(config.deepspeed)
        saved = find_checkpoint(run)
        run.once_per_machine("what the run starts from", lambda: verify_start(config, open_cache(config.data), run.log))
        model_config = run.together(lambda: architecture(config, config.data.seq_len, run.log))
        found = run.once_per_machine("the corpora", lambda: find_corpora(config, run.log))
        tokenizer = run.together(lambda: MossTokenizer.load(found["tokenizer"]))
        model_config = run.together(lambda: fit_vocabulary(config, model_config, tokenizer))
        windows = run.together(lambda: open_windows(config, found, tokenizer, run.log))
        run.agree("the windows", windows.fingerprint)
        if saved is not None:
            run.together(lambda: go_on(windows, saved.state.samples, saved.state.position, run.log))
        progress = progress_of(saved.state, config.train.spike_sigmas) if saved is not None else None
        config = in_steps(config, progress)
        length = run_length(config, windows.epoch_rows, progress)
        run.together(lambda: check_passes(windows, config.data, length, run.log))
        config = settle(run, config, model_config, config.data.seq_len, saved)

        def build_model(weights: Path | None) -> torch.nn.Module:
            model: Any = build(config, model_config, run.log, weights)
            model.set_loss_groups(windows.groups)
            return model

        export = partial(
            write_export,
            run.dir / "export",
            tokenizer=tokenizer,
            max_shard_bytes=int(config.export.max_shard_gb * 1e9),
            writes=distributed.rank() == 0,
        )
        data = windows.stage_data()
        data.parents = run.together(lambda: windows.parents() if distributed.rank() == 0 else [])
        last = train_stage(run, config, build_model, data, export, saved)
    return last.get("valid/loss", last.get("train/loss", float("nan")))


def in_steps(config: PretrainConfig, done: Progress | None = None) -> PretrainConfig:
    """The configuration with a length in tokens as one in steps, rounded up.

    Args:
        config: Of the run.
        done: Where the run goes on. Its steps so far may have had another batch size.
    """
    train = config.train
    if train.tokens is None:
        return config
    before, samples = (done.step, done.samples) if done is not None else (0, 0)
    left = max(0, math.ceil(train.tokens / config.data.seq_len) - samples)
    steps = before + math.ceil(left / train.global_batch_size)
    return replace(config, train=replace(train, steps=steps, tokens=None))


def verify(config: VerifyPretrainConfig) -> None:
    """Runs a stretch of a job straight and interrupted, and compares."""
    from moss_train.train.verify import verify_resume

    verify_resume(config, config.verify, main)


def plan(config: PlanPretrainConfig) -> None:
    """Tells what a job would take: the job behind `scripts/plan.py`."""
    from moss_train.train.plan import plan_stage

    settled = in_steps(config)
    assert isinstance(settled, PlanPretrainConfig)
    plan_stage(settled, settled, config.data.seq_len)
