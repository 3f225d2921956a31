"""Files as streams of bytes, packed with gzip or zstd or not at all."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

# Bytes of a zstd file given to the decompressor at once. It returns all that they hold, at most some 32,000 times as much: this bounds the
# memory that a hostile file can claim (64 MiB) and costs no speed.
_ZSTD_PIECE = 2048
COMPRESSIONS = (".gz", ".zst")


class PackedFileProblem(Exception):
    """A packed file cannot be unpacked any further.

    Args:
        code: `truncated_archive` or `bad_archive`.
        message: The problem in words.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file, as a stream with `read` and `readline`.

    Reading it, inside this context, may raise PackedFileProblem.
    """
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            if suffix not in COMPRESSIONS:
                yield file
                return
            if not file.peek(1):
                raise PackedFileProblem("truncated_archive", "the file is empty: not even a packed empty file is; write it again.")
            if suffix == ".gz":
                with gzip.open(file) as unpacked:
                    yield cast(BinaryIO, unpacked)
            else:
                yield io.BufferedReader(_ZstdBytes(file), buffer_size=1 << 18)
    except EOFError:
        raise PackedFileProblem("truncated_archive", _TRUNCATED) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise PackedFileProblem("bad_archive", f"this is not gzip, or it is damaged ({error}); copy or write the file again.") from None


_TRUNCATED = "the packed file ends before its end mark: it was cut in copying or is still being written; copy or write it again."


class _ZstdBytes(io.RawIOBase):
    """What a zstd file unpacks to, frame after frame. (zstandard's own reader takes a file that was cut for one that ends.)"""

    def __init__(self, file: BinaryIO):
        import zstandard

        self._error = zstandard.ZstdError
        self._context = zstandard.ZstdDecompressor()
        self._frame = self._context.decompressobj()
        self._file = file
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # the stub knows a protocol that mypy cannot name
        while not len(self._ready):
            piece = self._file.read(_ZSTD_PIECE)
            if not piece:
                if not self._frame.eof:
                    raise PackedFileProblem("truncated_archive", _TRUNCATED)
                return 0
            self._ready = memoryview(self._unpack(piece))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _unpack(self, piece: bytes) -> bytes:
        unpacked = []
        try:
            while piece:
                if self._frame.eof:
                    self._frame = self._context.decompressobj()
                unpacked.append(self._frame.decompress(piece))
                piece = self._frame.unused_data if self._frame.eof else b""
        except self._error as error:
            raise PackedFileProblem("bad_archive", f"this is not zstd, or it is damaged ({error}); copy or write the file again.") from None
        return b"".join(unpacked)
