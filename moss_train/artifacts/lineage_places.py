"""Where artefacts are: a parent is known by its id, and looked for at the place it had, beside its child, and below named directories."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from moss_train.artifacts.lineage import FILE_NAME, FOREIGN, SUFFIX, Parent, foreign_id, record_id, record_path, recorded_path

_MOST_FOLDERS = 5_000
"""Looked into below one root."""
_MOST_FOREIGN_FILES = 1000
"""Of a directory without a record that is read to know it."""
_DEEPEST = 6
_DEEPEST_NEAR = 3
"""Below the folder above an artefact's, where nothing was named: enough for the run directories of a folder of runs."""


@dataclass(frozen=True)
class Place:
    """What was found of a parent.

    Attributes:
        path: Where it is, or None where it is not at hand.
        stranger: What stands where the parent was: the id of another artefact, or an empty text for one that has lost its record.
        recorded: The place that the child names.
    """

    path: Path | None
    stranger: str | None = None
    recorded: Path | None = None


def artefacts_below(root: Path, deepest: int = _DEEPEST) -> Iterator[Path]:
    """Directories and files with a record, at `root` and below it; nothing is looked for inside an artefact."""
    # `.` is its own parent, but not the root of the file system.
    waiting = [(root, 0)] if root.absolute() != root.absolute().parent else []
    for _ in range(_MOST_FOLDERS):
        if not waiting:
            return
        folder, depth = waiting.pop(0)
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            continue
        names = {entry.name for entry in entries}
        if FILE_NAME in names:
            yield folder
            continue
        yield from (folder / name.removesuffix(SUFFIX) for name in sorted(names) if name.endswith(SUFFIX) and name != SUFFIX)
        if depth < deepest:
            waiting += [(folder / entry.name, depth + 1) for entry in entries if entry.is_dir(follow_symlinks=False)]


def stated(artefact: Path) -> dict[str, Any] | None:
    """What a record says, unchecked; None where there is none that can be read."""
    try:
        raw = json.loads(record_path(artefact).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) and isinstance(raw.get("id"), str) else None


class Places:
    """Finds parents.

    Args:
        roots: Directories to look below; without any, those around the artefact.
        reads: Whether a directory made elsewhere may be hashed to know it.
    """

    def __init__(self, roots: Sequence[Path] = (), reads: bool = True):
        self.roots, self._reads = list(roots), reads
        self._known: dict[Path, dict[str, Path]] = {}
        self._foreign: dict[Path, str] = {}

    def index(self, *near: Path) -> dict[str, Path]:
        """Id -> place of every artefact below the roots, or around the places in `near`."""
        found: dict[str, Path] = {}
        for root, deepest in [(root, _DEEPEST) for root in self.roots] or [(folder, _DEEPEST_NEAR) for folder in map(around, near)]:
            if root not in self._known:
                self._known[root] = {raw["id"]: path for path in artefacts_below(root, deepest) if (raw := stated(path)) is not None}
            found |= self._known[root]
        return found

    def find(self, parent: Parent, child: Path) -> Place:
        """The place of a parent: where its child names it, else wherever an artefact with its id is."""
        named = recorded_path(child, parent)
        recorded = Path(named) if named is not None else None
        stranger: str | None = None
        if recorded is not None and parent.id.startswith(FOREIGN) and not _may_be_model(recorded):
            # A record may come from anyone: it must not have the whole of a machine read.
            recorded = None
        if recorded is not None and recorded.exists():
            if parent.id.startswith(FOREIGN):
                # One that has got a record since is another artefact than a bare directory, but its files may be the same.
                if not self._reads or self._hash(recorded) == parent.id:
                    return Place(recorded, recorded=recorded)
                stranger = self._hash(recorded)
            elif (raw := stated(recorded)) is not None:
                if raw["id"] == parent.id or raw["id"] != record_id(raw):
                    # A damaged record is the parent's until it is verified, which will say so.
                    return Place(recorded, recorded=recorded)
                stranger = raw["id"]
            elif record_path(recorded).exists():
                return Place(recorded, recorded=recorded)
            else:
                stranger = ""
        if parent.id.startswith(FOREIGN):
            elsewhere = self._find_foreign(parent)
        else:
            elsewhere = self.index(child, *([recorded] if recorded is not None else [])).get(parent.id)
        if elsewhere is not None:
            return Place(elsewhere, recorded=recorded)
        return Place(None, stranger, recorded)

    def _find_foreign(self, parent: Parent) -> Path | None:
        """A directory of the same name and content below a named root."""
        for root in self.roots:
            for candidate in (root, root / parent.name):
                if self._reads and candidate.name == parent.name and candidate.is_dir() and self._hash(candidate) == parent.id:
                    return candidate
        return None

    def _hash(self, directory: Path) -> str:
        if directory not in self._foreign:
            self._foreign[directory] = foreign_id(directory)
        return self._foreign[directory]


def _may_be_model(directory: Path) -> bool:
    """Whether a directory without a record has as few files as one that a model was made from."""
    try:
        files = sum(1 for _ in islice((path for path in directory.rglob("*") if path.is_file()), _MOST_FOREIGN_FILES + 1))
    except OSError:
        return False
    return files <= _MOST_FOREIGN_FILES


def around(artefact: Path) -> Path:
    """The folder to look below when nothing was named: the one above the artefact's own, as `runs/` for `runs/a/export`."""
    own = artefact.absolute().parent
    # Never the whole of a machine.
    return own.parent if own.parent != own.parent.parent else own
