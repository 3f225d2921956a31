"""A cache of what is made from data: directories named by the hash of all they were made from, complete when they have their name.

    <cache>/<kind>-<key>/            the files of an entry, and ENTRY.json with their sizes and what they were made from
    <cache>/<kind>-<key>.lock        held by the process that makes it
    <cache>/<kind>-<key>.tmp-*/      an entry in the making, or what a crash left of one

An entry is never changed. Two processes that want the same one do no harm: one makes it and the other waits; where the file system has no
locks both make it, and the first to give it its name wins.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moss_train import files
from moss_train.errors import DiskFullError, UsageError

ENTRY = "ENTRY.json"
Say = Callable[[str], None]

_POLL_SECONDS = 0.2
_IDLE_SECONDS = 3600.0
"""Time after which what another process was making is given up for lost, where there are no locks to tell."""


def default_directory() -> Path:
    """`MOSS_TRAIN_CACHE`, or `moss_train` in the user's cache directory."""
    named = os.environ.get("MOSS_TRAIN_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moss_train"


def key_of(*parts: Any) -> str:
    """Hash of what an entry is made from: values that JSON can hold."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Cache:
    """Entries by kind and key.

    Args:
        directory: Made where it is missing.

    Raises:
        UsageError: It cannot be written.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable(directory, error) from error

    def path(self, kind: str, key: str) -> Path:
        """Where an entry is, or would be."""
        # A 160-bit name is enough to tell entries apart, and leaves room in a path.
        return self.directory / f"{kind}-{key[:40]}"

    def find(self, kind: str, key: str) -> Path | None:
        """An entry, if it is there and has all its files."""
        path = self.path(kind, key)
        return path if is_whole(path) else None

    def get(
        self,
        kind: str,
        key: str,
        make: Callable[[Path], dict[str, Any]],
        say: Say,
        seal: Callable[[Path], Any] | None = None,
    ) -> tuple[Path, bool]:
        """An entry, made where it is missing.

        Args:
            kind: First part of its name.
            key: From `key_of`.
            make: Writes its files into an empty directory, and returns what ENTRY.json is to say of them.
            say: Told of what takes time.
            seal: Called on the whole entry, ENTRY.json included, before it gets its name; what it writes is not needed to use the entry.

        Returns:
            The entry, and whether it was made now.

        Raises:
            DiskFullError: No space left. What had been written is removed.
        """
        if (found := self.find(kind, key)) is not None:
            return found, False
        path = self.path(kind, key)
        try:
            with _locked(path.with_name(path.name + ".lock"), path.name, say) as alone:
                # Another process may have made it meanwhile.
                if is_whole(path):
                    return path, False
                self._clean(path, say, alone)
                self._make(path, make, seal)
        except OSError as error:
            if files.is_disk_full(error):
                raise DiskFullError(f"no space is left at {self.directory} for the data cache; free some, or set data.cache") from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise _unusable(self.directory, error) from error
            raise
        return path, True

    def _clean(self, path: Path, say: Say, alone: bool) -> None:
        """Removes what a crash left, and an entry that has lost a file. `alone`: no other process can be making it."""
        for left in self.directory.glob(f"{path.name}.tmp-*"):
            if alone or _is_idle(left):
                files.empty_trash(left)
        if path.exists():
            say(f"the cache entry {path} is incomplete; it is made again")
            files.remove_directory(path)

    def _make(self, path: Path, make: Callable[[Path], dict[str, Any]], seal: Callable[[Path], Any] | None) -> None:
        partial = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:8]}")
        partial.mkdir()
        try:
            entry = make(partial)
            sizes = {}
            # What stands in folders below was synced by whoever wrote it.
            for file in sorted(path for path in partial.iterdir() if path.is_file()):
                files.sync_file(file)
                sizes[file.name] = file.stat().st_size
            content = json.dumps({**entry, "files": sizes}, ensure_ascii=True, indent=1)
            files.write_new(partial / ENTRY, content.encode())
            if seal is not None:
                seal(partial)
                for file in partial.iterdir():
                    if file.is_file() and file.name not in sizes:
                        files.sync_file(file)
            files.sync_directory(partial)
            try:
                files.rename(partial, path)
            except OSError as error:
                # Made by another process, where there are no locks: theirs is as good.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            files.sync_directory(self.directory)
        finally:
            if partial.exists():
                files.empty_trash(partial)


def is_whole(path: Path) -> bool:
    """Whether a directory is a complete entry: each file that ENTRY.json names, in its size."""
    try:
        sizes = read_entry(path)["files"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def read_entry(path: Path) -> dict[str, Any]:
    """What ENTRY.json says."""
    value = json.loads((path / ENTRY).read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path / ENTRY} is not a JSON object")
    return value


def _is_idle(directory: Path) -> bool:
    """Whether nothing has been written below a directory for a while."""
    with contextlib.suppress(OSError):
        newest = max(path.stat().st_mtime for path in [directory, *directory.rglob("*")])
        return time.time() - newest > _IDLE_SECONDS
    return False


@contextlib.contextmanager
def _locked(path: Path, what: str, say: Say) -> Iterator[bool]:
    """Holds a lock between processes, and gives whether it keeps them out; says so when another one has it."""
    with path.open("a", encoding="utf-8") as file:
        told = False
        while not files.try_lock(file.fileno()):
            if not told:
                say(f"another process is making {what}; waiting for it")
                told = True
            time.sleep(_POLL_SECONDS)
        yield files.has_locks(file.fileno())


def _unusable(directory: Path, error: OSError) -> UsageError:
    return UsageError(f"the data cache {directory} cannot be written: {error.strerror}; set data.cache to a directory that can")
