"""Counting the pieces of text that merges are learned from, in bounded memory.

A piece is what GPT-2's regular expression cuts text into before merging: a word, a number, a run of punctuation. Chinese is written without
spaces, so there a piece is a clause, nearly every one of them different, and a trainer that keeps all of them needs about a hundred times
the memory of the text. Two things bound it here:

* a run longer than `MAX_RUN` characters is cut, so that one file without a space is not one piece;
* when the table is full, it is thinned: every piece is kept as often as a fair coin says for each of its occurrences, and from then on only
  every second text is read. Shares stay as they are, in expectation, and the report says how much of the text was used.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import regex

from moss_train.data.extend import text_tokens
from moss_train.data.merges import BETWEEN, Pieces
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError

# GPT-2's, which the byte-level pre-tokenizer of `tokenizers` has built in.
PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
SCRIPTS = {
    # Chinese characters, kana and hangul, and the punctuation that only they are written with, full-width forms included.
    "cjk": regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\u3000-\u303f\uff00-\uffef]+"),
    "all": None,
}
"""Which stretches of pieces to learn from, by name. With `cjk`, nothing is learned of the Latin letters in `使用Python`, which is one
piece, nor of the quotation marks and dashes that Chinese shares with English: text without such characters keeps its ids."""

MAX_RUN = 256
# What the table takes for a piece beside its text, measured: a slot of the dictionary and the count.
SLOT_BYTES = 112
# What learning takes for each symbol, measured on Chinese: the flat arrays, the places of pairs, counts and heap.
LEARNING_BYTES_PER_SYMBOL = 40
# The interpreter and the libraries, before any text is read.
BASE_BYTES = 400 * 2**20
MIN_MEMORY_BYTES = BASE_BYTES + 64 * 2**20
# Between two looks at how full the table is; longer texts are divided.
_CHARACTERS_AT_ONCE = 1 << 20
# The encoder takes about a hundred bytes for a character while it works.
_BYTES_ENCODED_AT_ONCE = 1 << 20


@dataclass
class Counted:
    """What was counted.

    Attributes:
        texts, bytes: Of all texts given.
        texts_used: Of those that the share let through.
        share: Of the text that the counts stand for, at the end: 1.0 where nothing was thinned.
        cut: Runs that were longer than `MAX_RUN` characters.
    """

    texts: int = 0
    bytes: int = 0
    texts_used: int = 0
    share: float = 1.0
    cut: int = 0


class PieceCounter:
    """Counts pieces.

    Args:
        memory_bytes: What the process may take, learning included.
        scripts: A name of `SCRIPTS`.
        seed: Of the thinning.

    Raises:
        UsageError: The memory is not enough for anything, or the name is unknown.
    """

    def __init__(self, memory_bytes: int, scripts: str = "cjk", seed: int = 0):
        if memory_bytes < MIN_MEMORY_BYTES:
            raise UsageError(f"{memory_bytes / 2**30:.2f} GiB for learning merges; expected {MIN_MEMORY_BYTES / 2**30:.2f} at least")
        if scripts not in SCRIPTS:
            raise UsageError(f"scripts={scripts!r}: expected one of {', '.join(SCRIPTS)}")
        self.seen = Counted()
        self.counts: dict[str, int] = {}
        self._scripts = SCRIPTS[scripts]
        self._seed = seed
        self._limit = memory_bytes - BASE_BYTES
        self._table_bytes = self._text_bytes = 0
        self._halvings = 0

    def add(self, text: str) -> None:
        """Count the pieces of one text, if the share lets it through."""
        seen = self.seen
        used = False
        for begin in range(0, len(text), _CHARACTERS_AT_ONCE):
            part = text[begin : begin + _CHARACTERS_AT_ONCE]
            encoded = part.encode("utf-8", "surrogatepass")
            seen.bytes += len(encoded)
            if not self._halvings or _draw(self._seed, encoded) < seen.share:
                used = True
                self._add_part(part)
        seen.texts += 1
        seen.texts_used += used

    def _add_part(self, text: str) -> None:
        """Count the pieces of a part of a text; one that the end of the part divides is counted as two."""
        seen, counts = self.seen, self.counts
        for piece in PATTERN.findall(text) if self._scripts is None else self._of_scripts(text):
            if len(piece) > MAX_RUN:
                seen.cut += 1
                for start in range(0, len(piece), MAX_RUN):
                    self._count(piece[start : start + MAX_RUN])
            elif piece in counts:
                counts[piece] += 1
            else:
                self._count(piece)
        if self._full():
            self._thin()

    def _of_scripts(self, text: str) -> Iterator[str]:
        assert self._scripts is not None
        for piece in PATTERN.findall(text):
            if not piece.isascii():
                yield from self._scripts.findall(piece)

    def _count(self, piece: str) -> None:
        if piece in self.counts:
            self.counts[piece] += 1
            return
        self.counts[piece] = 1
        self._table_bytes += sys.getsizeof(piece) + SLOT_BYTES
        self._text_bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8", "surrogatepass"))

    def _full(self) -> bool:
        # A symbol is a byte at the shortest. While pieces become symbols, both the table and the bare arrays exist.
        learning = self._text_bytes * LEARNING_BYTES_PER_SYMBOL
        return learning > self._limit or self._table_bytes + self._text_bytes * 16 > self._limit

    def _thin(self) -> None:
        while self._full():
            self._halvings += 1
            self.seen.share /= 2
            pieces = list(self.counts)
            drawn = np.random.default_rng([self._seed, self._halvings]).binomial(list(self.counts.values()), 0.5).tolist()
            self.counts.clear()
            self._table_bytes = self._text_bytes = 0
            kept, pieces = [(piece, count) for piece, count in zip(pieces, drawn) if count], []
            for piece, count in kept:
                self._count(piece)
                self.counts[piece] = count

    def symbols(self, tokenizer: MossTokenizer) -> Pieces:
        """The pieces as symbols, the counts being used up.

        Args:
            tokenizer: Its ids are the symbols, so that learning goes on where it ended. No merge reaches across an added token, such as a
                run of blanks: pieces are divided there.
        """
        pieces = Pieces(self._text_bytes + len(self.counts))
        text_ids = len(text_tokens(tokenizer))
        for texts, counts in self._batches():
            ids = tokenizer.encode_batch(texts)
            lengths = np.array([len(piece) for piece in ids], dtype=np.int64)
            flat = np.fromiter((token for piece in ids for token in piece), dtype=np.int32, count=int(lengths.sum()))
            flat[flat >= text_ids] = BETWEEN
            pieces.add(flat, lengths, np.array(counts, dtype=np.int64))
        return pieces

    def _batches(self) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
        texts, counts = list(self.counts), list(self.counts.values())
        self.counts.clear()
        size = max(1, _BYTES_ENCODED_AT_ONCE * len(texts) // max(1, self._text_bytes))
        for start in range(0, len(texts), size):
            yield texts[start : start + size], counts[start : start + size]


def _draw(seed: int, text: bytes) -> float:
    """A number from [0, 1) that depends on the text and the seed alone."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, "little")).digest(), "little") / 2**64
