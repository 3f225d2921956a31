"""What files hold, as sha256, remembered by the cache so that an unchanged file is not read again at every start.

A remembered hash counts only for a file whose device, inode, size, and times of change are those it had, and which had not been changed
within two seconds before it was hashed: file systems have coarse clocks, and a second change in the same tick would go unseen.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moss_train import files
from moss_train.cores import cores
from moss_train.data.cache import Cache, key_of
from moss_train.errors import DataError

_SETTLED_NANOSECONDS = 2 * 10**9

Stamp = tuple[int, int, int, int, int]


def stamp(path: Path) -> Stamp:
    """What tells that a file has been changed: device, inode, size, and both times, which no program sets back together."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def combined(paths: Sequence[str], hashes: Sequence[str], limit: int | None) -> str:
    """The sha256 of one file taken whole; else a hash over what stands for the records of several: hashes, forms, and the limit."""
    if len(hashes) == 1 and limit is None:
        return hashes[0]
    return key_of([hashes, [Path(name).suffixes for name in paths], limit])


def hash_inputs(paths: Sequence[Path], cache: Cache, progress: Callable[[], None] | None = None) -> list[str]:
    """The sha256 of each file, read only where it is not known from before.

    Args:
        paths: Files.
        cache: Remembers.
        progress: Called now and then while files are read.

    Raises:
        DataError: A file has gone, or changes while it is read.
    """
    memory = cache.directory / f"hashes-{key_of([str(path.absolute()) for path in paths])[:40]}.json"
    try:
        known = {name: (tuple(seen), digest, when) for name, seen, digest, when in json.loads(memory.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        known = {}
    results: dict[Path, tuple[Stamp, str, int]] = {}
    missing = []
    for path in paths:
        try:
            now = stamp(path)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}") from error
        seen, digest, when = known.get(str(path.absolute()), (None, "", 0))
        if seen == now and max(now[3:]) + _SETTLED_NANOSECONDS < when:
            results[path] = (now, digest, when)
        else:
            missing.append(path)

    def hash_one(path: Path) -> tuple[Stamp, str, int]:
        try:
            before, when = stamp(path), time.time_ns()
            digest = files.hash_file(path, progress).sha256
            after = stamp(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from error
        if after != before:
            raise DataError(f"{path} changes while it is read; wait until whatever writes it has ended")
        return before, digest, when

    # sha256 runs outside the interpreter's lock.
    with ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        results |= dict(zip(missing, pool.map(hash_one, missing), strict=True))
    if missing:
        record = [[str(path.absolute()), *results[path]] for path in dict.fromkeys(paths)]
        # A cache that can only be read is as good, but for the time that hashing takes.
        with contextlib.suppress(OSError):
            files.replace_content(memory, json.dumps(record, ensure_ascii=True).encode())
    return [results[path][1] for path in paths]
