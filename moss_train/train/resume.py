"""Going on with a run: which checkpoint, whether it may, and saving the next ones."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from moss_train.artifacts import lineage
from moss_train.config import CHANGEABLE, StageConfig
from moss_train.errors import ResumeError
from moss_train.train import checkpoint, loop, manifest
from moss_train.train import engine as distributed
from moss_train.train.background import Background, Writing
from moss_train.train.guard import SpikeGuard
from moss_train.train.run import Run, plain

_log = logging.getLogger("moss_train")

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
    """Saves checkpoints of one run, one a step at most; with `train.async_save` beside training, one at a time.

    Made by a collective.

    Attributes:
        last_path: Of the newest one that is committed. last_id: Its lineage id; on rank 0.
        report: Told the figures of each that was committed, on every rank.
    """

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
        self.report: Callable[[dict[str, float]], None] = lambda figures: None
        self._saved_step = progress.step if saved is not None else -1
        self._background = run.together(lambda: Background(run, engine)) if config.train.async_save and self._keep else None
        self._writing: Writing | None = None
        self._paused = 0.0
        """Seconds that training waited for the save under way."""

    def save(self) -> None:
        """Saves where the run is; ends the save before, if that is still under way. A collective."""
        if self._saved_step == self._progress.step or not self._keep:
            return
        self.finish()
        started = time.perf_counter()
        content = checkpoint.content_of(self._engine, self._state(), self._record(), self._data.write_tokenizer)
        if self._background is not None:
            self._writing = self._background.save(content, self._rotate)
            self._paused = time.perf_counter() - started
        else:
            written = checkpoint.save(self._run, self._engine, content)
            seconds = time.perf_counter() - started
            self._run.rest("removing old checkpoints")
            self._run.together(lambda: self._rotate() if distributed.rank() == 0 else None)
            self._tell(content.step, written, seconds, time.perf_counter() - started)
        self._saved_step = self._progress.step
        self._run.beat("saved")

    def _state(self) -> checkpoint.RunState:
        progress = self._progress
        return checkpoint.RunState(
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

    def is_writing(self) -> bool:
        """Whether this rank does not know yet how the save under way ends."""
        return self._writing is not None and not self._writing.is_done

    def settle(self) -> None:
        """Ends the save under way, if there is one. A collective, for when no rank `is_writing`; what failed is raised on all ranks."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        written = self._run.together(writing.result)
        self._tell(writing.step, written, writing.seconds, self._paused)

    def finish(self) -> None:
        """Waits for the save under way, if there is one, and ends it. A collective."""
        if self._writing is None:
            return
        started = time.perf_counter()
        # Outside of a collective, which has a time-out. The threads that write have a limit of their own.
        self._run.rest(f"waiting for the checkpoint of step {self._writing.step}")
        self._writing.wait()
        self._paused += time.perf_counter() - started
        self.settle()
        self._run.beat("saved")

    def leave(self) -> None:
        """Before this rank ends by an error: lets the save under way come to its end. Not a collective."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        self._run.rest(f"waiting for the checkpoint of step {writing.step}, before an error ends the run")
        if (error := writing.wait_alone()) is None:
            self._tell(writing.step, writing.result(), writing.seconds, self._paused)
        else:
            _log.warning(f"the checkpoint of step {writing.step} was not saved either: {error}")

    def _tell(self, step: int, written: checkpoint.Written, seconds: float, paused: float) -> None:
        """Takes note of a checkpoint that is committed."""
        self.last_path, self.last_id = written.path, written.id
        waited = f" (training waited {paused:.1f} s)" if self._background is not None else ""
        self._run.log(f"saved {written.path} in {seconds:.1f} s{waited}")
        self.report(
            {
                "checkpoint/step": float(step),
                "checkpoint/pause_seconds": paused,
                "checkpoint/write_seconds": seconds,
                "checkpoint/bytes": float(written.bytes),
            }
        )

    def _rotate(self) -> None:
        """Removes the ones that are too many. Rank 0's part."""
        try:
            damaged = manifest.rotate(self._run.checkpoints, self._keep, self._run_id, self._run.verified)
        except OSError as error:
            damaged = [f"older checkpoints could not be removed: {error}"]
        for line in damaged:
            self._run.log(f"WARNING: {line}")
