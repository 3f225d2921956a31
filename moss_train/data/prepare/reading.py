"""Documents from the pieces of a task, strictly: what is no document is told with its place, never passed over.

datatrove's own readers drop a line that is not JSON, or has no text, with a line in a log; and they cannot begin within a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from moss_train.data.paths import KINDS, form_of
from moss_train.data.prepare.config import Form
from moss_train.data.records import MAX_LINE_BYTES, OnError, Piece, RecordError, read_piece
from moss_train.data.streams import PackedFileProblem, open_stream
from moss_train.data.strict_json import BLANKS, JsonProblem, parse_json
from moss_train.errors import DataError

_BLOCK = 4 * 2**20
_BLANKS = BLANKS.encode()


class PieceReader:
    """Texts of a piece.

    Args:
        form: Of its source. field: Name of the text in a record. source: Name of the source, for messages.
        on_error: Told of each record that is no document.

    Attributes:
        digest: Over all that was read.
    """

    def __init__(self, form: str, field: str, source: str, on_error: OnError):
        self._form, self._field, self._source, self._on_error = form, field, source, on_error
        # A second field of the same name would make it a matter of luck which text is taken.
        self._key = orjson.dumps(field)
        self.digest = hashlib.sha256()

    def read(self, piece: Piece) -> Iterator[tuple[str, str]]:
        """The texts of a piece, each with the kind of its file (empty for records).

        Raises:
            DataError: The file cannot be read.
        """
        try:
            if self._form == Form.texts:
                yield from self._read_text(piece.path)
            elif (form := form_of(piece.path)) in (".jsonl", ".ndjson"):
                yield from ((text, "") for text in self._read_lines(piece))
            elif form is not None:
                yield from ((text, "") for text in self._read_records(piece))
        except OSError as error:
            raise DataError(f"{piece.path}: cannot be read: {error.strerror or error}.") from None

    # ------------------------------------------------------------------ a document a file

    def _read_text(self, path: Path) -> Iterator[tuple[str, str]]:
        if path.stat().st_size > MAX_LINE_BYTES:
            problem = f"larger than {MAX_LINE_BYTES >> 20} MiB; expected a document a file: divide it, or leave it out."
            self._on_error(RecordError(f"{path}:1", "file_too_large", problem))
            return
        raw = path.read_bytes()
        self.digest.update(len(raw).to_bytes(8, "little") + raw)
        try:
            yield raw.decode("utf-8"), KINDS.get(path.suffix.lstrip(".").lower(), path.suffix.lstrip(".").lower())
        except UnicodeDecodeError as error:
            line = 1 + raw.count(b"\n", 0, error.start)
            problem = f"byte 0x{raw[error.start]:02x} is not UTF-8; convert the file, for example with iconv."
            self._on_error(RecordError(f"{path}:{line}", "not_utf8", problem))

    # ------------------------------------------------------------------ a document a record

    def _read_records(self, piece: Piece) -> Iterator[str]:
        """Anything but files of lines."""
        for record in read_piece(piece._replace(first_line=1 + _rows_before(piece)), self._on_error):
            text = self._text_of(record.value, lambda origin=record.origin: origin)  # type: ignore[misc]
            if text is None:
                continue
            try:
                raw = text.encode()
            except UnicodeEncodeError as error:
                code = f"U+{ord(text[error.start]):04X} at character {error.start}"
                problem = f"the text holds half of a surrogate pair ({code}); repair the program that wrote it."
                self._on_error(RecordError(record.origin, "lone_surrogate", problem))
                continue
            self.digest.update(len(raw).to_bytes(8, "little") + raw)
            yield text

    def _read_lines(self, piece: Piece) -> Iterator[str]:
        """A file of lines, or a part of one. Lines end at line feeds only."""
        number = 0

        def origin() -> str:
            return f"{piece.path}:{number + _lines_before(piece)}"

        try:
            with open_stream(piece.path) as stream:
                if piece.start:
                    stream.seek(piece.start)
                left = None if piece.end is None else piece.end - piece.start
                for line in self._lines(stream, left, origin):
                    number += 1
                    if line is None:
                        problem = f"longer than {MAX_LINE_BYTES >> 20} MiB; expected one JSON object a line."
                        self._on_error(RecordError(origin(), "line_too_long", problem))
                        continue
                    try:
                        value = orjson.loads(line)
                        if line.count(self._key) > 1:
                            value = parse_json(line.decode())
                    except (orjson.JSONDecodeError, JsonProblem):
                        if not line.strip(_BLANKS):
                            continue
                        # orjson tells less of what is wrong, and takes some things for wrong that are not (an escaped half of a pair it
                        # refuses rightly; very large numbers and deep nesting are left to the strict reader).
                        value, failed = self._parse_strictly(line, origin)
                        if failed:
                            continue
                    text = self._text_of(value, origin)
                    if text is not None:
                        yield text
        except PackedFileProblem as problem:
            number = max(number, 1)
            self._on_error(RecordError(origin(), problem.code, str(problem)))

    def _lines(self, stream: BinaryIO, left: int | None, origin: Callable[[], str]) -> Iterator[bytes | None]:
        """Lines, read in blocks; None stands for one that is too long."""
        rest: list[bytes] = []
        held = 0
        while left is None or left > 0:
            block = stream.read(_BLOCK if left is None else min(_BLOCK, left))
            if not block:
                break
            self.digest.update(block)
            if left is not None:
                left -= len(block)
            cut = block.rfind(b"\n")
            if cut < 0:
                held += len(block)
                # Of a line without end only its length is of interest.
                rest = [*rest, block] if held <= MAX_LINE_BYTES else []
                continue
            lines = block[:cut].split(b"\n")
            if held:
                held += len(lines[0])
                lines[0] = b"".join([*rest, lines[0]])
            if held > MAX_LINE_BYTES:
                yield None
                del lines[0]
            yield from lines
            rest, held = ([block[cut + 1 :]], len(block) - cut - 1) if cut + 1 < len(block) else ([], 0)
        if held > MAX_LINE_BYTES:
            yield None
        elif held:
            yield b"".join(rest)

    def _parse_strictly(self, line: bytes, origin: Callable[[], str]) -> tuple[Any, bool]:
        """The value of a line and whether there is none, which has then been told."""
        try:
            if line.startswith(b"\xef\xbb\xbf"):
                raise JsonProblem("byte_order_mark", "the file begins with a byte order mark; save it as UTF-8 without one.")
            return parse_json(line.decode("utf-8")), False
        except UnicodeDecodeError as error:
            problem = f"byte 0x{line[error.start]:02x} is not UTF-8; convert the file, for example with iconv."
            self._on_error(RecordError(origin(), "not_utf8", problem))
        except JsonProblem as problem_found:
            self._on_error(RecordError(origin(), problem_found.code, str(problem_found)))
        return None, True

    def _text_of(self, value: Any, origin: Callable[[], str]) -> str | None:
        """The text of a record; None: there is none, which has been told."""
        try:
            text = value[self._field]
            if type(text) is str:
                return text
        except (KeyError, TypeError, IndexError):
            pass
        if not isinstance(value, dict):
            self._on_error(
                RecordError(origin(), "not_an_object", f"the record is {_shown(value)}; expected an object with the text in it.")
            )
        elif self._field not in value:
            fields = ", ".join(map(repr, list(value)[:12])) or "none"
            problem = f"there is no field {self._field!r}; fields found: {fields}. "
            problem += f"Name the one that holds the text: sources.{self._source}.text=NAME."
            self._on_error(RecordError(origin(), "no_text", problem))
        else:
            problem = f"field {self._field!r} is {_shown(value[self._field])}; expected a text."
            self._on_error(RecordError(origin(), "text_not_string", problem))
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _lines_before(piece: Piece) -> int:
    """Lines of a file before a piece; counted only where something is wrong."""
    if piece not in _counted:
        lines, left = 0, piece.start
        if left:
            with piece.path.open("rb", buffering=0) as file:
                while left > 0 and (block := file.read(min(_BLOCK, left))):
                    lines += block.count(b"\n")
                    left -= len(block)
        _counted[piece] = lines
    return _counted[piece]


def _rows_before(piece: Piece) -> int:
    """Rows of a Parquet file before the row groups of a piece."""
    if not piece.start:
        return 0
    import pyarrow.parquet as pq

    groups = pq.read_metadata(piece.path)
    return sum(groups.row_group(number).num_rows for number in range(piece.start))


_counted: dict[Piece, int] = {}
