"""Directories that a task writes: complete, with their record, or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moss_train import files
from moss_train.artifacts import lineage
from moss_train.errors import DiskFullError, UsageError


def refuse_existing(out: Path) -> None:
    """Refuses a directory that is there, before any work is done.

    Raises:
        UsageError: It exists.
    """
    if out.exists() or out.is_symlink():
        raise UsageError(f"out={out} exists; a finished artefact is never changed. Name another directory")


def write_artefact(out: Path, contents: Mapping[str, str | bytes], record: lineage.Lineage) -> str:
    """Writes a directory of files with its record; it appears under its name when it is complete.

    Args:
        out: The directory. contents: Texts, or bytes, by file name. record: Its lineage.

    Returns:
        The artefact's id.

    Raises:
        UsageError: It exists, or cannot be written.
        DiskFullError: No space is left.
    """
    refuse_existing(out)
    partial = files.new_partial(out)
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            (partial / name).write_bytes(content.encode() if isinstance(content, str) else content)
        identity = lineage.write(partial, record)
        for path in partial.iterdir():
            files.sync_file(path)
        files.sync_directory(partial)
        files.rename(partial, out)
        files.sync_directory(out.parent)
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent}; free some, or name another place") from error
        raise UsageError(f"out={out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return identity


def json_lines(values: Iterable[Any]) -> str:
    """Values as JSONL."""
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
