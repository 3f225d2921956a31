"""A file that is there with all of its content, or not at all."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO

from moss_train import files
from moss_train.errors import DiskFullError, UsageError


class NewFile(contextlib.AbstractContextManager["NewFile"]):
    """A file in the making, under a temporary name beside its own; it gets that when the context ends without an exception.

    Args:
        path: Its name.
        replace: Whether a file that has the name already is replaced.

    Attributes:
        partial: The temporary name, for libraries that write by name.

    Raises:
        UsageError: The name is taken, there is no such folder, or it cannot be written.
        DiskFullError: No space is left.
    """

    def __init__(self, path: Path, replace: bool = False):
        if path.is_dir() or (path.exists() and not replace):
            raise UsageError(f"{path} exists already; choose another name, or remove it first.")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first.")
        self.path = path
        self._replace = replace
        # The suffix stays at the end: libraries tell the form of a file by it.
        self.partial = path.with_name(f".{uuid.uuid4().hex[:8]}.tmp.{path.name}")
        self._file: IO[bytes] | None = None

    def open(self) -> IO[bytes]:
        """The file for writing bytes; it is closed with the context."""
        self._file = self.partial.open("xb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._file is not None:
                self._file.close()
            if kind is None:
                files.sync_file(self.partial)
                if self.path.exists() and not self._replace:
                    raise UsageError(f"{self.path} was made by another program meanwhile; choose another name.")
                files.rename(self.partial, self.path)
                files.sync_directory(self.path.parent)
        except OSError as problem:
            raise _explained(problem, self.path) from problem
        finally:
            self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise _explained(error, self.path) from error


def _explained(error: OSError, path: Path) -> DiskFullError | UsageError:
    if files.is_disk_full(error):
        return DiskFullError(f"{path}: no space is left for it; free some, or choose another folder. Nothing of it was kept.")
    return UsageError(f"{path}: cannot be written: {error.strerror or error}.")
