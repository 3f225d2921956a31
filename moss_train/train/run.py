"""A run: its directory, its log, its outcome in status.json, and errors that end all ranks together."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from moss_train import files
from moss_train.config import Resume, StageConfig
from moss_train.errors import (
    DataError,
    DiskFullError,
    FailedElsewhereError,
    LostRankError,
    MossTrainError,
    OutOfMemoryError,
    PreemptedError,
    UsageError,
)
from moss_train.train import engine as distributed
from moss_train.train import manifest
from moss_train.train.interrupt import StopRequest, note_launcher
from moss_train.train.tracking import resident_gib, setup_logging
from moss_train.train.watchdog import Watchdog, machine

_log = logging.getLogger("moss_train")
_Result = TypeVar("_Result")

_CALLS = itertools.count()
"""Numbers what is done once a machine; the same on every rank, over all jobs of a sweep."""
_LISTEN_SECONDS = 0.1

LOCK = "run.lock"
"""Held by the run that writes in a directory; also the sign that the directory is a run's."""


@dataclass
class Run:
    """A run under way."""

    stage: str
    dir: Path
    config: dict[str, Any]
    """The resolved configuration, as plain values."""
    stop: StopRequest
    resumes: bool = False
    """Whether the directory has checkpoints to go on from."""
    watchdog: Watchdog | None = None
    verified: manifest.Verified = field(default_factory=manifest.Verified)
    """Which of its checkpoints were found good."""

    @property
    def checkpoints(self) -> Path:
        """Where its training checkpoints are."""
        return self.dir / "checkpoints"

    def beat(self, doing: str) -> None:
        """Tells that this rank makes progress, and with what."""
        if self.watchdog is not None:
            self.watchdog.beat(doing)

    def rest(self, doing: str) -> None:
        """Tells that what comes now may take long: the limit for hangs begins with the next beat."""
        if self.watchdog is not None:
            self.watchdog.rest(doing)

    def beat_aside(self, doing: str) -> None:
        """Tells that what is done beside training makes progress."""
        if self.watchdog is not None:
            self.watchdog.beat_aside(doing)

    def rest_aside(self) -> None:
        """Tells that nothing with a limit is done beside training."""
        if self.watchdog is not None:
            self.watchdog.rest_aside()

    @property
    def doing(self) -> str:
        """What this rank last said it was doing."""
        return self.watchdog.doing if self.watchdog is not None else "starting"

    def write_config(self) -> None:
        """Writes config.yaml, on rank 0."""
        if distributed.rank() == 0:
            content = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
            files.replace_content(self.dir / "config.yaml", content.encode())

    def log(self, message: str) -> None:
        """Says something once, on rank 0."""
        if distributed.rank() == 0:
            _log.info(message)

    def together(self, work: Callable[[], _Result]) -> _Result:
        """Runs `work` on every rank and raises on all of them when it fails on any, so that none waits for one that is gone."""
        error: BaseException | None = None
        result: _Result | None = None
        if self.stop.at_once:
            # Reading and rendering data takes what it takes; the limit is for training.
            self.rest("preparing")
        try:
            result = work()
        except PreemptedError:
            # A signal may have struck inside a collective of `work`; another one now would not meet the others there.
            raise
        except Exception as caught:
            error = translate(caught, self.doing)
        told: Any = contextlib.nullcontext()
        if error is not None and self.watchdog is not None:
            told = self.watchdog.pending(*_describe(error))
        with told:
            failures = distributed.gather(None if error is None else _describe(error))
        if error is not None:
            raise error
        for number, failure in enumerate(failures):
            if failure is not None:
                raise FailedElsewhereError(f"rank {number}: {failure[1]}", failure[0])
        return result  # type: ignore[return-value]

    def once_per_machine(self, what: str, work: Callable[[], _Result]) -> _Result:
        """Runs `work` on one rank of each machine, and gives its result to the others there; raises on all where it fails.

        The others wait outside of any collective, so it may take longer than a collective's time-out.

        Args:
            what: Name of the work, for messages.
            work: Returns what JSON can hold.
        """
        here = distributed.gather(machine())
        first = here.index(machine())
        call = next(_CALLS)
        keys = {rank: f"once/{call}/{rank}" for rank in sorted({here.index(name) for name in here})}

        def work_or_wait() -> Any:
            result, failure = None, None
            if distributed.rank() == first:
                try:
                    result = work()
                except PreemptedError:
                    raise
                except Exception as error:
                    failure = error
                finally:
                    # Without a result it has failed; the others hear of that when they come together.
                    distributed.tell(keys[first], json.dumps(result))
            # For the other machines too: some have more to do, or slower disks.
            self.rest(f"waiting for {what}")
            while not all(distributed.is_told(key) for key in keys.values()):
                time.sleep(_LISTEN_SECONDS)
            if failure is not None:
                raise failure
            return result if distributed.rank() == first else json.loads(distributed.heard(keys[first]) or "null")

        return self.together(work_or_wait)

    def agree(self, what: str, fingerprint: str) -> None:
        """Raises on all ranks where they hold different data: training on it would mix runs, or hang."""
        found = distributed.gather(fingerprint)
        odd = [number for number, other in enumerate(found) if other != found[0]]
        if odd:
            raise DataError(
                f"{what} of rank {odd[0]} are not those of rank 0; every machine must see the same files, tokenizer and version of this "
                "package"
            )


