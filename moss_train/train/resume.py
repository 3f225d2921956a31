"""Going on with a run: which checkpoint, whether it may, and saving the next ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moss_train.artifacts import lineage
from moss_train.config import CHANGEABLE, StageConfig
from moss_train.errors import ResumeError
from moss_train.train import checkpoint, loop, manifest
from moss_train.train import engine as distributed
from moss_train.train.guard import SpikeGuard
from moss_train.train.run import Run, plain

if TYPE_CHECKING:
    from pathlib import Path

    from moss_train.train.stage import Length, StageData


def find_checkpoint(run: Run) -> checkpoint.Saved | None:
    """The checkpoint that this run goes on from, if any. Called before data are read: what cannot go on should say so at once.

    Raises:
        CheckpointError: There are checkpoints, but none is good.
        ResumeError: It is that of another stage.
    """
    if not run.resumes:
        return None
    saved = checkpoint.find(run, run.verified)
    if saved is not None and saved.state.stage != run.stage:
        raise ResumeError(
            f"{run.checkpoints} belongs to a run of {saved.state.stage}, not of {run.stage}; name another run.dir, or set run.resume=never"
        )
    return saved


def progress_of(state: checkpoint.RunState, sigmas: float) -> loop.Progress:
    """Where a checkpoint's run was."""
    guard = SpikeGuard(sigmas, list(state.recent_losses), list(state.skipped_steps))
    return loop.Progress(state.step, state.samples, state.tokens_seen, state.weight_seen, guard)


def identity_of(config: StageConfig, steps: int, data: StageData, parents: list[lineage.Parent]) -> dict[str, Any]:
    """What a resumed run shares with the one before, by the names of `CHANGEABLE` and two that cannot be allowed to change."""
    known: dict[str, Any] = {
        "data": data.fingerprint,
        "tokenizer": data.tokenizer_fingerprint,
        "init_from": parents[0].id if parents else None,
        "train.steps": steps,
        "optim.freeze": list(config.optim.freeze),
        "model": {key: getattr(config.model, key) for key in ("num_layers", "num_heads", "hidden_size", "rotary_dim", "vocab_size")},
        **data.identity,
    }
    for name in CHANGEABLE:
        if name not in known:
            section, key = name.split(".")
            known[name] = plain(getattr(getattr(config, section), key))
    return known


def check_identity(saved: checkpoint.Saved, now: dict[str, Any], allowed: Sequence[str], run: Run) -> None:
    """Refuses to go on where something has changed that must not.

    Raises:
        ResumeError: With everything that has, as it was and as it is.
    """
    before = saved.state.identity
    changed = [name for name in now if before.get(name) != now[name]]
    refused = [name for name in changed if name not in allowed]
    if refused:
        lines = [f"  - {name}: was {_short(before.get(name))}, now {_short(now[name])}" for name in refused]
        named = ",".join(name for name in changed if name in CHANGEABLE)
        fixed = [name for name in refused if name not in CHANGEABLE]
        way_out = f"({' and '.join(fixed)} cannot change within a run)" if fixed else f"to go on all the same: run.allow_changes=[{named}]"
        raise ResumeError(
            f"the run in {run.dir} cannot go on from {saved.path.name}, because this has changed since:\n"
            + "\n".join(lines)
            + f"\n{way_out}\nto start anew, and keep that run beside the new one: run.resume=never; or name another run.dir"
        )
    for name in changed:
        run.log(f"WARNING: {name} was {_short(before.get(name))}, is now {_short(now[name])} (run.allow_changes)")


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:16]}..." if len(text) > 60 and " " not in text else text


def finished_metrics(run: Run, config: StageConfig, progress: loop.Progress, length: Length) -> dict[str, float] | None:
    """The metrics of a run that has nothing left to do."""
    if progress.step < length.steps or not config.export.enabled:
        return None
    out = run.dir / "export"
    found = distributed.gather(lineage.read(out) if distributed.rank() == 0 and out.is_dir() else None)[0]
    if found is None or found["details"].get("step") != progress.step:
        return None
    run.log(f"this run is finished: {length.steps} steps, export in {out}. run.resume=never starts anew")
    metrics: dict[str, float] = found["metrics"]
    return metrics


def say_what_rounds_otherwise(run: Run, engine: Any, saved: checkpoint.Saved) -> None:
    """Names what keeps the rest of the run from being, bit for bit, that of an uninterrupted one."""
    now, before = distributed.computed_by(engine), saved.state.saved_by
    other = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
    if other:
        run.log(f"not bit for bit the run without a break, since it is computed otherwise: {', '.join(other)}")


class Saver:
    """Saves checkpoints of one run, one a step at most."""

    def __init__(
        self,
        run: Run,
        config: StageConfig,
        engine: Any,
        progress: loop.Progress,
        identity: dict[str, Any],
        data: StageData,
        record: Callable[[], lineage.Lineage],
        saved: checkpoint.Saved | None,
    ):
        self._run, self._engine, self._progress = run, engine, progress
        self._keep, self._identity, self._data, self._record = config.train.keep, identity, data, record
        self._run_id = saved.state.run_id if saved is not None else distributed.gather(uuid.uuid4().hex)[0]
        self.last_path: Path | None = saved.path if saved is not None else None
        self.last_id = str((lineage.read(saved.path) or {}).get("id")) if saved is not None else ""
        self._saved_step = progress.step if saved is not None else -1

    def save(self) -> None:
        """Commits a checkpoint of where the run is, and removes the ones that are too many."""
        if self._saved_step == self._progress.step or not self._keep:
            return
        started = time.perf_counter()
        progress = self._progress
        state = checkpoint.RunState(
            run_id=self._run_id,
            stage=self._run.stage,
            step=progress.step,
            samples=progress.samples,
            adam_step=0,
            tokens_seen=progress.tokens,
            weight_seen=progress.weight,
            identity=self._identity,
            position=self._data.position(progress.samples),
            recent_losses=progress.guard.recent,
            skipped_steps=progress.guard.skipped,
        )
        self.last_path, self.last_id = checkpoint.save(
            self._run, self._engine, state, self._record(), self._data.write_tokenizer, self._run.verified
        )
        self._saved_step = progress.step
        self._run.log(f"saved {self.last_path} in {time.perf_counter() - started:.1f} s")
        self._run.rest("removing old checkpoints")
        self._run.together(self._rotate)
        self._run.beat("saved")

    def _rotate(self) -> None:
        if distributed.rank() == 0:
            try:
                damaged = manifest.rotate(self._run.checkpoints, self._keep, self._run_id, self._run.verified)
            except OSError as error:
                damaged = [f"older checkpoints could not be removed: {error}"]
            for line in damaged:
                self._run.log(f"WARNING: {line}")
