"""Corpora: documents as token ids in shards that are memory-mapped, with where each document ends.

    corpus.json                      format, tokenizer, sources with languages, licences, counts and shards; written last
    tokenizer/                       what decodes it
    <source>/shard-00000.tokens.npy  uint32 [tokens], a plain .npy file: `np.load(path, mmap_mode="r")` opens it
    <source>/shard-00000.ends.npy    int64 [documents], where each document ends (exclusive); the `<|endoftext|>` that closes it is in it
    <source>/shard-00000.json        tokenizer, source, language, licence, counts, sha256 of both files, fingerprint of what was read
    lineage.json

Opening reads corpus.json alone, whatever the number of shards; a shard's arrays are mapped when they are first used, and their headers and
ends are checked then. `corpus_check` reads every byte. The writer is `corpus_writer`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train.errors import DataError

FILE_NAME = "corpus.json"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = "moss-train-corpus"
VERSION = 1
TOKEN_TYPE = np.dtype("<u4")
END_TYPE = np.dtype("<i8")
AGAIN = "copy or prepare the corpus again"


def shard_paths(directory: Path, source: str, name: str) -> dict[str, Path]:
    """The files of a shard, by what they hold: `tokens`, `ends`, `record`."""
    folder = directory / source
    return {"tokens": folder / f"{name}.tokens.npy", "ends": folder / f"{name}.ends.npy", "record": folder / f"{name}.json"}


@dataclass(frozen=True)
class Shard:
    """Documents of one source, one after another.

    Attributes:
        directory: The corpus. source: Name of its source. name: `shard-00000`.
        documents, tokens, bytes: Counts; bytes are those of the text in UTF-8.
        vocab_size: Every id is below.
        sha256: Of the files `tokens` and `ends`.
    """

    directory: Path
    source: str
    name: str
    documents: int
    tokens: int
    bytes: int
    vocab_size: int
    sha256: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.directory / self.source / self.name)

    @cached_property
    def token_ids(self) -> npt.NDArray[np.uint32]:
        """uint32 [tokens], memory-mapped.

        Raises:
            DataError: The file is missing, cut, or of another type or length than recorded.
        """
        return _map(shard_paths(self.directory, self.source, self.name)["tokens"], TOKEN_TYPE, self.tokens, "tokens")

    @cached_property
    def ends(self) -> npt.NDArray[np.int64]:
        """int64 [documents], memory-mapped: where each document ends (exclusive), in tokens from the beginning of the shard.

        Raises:
            DataError: As `token_ids`; or the ends do not grow, or do not end where the tokens end.
        """
        path = shard_paths(self.directory, self.source, self.name)["ends"]
        ends: npt.NDArray[np.int64] = _map(path, END_TYPE, self.documents, "documents")
        if len(ends):
            wrong = np.flatnonzero(np.diff(ends, prepend=0) <= 0)
            if len(wrong):
                place = int(wrong[0])
                before = int(ends[place - 1]) if place else 0
                raise DataError(
                    f"{path}: document {place} ends at token {int(ends[place])}, the one before it at {before}; "
                    f"ends must grow: the file is damaged. {AGAIN.capitalize()}."
                )
            if int(ends[-1]) != self.tokens:
                raise DataError(
                    f"{path}: the last document ends at token {int(ends[-1])}; expected {self.tokens}, the number of tokens of the shard: "
                    f"the files do not belong together. {AGAIN.capitalize()}."
                )
        return ends

    def read(self, start: int, end: int) -> npt.NDArray[np.uint32]:
        """The ids of a window.

        Args:
            start, end: Tokens from the beginning of the shard; 0 <= start <= end <= `tokens`.

        Returns:
            uint32 [end - start]. Read, not mapped: pages of a training's shards do not pile up in its memory, and a file that is cut or
            taken away under a run ends in an error and not in a bus error.

        Raises:
            DataError: The shard is malformed or gone, or an id lies outside the vocabulary.
            IndexError: The window is not inside the shard.
        """
        if not 0 <= start <= end <= self.tokens:
            raise IndexError(f"{self}: tokens {start} to {end} of {self.tokens}")
        path, begin = shard_paths(self.directory, self.source, self.name)["tokens"], self._tokens_offset
        try:
            ids = np.fromfile(path, TOKEN_TYPE, end - start, offset=begin + start * TOKEN_TYPE.itemsize)
        except FileNotFoundError:
            raise DataError(f"{path}: was there when it was opened, and is gone. {AGAIN.capitalize()}.") from None
        if len(ids) < end - start:
            raise DataError(f"{path}: ends at token {start + len(ids)}; expected {self.tokens}: the file was cut. {AGAIN.capitalize()}.")
        if len(ids) and int(ids.max()) >= self.vocab_size:
            place = int(np.argmax(ids >= self.vocab_size))
            raise wrong_id(self, start + place, int(ids[place]))
        return ids

    @cached_property
    def _tokens_offset(self) -> int:
        """Bytes before the first token of its file, whose header was checked."""
        return _begin(shard_paths(self.directory, self.source, self.name)["tokens"], TOKEN_TYPE, self.tokens, "tokens")

    def ends_within(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Where documents end inside a window: int64, all of `ends` that are above `start` and at most `end`. Found by halving."""
        first, last = np.searchsorted(self.ends, (start, end), side="right")
        return np.asarray(self.ends[first:last])

    def document_of(self, token: int) -> int:
        """The number, within the shard, of the document that a token belongs to."""
        return int(np.searchsorted(self.ends, token, side="right"))

    def document(self, number: int) -> npt.NDArray[np.uint32]:
        """The ids of a document, with the `<|endoftext|>` that closes it."""
        return self.read(int(self.ends[number - 1]) if number else 0, int(self.ends[number]))


