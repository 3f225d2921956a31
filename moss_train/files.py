"""Files that a crash cannot leave half-written: content reaches the disk before its name does.

Standard library only, so that tools which look at files start at once.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import mmap
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRASH_PREFIX = ".trash-"
"""Directories on their way out; whoever finds one may finish the removal."""

_PIECE = 16 * 2**20
_LARGE = 2**20
"""Bytes from which a thread, and a way past the page cache, are worth it."""
_DIRECT_PIECE = 4 * 2**20
_BLOCK = 4096
"""A multiple of every disk's block."""


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


class HashedFile:
    """A new file that is hashed as it is written, so that no byte has to be read again.

    Large content is hashed in a thread of its own while it is written, and goes past the page cache: filling pages that nobody reads takes
    as much of a core as sha256, which takes as long as a good disk.

    Args:
        path: Must not exist.
    """

    def __init__(self, path: Path):
        self._file = path.open("xb", buffering=0)
        self._path = path
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._hashing: ThreadPoolExecutor | None = None
        self._direct: int | None = None
        """Descriptor that goes past the page cache, once there was something large; -1 where the file system has none."""
        self._aligned: mmap.mmap | None = None

    def write(self, data: bytes | memoryview) -> None:
        """Appends `data`, which is not needed any more on return.

        Raises:
            OSError: It did not fit; the file is incomplete.
        """
        view = memoryview(data).cast("B")
        if len(view) < _LARGE:
            self._digest.update(view)
            self._write_cached(view)
            return
        self._hashing = self._hashing or ThreadPoolExecutor(1, "sha256")
        hashed = self._hashing.submit(self._digest.update, view)
        try:
            # Direct writes begin and end at whole blocks; a page is written in one way only.
            first = -self._bytes % _BLOCK
            self._write_cached(view[:first])
            done = first + self._write_direct(view[first : first + (len(view) - first) // _BLOCK * _BLOCK])
            self._write_cached(view[done:])
        finally:
            hashed.result()

    def _write_cached(self, view: memoryview) -> None:
        for start in range(0, len(view), _PIECE):
            piece = view[start : start + _PIECE]
            while len(piece):
                written = write_piece(self._file.fileno(), piece)
                self._bytes += written
                piece = piece[written:]

    def _write_direct(self, view: memoryview) -> int:
        """Writes whole blocks past the page cache; returns how many bytes, fewer than all where the file system does not go on with it."""
        if self._direct is None:
            try:
                self._direct = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
                self._aligned = mmap.mmap(-1, _DIRECT_PIECE)
            except OSError:
                self._direct = -1
        if self._direct < 0 or self._aligned is None:
            return 0
        os.lseek(self._direct, self._bytes, os.SEEK_SET)
        done = 0
        with memoryview(self._aligned) as buffer:
            while done < len(view) and done % _BLOCK == 0:
                size = min(_DIRECT_PIECE, len(view) - done)
                buffer[:size] = view[done : done + size]
                try:
                    done += write_piece(self._direct, buffer[:size])
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    os.close(self._direct)
                    self._direct = -1
                    break
        self._bytes += done
        os.lseek(self._file.fileno(), self._bytes, os.SEEK_SET)
        return done

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
        if self._direct is not None and self._direct >= 0:
            os.close(self._direct)
        self._direct, self._aligned = -1, None
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
