"""lineage.json: what produced an artefact, beside it.

The id is the sha256 of the record itself (without the id, as canonical JSON), and the record holds the sha256 of every file, so the id
stands for the content. A parent is named by its id and its role; it need not be at hand. Standard library only.

    a directory   DIR/lineage.json lists every other file below DIR
    a single file FILE.lineage.json, beside it, lists FILE
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import moss_train
from moss_train import files as disk
from moss_train.errors import CheckpointError
from moss_train.files import FileEntry, hash_file

FILE_NAME = "lineage.json"
SUFFIX = ".lineage.json"
"""After the name of a single file, the name of its record."""
VERSION = 2
"""1 had no paths of parents, no licences and no number format."""

FOREIGN = "files-sha256:"
"""Begins the id of a directory made elsewhere, which has no record: the hash over its files."""
UNKNOWN_LICENCE = "unknown"
REMOVED = "(removed)"

_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors")


@dataclass
class Parent:
    """An artefact this one was made from."""

    role: str
    """`init` (its weights were trained on), `source` (the same content, rewritten), `tokenizer`, `data`, `tagger`, `model` (evaluated),
    `judge`, `against`, `chooser` (of an evaluation: who judged, what it was held against, who chose the best of N)."""
    id: str
    name: str
    """Last part of its path when it was used, for people."""
    path: str | None = None
    """Where it was then, relative to this artefact (absolute until the record is written): a hint, held against the id."""


@dataclass
class Source:
    """A data set this artefact was made from."""

    name: str
    sha256: str
    records: int
    role: str = "train"
    licence: str | None = None


@dataclass
class Lineage:
    """What whoever makes an artefact says of it; `write` adds the rest."""

    kind: str
    """`tokenizer`, `model`, `shards`, `rendered`, `checkpoint`, `export`, `pm`, `data`, `variant` or `evaluation`; see `lineage_kinds`."""
    stage: str
    parents: list[Parent] = field(default_factory=list)
    data: list[Source] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration; what looks like a secret is removed when the record is written."""
    tokens_seen: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    """Of the run that made the weights, from its start; not those of its ancestors."""
    flops_formula: str = "6 * parameters * tokens"
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What belongs to this kind alone, such as the loss policy, or a variant's bits."""
    licences: dict[str, list[str]] = field(default_factory=dict)
    """Licence -> names of the data and models that have it, over all ancestors. Filled in when the record is written."""
    number_format: str | None = None
    """Of the weights: fp32, bf16, fp16; held against the headers of the files."""


@dataclass(frozen=True)
class Record:
    """A record as it was written."""

    id: str
    lineage_version: int
    lineage: Lineage
    code: dict[str, Any]
    environment: dict[str, str]
    created: str
    files: dict[str, FileEntry]

    @property
    def total_bytes(self) -> int:
        """Size of the files together."""
        return sum(entry.bytes for entry in self.files.values())


# ---------------------------------------------------------------------- writing


def write(artefact: Path, lineage: Lineage, files: dict[str, dict[str, Any]] | None = None) -> str:
    """Writes the record of an artefact, and returns the artefact's id.

    Args:
        artefact: A directory, or a file. It may still be under a temporary name, in the folder that it will stay in.
        lineage: Its record. A metric that is not finite is left out: JSON has no spelling for it.
        files: Size and sha256 of its files, where they are known; by default each is hashed.
    """
    known = asdict(lineage) | {
        "parents": [asdict(parent) | {"path": _relative(parent.path, artefact)} for parent in lineage.parents],
        "data": [asdict(source) | {"name": _clean_text(source.name)} for source in lineage.data],
        "config": without_secrets(lineage.config),
        "metrics": {name: value for name, value in lineage.metrics.items() if math.isfinite(value)},
        "licences": licences_of(lineage),
    }
    record: dict[str, Any] = {
        "lineage_version": VERSION,
        **known,
        "code": code_version(),
        "environment": environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": hash_files(artefact) if files is None else files,
    }
    record = {"id": record_id(record), **record}
    record_path(artefact).write_bytes(spell(record))
    return str(record["id"])


def write_lines(out: Path, lines: Iterable[bytes], record: Lineage, made: Path | None = None) -> None:
    """Writes a file with its record: the record first, so that a file under its own name is complete, and so is what is known of it.

    Args:
        out: The file. lines: Its content. record: Of it.
        made: Where it stands until it is complete, on the same disk; by default OUT.tmp.

    Raises:
        OSError: It did not fit; nothing is left of it.
    """
    made = out.with_name(f"{out.name}.tmp") if made is None else made
    made.unlink(missing_ok=True)
    file = disk.HashedFile(made)
    try:
        for line in lines:
            file.write(line)
        entry = file.close()
    except BaseException:
        file.abandon()
        made.unlink(missing_ok=True)
        raise
    write(out, record, {out.name: asdict(entry)})
    disk.rename(made, out)
    disk.sync_directory(out.parent)


