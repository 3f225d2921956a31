"""Plain texts from whatever holds them: text files, code trees, and records with a text field or a dialogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moss_train.data import formats
from moss_train.data.formats.fields import NONE
from moss_train.data.paths import KINDS, all_files, find_files, form_of, split_limit
from moss_train.data.records import Piece, RecordError, read_piece
from moss_train.errors import DataError

# What a text file is read by: a document that is longer is handed on in parts, cut at a line end where there is one.
PART_CHARACTERS = 1 << 20


def find_text_files(pattern: str) -> list[Path]:
    """Files a path, directory or glob stands for: text files by their suffix, and files of records.

    Raises:
        DataError: There are none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    texts = [file for file in all_files(pattern) if file.suffix.lstrip(".").lower() in KINDS]
    try:
        records = find_files(pattern)
    except DataError:
        if not texts:
            raise
        records = []
    if texts and path.is_dir():
        # Beside code, a bare .json is a setting of something, not data.
        records = [file for file in records if form_of(file) != ".json"]
    return sorted({*texts, *records})


def read_texts(spec: str, text_key: str = "text") -> Iterator[tuple[str, str]]:
    """Texts of a path, directory or glob, `#N` for the first N of them, with where each stands.

    Args:
        spec: The path.
        text_key: Field of a record that holds its text. A record without it is taken for a dialogue: its contents, joined by line ends.

    Raises:
        DataError: A file is not UTF-8, or a record has neither the field nor a dialogue.
    """
    pattern, limit = split_limit(spec)
    count = 0
    for path in find_text_files(pattern):
        for item in _read(path, text_key):
            if count == limit:
                return
            count += 1
            yield item


def _read(path: Path, text_key: str) -> Iterator[tuple[str, str]]:
    if form_of(path) is None:
        yield from _read_text_file(path)
        return
    for record in read_piece(Piece(path)):
        yield record.origin, text_of(record.value, record.origin, text_key)


def text_of(value: Any, origin: str, text_key: str) -> str:
    """The text of a record."""
    if isinstance(value, dict) and isinstance(value.get(text_key), str):
        return str(value[text_key])
    try:
        dialogue = formats.parse(value, origin, "auto")
    except RecordError:
        keys = ", ".join(map(repr, value)) if isinstance(value, dict) else f"a {type(value).__name__}"
        raise DataError(
            f"{origin}: neither a text nor a dialogue: expected a field {text_key!r} that holds text, found {keys}. "
            "Name the field: text_key=..."
        ) from None
    parts = []
    for turn in dialogue.turns:
        said = (part.strip() for part in (turn.human, turn.thoughts, turn.commands, turn.results, turn.moss) if part)
        # What a segment without content holds in this format is no text.
        parts += [part for part in said if part and part != NONE.strip()]
    return "\n".join(parts)


def _read_text_file(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            line = 1
            while part := file.read(PART_CHARACTERS):
                part += file.readline(PART_CHARACTERS) if len(part) == PART_CHARACTERS and "\n" in part else ""
                yield f"{path}:{line}", part
                line += part.count("\n")
    except UnicodeDecodeError as error:
        found = error.object[error.start]
        raise DataError(f"{path}: not UTF-8: byte 0x{found:02X} at {error.start} of the part read; convert the file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
