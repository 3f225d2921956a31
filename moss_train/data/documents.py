"""Rendered documents: ids and loss marks, in memory or in files of the cache that are read a document at a time.

Files of an entry, in the order of the documents:

    ids.bin       uint16 where the vocabulary allows, else uint32
    marks.bin     one bit an id, each document filled up to whole bytes
    table.npy     of each document: ids, supervised tokens, file (index in `files` of the record), line
    rejects.jsonl records left out, as `{"file", "line", "code", "problem"}`

Documents are read with `pread`, not mapped: a mapped file's pages count as the memory of each rank that has touched them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from moss_train.data.cache import read_entry

TABLE = np.dtype([("ids", "<i4"), ("supervised", "<i4"), ("file", "<i4"), ("line", "<i8")])


class RenderedDocument(Protocol):
    """A document before it is stored; `render.Rendered` is one."""

    @property
    def input_ids(self) -> Sequence[int]: ...

    @property
    def loss_mask(self) -> Sequence[bool]: ...

    @property
    def origin(self) -> str:
        """`file:line`, for messages."""
        ...


class Documents(Protocol):
    """Documents by number, from 0.

    Attributes:
        lengths: int32 [documents], ids of each.
        supervised: int32 [documents], ids that are predicted and carry loss: all marked ones but the first, which is never predicted.
        digest: Hash of all ids and marks, in order.
    """

    lengths: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.int32]
    digest: str

    def read(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Ids and loss marks of a document."""
        ...

    def origin(self, number: int) -> str:
        """Where it came from, as `file:line`."""
        ...


class MemoryDocuments:
    """Documents held in memory."""

    def __init__(self, rendered: Sequence[RenderedDocument]):
        self._ids = [np.asarray(document.input_ids, dtype=np.uint32) for document in rendered]
        self._marks = [np.asarray(document.loss_mask, dtype=np.bool_) for document in rendered]
        self._origins = [document.origin for document in rendered]
        self.lengths = np.array([len(ids) for ids in self._ids], dtype=np.int32)
        self.supervised = np.array([marks[1:].sum() for marks in self._marks], dtype=np.int32)
        self.digest = digest_of(document_hash(ids, np.packbits(marks).tobytes()) for ids, marks in zip(self._ids, self._marks, strict=True))

    def read(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Ids and loss marks of a document."""
        return self._ids[number], self._marks[number]

    def origin(self, number: int) -> str:
        """Where it came from, as `file:line`."""
        return self._origins[number]


class JoinedDocuments:
    """Several sets of documents, one after another."""

    def __init__(self, parts: Sequence[Documents]):
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part.lengths) for part in parts)])
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.supervised = np.concatenate([part.supervised for part in parts])
        self.digest = parts[0].digest if len(parts) == 1 else digest_of(part.digest.encode() for part in parts)

    def _find(self, number: int) -> tuple[Documents, int]:
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._parts[part], number - int(self._starts[part])

    def read(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Ids and loss marks of a document."""
        part, inside = self._find(number)
        return part.read(inside)

    def origin(self, number: int) -> str:
        """Where it came from, as `file:line`."""
        part, inside = self._find(number)
        return part.origin(inside)


class StoredDocuments:
    """Documents in an entry of the cache.

    Args:
        entry: Its directory.
        names: Names of the files that the records came from, in the order in which they were rendered.
    """

    def __init__(self, entry: Path, names: Sequence[str]):
        record = read_entry(entry)
        self._entry = entry
        self.record = record
        self.digest = str(record["digest"])
        self._names = names
        self._dtype = np.dtype(record["dtype"])
        self._table = np.load(entry / "table.npy", mmap_mode="r")
        self.lengths = np.ascontiguousarray(self._table["ids"])
        self.supervised = np.ascontiguousarray(self._table["supervised"])
        self._starts = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self._mark_starts = np.concatenate([[0], np.cumsum(-(-self.lengths // 8), dtype=np.int64)])
        self._ids_file = os.open(entry / "ids.bin", os.O_RDONLY)
        self._marks_file = os.open(entry / "marks.bin", os.O_RDONLY)

    def read(self, number: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Ids and loss marks of a document."""
        length, size = int(self.lengths[number]), self._dtype.itemsize
        ids = np.frombuffer(os.pread(self._ids_file, length * size, int(self._starts[number]) * size), dtype=self._dtype)
        packed = os.pread(self._marks_file, -(-length // 8), int(self._mark_starts[number]))
        marks = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=length)
        return ids, marks.view(np.bool_)

    def origin(self, number: int) -> str:
        """Where it came from, as `file:line`."""
        row = self._table[number]
        return f"{self._names[int(row['file'])]}:{int(row['line'])}"

    def rejects(self) -> Iterator[dict[str, str]]:
        """The records left out, as `{"origin", "code", "problem"}`."""
        with (self._entry / "rejects.jsonl").open(encoding="utf-8") as lines:
            for one in map(json.loads, lines):
                yield {"origin": f"{self._names[one['file']]}:{one['line']}", "code": one["code"], "problem": one["problem"]}

    def __del__(self) -> None:
        for name in ("_ids_file", "_marks_file"):
            if hasattr(self, name):
                os.close(getattr(self, name))


def document_hash(ids: npt.NDArray[Any], packed_marks: bytes) -> bytes:
    """Hash of one document, whatever its ids are stored as."""
    return hashlib.blake2b(ids.astype("<u4").tobytes() + packed_marks, digest_size=16).digest()


def digest_of(hashes: Iterable[bytes]) -> str:
    """Hash of documents in order, from the hashes of each: parts of them can be hashed apart."""
    digest = hashlib.sha256(b"documents v1")
    for one in hashes:
        digest.update(one)
    return digest.hexdigest()


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