def record_path(artefact: Path) -> Path:
    """Where the record of an artefact is: in a directory, or beside a file."""
    return artefact / FILE_NAME if artefact.is_dir() else artefact.with_name(artefact.name + SUFFIX)


def spell(record: dict[str, Any]) -> bytes:
    """The content of the file of a record: one spelling for one record, so that a changed byte is a changed file."""
    return (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def record_id(record: dict[str, Any]) -> str:
    """The content-addressed id of a record."""
    return "sha256:" + hash_value({key: value for key, value in record.items() if key != "id"})


def hash_value(value: Any) -> str:
    """sha256 of a JSON value in its one canonical spelling, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _relative(path: str | None, artefact: Path) -> str | None:
    return path if path is None else Path(os.path.relpath(path, artefact.absolute())).as_posix()


def recorded_path(artefact: Path, parent: Parent) -> str | None:
    """Where the record of an artefact says that a parent was: an absolute path, or None."""
    return None if parent.path is None else os.path.normpath(artefact.absolute() / parent.path)


def licences_of(lineage: Lineage) -> dict[str, list[str]]:
    """Licence -> names of what has it: its own data, and all that its parents inherited, as far as they are at hand."""
    found: dict[str, set[str]] = {}
    for source in lineage.data:
        found.setdefault(source.licence or UNKNOWN_LICENCE, set()).add(_clean_text(source.name))
    for parent in lineage.parents:
        place = Path(parent.path) if parent.path is not None else None
        if place is None or not place.exists():
            continue
        record = read(place)
        if record is None:
            inherited = {_stated_licence(place): [parent.name]}
        else:
            before = [Source(**source) for source in record["data"]]
            inherited = record.get("licences") or licences_of(Lineage(record["kind"], record["stage"], data=before))
        for licence, names in inherited.items():
            found.setdefault(licence, set()).update(names)
    return {licence: sorted(found[licence]) for licence in sorted(found)}


def _stated_licence(directory: Path) -> str:
    """The licence in the front matter of a model card."""
    try:
        with (directory / "README.md").open(encoding="utf-8", errors="replace") as card:
            head = re.match(r"---\n(.*?)\n---\s", card.read(20_000), re.DOTALL)
    except OSError:
        return UNKNOWN_LICENCE
    stated = re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", head[1], re.MULTILINE) if head else None
    return stated[1] if stated else UNKNOWN_LICENCE


_SECRET_KEY = re.compile(
    r"(^|_)(password|passwd|passphrase|secrets?|credentials?|auth|authorization|bearer|cookie|token|apikey)$|(api|access|private|secret|auth)_?key"
)
_NO_SECRETS = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|special|additional)_token$")
_SECRET_TEXT = (
    # user:password@ of an address
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{REMOVED}@"),
    # ?token=... of an address, --api-key=... of a command
    (re.compile(r"(?i)((?:token|password|passwd|secret|signature|credential|api[_-]?key|access[_-]?key)=)[^&\s\"']+"), rf"\1{REMOVED}"),
    # keys that tell what they are by how they begin
    (re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|xox[a-z]-|AKIA)[A-Za-z0-9_-]{12,}"), REMOVED),
)


def without_secrets(value: Any, key: str = "") -> Any:
    """A configuration in which what is a secret by its key or by its form is replaced by a note."""
    if isinstance(value, dict):
        return {name: without_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).replace("-", "_").replace(".", "_").lower()
    return REMOVED if _SECRET_KEY.search(name) and not _NO_SECRETS.search(name) else _clean_text(value)


def _clean_text(text: str) -> str:
    for pattern, replacement in _SECRET_TEXT:
        text = pattern.sub(replacement, text)
    return text


# ---------------------------------------------------------------------- reading


def read(artefact: Path) -> dict[str, Any] | None:
    """The record of an artefact as JSON, checked key by key, or None where there is none.

    Raises:
        CheckpointError: It is not a record, or that of a newer version of this package.
    """
    path = record_path(artefact)
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(path, f"is damaged ({error})") from error
    parse(raw, path)
    return dict(raw)


def load(artefact: Path) -> Record | None:
    """The record of an artefact, or None where there is none. Raises as `read` does."""
    raw = read(artefact)
    return None if raw is None else parse(raw, record_path(artefact))


def parse(raw: Any, path: Path) -> Record:
    """A record from JSON.

    Args:
        raw: The JSON value.
        path: Its file, for messages.

    Raises:
        CheckpointError: Naming the key that is wrong.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("id"), str):
        raise _unusable(path, "is not a lineage record: it has no id")
    version = raw.get("lineage_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _unusable(path, f"is not a lineage record: lineage_version is {version!r}")
    if version > VERSION:
        raise CheckpointError(
            f"{path} was written by a newer version of this package (lineage_version {version}, this one reads up to {VERSION}); update "
            "moss_train, or remove the file to use the artefact without its history"
        )
    own = _hints(Record).keys() - {"lineage"}
    try:
        rest = {key: value for key, value in raw.items() if key not in own}
        lineage = _typed(rest, Lineage, "", lenient=version < VERSION)
        return Record(lineage=lineage, **{key: _typed(raw[key], _hints(Record)[key], key) for key in own})
    except KeyError as error:
        raise _unusable(path, f"has no key {error.args[0]}") from error
    except TypeError as error:
        raise _unusable(path, f"has a wrong value: {error}") from error


def _unusable(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{path} {problem}; restore it, or remove it to use the artefact without its history")


def _typed(value: Any, kind: Any, where: str, lenient: bool = False) -> Any:
    """`value` as `kind`, dataclasses built; TypeError or KeyError name the key. `lenient`: keys with a default may be missing."""
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise TypeError(f"{where} is {_short(value)}, expected an object")
        hints, prefix = _hints(kind), f"{where}." if where else ""
        for name in value:
            if name not in hints:
                raise TypeError(f"{prefix}{name} is no key of a record")
        missing = [name for name in hints if name not in value]
        if missing and not lenient:
            raise KeyError(prefix + sorted(missing)[0])
        return kind(**{name: _typed(item, hints[name], prefix + name, lenient) for name, item in value.items()})
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:
        return None if value is None else _typed(value, next(one for one in inner if one is not NoneType), where, lenient)
    if origin is list and isinstance(value, list):
        return [_typed(item, inner[0], f"{where}[{number}]", lenient) for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: _typed(item, inner[1], f"{where}.{key}", lenient) for key, item in value.items()}
    plain: tuple[type, ...] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}.get(kind, ())
    if not isinstance(value, plain) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where} is {_short(value)}, expected {getattr(kind, '__name__', kind)}")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------------- files and parents


