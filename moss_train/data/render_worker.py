"""Renders pieces of files: `python -m moss_train.data.render_worker` is a process that does so for `render_files`.

It takes its settings and then one job a line on standard input, answers each with a line, and ends when its input is closed, so that none
is left behind by whatever ends the process that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moss_train.data import formats
from moss_train.data.dialogue import Dialogue
from moss_train.data.documents import TABLE, document_hash, id_type
from moss_train.data.records import PROBLEMS_SHOWN, Piece, RecordError, read_piece
from moss_train.data.render import render_each
from moss_train.data.switches import switch_off
from moss_train.data.tags import drop_tags, weigh_levels
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import MossTrainError

_METAS_COUNTED = 64
"""Different meta instructions that are counted; data with more of them has no typical one."""


@dataclass(frozen=True)
class RenderSettings:
    """What shapes documents, besides the records and the tokenizer; see `sft.config.DialogueDataConfig`."""

    format: str = "auto"
    default_meta: str = ""
    loss_on: str = "generated"
    on_marker: str = "keep"
    on_long: str = "drop_turns"
    max_tokens: int = 2048
    switch_off: float = 0.0
    tag_dropout: float = 0.0
    level_weights: tuple[float, ...] = ()
    seed: int = 0


@dataclass
class Report:
    """What came of rendering records; those of parts add up, in order, to that of the whole.

    Attributes:
        records: All, good or bad. readable: Those that are JSON, which `PATH#N` counts. documents: Rendered.
        counts: See `render_each`.
        problems: Bad records by code. shown: The first of them, as `{"file", "line", "code", "problem"}` with the number of the file: the
            same data may be found under another name the next time.
        metas: Meta instructions and how many dialogues have each.
        formats: Dialogues by format.
        turns: Of all dialogues. middle_turns: Those of them with inner thoughts, commands and results, if only as None.
        levels: Turns by their level, before any tag is left out; JSON has its keys as text.
    """

    records: int = 0
    readable: int = 0
    documents: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    shown: list[dict[str, Any]] = field(default_factory=list)
    metas: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    middle_turns: int = 0
    levels: Counter[str] = field(default_factory=Counter)

    @property
    def bad(self) -> int:
        """Records left out because something is wrong with them."""
        return self.problems.total()

    def describe(self, names: Sequence[str]) -> str:
        """The first problems and the totals by code; `names` are those of the files."""
        lines = [f"{names[one['file']]}:{one['line']}: {one['code']}: {one['problem']}" for one in self.shown]
        if self.bad > len(lines):
            lines.append(f"... and {self.bad - len(lines)} more")
        return "\n".join([*lines, "totals: " + ", ".join(f"{code} {count}" for code, count in self.problems.most_common())])

    def add(self, other: Report) -> None:
        """Takes in the report of what comes next."""
        self.records += other.records
        self.readable += other.readable
        self.documents += other.documents
        self.counts.update(other.counts)
        self.problems.update(other.problems)
        self.shown = [*self.shown, *other.shown][:PROBLEMS_SHOWN]
        self.metas.update(other.metas)
        self.metas = Counter(dict(self.metas.most_common(_METAS_COUNTED)))
        self.formats.update(other.formats)
        self.turns += other.turns
        self.middle_turns += other.middle_turns
        self.levels.update(other.levels)

    def to_json(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Report:
        """The report that `to_json` made this of."""
        made = cls(**value)
        for name in ("counts", "problems", "metas", "formats", "levels"):
            setattr(made, name, Counter(value[name]))
        return made


def part_files(stem: Path) -> dict[str, Path]:
    """The files of a part: ids, marks, table, hashes, rejects."""
    return {name: stem.with_name(f"{stem.name}.{name}") for name in ("ids", "marks", "table", "hashes", "rejects")}


Job = list[tuple[int, Piece]]
"""Pieces that become one part, in order, each with the number of its file."""


def render_job(job: Job, stem: Path, settings: RenderSettings, tokenizer: MossTokenizer, limit: int | None = None) -> Report:
    """Renders the records of pieces into the files of `part_files`.

    Args:
        job: The pieces.
        stem: Beginning of the names of the files.
        settings: What shapes documents.
        tokenizer: Gives the ids.
        limit: Records to take at most.
    """
    report = Report()
    with contextlib.ExitStack() as stack:
        open_files = {name: stack.enter_context(path.open("wb")) for name, path in part_files(stem).items()}
        for file_number, piece in job:
            left = None if limit is None else limit - report.readable
            if left != 0:
                report.add(_render_piece(piece, file_number, open_files, settings, tokenizer, left))
    return report


def _render_piece(
    piece: Piece, file_number: int, out: Mapping[str, BinaryIO], settings: RenderSettings, tokenizer: MossTokenizer, limit: int | None
) -> Report:
    """Adds the records of a piece to the open files of a part."""
    report = Report()
    rejects: list[dict[str, Any]] = []

    def on_error(error: RecordError) -> None:
        report.problems[error.code] += 1
        problem = str(error).removeprefix(f"{error.origin}: {error.code}: ")
        rejects.append({"file": file_number, "line": _line(error.origin), "code": error.code, "problem": problem})

    def on_unreadable(error: RecordError) -> None:
        report.records += 1
        on_error(error)

    def dialogues() -> Iterator[Dialogue]:
        for record in islice(read_piece(piece, on_unreadable), limit):
            report.records += 1
            report.readable += 1
            try:
                name = settings.format if settings.format != "auto" else formats.detect(record.value, record.origin)
                dialogue = formats.parse(record.value, record.origin, name, settings.default_meta)
            except RecordError as error:
                on_error(error)
                continue
            report.formats[name] += 1
            if dialogue.meta_instruction and (dialogue.meta_instruction in report.metas or len(report.metas) < _METAS_COUNTED):
                report.metas[dialogue.meta_instruction] += 1
            report.turns += len(dialogue.turns)
            report.middle_turns += sum(None not in (turn.thoughts, turn.commands, turn.results) for turn in dialogue.turns)
            report.levels.update(str(turn.level) for turn in dialogue.turns if turn.level is not None)
            if settings.switch_off:
                dialogue = switch_off(dialogue, settings.switch_off, settings.seed)
            if settings.level_weights:
                dialogue = weigh_levels(dialogue, settings.level_weights, settings.seed)
            yield drop_tags(dialogue, settings.tag_dropout, settings.seed)

    rendered = render_each(
        dialogues(),
        tokenizer,
        report.counts,
        settings.loss_on,
        settings.max_tokens,
        settings.on_marker,
        settings.on_long,
        on_error,
    )
    dtype = id_type(tokenizer.size)
    table = []
    for document in rendered:
        ids = np.array(document.input_ids, dtype=dtype)
        marks = np.array(document.loss_mask, dtype=np.bool_)
        packed = np.packbits(marks).tobytes()
        out["ids"].write(ids.tobytes())
        out["marks"].write(packed)
        out["hashes"].write(document_hash(ids, packed))
        table.append((len(ids), int(np.count_nonzero(marks[1:])), file_number, _line(document.origin)))
    out["table"].write(np.array(table, dtype=TABLE).tobytes())
    out["rejects"].write("".join(json.dumps(reject, ensure_ascii=True) + "\n" for reject in rejects).encode())
    report.documents = len(table)
    report.shown = rejects[:PROBLEMS_SHOWN]
    return report


def _line(origin: str) -> int:
    return int(origin.rsplit(":", 1)[1])


def main() -> None:
    """Serves jobs until standard input is closed."""
    setup = json.loads(sys.stdin.readline())
    settings, tokenizer = RenderSettings(**setup["settings"]), MossTokenizer.load(setup["tokenizer"])
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        """Ends this process as soon as nobody waits for it, be it in the middle of a large file."""
        for line in sys.stdin:
            jobs.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        job = json.loads(jobs.get())
        pieces = [(number, Piece(Path(path), start, end, first_line)) for number, path, start, end, first_line in job["pieces"]]
        try:
            report = render_job(pieces, Path(job["stem"]), settings, tokenizer)
            answer: dict[str, Any] = {"report": report.to_json()}
        except MossTrainError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        except OSError as error:
            answer = {"os_error": [error.errno, error.strerror, str(error.filename or "")]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
