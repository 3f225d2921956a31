"""Whether artefacts are what their records say: every file, every ancestor at hand, and what is declared of the weights.

A file is changed, missing or unlisted; the record itself has one spelling and its own hash, so no byte of it can change unseen either.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from moss_train import files
from moss_train.artifacts.lineage import FILE_NAME, FOREIGN, Parent, Record, list_files, parse, record_id, record_path, spell
from moss_train.artifacts.lineage_places import Places
from moss_train.artifacts.lineage_weights import problems_of_model
from moss_train.errors import CheckpointError

MANIFEST = "MANIFEST.json"
"""Of a training checkpoint: it is written after the record, lists it, and holds its own hash (see `train.manifest`)."""
_WORTH_THREADS = 64 * 2**20
_LONG_SECONDS = 5.0
_MOST_SHOWN = 20

Hashes = Callable[[Sequence[Path]], list[str]]
"""The sha256 of each file; an empty text for one that cannot be read."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        artefact: Where it is.
        file: Relative to the artefact; its name for an artefact that is a file.
        kind: `changed`, `missing`, `unlisted`, `declared` (the files are as they were written, but not what they are said to be) or
            `replaced` (another artefact stands where a parent was).
        message: A sentence that names the file.
    """

    artefact: Path
    file: str
    kind: str
    message: str


@dataclass
class Report:
    """What verifying an artefact and its ancestors found.

    Attributes:
        checked: Place and record of each artefact looked at; None for one whose record is changed, and for a directory made elsewhere.
        absent: Parents that are not at hand, with the place of the child that names them.
        problems: Everything that is wrong.
    """

    checked: list[tuple[Path, Record | None]] = field(default_factory=list)
    absent: list[tuple[Parent, Path]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


Known = dict[Path, tuple[Record | None, list[Problem]]]
"""What was found at places that have been looked at."""


def verify(
    artefact: Path,
    roots: Sequence[Path] = (),
    hashes: Hashes | None = None,
    reads: bool = True,
    ancestors: bool = True,
    known: Known | None = None,
) -> Report:
    """Verifies an artefact.

    Args:
        artefact: A directory or file with a record.
        roots: Where to look for ancestors; see `Places`.
        hashes: How files are hashed; by default each is read.
        reads: Whether content is looked at; else sizes and records only.
        ancestors: Whether to go on to all ancestors at hand.
        known: Is added to, and not looked at again: for several artefacts of one family.

    Raises:
        CheckpointError: There is no record, or it is that of a newer version.
    """
    if not record_path(artefact).is_file():
        raise CheckpointError(
            f"there is no record at {record_path(artefact)}: this was made elsewhere, or its record is lost; nothing can be verified"
        )
    places, report, seen = Places(roots, reads), Report(), {artefact.resolve()}
    waiting, known = [artefact], {} if known is None else known
    while waiting:
        place = waiting.pop(0)
        if place not in known:
            known[place] = verify_one(place, (hashes or hash_all) if reads else None)
        record, problems = known[place]
        report.checked.append((place, record))
        report.problems += problems
        for parent in record.lineage.parents if record is not None and ancestors else []:
            found = places.find(parent, place)
            if found.path is None:
                report.absent.append((parent, place))
                if found.stranger is not None:
                    report.problems.append(_stranger(parent, found.stranger, place, found.recorded))
            elif found.path.resolve() not in seen:
                seen.add(found.path.resolve())
                if parent.id.startswith(FOREIGN):
                    report.checked.append((found.path, None))
                else:
                    waiting.append(found.path)
    return report


def _stranger(parent: Parent, stranger: str, child: Path, recorded: Path | None) -> Problem:
    what = f"parent {parent.name} ({parent.role}) of {child.name}"
    if not stranger:
        return Problem(recorded or child, FILE_NAME, "missing", f"{FILE_NAME} is missing in {recorded}, where the {what} was")
    return Problem(
        recorded or child, FILE_NAME, "replaced", f"{recorded} is no longer the {what}: it is {short(stranger)}, not {short(parent.id)}"
    )


def short(identity: str) -> str:
    """The beginning of an id, enough to tell artefacts apart."""
    scheme, _, digest = identity.partition(":")
    return f"{scheme}:{digest[:12]}"


def verify_one(artefact: Path, hashes: Hashes | None) -> tuple[Record | None, list[Problem]]:
    """Verifies one artefact without its ancestors; no `hashes`: by sizes and records only."""
    record, problem = check_record(artefact)
    if record is None:
        return None, [problem] if problem is not None else []
    found = _problems_of_files(artefact, record, hashes)
    # Of files that are not what they were, what they declare says nothing more.
    if hashes is not None and artefact.is_dir() and all(one.kind == "unlisted" for one in found):
        found += [Problem(artefact, file, "declared", text) for file, text in problems_of_model(artefact, record)]
    return record, found


def check_record(artefact: Path) -> tuple[Record | None, Problem | None]:
    """The record of an artefact, or what is wrong with it: nothing that a changed record says of files and parents is to be believed.

    Raises:
        CheckpointError: It is that of a newer version.
    """
    path = record_path(artefact)
    try:
        content = path.read_bytes()
        raw = json.loads(content)
        whole = spell(raw) == content and record_id(raw) == raw["id"]
    except OSError as error:
        return None, Problem(artefact, path.name, "missing", f"{path.name} cannot be read: {error.strerror or error}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, Problem(artefact, path.name, "changed", f"{path.name} is changed: it is no longer a record")
    changed = Problem(artefact, path.name, "changed", f"{path.name} is changed: its content is not what its id says; it was not read on")
    try:
        record = parse(raw, path)
    except CheckpointError:
        if whole:
            raise
        return None, changed
    return (record, None) if whole else (None, changed)


def _problems_of_files(artefact: Path, record: Record, hashes: Hashes | None) -> list[Problem]:
    base = artefact if artefact.is_dir() else artefact.parent
    found: list[Problem] = []

    def add(name: str, kind: str, text: str) -> None:
        found.append(Problem(artefact, name, kind, f"{name} {text}"))

    right: list[str] = []
    for name, entry in record.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            add(name, "changed", "is not below the artefact, and a record may not name it")
            continue
        try:
            size = (base / name).stat().st_size
        except OSError:
            add(name, "missing", "is missing")
            continue
        if size != entry.bytes:
            add(name, "changed", f"is changed: it has {size:,} bytes, not {entry.bytes:,}")
        else:
            right.append(name)
    for name, digest in zip(right, hashes([base / name for name in right]) if hashes is not None else [], strict=False):
        if digest != record.files[name].sha256:
            add(name, "changed", "is changed: its sha256 is not the one in the record" if digest else "cannot be read")
    has_manifest = record.lineage.kind == "checkpoint"
    if has_manifest and (text := _problem_of_manifest(artefact, record)):
        add(MANIFEST, "changed", text)
    if artefact.is_dir():
        for name in sorted(set(list_files(artefact)) - record.files.keys() - ({MANIFEST} if has_manifest else set())):
            add(name, "unlisted", "is unlisted: it was not there when the artefact was made")
    return found


def _problem_of_manifest(artefact: Path, record: Record) -> str | None:
    """The manifest of a checkpoint lists what the record lists, and the record."""
    try:
        manifest: dict[str, Any] | None = files.unseal((artefact / MANIFEST).read_bytes())
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if manifest is None:
        return "is changed: its content is not what its own hash says"
    expected = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in record.files.items()}
    listed = manifest.get("files")
    own = listed.pop(FILE_NAME, None) if isinstance(listed, dict) else None
    if listed != expected:
        return "is that of another checkpoint: it lists other files than the record"
    entry = files.hash_file(artefact / FILE_NAME)
    return None if own == {"bytes": entry.bytes, "sha256": entry.sha256} else "lists another record than the one that is here"


def hash_all(paths: Sequence[Path]) -> list[str]:
    """Reads and hashes files, large ones side by side: sha256 runs outside the interpreter's lock."""
    if sum(path.stat().st_size for path in paths) < _WORTH_THREADS:
        return [_hash_one(path) for path in paths]
    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(pool.map(_hash_one, paths))


