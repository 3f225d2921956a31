"""Which checkpoints of a run are there, and which can be trusted.

    checkpoints/step-00000200/        a committed checkpoint: the name appears when everything in it is on disk
    checkpoints/step-00000200.tmp-*   one being written; left behind by a crash, it is removed by the next run
    checkpoints/.trash-*              one being removed

MANIFEST.json holds the size and sha256 of every other file, and its own hash. No file says which checkpoint is the latest: readers look at
the directories, newest first, and take the first one whose every byte is as it was written. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from moss_train import files
from moss_train.errors import CheckpointError
from moss_train.files import FileEntry

FILE_NAME = "MANIFEST.json"
FORMAT = "moss_train checkpoint"
VERSION = 1

_STEP = re.compile(r"step-(\d{8,})")
_PARTIAL = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]+")


@dataclass(frozen=True)
class Manifest:
    """What a committed checkpoint says of itself.

    Attributes:
        run_id: Of the run it belongs to; kept across resumes.
        step: Optimizer steps done.
        samples: Samples taken: the run's position in its data.
        fingerprints: Of what a resumed run must share with it (`identity`: configuration and data together).
        files: Every other file, by its name relative to the directory.
    """

    run_id: str
    step: int
    samples: int
    fingerprints: dict[str, str]
    files: dict[str, FileEntry]

    @property
    def total_bytes(self) -> int:
        """Size of the files together."""
        return sum(entry.bytes for entry in self.files.values())

    def encode(self) -> bytes:
        """The content of MANIFEST.json: one spelling for one manifest, so that a changed byte is a changed file."""
        return files.seal({"format": FORMAT, "version": VERSION, **asdict(self)})


class DamagedError(Exception):
    """A checkpoint that cannot be used; the message says why."""


def step_name(step: int) -> str:
    """Name of the directory of a step."""
    return f"step-{step:08d}"


def committed(directory: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints below `directory` as (step, path), newest first; nothing is verified yet."""
    if not directory.is_dir():
        return []
    found = [(int(match[1]), path) for path in directory.iterdir() if (match := _STEP.fullmatch(path.name)) and path.is_dir()]
    return sorted(found, reverse=True)


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, its own hash checked.

    Raises:
        DamagedError: It is missing, damaged, of another format, or that of another step.
    """
    path = checkpoint / FILE_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{FILE_NAME} cannot be read: {error.strerror or error}") from error
    record = files.unseal(content)
    if record is None:
        raise DamagedError(f"{FILE_NAME} is damaged: its content is not what its own hash says")
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise DamagedError(f"{FILE_NAME} is of version {record.get('version')!r}; this program reads version {VERSION}")
    entries = {name: FileEntry(entry["bytes"], entry["sha256"]) for name, entry in record["files"].items()}
    manifest = Manifest(record["run_id"], record["step"], record["samples"], record["fingerprints"], entries)
    if checkpoint.name != step_name(manifest.step):
        raise DamagedError(f"{FILE_NAME} is that of step {manifest.step}, in a directory named {checkpoint.name}")
    return manifest


def problems_of_files(checkpoint: Path, entries: Iterable[tuple[str, FileEntry]], progress: Callable[[], None] | None = None) -> list[str]:
    """What is wrong with the files of a checkpoint: each is read and hashed, those of a wrong size excepted."""
    found = []
    for name, entry in entries:
        path = checkpoint / name
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                found.append(f"{name} has {size:,} bytes, not {entry.bytes:,}")
            elif files.hash_file(path, progress).sha256 != entry.sha256:
                found.append(f"{name} is damaged: its sha256 is not the one in the manifest")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror or error}")
    return found


def verify(checkpoint: Path) -> Manifest:
    """Reads every byte of a checkpoint.

    Raises:
        DamagedError: With everything that is wrong.
    """
    manifest = read_manifest(checkpoint)
    problems = problems_of_files(checkpoint, manifest.files.items())
    if problems:
        raise DamagedError("; ".join(problems))
    return manifest


def newest_usable(directory: Path) -> tuple[Path, Manifest, list[str]] | None:
    """The newest checkpoint whose every byte is right, and a line for each newer one that was rejected.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, but none can be used.
    """
    rejected: list[str] = []
    for _, path in committed(directory):
        try:
            return path, verify(path), rejected
        except DamagedError as error:
            rejected.append(f"{path.name}: {error}")
    if rejected:
        raise none_usable(directory, rejected)
    return None


def none_usable(directory: Path, rejected: list[str]) -> CheckpointError:
    """The error for a run whose checkpoints are all damaged."""
    return CheckpointError(
        f"none of the checkpoints in {directory} can be used:\n"
        + "\n".join(f"  - {line}" for line in rejected)
        + "\nRestore one of them from a copy, or start anew with run.resume=never (this run is then kept beside the new one)"
    )


def commit(partial: Path, manifest: Manifest) -> Path:
    """Makes a written directory the checkpoint of its step.

    A directory that already has the name is moved aside when it is damaged (`step-N.damaged-1`, for its owner to look at). A good one of
    this run stays and the new one is dropped: they hold the same state, and a crash between two renames would lose both.

    Args:
        partial: Holds every file of `manifest`, each on disk.
        manifest: Written here.

    Raises:
        CheckpointError: The name is taken by a good checkpoint of another run.
        OSError: The disk refused; nothing was committed, or the name was given but may not be on disk yet.
    """
    target = partial.with_name(step_name(manifest.step))
    files.write_new(partial / FILE_NAME, manifest.encode())
    files.sync_directory(partial)
    if target.exists() and _is_good(target, manifest.run_id):
        files.remove_directory(partial)
        return target
    files.rename(partial, target)
    files.sync_directory(target.parent)
    return target


def _is_good(target: Path, run_id: str) -> bool:
    """Whether the checkpoint at `target` can stay; a damaged one is moved aside."""
    try:
        owner = verify(target).run_id
    except DamagedError:
        number = 1
        while (aside := target.with_name(f"{target.name}.damaged-{number}")).exists():
            number += 1
        files.rename(target, aside)
        return False
    if owner != run_id:
        raise CheckpointError(f"{target} is a checkpoint of another run; name another run.dir")
    return True


def clean(directory: Path) -> None:
    """Removes what crashes left: checkpoints never committed, and removals never finished. Only for the one run that writes here."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if path.is_dir() and (_PARTIAL.fullmatch(path.name) or path.name.startswith(files.TRASH_PREFIX)):
            files.empty_trash(path)


