"""Writes the shards and the description of a corpus (see `corpus`). What has its name is complete and on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train import files
from moss_train.data.corpus import END_TYPE, FILE_NAME, FORMAT, TOKEN_TYPE, VERSION, shard_paths
from moss_train.errors import DiskFullError

_HEADER_BYTES = 128
_SYNCED_AT_ONCE = 32 * 2**20
TEMPORARY = ".tmp"
"""Ends the names of files that are not complete; after a kill they may be removed."""


class ArrayFile:
    """A one-dimensional .npy file that grows; its header is filled in at the end. It goes to the disk while more is computed.

    Args:
        path: The file; must not exist.
        dtype: Of its items.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]):
        self._path, self._dtype, self.length = path, dtype, 0
        self._file = path.open("xb", buffering=0)
        self._file.write(bytes(_HEADER_BYTES))
        self._unsynced = 0
        self._syncing: threading.Thread | None = None

    def append(self, items: npt.NDArray[Any]) -> None:
        """Writes items, in the type of the file."""
        left = np.ascontiguousarray(items, dtype=self._dtype).data.cast("B")
        while len(left):
            left = left[files.write_piece(self._file.fileno(), left) :]
        self.length += len(items)
        self._unsynced += items.nbytes
        if self._unsynced >= _SYNCED_AT_ONCE and (self._syncing is None or not self._syncing.is_alive()):
            self._syncing = threading.Thread(target=_try_sync, args=(self._file.fileno(),), daemon=True)
            self._syncing.start()
            self._unsynced = 0

    def close(self) -> str:
        """Completes the file and waits for the disk; returns its sha256."""
        self._file.seek(0)
        self._file.write(_header(self._dtype, self.length))
        self._wait()
        # Both wait for something else than this interpreter.
        with ThreadPoolExecutor(1) as pool:
            hashed = pool.submit(files.hash_file, self._path)
            files.sync(self._file.fileno())
            entry = hashed.result()
        self._file.close()
        return entry.sha256

    def _wait(self) -> None:
        """A descriptor must not be closed while it is being synced."""
        if self._syncing is not None:
            self._syncing.join()

    def abandon(self) -> None:
        """Closes and removes a file that will not be used."""
        self._wait()
        self._file.close()
        self._path.unlink(missing_ok=True)


def _try_sync(descriptor: int) -> None:
    """Begins what the last sync completes; that one tells of errors."""
    with contextlib.suppress(OSError):
        files.sync(descriptor)


def _header(dtype: np.dtype[Any], length: int) -> bytes:
    """What numpy writes before the items of an array, in a length that does not depend on their number."""
    described = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': ({length},), }}"
    text = described.ljust(_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little") + text.encode("latin-1")


class ShardWriter:
    """A shard in the making: as a context, what is not complete at its end leaves nothing.

    Args:
        directory: The corpus. source: Name of the source. name: Name of the shard.
        endoftext: The id that closes each document.
    """

    def __init__(self, directory: Path, source: str, name: str, endoftext: int):
        self._paths = shard_paths(directory, source, name)
        self._endoftext = endoftext
        folder = directory / source
        folder.mkdir(parents=True, exist_ok=True)
        mark = uuid.uuid4().hex[:8]
        self._partial = {what: path.with_name(f".{path.name}.{mark}{TEMPORARY}") for what, path in self._paths.items()}
        self._tokens = ArrayFile(self._partial["tokens"], TOKEN_TYPE)
        self._ends = ArrayFile(self._partial["ends"], END_TYPE)

    @property
    def tokens(self) -> int:
        """Written so far."""
        return self._tokens.length

    @property
    def documents(self) -> int:
        """Written so far."""
        return self._ends.length

    def append(self, ids: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64]) -> None:
        """Adds documents, and closes each.

        Args:
            ids: uint32 [tokens], of all of them, one after another.
            lengths: int64 [documents].

        Raises:
            DiskFullError: No space is left.
        """
        if not len(lengths):
            return
        ends = np.cumsum(lengths + 1)
        closed = np.empty(len(ids) + len(lengths), dtype=TOKEN_TYPE)
        is_text = np.ones(len(closed), dtype=np.bool_)
        is_text[ends - 1] = False
        closed[is_text] = ids
        closed[ends - 1] = self._endoftext
        start = self._tokens.length
        with _explained(self._paths["tokens"]):
            self._tokens.append(closed)
            self._ends.append(ends + start)

    def close(self, record: dict[str, Any]) -> dict[str, Any]:
        """Gives the files their names, the record last.

        Args:
            record: What the shard's record says beside counts of documents and tokens, and hashes; those are added.

        Returns:
            The whole record.
        """
        with _explained(self._paths["tokens"]):
            hashes = {"tokens": self._tokens.close(), "ends": self._ends.close()}
            record = {**record, "documents": self.documents, "tokens": self.tokens, "sha256": hashes}
            files.write_new(self._partial["record"], spell(record))
            for what in ("tokens", "ends", "record"):
                files.rename(self._partial[what], self._paths[what])
            files.sync_directory(self._paths["record"].parent)
        return record

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._tokens.abandon()
        self._ends.abandon()
        self._partial["record"].unlink(missing_ok=True)


class _explained:  # in lower case, as it reads in `with _explained(path):`
    """Turns a full disk into an error with an exit code of its own."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None and files.is_disk_full(error):
            raise DiskFullError(f"{self._path}: no space is left for it; free some, and give the same command again.") from error


def spell(record: dict[str, Any]) -> bytes:
    """A record as the content of its file: one spelling for one record."""
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def describe_corpus(tokenizer: dict[str, Any], sources: dict[str, dict[str, Any]], settings: dict[str, Any], inputs: str) -> dict[str, Any]:
    """What corpus.json says.

    Args:
        tokenizer: `fingerprint`, `size`, `vocab_size`, `endoftext`.
        sources: By name: `language`, `licence`, `documents`, `tokens`, `bytes`, `fingerprint`, `shards`, `counts`.
        settings: What it was prepared with. inputs: Stands for the files it was made from.
    """
    totals = {what: sum(source[what] for source in sources.values()) for what in ("documents", "tokens", "bytes")}
    shape = {"format": FORMAT, "version": VERSION, "dtype": TOKEN_TYPE.name}
    return {**shape, "tokenizer": tokenizer, "totals": totals, "sources": sources, "settings": settings, "inputs": inputs}


def write_description(directory: Path, description: dict[str, Any]) -> None:
    """Writes corpus.json: from then on there is a corpus."""
    files.replace_content(directory / FILE_NAME, spell(description))


def fingerprint_of(parts: list[Any]) -> str:
    """sha256 that stands for JSON values in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