def _describe(error: BaseException) -> tuple[int, str]:
    return getattr(error, "exit_code", 1), str(error) if isinstance(error, MossTrainError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def open_run(config: StageConfig, stage: str) -> Iterator[Run]:
    """Joins the process group and opens the run directory; on leaving, the outcome is in status.json.

    A run found in the directory is gone on with where it has checkpoints and `run.resume` allows it; else it is moved aside to `<dir>.1`,
    `<dir>.2`, ...: nothing is overwritten.

    Raises:
        MossTrainError: What ended the run, on every rank; on those that did not meet it themselves, with its message and code.
    """
    note_launcher()
    distributed.start(2 * config.train.hang_seconds)
    directory = Path(config.run.dir or "")
    main_rank = distributed.rank() == 0
    run = Run(stage, directory, plain(asdict(config)), StopRequest())
    opened = run.together(lambda: _open_directory(directory.absolute(), config.run.resume is Resume.auto) if main_rank else None)
    run.resumes = distributed.gather(opened is not None and opened.resumes)[0]
    setup_logging(directory, main_rank, distributed.rank())
    if opened is not None and opened.moved is not None:
        run.log(f"the run that was in {directory} is now in {opened.moved.name}, beside it")
    if not run.resumes:
        run.together(run.write_config)
    started = time.time()

    def write_outcome(code: int | None, message: str) -> None:
        outcome = {
            "stage": stage,
            "state": {None: "running", 0: "finished", PreemptedError.exit_code: "preempted"}.get(code, "failed"),
            "exit_code": code,
            "message": message,
            "seconds": round(time.time() - started, 1),
            "finished": code == 0,
            # Of this process: at the end, what a sweep would carry into its next job.
            "resident_gib": round(resident_gib(), 4),
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        try:
            files.replace_content(directory.absolute() / "status.json", (json.dumps(outcome, indent=1, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            _log.warning(f"status.json could not be written ({error}); the run ended with exit code {code}: {message}")

    if main_rank:
        write_outcome(None, "the run is under way, or its processes were killed")
    run.watchdog = watchdog = Watchdog(directory.absolute(), config.train.hang_seconds, run.stop, write_outcome)
    run.stop.install()
    try:
        yield run
        watchdog.close()
        if main_rank:
            write_outcome(0, "finished")
    except BaseException as error:
        run.stop.at_once = False
        ending = _explain(error, watchdog)
        watchdog.fail(getattr(ending, "exit_code", 1), str(ending) if isinstance(ending, MossTrainError) else _describe(ending)[1])
        if isinstance(ending, MossTrainError):
            ending.rank0_knows = True
        if ending is error:
            raise
        raise ending from error
    finally:
        run.stop.uninstall()
        if opened is not None:
            opened.lock.close()


# What libraries say when a peer has left or no memory is left; they have no exception types of their own for it.
_PEER_LEFT = ("connection closed by peer", "connection reset", "connection refused", "broken pipe", "nccl", "gloo", "timed out waiting")
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory")


def translate(error: BaseException, doing: str) -> BaseException:
    """An error of ours in place of a library's that means no memory or no space; others as they are."""
    if isinstance(error, MossTrainError):
        return error
    text = f"{type(error).__name__}: {error}".lower()
    no_memory = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY))
    if no_memory or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        first_line = str(error).splitlines()[0] if str(error) else "no memory is left"
        translated: MossTrainError = OutOfMemoryError(
            f"rank {distributed.rank()} has no memory left after: {doing} ({first_line}). Lower train.micro_batch_size (the global batch "
            "stays the same) or data.seq_len, set model.recompute=true, or choose deepspeed=zero3_offload. The newest checkpoint is "
            "untouched"
        )
    elif files.is_disk_full(error):
        where = getattr(error, "filename", None) or "a disk that this run writes to"
        translated = DiskFullError(f"no space is left at {where} ({error}). Free some, and give the same command again")
    else:
        return error
    translated.__cause__ = error
    return translated


def _explain(error: BaseException, watchdog: Watchdog) -> BaseException:
    """The error that a run ends with: the cause where `error` is only a consequence, and ours where a library's has a meaning."""
    error = translate(error, watchdog.doing)
    if isinstance(error, MossTrainError):
        return error
    text = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, RuntimeError) and any(words in text for words in _PEER_LEFT):
        cause = watchdog.failure(wait_seconds=8.0)
        return cause or LostRankError(
            f"rank {distributed.rank()} lost its connection to another rank after: {watchdog.doing} ({str(error).splitlines()[0]}). The "
            "newest checkpoint is untouched; the same command goes on from it"
        )
    return watchdog.failure() or error if isinstance(error, Exception) else error


def plain(value: Any) -> Any:
    """A configuration as values that YAML and JSON know: enums become their names."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@dataclass(frozen=True)
class _Opened:
    """A run directory that is this process's: the lock is held for as long as `lock` is open."""

    lock: IO[str]
    moved: Path | None
    resumes: bool


def _open_directory(directory: Path, resume: bool) -> _Opened:
    """Takes the run directory: to go on with the run in it, or empty, what was there moved aside.

    Raises:
        UsageError: It cannot be written, or another run is writing there.
        DiskFullError: No space left.
    """
    try:
        resumes = resume and bool(manifest.committed(directory / "checkpoints"))
        moved = None if resumes else _move_aside(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("w", encoding="utf-8")
        if not files.try_lock(lock.fileno()):
            raise UsageError(f"another run is writing in run.dir={directory}; name another directory, or wait until it has ended")
        # The lock is ours: what is unfinished there is left over from a crash.
        manifest.clean(directory / "checkpoints")
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left for run.dir={directory}; free some, or name another place") from error
        raise UsageError(f"run.dir={directory} cannot be written: {error.strerror}; name another directory") from error
    return _Opened(lock, moved, resumes)


def _move_aside(directory: Path) -> Path | None:
    """Renames a directory that holds a run which is over. One that does not (a sweep's own folder, a user's project) is left as it is."""
    if not (directory / LOCK).is_file() or not ((directory / "config.yaml").is_file() or (directory / "status.json").is_file()):
        return None
    with (directory / LOCK).open("a", encoding="utf-8") as lock:
        if not files.try_lock(lock.fileno()):
            raise UsageError(f"another run is writing in run.dir={directory}; name another directory, or wait until it has ended")
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    return target