class Verified:
    """Remembers what was found of each checkpoint, until a file of it changes: hashing hundreds of gigabytes again at every save would take
    longer than the save."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[tuple[int, ...], ...], str]] = {}

    def remember(self, checkpoint: Path, manifest: Manifest) -> None:
        """Notes that every byte of it was just checked, or just written."""
        self._known[checkpoint.name] = _signature(checkpoint, manifest), ""

    def check(self, checkpoint: Path) -> Manifest:
        """Its manifest, if it is good.

        Raises:
            DamagedError: It is not.
        """
        manifest = read_manifest(checkpoint)
        # Taken first: what changes while the files are read is looked at again next time.
        signature = _signature(checkpoint, manifest)
        known = self._known.get(checkpoint.name)
        if known is None or known[0] != signature:
            known = signature, "; ".join(problems_of_files(checkpoint, manifest.files.items()))
            self._known[checkpoint.name] = known
        if known[1]:
            raise DamagedError(known[1])
        return manifest


def rotate(directory: Path, keep: int, run_id: str, verified: Verified) -> list[str]:
    """Removes all but the newest `keep` good checkpoints of a run.

    Damaged ones do not count, so that a good one is never removed in favour of one that cannot be read; those, and any of another run, are
    left where they are. Once `keep` good ones are counted, an older one is removed without reading its hundreds of gigabytes first: it is
    left only where its manifest is damaged.

    Returns:
        A line for each checkpoint that was found damaged.
    """
    kept, damaged = 0, []
    for _, path in committed(directory):
        try:
            if read_manifest(path).run_id != run_id:
                continue
            if kept >= keep:
                files.remove_directory(path)
                continue
            verified.check(path)
            kept += 1
        except DamagedError as error:
            damaged.append(f"{path.name}: {error}")
    return damaged


def _signature(checkpoint: Path, manifest: Manifest) -> tuple[tuple[int, ...], ...]:
    """Changes whenever a file is written to, by whatever way: the time of a change of status cannot be set back."""
    found: list[tuple[int, ...]] = []
    for name in sorted([*manifest.files, FILE_NAME]):
        try:
            stat = os.stat(checkpoint / name)
            found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        except OSError:
            found.append(())
    return tuple(found)
