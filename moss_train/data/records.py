"""Records (parsed JSON objects) from files, each with its origin `file:line`.

    data.jsonl         one object a line (also .ndjson)
    dialogue.json      one object, several one after another, or an array of objects
    data.jsonl.gz      any of these packed with gzip or zstd (.zst)
    data.parquet       one object a row; the origin is `file:row`
    dataset/           what `Dataset.save_to_disk` of Hugging Face's datasets wrote (state.json and .arrow files)
    folder/            every such file below it, in the order of their paths
    folder/**/*.jsonl  a glob
    data.jsonl#100     the first 100 records of any of these

Lines and rows are read as a stream; a .json file is read whole. Several processes can share one file: `split_file` divides it into pieces,
and reading these with `read_piece` gives the records and the origins that reading the file whole gives.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moss_train.data.paths import describe_unread, find_files, form_of, split_limit
from moss_train.data.streams import PackedFileProblem, open_stream
from moss_train.data.strict_json import BLANKS, JsonProblem, check_text, decode_value, parse_json
from moss_train.errors import DataError, UsageError

# Longest line that is read: a larger one is a file without line ends, not a dialogue.
MAX_LINE_BYTES = 64 * 1024 * 1024
# Largest .json file, unpacked; it is held in memory.
MAX_JSON_BYTES = 2 * 1024**3
PROBLEMS_SHOWN = 20
Made = TypeVar("Made")
_BLOCK = 16 * 1024 * 1024
_COUNTED_AT_ONCE = 1024 * 1024


class Record(NamedTuple):
    """One parsed JSON value and where it stands."""

    value: Any
    origin: str


class RecordError(DataError):
    """One bad record: `file:line: code: what, found, expected, fix`.

    Args:
        origin: `file:line` of the record.
        code: Short name of the kind of problem, for totals.
        problem: What is wrong, what was found and expected, what to do.
    """

    def __init__(self, origin: str, code: str, problem: str):
        super().__init__(f"{origin}: {code}: {problem}")
        self.origin = origin
        self.code = code


OnError = Callable[[RecordError], None]


class ProblemList:
    """Collects bad records so that a user sees them together: pass `add` as `on_error`, then call `finish`.

    Args:
        policy: `fail` ends with all problems in one message, `skip` goes on without those records.
        max_share: With `skip`, the share of bad records above which it ends nevertheless.
        key: What a user sets the policy by.
    """

    def __init__(self, policy: str = "fail", max_share: float = 0.01, key: str = "data.on_bad"):
        if policy not in ("fail", "skip"):
            raise UsageError(f"on_bad={policy!r}: expected fail or skip")
        self.policy, self.key = policy, key
        self.max_share = max_share
        self.counts: Counter[str] = Counter()
        self._shown: list[str] = []

    def add(self, error: RecordError) -> None:
        """Note one bad record."""
        self.counts[error.code] += 1
        if len(self._shown) < PROBLEMS_SHOWN:
            self._shown.append(str(error))

    def describe(self) -> str:
        """The first problems and the totals by code."""
        total = sum(self.counts.values())
        more = [f"... and {total - len(self._shown)} more"] if total > len(self._shown) else []
        totals = "totals: " + ", ".join(f"{code} {count}" for code, count in self.counts.most_common())
        return "\n".join([*self._shown, *more, totals])

    def finish(self, good: int) -> None:
        """Raise DataError where the policy or the share of bad records demands it.

        Args:
            good: Number of records that were fine.
        """
        bad = sum(self.counts.values())
        if bad and self.policy == "fail":
            raise DataError(
                f"{bad} bad of {bad + good} records:\n{self.describe()}\nRepair them, or set {self.key}=skip to leave them out."
            )
        if bad > self.max_share * (bad + good):
            raise DataError(
                f"{bad} bad of {bad + good} records, more than the {self.max_share:.1%} that may be skipped:\n{self.describe()}"
            )


class Piece(NamedTuple):
    """A part of a file that can be read for itself.

    Attributes:
        path: The file.
        start, end: Bytes of a file of lines, cut where lines end; row groups of a Parquet file. `end` None: to the end of the file.
        first_line: Number of the first line or row of the piece, from 1.
    """

    path: Path
    start: int = 0
    end: int | None = None
    first_line: int = 1


def read_records(spec: str | Path, on_error: OnError | None = None) -> Iterator[Record]:
    """All records of a file, directory or glob, in a fixed order.

    Args:
        spec: A path, a glob, or either with `#N` for the first N records.
        on_error: Called with each bad record, which is then left out; by default the first one is raised.

    Raises:
        RecordError: A record is bad and there is no `on_error`.
        DataError: The path is missing or holds nothing readable.
    """
    pattern, limit = split_limit(str(spec))
    count = 0
    for path in find_files(pattern):
        for record in read_piece(Piece(path), on_error):
            count += 1
            yield record
            if count == limit:
                return
    if count == 0 and on_error is None:
        raise DataError(f"{spec}: no records: the file is empty or holds only blank lines.")


def read_all(spec: str, option: str, make: Callable[[int, Record], Made], advice: str) -> list[Made]:
    """What is made of every record of a file; all bad ones are told together.

    Args:
        spec: As for `read_records`.
        option: The setting that names it, for messages.
        make: (number from 0, record) -> what is made of it; raises RecordError for a bad one.
        advice: What to do about bad ones.

    Raises:
        DataError: It cannot be read, has bad records, or holds none.
    """
    problems = ProblemList()
    found: list[Made] = []
    for record in read_records(spec, problems.add):
        try:
            found.append(make(len(found), record))
        except RecordError as error:
            problems.add(error)
    if problems.counts:
        bad = problems.counts.total()
        raise DataError(f"{option}={spec}: {bad} bad of {bad + len(found)} lines:\n{problems.describe()}\n{advice}")
    if not found:
        raise DataError(f"{option}={spec} holds no lines")
    return found


def read_piece(piece: Piece, on_error: OnError | None = None) -> Iterator[Record]:
    """The records of a piece of a file, or of a whole one: `Piece(path)`.

    Raises:
        RecordError: A record is bad and there is no `on_error`.
        DataError: The file cannot be opened or read.
    """
    form = form_of(piece.path)
    if form is None:
        raise DataError(f"{piece.path}: {describe_unread(piece.path)}")
    try:
        yield from _READERS[form](piece, on_error or _raise)
    except OSError as error:
        raise DataError(f"{piece.path}: cannot be read: {error.strerror or error}.") from None


def split_file(path: Path, piece_bytes: int) -> list[Piece]:
    """Divides a file into pieces for `read_piece`, in order; they cover it exactly.

    A .jsonl or .ndjson file is read through once to count its lines, a Parquet file is cut between row groups; any other file is one piece.

    Args:
        path: A file of `find_files`.
        piece_bytes: Wanted size of a piece; a piece ends with the line or row group in which this is reached.

    Raises:
        DataError: The file cannot be opened or read. (Damage within it is for `read_piece` to report.)
    """
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson"):
            with path.open("rb", buffering=0) as file:
                return list(_split_lines(path, file, piece_bytes))
        if path.suffix.lower() == ".parquet":
            from moss_train.data.tables import split_row_groups

            return [Piece(path, *bounds) for bounds in split_row_groups(path, piece_bytes)] or [Piece(path)]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from None
    return [Piece(path)]


def _split_lines(path: Path, file: FileIO, piece_bytes: int) -> Iterator[Piece]:
    """Pieces of a file of lines: one pass that counts line ends, a block at a time."""
    start = position = 0
    first_line = line = 1
    # One buffer that stays in the processor's cache: twice as fast as new blocks.
    block = bytearray(_COUNTED_AT_ONCE)
    while size := file.readinto(block):
        counted = 0
        while True:
            # A piece ends with the line that holds its last wanted byte.
            last_wanted = max(start + piece_bytes - 1 - position, counted)
            cut = block.find(b"\n", last_wanted, size) + 1 if last_wanted < size else 0
            if not cut:
                break
            line += block.count(b"\n", counted, cut)
            yield Piece(path, start, position + cut, first_line)
            start, first_line, counted = position + cut, line, cut
        line += block.count(b"\n", counted, size)
        position += size
    if position > start or position == 0:
        yield Piece(path, start, position, first_line)


def _raise(error: RecordError) -> None:
    raise error


def _read_lines(piece: Piece, on_error: OnError) -> Iterator[Record]:
    """One JSON value a line. Lines end at line feeds only: U+2028 and its like are part of the text."""
    path, number, position = piece.path, piece.first_line - 1, piece.start
    try:
        with open_stream(path) as stream:
            if position:
                stream.seek(position)
            while piece.end is None or position < piece.end:
                number += 1
                line = stream.readline(MAX_LINE_BYTES + 1)
                position += len(line)
                if not line:
                    return
                origin = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    problem = f"longer than {MAX_LINE_BYTES >> 20} MiB; expected one JSON object a line."
                    on_error(RecordError(origin, "line_too_long", problem))
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE_BYTES)
                        position += len(line)
                    continue
                try:
                    text = _decode(line, path, number)
                    if text.strip():
                        yield Record(parse_json(text), origin)
                except JsonProblem as problem:
                    on_error(RecordError(origin, problem.code, str(problem)))
                except RecordError as error:
                    on_error(error)
    except PackedFileProblem as problem:
        on_error(RecordError(f"{path}:{max(number, 1)}", problem.code, str(problem)))


def _read_json(piece: Piece, on_error: OnError) -> Iterator[Record]:
    """One JSON value, several in a row, or an array of them; a syntax error ends the file, because where the next one begins is unknown."""
    path = piece.path
    try:
        text = _decode(_read_whole(path), path, 1)
    except RecordError as error:
        on_error(error)
        return
    blank = re.compile(f"[{BLANKS}]*")
    position = blank.match(text, 0).end()  # type: ignore[union-attr]  # matches everywhere
    in_array = text.startswith("[", position)
    position += in_array
    line, counted, first = 1, 0, True
    while True:
        position = blank.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        origin = f"{path}:{line}"
        if in_array and text.startswith("]", position):
            rest = text[position + 1 :].strip(BLANKS)
            if rest:
                on_error(RecordError(origin, "bad_json", f"text after the end of the array: {rest[:40]!r}"))
            return
        if in_array and not first:
            if not text.startswith(",", position):
                on_error(RecordError(origin, "bad_json", f"`,` or `]` expected between records, found {text[position : position + 20]!r}"))
                return
            position = blank.match(text, position + 1).end()  # type: ignore[union-attr]
            line, counted = line + text.count("\n", counted, position), position
            origin = f"{path}:{line}"
        if not in_array and position == len(text):
            return
        start = position
        try:
            value, position = decode_value(text, start)
        except JsonProblem as problem:
            on_error(RecordError(origin, problem.code, str(problem)))
            return
        try:
            check_text(value, text[start:position])
        except JsonProblem as problem:
            on_error(RecordError(origin, problem.code, str(problem)))
        else:
            yield Record(value, origin)
        first = False


def _read_whole(path: Path) -> bytes:
    """All bytes of a file, unpacked."""
    blocks: list[bytes] = []
    size = 0
    try:
        with open_stream(path) as stream:
            while block := stream.read(_BLOCK):
                blocks.append(block)
                size += len(block)
                if size > MAX_JSON_BYTES:
                    limit = f"{MAX_JSON_BYTES >> 30} GiB"
                    raise RecordError(f"{path}:1", "file_too_large", f"more than {limit}; write it as .jsonl, which is read line by line.")
    except PackedFileProblem as problem:
        line = 1 + sum(block.count(b"\n") for block in blocks)
        raise RecordError(f"{path}:{line}", problem.code, str(problem)) from None
    return b"".join(blocks)


def _read_rows(piece: Piece, on_error: OnError) -> Iterator[Record]:
    """Rows of a Parquet or Arrow file."""
    from moss_train.data.tables import read_arrow, read_parquet

    rows = read_arrow(piece.path) if piece.path.suffix.lower() == ".arrow" else read_parquet(piece.path, piece.start, piece.end)
    row = piece.first_line - 1
    for value in rows:
        row += 1
        origin = f"{piece.path}:{row}"
        if isinstance(value, JsonProblem):
            on_error(RecordError(origin, value.code, str(value)))
        else:
            yield Record(value, origin)


_READERS: dict[str, Callable[[Piece, OnError], Iterator[Record]]] = {
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
    ".json": _read_json,
    ".parquet": _read_rows,
    ".arrow": _read_rows,
}


def _decode(raw: bytes, path: Path, line: int) -> str:
    """The text of bytes that begin at a line of a file."""
    if raw.startswith(b"\xef\xbb\xbf"):
        raise RecordError(f"{path}:{line}", "byte_order_mark", "the file begins with a byte order mark; save it as UTF-8 without one.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        problem = f"byte 0x{raw[error.start]:02x} is not UTF-8; convert the file, for example with iconv."
        raise RecordError(f"{path}:{line}", "not_utf8", problem) from None
