"""Removes the locks that killed processes left on compiled operators.

torch guards the directory in which it compiles an extension with a file named `lock`, and waits for it to go away without any limit. A
process that is killed while it holds one (a rank does while it loads an operator) leaves it, and from then on every run on the
machine would wait for ever, without a word.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

_log = logging.getLogger("moss_train")

_NETWORK_FILE_SYSTEMS = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "fuse", "9p", "afs", "wekafs")
_NETWORK_AGE_SECONDS = 900.0
"""Where another machine could be the holder, a lock is taken for left behind after this long; compiling takes a minute or two."""


def remove_stale_build_locks(root: Path | None = None) -> list[Path]:
    """Removes the locks of torch's extension directory that no running process holds.

    Args:
        root: The directory; by default the one torch uses.

    Returns:
        What was removed.
    """
    if root is None:
        from torch.utils.cpp_extension import get_default_build_root

        root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = [*root.glob("*/lock"), *root.glob("*/*/lock")] if root.is_dir() else []
    if not locks:
        return []
    removed = []
    held = _open_files()
    is_shared = _file_system(root).startswith(_NETWORK_FILE_SYSTEMS)
    for lock in locks:
        try:
            age = time.time() - lock.stat().st_mtime
            if lock.resolve() in held or (is_shared and age < _NETWORK_AGE_SECONDS):
                continue
            lock.unlink()
        except OSError:
            continue
        _log.warning(f"{lock} was left by a process that is gone, and has been removed")
        removed.append(lock)
    return removed


def _open_files() -> set[Path]:
    """Files that processes of this machine have open, as far as this user may see."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.endswith("/lock"):
            found.add(Path(target))
    return found


def _file_system(path: Path) -> str:
    """Type of the file system that a path is on, as in /proc/mounts; empty where that is not known."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        inside = point == "/" or str(path.resolve()).startswith(f"{point}/")
        if inside and len(point) >= len(best):
            best, kind = point, found
    return kind
