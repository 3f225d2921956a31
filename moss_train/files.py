"""Files that a crash cannot leave half-written: content reaches the disk before its name does.

Standard library only, so that tools which look at files start at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRASH_PREFIX = ".trash-"
"""Directories on their way out; whoever finds one may finish the removal."""

_PIECE = 16 * 2**20
_HASHED_APART = 2**20
"""Bytes from which a thread is worth its start."""


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


class HashedFile:
    """A new file that is hashed as it is written, so that no byte has to be read again.

    Large content is hashed in a thread of its own while it is written: on one core, sha256 takes as long as a good disk.

    Args:
        path: Must not exist.
    """

    def __init__(self, path: Path):
        self._file = path.open("xb", buffering=0)
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._hashing: ThreadPoolExecutor | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`, which is not needed any more on return.

        Raises:
            OSError: It did not fit; the file is incomplete.
        """
        view = memoryview(data).cast("B")
        hashed: Future[None] | None = None
        if len(view) < _HASHED_APART:
            self._digest.update(view)
        else:
            self._hashing = self._hashing or ThreadPoolExecutor(1, "sha256")
            hashed = self._hashing.submit(self._digest.update, view)
        try:
            for start in range(0, len(view), _PIECE):
                self._write_all(view[start : start + _PIECE])
        finally:
            if hashed is not None:
                hashed.result()

    def _write_all(self, piece: memoryview) -> None:
        first, size = self._bytes, len(piece)
        while len(piece):
            written = write_piece(self._file.fileno(), piece)
            self._bytes += written
            piece = piece[written:]
        if size >= _HASHED_APART:
            # The kernel begins to write these pages now, not only when the file is synced. A file system may refuse the hint.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self._file.fileno(), first, size, os.POSIX_FADV_DONTNEED)

    def close(self) -> FileEntry:
        """Waits until the content is on disk, and says what it is."""
        try:
            sync(self._file.fileno())
        finally:
            self.abandon()
        return FileEntry(self._bytes, self._digest.hexdigest())

    def abandon(self) -> None:
        """Closes a file that will not be used."""
        if self._hashing is not None:
            self._hashing.shutdown()
        self._file.close()


# What changes a disk goes through these four names.
def write_piece(descriptor: int, piece: memoryview) -> int:
    """Writes some of `piece`; returns how many bytes."""
    return os.write(descriptor, piece)


def sync(descriptor: int) -> None:
    """Waits until a file or directory is on disk."""
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Gives a file or directory its name; what had it before is replaced in the same instant."""
    os.replace(source, target)


def remove(path: Path) -> None:
    """Removes a file."""
    path.unlink()


def sync_file(path: Path) -> None:
    """Waits until a file that another library wrote is on disk."""
    with path.open("rb") as file:
        sync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Waits until the names in a directory are on disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes) -> FileEntry:
    """Writes a whole new file and waits for the disk."""
    file = HashedFile(path)
    try:
        file.write(content)
    except BaseException:
        file.abandon()
        raise
    return file.close()


def replace_content(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader, or a crash, sees the old content or the new. Threads may do so at the same time."""
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    partial.unlink(missing_ok=True)
    try:
        write_new(partial, content)
        rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_directory(directory: Path) -> None:
    """Takes a directory out of sight first, then removes it: it is never seen with some of its files."""
    trash = directory.with_name(f"{TRASH_PREFIX}{directory.name}-{uuid.uuid4().hex[:8]}")
    rename(directory, trash)
    sync_directory(directory.parent)
    empty_trash(trash)


def empty_trash(directory: Path) -> None:
    """Removes a directory that nobody reads any more; what cannot be removed now is left for the next time."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            try:
                remove(Path(folder, name))
            except OSError:
                continue
    shutil.rmtree(directory, ignore_errors=True)


def new_partial(out: Path) -> Path:
    """A name beside `out` to write it under before it is complete; what killed programs left under such names is removed."""
    for left in out.parent.glob(f"{glob.escape(out.name)}.tmp-{'[0-9a-f]' * 8}"):
        empty_trash(left)
    return out.with_name(f"{out.name}.tmp-{uuid.uuid4().hex[:8]}")


def hash_file(path: Path, progress: Callable[[], None] | None = None) -> FileEntry:
    """Size and sha256 of a file, read in pieces; `progress` is called after each."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            size += len(piece)
            if progress is not None:
                progress()
    return FileEntry(size, digest.hexdigest())


def seal(record: dict[str, Any]) -> bytes:
    """A record as JSON with its own hash: one spelling for one record, so that a changed byte is a changed file."""
    return _spell({**record, "sha256": hashlib.sha256(_spell(record)).hexdigest()})


def unseal(content: bytes) -> dict[str, Any] | None:
    """The record that `seal` was given, or None where `content` is not, byte for byte, what it made of one."""
    try:
        record: Any = json.loads(content)
        record.pop("sha256")
        return record if seal(record) == content else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _spell(record: Any) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def try_lock(descriptor: int) -> bool:
    """Takes an open file's lock between processes, unless another process has it; it goes when the file is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems have no locks; there, two at the same place are the user's to avoid.
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    return True


def has_locks(descriptor: int) -> bool:
    """Whether a lock that `try_lock` gave keeps others out; on some network file systems it does not."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that no space or no quota is left; safetensors tells it in words only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"os error {number})" in str(error) for number in full)
