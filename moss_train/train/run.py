"""A run: its directory, its log, its outcome in status.json, and errors that end all ranks together."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from moss_train.config import StageConfig
from moss_train.errors import CheckpointError, DataError, MossTrainError, NonFiniteError, UsageError
from moss_train.train import engine as distributed
from moss_train.train.tracking import resident_gib, setup_logging

_log = logging.getLogger("moss_train")
_Result = TypeVar("_Result")

_KINDS: dict[str, type[MossTrainError]] = {kind.__name__: kind for kind in (UsageError, DataError, CheckpointError, NonFiniteError)}


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
        verdicts = distributed.share_verdict(error)
        if error is not None:
            raise error
        if verdicts:
            kind, _, text = verdicts[0].partition(": ")[2].partition(": ")
            raise _KINDS.get(kind, MossTrainError)(f"{verdicts[0].partition(':')[0]}: {text}")
        return result  # type: ignore[return-value]


@contextlib.contextmanager
def open_run(config: StageConfig, stage: str) -> Iterator[Run]:
    """Joins the process group and opens the run directory; on leaving, the outcome is in status.json.

    An earlier run in the directory is moved aside to `<dir>.1`, `<dir>.2`, ...: nothing is overwritten.
    """
    distributed.start()
    directory = Path(config.run.dir or "")
    values = plain(asdict(config))
    main_rank = distributed.rank() == 0
    moved = None
    if main_rank:
        moved = _move_aside(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")
    distributed.broadcast(None)
    setup_logging(directory, main_rank, distributed.rank())
    run = Run(stage, directory, values)
    if moved:
        run.log(f"the run that was in {directory} is now in {moved}")
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


def plain(value: Any) -> Any:
    """A configuration as values that YAML and JSON know: enums become their names."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _move_aside(directory: Path) -> Path | None:
    """Renames a directory that holds a run; one that does not (a sweep's own folder, or none) is left alone."""
    if not (directory / "config.yaml").is_file():
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}.{number}")).exists():
        number += 1
    directory.rename(target)
    return target