@dataclass(frozen=True)
class CorpusSource:
    """One source of a corpus.

    Attributes:
        name, language, licence: As given when it was prepared.
        documents, tokens, bytes: Over all shards.
        fingerprint: sha256 that stands for what was read.
        shards: In the order of the documents.
        counts: Everything that was counted: documents read, dropped by reason, bad rows by code.
    """

    name: str
    language: str
    licence: str | None
    documents: int
    tokens: int
    bytes: int
    fingerprint: str
    shards: tuple[Shard, ...]
    counts: dict[str, Any]

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """int64 [shards + 1], the token of the source at which each shard begins, and their number."""
        return np.cumsum([0, *(shard.tokens for shard in self.shards)], dtype=np.int64)

    def locate(self, token: int) -> tuple[Shard, int]:
        """The shard that holds a token of the source, and its place in there."""
        if not 0 <= token < self.tokens:
            raise IndexError(f"{self.name}: token {token} of {self.tokens}")
        number = int(np.searchsorted(self.starts, token, side="right")) - 1
        return self.shards[number], token - int(self.starts[number])


@dataclass(frozen=True)
class Corpus:
    """A corpus as its corpus.json describes it; made by `open_corpus`.

    Attributes:
        tokenizer_fingerprint: `MossTokenizer.fingerprint` of the tokenizer that made the ids.
        vocab_size: Ids in use; every id is below.
        endoftext: The id that closes each document.
        settings: What it was prepared with.
        inputs_fingerprint: Stands for the files it was made from: names, sizes, times of change.
    """

    directory: Path
    tokenizer_fingerprint: str
    vocab_size: int
    endoftext: int
    sources: dict[str, CorpusSource]
    settings: dict[str, Any]
    inputs_fingerprint: str

    @property
    def tokens(self) -> int:
        return sum(source.tokens for source in self.sources.values())

    @property
    def documents(self) -> int:
        return sum(source.documents for source in self.sources.values())

    @property
    def bytes(self) -> int:
        """Of text."""
        return sum(source.bytes for source in self.sources.values())

    def shards(self) -> Iterator[Shard]:
        """All shards, source by source."""
        for source in self.sources.values():
            yield from source.shards

    def source(self, name: str) -> CorpusSource:
        """A source by name.

        Raises:
            DataError: There is none of this name.
        """
        if name not in self.sources:
            raise DataError(f"{self.directory}: has no source {name!r}; its sources are {', '.join(self.sources)}.")
        return self.sources[name]


def open_corpus(directory: str | Path, tokenizer_fingerprint: str | None = None) -> Corpus:
    """Opens a corpus; no shard is touched.

    Args:
        directory: Where it lies.
        tokenizer_fingerprint: That of the tokenizer it is to be read with, where there is one.

    Raises:
        DataError: It is missing, unfinished, empty, malformed, or was made with another tokenizer.
    """
    directory = Path(directory)
    path = directory / FILE_NAME
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{directory}: {_why_absent(directory)}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {AGAIN}.") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"{path}: is not the description of a corpus: format is {_shown(raw)}, expected {FORMAT!r}.")
    if raw.get("version") != VERSION:
        raise DataError(f"{path}: has version {raw.get('version')!r}; this program reads version {VERSION}. Prepare it again, or update.")
    try:
        corpus = _parse(directory, raw)
    except KeyError as error:
        raise DataError(f"{path}: has no key {error}; {AGAIN}.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: has a wrong value ({error}); {AGAIN}.") from None
    _require_counts(path, corpus, raw)
    if tokenizer_fingerprint is not None and tokenizer_fingerprint != corpus.tokenizer_fingerprint:
        raise DataError(
            f"{directory}: was made with the tokenizer {corpus.tokenizer_fingerprint[:12]} (a copy is in {directory / TOKENIZER_FOLDER}), "
            f"and is to be read with {tokenizer_fingerprint[:12]}: its ids would mean something else. Use that tokenizer, or prepare the "
            "corpus again."
        )
    return corpus


