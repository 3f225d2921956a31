"""Windows of a corpus: rows of a fixed number of tokens, cut from the stream of a source, computed from a number and never looked up.

The tokens of a source, shard after shard, are one stream `s` in which every document ends in `<|endoftext|>`. Window j has the *targets*
s[jT], ..., s[jT + T - 1], and each target's input is the token before it in the stream. So every token of a source is a target once in an
epoch, `<|endoftext|>` included, and nothing is a target twice.

An input `<|endoftext|>` opens a document: it predicts the first token, as it does where a model is asked to write from nothing (it is
CodeGen's `bos_token_id`), and attends to nothing before it. Of a document that the edge of a window cuts, the second part begins without
context.

Shape legend: T tokens of a window (`seq_len`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moss_train.data.corpus import Corpus, CorpusSource
from moss_train.data.mixture import sample_index
from moss_train.data.packing import Row
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

_LOOKED_AT = 32
"""Windows that the mean context of a source is taken from."""


def token_bytes(tokenizer: MossTokenizer) -> npt.NDArray[np.int64]:
    """int64 [ids in use]: bytes of UTF-8 that each id spells; 0 for `<|endoftext|>` and all others that no text yields."""
    special = tokenizer.special_ids
    return np.array([0 if one in special else len(tokenizer.token_bytes(one)) for one in range(tokenizer.size)], dtype=np.int64)


def source_identity(corpus: Corpus, source: CorpusSource) -> str:
    """What stands for the tokens of a source: the hashes of its shards in order, and the tokenizer."""
    digest = hashlib.sha256(f"source v1 {corpus.tokenizer_fingerprint}".encode())
    for shard in source.shards:
        digest.update(f"\n{shard.tokens} {shard.sha256.get('tokens', '')}".encode())
    return digest.hexdigest()


class SourceWindows:
    """The windows of one source, in an endless order for training, or one after another.

    Args:
        corpus: The corpus.
        source: One of its sources.
        seq_len: T.
        seed: Of the order of samples.
        bytes_of: From `token_bytes`.
        windows: The first window to take, and the one after the last; by default all. The last window of a stream may be shorter than T.

    Attributes:
        fingerprint: Of the windows: tokens, T, and which of them.
        tokens: Targets in all windows. supervised_tokens: The same. documents: Of the whole source, or in proportion.
    """

    def __init__(
        self,
        corpus: Corpus,
        source: CorpusSource,
        seq_len: int,
        seed: int,
        bytes_of: npt.NDArray[np.int64],
        windows: tuple[int, int] | None = None,
    ):
        self.first, self._end = windows or (0, count_windows(source.tokens, seq_len))
        if self._end <= self.first:
            raise DataError(f"{corpus.directory}: no window of {source.name} is left; lower data.holdout or data.seq_len")
        self.corpus, self.source = corpus, source
        self.seq_len, self.seed, self.pad_id = seq_len, seed, corpus.endoftext
        self._bytes_of = bytes_of
        identity = source_identity(corpus, source)
        self.fingerprint = hashlib.sha256(f"windows v1 {identity} {seq_len} {self.first} {self._end}".encode()).hexdigest()
        self.tokens = self.supervised_tokens = min(self._end * seq_len, source.tokens) - self.first * seq_len
        self.documents = max(1, round(source.documents * self.tokens / source.tokens))
        self._mean_context: float | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return self._end - self.first

    @property
    def mean_context(self) -> float:
        """Keys a token attends to, on average, its own included; estimated from some windows, evenly spread."""
        if self._mean_context is None:
            rows = [self.row(index) for index in spread(len(self), _LOOKED_AT)]
            pairs = sum(length * (length + 1) for row in rows for length in row.doc_lengths)
            self._mean_context = pairs / (2 * sum(len(row.input_ids) for row in rows))
        return self._mean_context

    def row(self, index: int) -> Row:
        """One window.

        Args:
            index: Its number among those taken, from 0.

        Raises:
            DataError: A shard is malformed, or an id lies outside the vocabulary.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = (self.first + index) * self.seq_len
        end = min(start + self.seq_len, self.source.tokens)
        stream = self._read(max(0, start - 1), end)
        if not start:
            # Before the first document there is the end of one too.
            stream = np.concatenate([[self.corpus.endoftext], stream])
        inputs, targets = stream[:-1], stream[1:]
        opens = np.flatnonzero(inputs == self.corpus.endoftext)
        begins = opens if len(opens) and opens[0] == 0 else np.concatenate([[0], opens])
        lengths = np.diff(begins, append=len(inputs))
        positions = np.arange(len(inputs)) - np.repeat(begins, lengths)
        return Row(inputs, targets, positions, lengths.tolist(), text_bytes=int(self._bytes_of[targets].sum()))

    def _read(self, start: int, end: int) -> npt.NDArray[np.int64]:
        """Tokens of the source, over the edges of shards."""
        parts = []
        while start < end:
            shard, place = self.source.locate(start)
            taken = min(end - start, shard.tokens - place)
            parts.append(shard.read(place, place + taken).astype(np.int64))
            start += taken
        return np.concatenate(parts)

    def sample(self, number: int) -> Row:
        """The window that is sample `number` of this source; samples run across epochs."""
        _, index = sample_index(self.fingerprint, self.seed, number, len(self))
        return self.row(index)

    def origins_of_sample(self, number: int) -> list[str]:
        """Where a sample is from: the shard and its tokens, as `prepare inspect --at` takes them."""
        _, index = sample_index(self.fingerprint, self.seed, number, len(self))
        start = (self.first + index) * self.seq_len
        shard, place = self.source.locate(start)
        return [f"{shard} tokens {place} to {min(place + self.seq_len, shard.tokens)}"]


def count_windows(tokens: int, seq_len: int) -> int:
    """Windows of a stream."""
    return -(-tokens // seq_len)


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` numbers from 0 to `count` - 1, evenly spread and ascending."""
    taken = min(count, wanted)
    return [place * count // taken for place in range(taken)]


class HeldOut:
    """Windows of several sources to evaluate on, one after another.

    Args:
        sources: The windows. numbers: Number of each source in the metrics.
        most_tokens: Of each source, so many tokens at most, evenly spread over its windows; at least one window.
    """

    def __init__(self, sources: Sequence[SourceWindows], numbers: Sequence[int], most_tokens: int):
        self.seq_len, self.pad_id = sources[0].seq_len, sources[0].pad_id
        self._sources, self._numbers = sources, numbers
        self._rows = [
            (place, index) for place, source in enumerate(sources) for index in spread(len(source), max(1, most_tokens // source.seq_len))
        ]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        """Of the windows."""
        return hashlib.sha256(" ".join([*(source.fingerprint for source in self._sources), str(len(self))]).encode()).hexdigest()

    def row(self, index: int) -> Row:
        """One window, with the number of its source."""
        place, inside = self._rows[index]
        return self._sources[place].row(inside)._replace(source=self._numbers[place])
