"""lineage.json: what produced an artefact, beside it.

The id is the sha256 of the record itself (without the id, as canonical JSON), and the record holds the sha256 of every file, so the id
stands for the content. A parent is named by its id and its role; it need not be at hand.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import moss_train
from moss_train.errors import CheckpointError
from moss_train.files import hash_file

FILE_NAME = "lineage.json"
VERSION = 1
_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors")


@dataclass
class Parent:
    """An artefact this one was made from."""

    role: str
    """`init`, `tagger` or `source`."""
    id: str
    name: str
    """Last part of its path when it was used; for people, not for finding it."""


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
    """The record of one artefact."""

    kind: str
    stage: str
    parents: list[Parent] = field(default_factory=list)
    data: list[Source] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    tokens_seen: int = 0
    supervised_tokens: int = 0
    flops: float = 0.0
    flops_formula: str = "6 * parameters * tokens"
    metrics: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """What belongs to this kind alone, such as the loss policy or the number format."""


def write(directory: Path, lineage: Lineage, files: dict[str, dict[str, Any]] | None = None) -> str:
    """Writes lineage.json into `directory` and returns the artefact's id.

    Args:
        directory: The artefact's.
        lineage: Its record.
        files: Size and sha256 of its files, where they are known; by default each is hashed.
    """
    record: dict[str, Any] = {
        "lineage_version": VERSION,
        **asdict(lineage),
        "code": code_version(),
        "environment": environment(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": hash_files(directory) if files is None else files,
    }
    record = {"id": record_id(record), **record}
    (directory / FILE_NAME).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return str(record["id"])


def record_id(record: dict[str, Any]) -> str:
    """The content-addressed id of a record."""
    return "sha256:" + hash_value({key: value for key, value in record.items() if key != "id"})


def hash_value(value: Any) -> str:
    """sha256 of a JSON value in its one canonical spelling, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def read(directory: Path) -> dict[str, Any] | None:
    """The record in `directory`, or None where there is none.

    Raises:
        CheckpointError: It is not a record.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it, or remove it to use the directory without its history") from error
    if not isinstance(record, dict) or not isinstance(record.get("id"), str):
        raise CheckpointError(
            f"{path} is not a lineage record: it has no id; restore it, or remove it to use the directory without its history"
        )
    return record


def parent_of(directory: Path, role: str) -> Parent:
    """Names `directory` as a parent: by its recorded id, or, for a directory made elsewhere, by the hash of its files."""
    record = read(directory)
    if record is not None:
        return Parent(role, record["id"], directory.name)
    digest = hashlib.sha256(json.dumps(hash_files(directory), sort_keys=True).encode()).hexdigest()
    return Parent(role, f"files-sha256:{digest}", directory.name)


def hash_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file below `directory` but lineage.json, by relative path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != FILE_NAME:
            found[path.relative_to(directory).as_posix()] = asdict(hash_file(path))
    return found


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