def wrong_id(shard: Shard, place: int, found: int) -> DataError:
    """The error for an id outside of the vocabulary."""
    path = shard_paths(shard.directory, shard.source, shard.name)["tokens"]
    return DataError(
        f"{path}: token {place} is {found}; expected an id below {shard.vocab_size}, the size of the vocabulary: the file is damaged or of "
        f"another tokenizer. {AGAIN.capitalize()}."
    )


def _parse(directory: Path, raw: dict[str, Any]) -> Corpus:
    tokenizer = raw["tokenizer"]
    vocab_size = int(tokenizer["size"])
    sources: dict[str, CorpusSource] = {}
    for name, entry in raw["sources"].items():
        shards = tuple(
            Shard(
                directory,
                name,
                str(one["name"]),
                int(one["documents"]),
                int(one["tokens"]),
                int(one["bytes"]),
                vocab_size,
                dict(one["sha256"]),
            )
            for one in entry["shards"]
        )
        licence = None if entry["licence"] is None else str(entry["licence"])
        numbers = (int(entry["documents"]), int(entry["tokens"]), int(entry["bytes"]))
        sources[name] = CorpusSource(
            name, str(entry["language"]), licence, *numbers, str(entry["fingerprint"]), shards, dict(entry["counts"])
        )
    fingerprint, endoftext = str(tokenizer["fingerprint"]), int(tokenizer["endoftext"])
    return Corpus(directory, fingerprint, vocab_size, endoftext, sources, dict(raw["settings"]), str(raw["inputs"]))


def _require_counts(path: Path, corpus: Corpus, raw: dict[str, Any]) -> None:
    """Counts that add up, and sources with something in them."""
    if not corpus.sources:
        raise DataError(f"{path}: names no sources; {AGAIN}.")
    for source in corpus.sources.values():
        for what in ("documents", "tokens", "bytes"):
            summed, told = sum(getattr(shard, what) for shard in source.shards), getattr(source, what)
            if summed != told:
                raise DataError(f"{path}: the shards of {source.name} have {summed} {what}, but the source says {told}; {AGAIN}.")
        if not source.tokens:
            raise DataError(f"{path}: the source {source.name} is empty; leave it out, or prepare it from something that holds documents.")
        for shard in source.shards:
            if not 0 < shard.documents <= shard.tokens:
                raise DataError(f"{path}: {shard.source}/{shard.name} has {shard.documents} documents and {shard.tokens} tokens; {AGAIN}.")
    for what in ("documents", "tokens", "bytes"):
        if raw["totals"][what] != getattr(corpus, what):
            raise DataError(f"{path}: the sources have {getattr(corpus, what)} {what}, but the totals say {raw['totals'][what]}; {AGAIN}.")


def _why_absent(directory: Path) -> str:
    if not directory.exists():
        return "no such directory; expected a corpus that scripts/prepare.py wrote."
    if (directory / ".prepare").is_dir():
        return "its preparation has not been finished; give the same command of scripts/prepare.py again, and it goes on."
    return f"holds no {FILE_NAME}, so it is not a corpus; expected what scripts/prepare.py wrote."


def _map(path: Path, dtype: np.dtype[Any], length: int, what: str) -> npt.NDArray[Any]:
    """A one-dimensional .npy file, memory-mapped, after its size, type and length were held against what is recorded."""
    # As an array of numpy's own class, which is faster to slice.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=_begin(path, dtype, length, what), shape=(length,)))


def _begin(path: Path, dtype: np.dtype[Any], length: int, what: str) -> int:
    """Bytes before the first item of a one-dimensional .npy file, after its size, type and length were held against what is recorded."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError(f"version {version} of the format, expected (1, 0)")
            shape, _, found = np.lib.format.read_array_header_1_0(file)
            begin, size = file.tell(), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError(f"{path}: missing, although {FILE_NAME} names it; {AGAIN}.") from None
    except Exception as error:
        # numpy takes a header for Python, and lets pass what the tokenizer and parser of that raise.
        raise DataError(f"{path}: is not a .npy file, or its header is damaged ({_shown(str(error))}); {AGAIN}.") from None
    if found != dtype:
        raise DataError(f"{path}: holds {found}; expected {dtype.name}. {AGAIN.capitalize()}.")
    if shape != (length,):
        raise DataError(
            f"{path}: has the shape {shape}; expected ({length},), the number of {what} that is recorded. {AGAIN.capitalize()}."
        )
    expected = begin + length * dtype.itemsize
    if size != expected:
        kind = "cut" if size < expected else "longer than it says"
        raise DataError(f"{path}: has {size} bytes; expected {expected}: the file is {kind}. {AGAIN.capitalize()}.")
    return begin


def _shown(value: Any) -> str:
    text = repr(value.get("format") if isinstance(value, dict) else value)
    return text if len(text) <= 80 else text[:77] + "..."
