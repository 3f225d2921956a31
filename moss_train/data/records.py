"""Records (parsed JSON objects) from files, each with its origin `file:line`.

    data.jsonl         one object a line (also .ndjson)
    dialogue.json      one object, several one after another, or an array of objects
    folder/            every such file below it, in the order of their paths
    folder/**/*.jsonl  a glob
    data.jsonl#100     the first 100 records of any of these

Reading is strict where leniency would change data without a word: Python's json keeps the last of two equal keys, accepts NaN, and lets
half a surrogate pair through, which then fails hours later.
"""

from __future__ import annotations

import glob
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from moss_train.errors import DataError, UsageError

# Longest line that is read: a larger one is a file without line ends, not a dialogue.
MAX_LINE_BYTES = 64 * 1024 * 1024
PROBLEMS_SHOWN = 20


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
    """

    def __init__(self, policy: str = "fail", max_share: float = 0.01):
        if policy not in ("fail", "skip"):
            raise UsageError(f"on_bad={policy!r}: expected fail or skip")
        self.policy = policy
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
                f"{bad} bad of {bad + good} records:\n{self.describe()}\nRepair them, or set data.on_bad=skip to leave them out."
            )
        if bad > self.max_share * (bad + good):
            raise DataError(
                f"{bad} bad of {bad + good} records, more than the {self.max_share:.1%} that may be skipped:\n{self.describe()}"
            )


def read_records(spec: str | Path, on_error: OnError | None = None) -> Iterator[Record]:
    """All records of a file, directory or glob, in a fixed order.

    Args:
        spec: A path, a glob, or either with `#N` for the first N records.
        on_error: Called with each bad record, which is then left out; by default the first one is raised.

    Raises:
        RecordError: A record is bad and there is no `on_error`.
        DataError: The path is missing or holds nothing readable.
    """
    pattern, limit = _split_limit(str(spec))
    count = 0
    for path in find_files(pattern):
        for record in _READERS[path.suffix.lower()](path, on_error or _raise):
            count += 1
            yield record
            if count == limit:
                return
    if count == 0 and on_error is None:
        raise DataError(f"{spec}: no records: the file is empty or holds only blank lines.")


def find_files(pattern: str) -> list[Path]:
    """The readable files a path or glob stands for, sorted.

    Raises:
        DataError: There are none; for a missing path the message names the nearest folder that exists.
    """
    path = Path(pattern)
    if path.is_file():
        if path.suffix.lower() not in _READERS:
            raise DataError(f"{path}: files ending in {path.suffix or 'nothing'!r} are not read; expected one of {' '.join(_READERS)}.")
        return [path]
    if path.is_dir():
        candidates = path.rglob("*")
        what = "directory"
    elif re.search(r"[*?\[]", pattern):
        candidates = (Path(found) for found in glob.glob(pattern, recursive=True))
        what = "glob"
    else:
        nearest = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        beside = sorted(child.name for child in nearest.iterdir())[:8]
        holds = f"The nearest folder that exists is {nearest}, with: {', '.join(beside) or 'nothing'}."
        raise DataError(f"{pattern}: no such file or directory. {holds}")
    base = path if what == "directory" else Path()
    files = sorted(
        candidate
        for candidate in candidates
        if candidate.is_file()
        and candidate.suffix.lower() in _READERS
        and not any(part.startswith(".") for part in (candidate.relative_to(base) if what == "directory" else Path(candidate.name)).parts)
    )
    if not files:
        raise DataError(f"{pattern}: this {what} holds no file ending in {' '.join(_READERS)}.")
    return files


def _split_limit(spec: str) -> tuple[str, int | None]:
    """`PATH#N` -> (PATH, N). A file whose name really ends so is taken as it is."""
    match = re.fullmatch(r"(.+)#(\d+)", spec)
    if match is None or Path(spec).exists():
        return spec, None
    if int(match[2]) == 0:
        raise DataError(f"{spec}: #0 asks for no records; write {match[1]} for all of them.")
    return match[1], int(match[2])


def _raise(error: RecordError) -> None:
    raise error


def _read_lines(path: Path, on_error: OnError) -> Iterator[Record]:
    """One JSON value a line. Lines end at \\n only: U+2028 and its like are part of the text."""
    with path.open("rb") as file:
        for number in range(1, 1 << 62):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            origin = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                on_error(RecordError(origin, "line_too_long", f"longer than {MAX_LINE_BYTES >> 20} MiB; expected one JSON object a line."))
                while line and not line.endswith(b"\n"):
                    line = file.readline(MAX_LINE_BYTES)
                continue
            try:
                text = _decode(line, path, number)
                if text.strip():
                    yield Record(_parse(text, origin), origin)
            except RecordError as error:
                on_error(error)


def _read_json(path: Path, on_error: OnError) -> Iterator[Record]:
    """One JSON value, several in a row, or an array of them; a syntax error ends the file, because where the next one begins is unknown."""
    try:
        text = _decode(path.read_bytes(), path, 1)
    except RecordError as error:
        on_error(error)
        return
    blank = re.compile(r"[ \t\r\n]*")
    position = blank.match(text, 0).end()  # type: ignore[union-attr]  # matches everywhere
    in_array = text.startswith("[", position)
    position += in_array
    line, counted, first = 1, 0, True
    while True:
        position = blank.match(text, position).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, position), position
        origin = f"{path}:{line}"
        if in_array and text.startswith("]", position):
            rest = text[position + 1 :].strip(" \t\r\n")
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
        try:
            value, position = _decode_value(text, position, origin)
        except RecordError as error:
            on_error(error)
            return
        try:
            _check_text(value, text, origin)
        except RecordError as error:
            on_error(error)
        else:
            yield Record(value, origin)
        first = False


_READERS: dict[str, Callable[[Path, OnError], Iterator[Record]]] = {".jsonl": _read_lines, ".ndjson": _read_lines, ".json": _read_json}


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


def _parse(text: str, origin: str) -> Any:
    start = len(text) - len(text.lstrip(" \t\r\n"))
    value, end = _decode_value(text, start, origin)
    if text[end:].strip(" \t\r\n"):
        after = text[end : end + 40].strip()
        raise RecordError(origin, "bad_json", f"text after the end of the object: {after!r}; expected one object a line.")
    _check_text(value, text, origin)
    return value


def _decode_value(text: str, position: int, origin: str) -> tuple[Any, int]:
    """One JSON value from a position, and where it ends; every way the json module can fail becomes a RecordError."""
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        near = text[max(position, error.pos - 20) : error.pos + 20]
        raise RecordError(origin, "bad_json", f"{error.msg} at column {error.colno}, near {near!r}.") from None
    except _Refused as error:
        raise RecordError(origin, error.code, str(error)) from None
    except RecursionError:
        raise RecordError(origin, "bad_json", "nested too deeply for a record.") from None
    except ValueError as error:
        raise RecordError(origin, "bad_json", f"{error}.") from None


def _check_text(value: Any, text: str, origin: str) -> None:
    r"""Refuse half a surrogate pair, which JSON can only hold as an escape such as `\ud83d`."""
    if re.search(r"\\u[dD][89abAB-F]", text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problem = "a text holds half of a surrogate pair (such as \\ud83d alone); repair the program that wrote it."
        raise RecordError(origin, "lone_surrogate", problem) from None


class _Refused(ValueError):
    """Something json would accept and this project does not."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def _refuse_constant(name: str) -> Any:
    raise _Refused("not_a_number", f"{name} is not JSON.")


def _object_without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Refused("duplicate_key", f"key {repeated!r} occurs twice in one object; only one of the two values could be used.")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_duplicates)
