"""Saving while training goes on: `train.async_save`.

At a save each rank copies its own part of the state (`snapshot.py`), and training goes on. A thread of each rank then writes what the rank
always writes, from the copies, and says through torch's store what became of it; rank 0's thread waits for all, commits, and says how it
ended. A collective of the training's process group is never called here: the order of two threads differs from rank to rank, and would mix
them. The main threads come together when every thread has ended (`Saver.settle`), and what failed is raised there, on all ranks.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from moss_train.files import FileEntry
from moss_train.train import checkpoint
from moss_train.train import engine as distributed
from moss_train.train import manifest as manifests
from moss_train.train.checkpoint import Content, Written
from moss_train.train.run import Run
from moss_train.train.snapshot import Snapshot
from moss_train.train.tensors import TensorFiles, deal

_LISTEN_SECONDS = 0.1
_ABANDON_SECONDS = 2.0
"""How long a rank that ends waits for its thread to see that it is not needed any more."""
THREAD_NAME = "checkpoint"


class AbandonedError(Exception):
    """The run ends before the checkpoint is written."""


class Background:
    """Writes the checkpoints of one run beside it, one at a time. Made by a collective, which takes the memory of the copies.

    Args:
        run: The open run. engine: From `engine.initialize`.
    """

    def __init__(self, run: Run, engine: Any):
        self._run = run
        self._snapshot = Snapshot(engine)
        self._companions: dict[str, bytes] = {}

    def save(self, content: Content, then: Callable[[], None]) -> Writing:
        """Copies the state and begins to write it. A collective; the one before must have been settled.

        Args:
            content: What the checkpoint holds beside tensors. then: Called on rank 0 when it is committed, in its thread.

        Raises:
            DiskFullError: There is no room. CheckpointError: The place cannot be written. What was there before is untouched.
        """
        main = distributed.rank() == 0
        partial = checkpoint.begin(self._run, content)
        try:
            self._run.together(lambda: self._take(content))
        except BaseException:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        return Writing(self._run, self._snapshot, partial, replace(content, write_companions=self._write_companions), then)

    def _take(self, content: Content) -> None:
        if distributed.rank() == 0 and not self._companions:
            self._companions = _read_companions(content.write_companions)
        self._snapshot.take()

    def _write_companions(self, folder: Path) -> None:
        for name, data in self._companions.items():
            (folder / name).write_bytes(data)


def _read_companions(write: Callable[[Path], Any]) -> dict[str, bytes]:
    """config.json and the tokenizer's files, which no step changes. They are made here: a tokenizer may be in use when a thread writes."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        return {path.name: path.read_bytes() for path in sorted(Path(name).iterdir())}


class Writing:
    """A checkpoint that a thread of this rank is writing.

    Attributes:
        step: Of the checkpoint.
        seconds: From its beginning to its end, once `is_done`.
    """

    def __init__(self, run: Run, snapshot: Snapshot, partial: Path, content: Content, then: Callable[[], None]):
        self._run, self._snapshot, self._partial, self._content, self._then = run, snapshot, partial, content, then
        self.step, self.seconds = content.step, 0.0
        self._written: Written | None = None
        self._error: BaseException | None = None
        self._abandoned, self._done = threading.Event(), threading.Event()
        # At the end of a run it is always waited for. As a daemon it cannot keep a process that fails from leaving.
        self._thread = threading.Thread(target=self._work, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether it is known on this rank how it ended."""
        return self._done.is_set()

    def wait(self) -> None:
        """Waits until it has ended. Not a collective; but each rank's thread waits for the others."""
        self._thread.join()

    def result(self) -> Written:
        """What became of it, once it has ended.

        Raises:
            Exception: What this rank's thread failed with. Where it failed at all, some rank has it.
        """
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._written is not None
        return self._written

    def wait_alone(self) -> BaseException | None:
        """Waits on a rank that fails, unless another rank is gone too; returns what it failed with itself."""
        while not self._done.wait(_LISTEN_SECONDS):
            if self._run.watchdog is not None and self._run.watchdog.failure() is not None:
                self._abandoned.set()
                self._done.wait(_ABANDON_SECONDS)
                return self._error or AbandonedError("another rank has failed")
        return self._error

    def _work(self) -> None:
        started = time.perf_counter()
        try:
            self._written = self._write()
        except BaseException as error:
            self._error = error
        finally:
            self._run.rest_aside()
            self.seconds = time.perf_counter() - started
            self._done.set()

    def _write(self) -> Written:
        """This thread's part: the tensors of this rank, then rank 0's commit; returns when the end is known."""
        error: Exception | None = None
        entries: dict[str, FileEntry] = {}
        try:
            entries = checkpoint.translated(self._partial, self._write_tensors)
        except AbandonedError:
            raise
        except Exception as caught:
            error = caught
        mine = None if error is not None else {name: asdict(entry) for name, entry in entries.items()}
        distributed.tell(self._word(distributed.rank()), json.dumps(mine))
        self._run.rest_aside()
        written = Written(self._partial.with_name(manifests.step_name(self.step)))
        if distributed.rank() == 0:
            words = [json.loads(self._hear(self._word(rank))) for rank in range(distributed.world_size())]
            try:
                if all(word is not None for word in words):
                    written = checkpoint.translated(self._partial, lambda: self._commit(words))
            finally:
                # No rank writes there any more.
                shutil.rmtree(self._partial, ignore_errors=True)
                distributed.tell(self._word("end"), "")
        else:
            self._hear(self._word("end"))
        if error is not None:
            raise error
        return written

    def _write_tensors(self) -> dict[str, FileEntry]:
        shapes = self._content.shapes
        writer_of = {name: rank for rank, names in deal(shapes, distributed.world_size()) for name in names}
        return checkpoint.write_tensors(self._snapshot.whole(writer_of), shapes, TensorFiles(self._partial), self._say)

    def _say(self, name: str) -> None:
        if self._abandoned.is_set():
            raise AbandonedError(f"step {self.step} is not needed any more")
        self._run.beat_aside(f"writing {name} of step {self.step} beside training")

    def _commit(self, words: list[dict[str, dict[str, Any]]]) -> Written:
        entries = {name: FileEntry(**entry) for word in words for name, entry in word.items()}
        written = checkpoint.commit(self._partial, self._content, entries, self._run.verified)
        self._then()
        return written

    def _word(self, of: int | str) -> str:
        # The directory's name is another one at each save.
        return f"{self._partial.name}/{of}"

    def _hear(self, key: str) -> str:
        while (word := distributed.heard(key)) is None:
            if self._abandoned.wait(_LISTEN_SECONDS):
                raise AbandonedError(f"step {self.step} is not needed any more")
        return word
