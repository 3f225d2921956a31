"""Straight against interrupted: the same stretch of a run twice, once with a break in it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from moss_train.config import ExportConfig, Resume, StageConfig, VerifyConfig, WandbMode
from moss_train.errors import PreemptedError, ResumeError, UsageError
from moss_train.train import engine as distributed
from moss_train.train import manifest
from moss_train.train.tensors import iterate_tensors

_log = logging.getLogger("moss_train")
_Config = TypeVar("_Config", bound=StageConfig)


def verify_resume(config: _Config, verify: VerifyConfig, main: Callable[[_Config], Any]) -> None:
    """Runs `verify.steps` steps of a stage straight, then with a break after `verify.stop_at`, and compares.

    The learning rate follows the whole run's length, as it would. Both runs are left in `run.dir`.

    Args:
        config: Of the stage.
        verify: Where to stop and where to end.
        main: Of the stage.

    Raises:
        ResumeError: With the first difference.
    """
    if config.train.steps is not None and verify.steps > config.train.steps:
        raise UsageError(f"verify.steps is {verify.steps}, but the run has only train.steps={config.train.steps}")
    directory = Path(config.run.dir or "")

    def run(name: str, resume: Resume, stop_after: int) -> None:
        changed = dataclasses.replace(
            config,
            run=dataclasses.replace(config.run, dir=str(directory / name), resume=resume, stop_after=stop_after),
            train=dataclasses.replace(config.train, save_every=0, eval_every=0, eval_at_start=False, keep=1),
            export=ExportConfig(enabled=False),
            tracking=dataclasses.replace(config.tracking, wandb=WandbMode.disabled),
        )
        try:
            main(changed)
        except PreemptedError as stopped:
            if "run.stop_after" not in str(stopped):
                raise

    run("straight", Resume.never, verify.steps)
    run("interrupted", Resume.never, verify.stop_at)
    run("interrupted", Resume.auto, verify.steps)
    difference = distributed.gather(_first_difference(directory, verify) if distributed.rank() == 0 else None)[0]
    if difference:
        raise ResumeError(f"the interrupted run is not the straight one: {difference}. Both are in {directory}")
    if distributed.rank() == 0:
        _log.info(
            f"\nthe same, bit for bit: {verify.steps} steps straight, and interrupted after {verify.stop_at}: losses, gradient norms, "
            f"weights and AdamW's moments ({distributed.world_size()} ranks)"
        )


def _first_difference(directory: Path, verify: VerifyConfig) -> str | None:
    straight, interrupted = _steps(directory / "straight"), _steps(directory / "interrupted")
    nothing: dict[str, Any] = {}
    for left, right in zip_longest(straight, interrupted, fillvalue=nothing):
        for name in ("step", "train/loss", "train/grad_norm", "train/lr", "tokens_seen"):
            if left.get(name) != right.get(name):
                return f"step {left.get('step') or right.get('step')}: {name} {left.get(name)} straight, {right.get(name)} interrupted"
    ends = [directory / name / "checkpoints" / manifest.step_name(verify.steps) for name in ("straight", "interrupted")]
    for (name, left_tensor), (other, right_tensor) in zip(*map(iterate_tensors, ends), strict=True):
        if name != other:
            return f"the checkpoints hold other tensors: {name} straight, {other} interrupted"
        unequal = (left_tensor != right_tensor).flatten().nonzero()
        if len(unequal):
            at = int(unequal[0])
            values = f"{left_tensor.flatten()[at].item()!r} straight, {right_tensor.flatten()[at].item()!r} interrupted"
            return f"{name}, element {at} of {left_tensor.numel()} (and {len(unequal) - 1} more): {values}"
    return None


def _steps(run_dir: Path) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [event for event in events if "train/loss" in event]
