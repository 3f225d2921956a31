"""Which files make up the sources, and how they are divided into tasks: the same whatever runs them.

A task is about `shard_mb` of one source and becomes one shard. Files of lines are cut at line ends found by seeking, so planning reads next
to nothing; Parquet files are cut between row groups; other files are not cut.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moss_train.data.corpus_writer import fingerprint_of
from moss_train.data.paths import KINDS, all_files, find_files, form_of, split_limit
from moss_train.data.prepare.config import Form, PrepareConfig, SourceConfig
from moss_train.data.records import Piece
from moss_train.errors import DataError, UsageError

WORK = ".prepare"
"""Folder of a corpus in the making: the plan, what tasks report, logs, and what dedup keeps between its steps."""
_LEAST_BYTES = 4096
"""Bytes that a file counts as at least: opening it takes time too."""


PLAIN_TEXT = (".txt", ".md")
"""Evaluation sets that are one text, not records."""


@dataclass(frozen=True)
class InputFile:
    """A file that is read, as it was when the plan was made."""

    path: str
    size: int
    modified_ns: int

    def is_unchanged(self) -> bool:
        """Whether size and time of change are those of the plan."""
        try:
            found = os.stat(self.path)
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.modified_ns)

    def require_unchanged(self) -> None:
        """Raises DataError where it has been changed or has gone."""
        if self.is_unchanged():
            return
        if not os.path.exists(self.path):
            raise DataError(f"{self.path}: has gone since the preparation began; put it back, or prepare into another directory.")
        size = os.stat(self.path).st_size
        found = f"{self.size:,} bytes then, {size:,} now" if size != self.size else f"as many bytes ({size:,}) but another time of change"
        raise DataError(
            f"{self.path}: has changed since the preparation began: {found}. Shards made before and after would not belong together: "
            "restore the file, or prepare into another directory."
        )


@dataclass(frozen=True)
class Task:
    """What becomes one shard.

    Attributes:
        source: Name of the source.
        number: Of the shard within it.
        pieces: (index of the file in the plan, start, end): bytes of a file of lines, row groups of a Parquet file; end None: all of it.
        bytes: About how much is read.
    """

    source: str
    number: int
    pieces: tuple[tuple[int, int, int | None], ...]
    bytes: int

    @property
    def shard(self) -> str:
        """The name of its shard."""
        return f"shard-{self.number:05d}"


@dataclass(frozen=True)
class Plan:
    """Everything that decides a corpus.

    Attributes:
        settings: `PrepareConfig.settings()`.
        tokenizer: Fingerprint, sizes and the id of `<|endoftext|>`.
        files: Of all sources. forms: Form of each source. left_out: Files not read, by source and extension.
        tasks: Their place is datatrove's rank.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    files: tuple[InputFile, ...]
    forms: dict[str, str]
    left_out: dict[str, dict[str, int]]
    tasks: tuple[Task, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Plan:
        """The plan that gave `raw`."""
        tasks = tuple(
            Task(one["source"], one["number"], tuple((index, start, end) for index, start, end in one["pieces"]), one["bytes"])
            for one in raw["tasks"]
        )
        inputs = tuple(InputFile(**one) for one in raw["files"])
        return cls(raw["settings"], raw["tokenizer"], inputs, raw["forms"], raw["left_out"], tasks)

    @cached_property
    def total_bytes(self) -> int:
        """Of all tasks."""
        return sum(task.bytes for task in self.tasks)

    @cached_property
    def inputs_fingerprint(self) -> str:
        """Stands for the files: names, sizes, times of change."""
        return fingerprint_of([asdict(file) for file in self.files])

    @cached_property
    def evaluation(self) -> list[InputFile]:
        """The files of evaluation sets: those that no task reads."""
        read = {index for task in self.tasks for index, _, _ in task.pieces}
        return [file for index, file in enumerate(self.files) if index not in read]

    def source(self, name: str) -> dict[str, Any]:
        """The settings of a source."""
        found: dict[str, Any] = self.settings["sources"][name]
        return found

    def pieces(self, task: Task) -> Iterator[Piece]:
        """The pieces of a task, for `records.read_piece` and the reader of lines; lines are not numbered before they are read."""
        for index, start, end in task.pieces:
            yield Piece(Path(self.files[index].path), start, end)

    def require_unchanged(self, task: Task | None = None) -> None:
        """Holds files against the plan.

        Args:
            task: Whose files; by default all.

        Raises:
            DataError: One has been changed or has gone.
        """
        chosen = self.files if task is None else [self.files[index] for index, _, _ in task.pieces]
        for file in chosen:
            file.require_unchanged()


def evaluation_files(specs: list[str]) -> list[Path]:
    """The files of `decontaminate.files`.

    Raises:
        DataError: One is missing.
    """
    found: list[Path] = []
    for spec in specs:
        try:
            pattern, _ = split_limit(spec)
            path = Path(pattern)
            found += [path] if path.suffix in PLAIN_TEXT and path.is_file() else find_files(pattern)
        except DataError as error:
            raise DataError(f"decontaminate.files: {error}") from None
    return found


def make_plan(config: PrepareConfig, tokenizer: dict[str, Any]) -> Plan:
    """Finds the files of all sources and divides them into tasks.

    Args:
        config: The configuration.
        tokenizer: What the plan says of the tokenizer.

    Raises:
        DataError: A path is missing or holds nothing to read.
    """
    inputs: list[InputFile] = []
    tasks: list[Task] = []
    forms: dict[str, str] = {}
    left_out: dict[str, dict[str, int]] = {}
    for name, source in config.sources.items():
        try:
            form, paths, skipped = _find(source)
        except DataError as error:
            raise DataError(f"sources.{name}: {error}") from None
        forms[name], left_out[name] = form, skipped
        pieces: list[tuple[int, int, int | None, int]] = []
        for path in paths:
            stated = path.stat()
            inputs.append(InputFile(str(path.absolute()), stated.st_size, stated.st_mtime_ns))
            pieces += [(len(inputs) - 1, *cut) for cut in _cut(path, form, int(config.shard_mb * 10**6))]
        tasks += _group(name, pieces, int(config.shard_mb * 10**6))
    for path in evaluation_files(config.decontaminate.files):
        # No task reads it, but what is dropped depends on it.
        stated = path.stat()
        inputs.append(InputFile(str(path.absolute()), stated.st_size, stated.st_mtime_ns))
    settings = json.loads(json.dumps(config.settings()))
    return Plan(settings, tokenizer, tuple(inputs), forms, left_out, tuple(tasks))


def _find(source: SourceConfig) -> tuple[str, list[Path], dict[str, int]]:
    """Form and files of a source, in order, and by extension how many files are left out."""
    form = source.form
    if form is Form.auto:
        form = Form.texts if source.extensions else _guess(source.paths())
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    for pattern in source.paths():
        if form is Form.records:
            found += find_files(pattern)
        else:
            found += _texts(pattern, source.extensions, skipped)
    if len(set(found)) != len(found):
        repeated = next(path for path in found if found.count(path) > 1)
        raise DataError(f"{repeated}: is named twice; each document would be taken twice.")
    return form.value, found, dict(sorted(skipped.items()))


def _guess(patterns: Sequence[str]) -> Form:
    """What paths hold, by the names of their files."""
    records, texts = 0, 0
    for pattern in patterns:
        for path in all_files(pattern):
            if form_of(path) is not None:
                records += 1
            elif path.suffix.lstrip(".").lower() in KINDS:
                texts += 1
    if records and texts:
        raise DataError(
            f"{', '.join(patterns)}: holds {records} files of records (such as .jsonl) and {texts} of text or code; say which are meant "
            "with form=records or form=texts."
        )
    return Form.texts if texts else Form.records


def _texts(pattern: str, extensions: list[str] | None, skipped: Counter[str]) -> list[Path]:
    """Files of text or code below a path; those with other extensions are counted in `skipped`."""
    wanted = set(KINDS) if extensions is None else {extension.lstrip(".").lower() for extension in extensions}
    found = []
    for path in all_files(pattern):
        extension = path.suffix.lstrip(".").lower()
        if extension in wanted:
            found.append(path)
        else:
            skipped[extension or "(none)"] += 1
    if not found:
        if not _exists(pattern):
            # Says where the path ends to exist.
            find_files(pattern)
        raise DataError(
            f"{pattern}: holds no file with one of the extensions {' '.join(sorted(wanted))}; name others with extensions=[...]."
        )
    return found


def _exists(pattern: str) -> bool:
    return Path(pattern).exists() or any(character in pattern for character in "*?[")


def _cut(path: Path, form: str, task_bytes: int) -> Iterator[tuple[int, int | None, int]]:
    """Pieces of a file: start, end, and about how many bytes each is."""
    size = path.stat().st_size
    if form == Form.records and path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _cut_lines(path, size, task_bytes)
    elif form == Form.records and path.suffix.lower() == ".parquet":
        from moss_train.data.tables import split_row_groups

        groups = split_row_groups(path, task_bytes)
        last = groups[-1][1] if groups else 1
        for first, end, _ in groups:
            yield first, end, max(1, size * (end - first) // last)
        if not groups:
            yield 0, None, size
    else:
        yield 0, None, size


def _cut_lines(path: Path, size: int, task_bytes: int) -> Iterator[tuple[int, int | None, int]]:
    """Cuts a file of lines where a line ends, about every `task_bytes`."""
    start = 0
    with path.open("rb") as file:
        while start < size:
            end = size
            if start + task_bytes < size:
                file.seek(start + task_bytes - 1)
                while block := file.readline(1 << 20):
                    if block.endswith(b"\n"):
                        break
                end = file.tell()
            yield start, end, end - start
            start = end
    if size == 0:
        yield 0, 0, 0


def _group(source: str, pieces: Sequence[tuple[int, int, int | None, int]], task_bytes: int) -> list[Task]:
    """Puts pieces that follow one another into tasks of about `task_bytes`."""
    groups: list[list[tuple[int, int, int | None, int]]] = []
    filled = task_bytes
    for piece in pieces:
        weight = max(piece[3], _LEAST_BYTES)
        if filled + weight > task_bytes and (filled or not groups):
            groups.append([])
            filled = 0
        groups[-1].append(piece)
        filled += weight
    return [
        Task(source, number, tuple((index, start, end) for index, start, end, _ in group), sum(size for *_, size in group))
        for number, group in enumerate(groups)
    ]


def read_plan(out: Path) -> Plan | None:
    """The plan of a corpus in the making; None: there is none."""
    path = out / WORK / "plan.json"
    try:
        return Plan.from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); remove {out}, and begin again.") from None
