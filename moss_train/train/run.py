"""A run: its directory, its log, its outcome in status.json, and errors that end all ranks together."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any, TypeVar

import yaml

from moss_train.config import StageConfig
from moss_train.errors import DataError, DiskFullError, MossTrainError, UsageError
from moss_train.train import engine as distributed
from moss_train.train.tracking import resident_gib, setup_logging

_log = logging.getLogger("moss_train")
_Result = TypeVar("_Result")

LOCK = "run.lock"
"""Held by the run that writes in a directory; also the sign that the directory is a run's."""


@dataclass(frozen=True)
class Run:
    """A run under way."""

    stage: str
    dir: Path
    config: dict[str, Any]
    """The resolved configuration, as plain values."""

    def log(self, message: str) -> None:
        """Says something once, on rank 0."""
        if distributed.rank() == 0:
            _log.info(message)

    def together(self, work: Callable[[], _Result]) -> _Result:
        """Runs `work` on every rank and raises on all of them when it fails on any, so that none waits for one that is gone."""
        error: Exception | None = None
        result: _Result | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        failures = distributed.gather(None if error is None else _describe(error))
        if error is not None:
            raise error
        for number, failure in enumerate(failures):
            if failure is not None:
                raise FailedElsewhereError(f"rank {number}: {failure[1]}", failure[0])
        return result  # type: ignore[return-value]

    def agree(self, what: str, fingerprint: str) -> None:
        """Raises on all ranks where they hold different data: training on it would mix runs, or hang."""
        found = distributed.gather(fingerprint)
        odd = [number for number, other in enumerate(found) if other != found[0]]
        if odd:
            raise DataError(
                f"{what} of rank {odd[0]} are not those of rank 0; every machine must see the same files, tokenizer and version of this "
                "package"
            )


class FailedElsewhereError(MossTrainError):
    """Another rank failed; this one ends with its message and exit code."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def _describe(error: Exception) -> tuple[int, str]:
    return getattr(error, "exit_code", 1), str(error) if isinstance(error, MossTrainError) else f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def open_run(config: StageConfig, stage: str) -> Iterator[Run]:
    """Joins the process group and opens the run directory; on leaving, the outcome is in status.json.

    An earlier run in the directory is moved aside to `<dir>.1`, `<dir>.2`, ...: nothing is overwritten.
    """
    distributed.start()
    directory = Path(config.run.dir or "").absolute()
    shown = Path(config.run.dir or "")
    values = plain(asdict(config))
    main_rank = distributed.rank() == 0
    run = Run(stage, shown, values)
    opened = run.together(lambda: _open_directory(directory, values) if main_rank else None)
    setup_logging(directory, main_rank, distributed.rank())
    if opened is not None and opened.moved is not None:
        run.log(f"the run that was in {shown} is now in {opened.moved.name}, beside it")
    started = time.time()
    code, message = 1, "ended by an error of the program"
    try:
        yield run
        code, message = 0, "finished"
    except MossTrainError as error:
        code, message = error.exit_code, str(error)
        raise
    except KeyboardInterrupt:
        code, message = 130, "stopped by Ctrl-C"
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        if main_rank:
            outcome = {
                "stage": stage,
                "exit_code": code,
                "message": message,
                "seconds": round(time.time() - started, 1),
                "finished": code == 0,
                # Of this process when the run is over: what a sweep would carry into its next job.
                "resident_gib": round(resident_gib(), 4),
            }
            partial = directory / "status.json.tmp"
            partial.write_text(json.dumps(outcome, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, directory / "status.json")
            if opened is not None:
                opened.lock.close()


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


def _open_directory(directory: Path, values: dict[str, Any]) -> _Opened:
    """Makes the run directory, with config.yaml in it; what an earlier run left there is moved aside.

    Raises:
        UsageError: It cannot be written, or another run is writing there.
        DiskFullError: No space left.
    """
    try:
        moved = _move_aside(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK).open("w", encoding="utf-8")
        if not _try_lock(lock):
            raise UsageError(f"another run is writing in run.dir={directory}; name another directory")
        (directory / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no space is left for run.dir={directory}; free some, or name another place") from error
        raise UsageError(f"run.dir={directory} cannot be written: {error.strerror}; name another directory") from error
    return _Opened(lock, moved)


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _move_aside(directory: Path) -> Path | None:
    """Renames a directory that holds a run which is over. One that does not (a sweep's own folder, a user's project) is left as it is."""
    if not (directory / "config.yaml").is_file() or not (directory / LOCK).is_file():
        return None
    with (directory / LOCK).open("a", encoding="utf-8") as lock:
        if not _try_lock(lock):
            raise UsageError(f"another run is writing in run.dir={directory}; name another directory")
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    return target