def _hash_one(path: Path) -> str:
    try:
        return files.hash_file(path).sha256
    except OSError:
        return ""


def require(artefact: Path, key: str, way_out: str, say: Callable[[str], None], hashes: Hashes | None = None, reads: bool = True) -> None:
    """Refuses to start from an artefact that is not what its record says; its ancestors are not looked at.

    Args:
        artefact: What is started from. Without a record it was made elsewhere, and is accepted as it is.
        key: Names it for the user, as `init_from`.
        way_out: What to set to use it all the same.
        say: Told of one without a record, and of the time where that is long.
        hashes, reads: As for `verify`.

    Raises:
        CheckpointError: With every problem.
    """
    if not record_path(artefact).is_file():
        if artefact.exists():
            say(f"{key}={artefact} has no lineage record: it was made elsewhere, and is taken as it is")
        return
    started = time.monotonic()
    _, problems = verify_one(artefact, (hashes or hash_all) if reads else None)
    seconds = time.monotonic() - started
    if problems:
        shown = [f"  - {problem.message}" for problem in problems[:_MOST_SHOWN]]
        if len(problems) > _MOST_SHOWN:
            shown.append(f"  - and {len(problems) - _MOST_SHOWN} more")
        raise CheckpointError(
            "\n".join(
                [
                    f"{key}={artefact} is not what its {record_path(artefact).name} says:",
                    *shown,
                    f"Restore it from a copy, or take what is unlisted out of it; to use it all the same: {way_out}",
                ]
            )
        )
    if seconds > _LONG_SECONDS:
        say(f"{key}={artefact} was verified in {seconds:.0f} s")