def parent_of(artefact: Path, role: str) -> Parent:
    """Names an artefact as a parent: by its recorded id, or, for a directory made elsewhere, by the hash of its files."""
    record = read(artefact)
    return Parent(role, foreign_id(artefact) if record is None else record["id"], artefact.name, str(artefact.resolve()))


def recorded_parent(artefact: Path, role: str) -> list[Parent]:
    """The artefact as a parent where it has a record, else nothing: for what is too large to be hashed at every start."""
    return [parent_of(artefact, role)] if record_path(artefact).is_file() else []


def foreign_id(directory: Path) -> str:
    """The id of a directory made elsewhere; every file is read."""
    return FOREIGN + hashlib.sha256(json.dumps(hash_files(directory), sort_keys=True).encode()).hexdigest()


def list_files(artefact: Path) -> Iterator[str]:
    """Relative names of what an artefact consists of, but its record: for a directory, whatever is not itself a directory."""
    if not artefact.is_dir():
        yield artefact.name
        return
    for folder, directories, names in os.walk(artefact):
        # A link to a directory is not gone into, and it is no part of an artefact: it shows as a name.
        names += [name for name in directories if Path(folder, name).is_symlink()]
        inside = os.path.relpath(folder, artefact)
        for name in names:
            if inside != ".":
                yield f"{inside}/{name}"
            elif name != FILE_NAME:
                yield name


def hash_files(artefact: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of an artefact but its record, by relative path."""
    base = artefact if artefact.is_dir() else artefact.parent
    return {name: asdict(hash_file(base / name)) for name in sorted(list_files(artefact)) if (base / name).is_file()}


@functools.cache
def code_version() -> dict[str, Any]:
    """Version of this package, and the commit of the checkout it runs from where there is one; as it was when first asked for."""
    found: dict[str, Any] = {"moss_train": moss_train.__version__}
    root = Path(moss_train.__file__).resolve().parents[1]
    if (root / ".git").exists():
        try:
            commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
            dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10, check=True)
            found |= {"commit": commit.stdout.strip(), "modified": bool(dirty.stdout.strip())}
        except (OSError, subprocess.SubprocessError):
            pass
    return found


def environment() -> dict[str, str]:
    """Versions of what computes."""
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
