"""Which row is sample i of a run: a pure function of (data fingerprint, seed, epoch, i), and which source it is from, in a mixture.

No index array is shuffled or stored, and nothing depends on ranks, workers or micro-batches, so a run's position is one integer and a
resumed run continues at exactly the next sample under any number of ranks.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from moss_train.data.loader import RowDataset
    from moss_train.data.packing import Row

_MASK64 = (1 << 64) - 1
# Four rounds suffice in theory for large halves (Luby, Rackoff 1988); small ones need more. The smallest domain is 2^8: below that the
# network has too few functions to choose from.
_ROUNDS = 8
_MIN_HALF_BITS = 4


def permutation_key(fingerprint: str, seed: int, epoch: int) -> int:
    """64-bit key of one epoch's order, from sha256 over fingerprint, seed and epoch."""
    digest = hashlib.sha256(f"moss_train sample order v1\n{fingerprint}\n{seed}\n{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def permuted_index(key: int, n: int, i: int) -> int:
    """Position i of a keyed pseudo-random permutation of 0 .. n-1.

    A Feistel network permutes the smallest even number of bits that holds n; results outside the range go through it again until one is
    inside (cycle walking; four passes or fewer on average from n = 64 on), which leaves a permutation of 0 .. n-1.

    Args:
        key: From `permutation_key`.
        n: Size of the permuted range.
        i: Position, 0 <= i < n.
    """
    if not 0 <= i < n:
        raise ValueError(f"position {i} is outside 0 .. {n - 1}")
    half = max(_MIN_HALF_BITS, ((n - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    value = i
    while True:
        left, right = value >> half, value & mask
        for round_number in range(_ROUNDS):
            left, right = right, left ^ (_mix(key + round_number * 0x9E3779B97F4A7C15 ^ right << 32 ^ right) & mask)
        value = left << half | right
        if value < n:
            return value


def sample_index(fingerprint: str, seed: int, i: int, n: int) -> tuple[int, int]:
    """The epoch and the row of sample i of a run; samples run across epochs, each of which is its own permutation.

    Args:
        fingerprint: Of the data set.
        seed: Of the run.
        i: Number of the sample since the start of the run.
        n: Rows in the data set.
    """
    epoch, position = divmod(i, n)
    return epoch, permuted_index(permutation_key(fingerprint, seed, epoch), n, position)


def _mix(value: int) -> int:
    """splitmix64's finalizer (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value &= _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31


BLOCK = 4096
"""Samples over which a mixture keeps its shares exactly: weights are rounded to multiples of 1 / BLOCK."""


def quotas(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a block, by largest remainders; at least one for every source."""
    total = sum(weights)
    exact = [BLOCK * weight / total for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda source: (counts[source] - exact[source], source))
    for turn in range(abs(BLOCK - sum(counts))):
        if sum(counts) < BLOCK:
            counts[by_remainder[turn % len(counts)]] += 1
        else:
            counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    return counts


class Mixture:
    """Rows of several sources in given shares.

    Every source has its own endless order, epoch after epoch, each of which takes all of its rows once; the mixture says which source comes
    next. Of the first n samples of a run, source s has n * weight, but for less than two: sources are spread evenly, not drawn.

    A run may be gone on with in another mixture (`go_on`): each source then continues where it was, so that no row of it is repeated or
    left out; a new source begins at its beginning.

    Args:
        sources: Each with at least one row; of one seed, row length and padding.
        weights: Shares of the rows, in any scale.
        names: Of the sources.

    Attributes:
        fingerprint: Of sources and shares.
        tokens, supervised_tokens, documents: Of all sources, each counted once.
    """

    def __init__(self, sources: Sequence[RowDataset], weights: Sequence[float], names: Sequence[str]):
        self.sources, self.names = list(sources), list(names)
        self.quotas = quotas(weights)
        self.seq_len, self.pad_id, self.seed = sources[0].seq_len, sources[0].pad_id, sources[0].seed
        text = "\n".join(f"{source.fingerprint} {quota}" for source, quota in zip(sources, self.quotas))
        self.fingerprint = hashlib.sha256(f"mixture v1\n{text}".encode()).hexdigest()
        self.tokens = sum(source.tokens for source in sources)
        self.supervised_tokens = sum(source.supervised_tokens for source in sources)
        self.documents = sum(source.documents for source in sources)
        # The same data may stand in a mixture twice.
        prints = [source.fingerprint for source in sources]
        self._keys = [f"{one} {prints[:place].count(one)}" if one in prints[:place] else one for place, one in enumerate(prints)]
        self._base = 0
        """Number of the first sample of this mixture; before it the run had another one."""
        self._starts = [0] * len(sources)
        """Samples of each source that were taken before."""
        self._away: dict[str, int] = {}
        """The same of sources that were in an earlier mixture of the run and are not in this one: they may come back."""

    def __len__(self) -> int:
        """Rows of one epoch: as many as all sources have together, though not each of them once."""
        return sum(map(len, self.sources))

    @property
    def mean_context(self) -> float:
        """Keys a token attends to, on average over the tokens as they are mixed."""
        tokens = [quota * source.tokens / len(source) for source, quota in zip(self.sources, self.quotas)]
        return sum(count * source.mean_context for source, count in zip(self.sources, tokens)) / sum(tokens)

    def place(self, number: int) -> tuple[int, int]:
        """The source of sample `number`, and the number of the sample within that source."""
        block, position = divmod(number - self._base, BLOCK)
        order, before = _block(self.fingerprint, self.seed, block, tuple(self.quotas))
        source = int(order[position])
        return source, self._starts[source] + block * self.quotas[source] + int(before[position])

    def position(self, number: int) -> dict[str, Any]:
        """Where a run is that has taken the samples below `number`: for its checkpoints, and for `go_on`."""
        block, inside = divmod(number - self._base, BLOCK)
        order, _ = _block(self.fingerprint, self.seed, block, tuple(self.quotas))
        partly = np.bincount(order[:inside], minlength=len(self.sources)).tolist()
        taken = [start + block * quota + extra for start, quota, extra in zip(self._starts, self.quotas, partly)]
        return {
            "mixture": self.fingerprint,
            "base": self._base,
            "starts": {**self._away, **dict(zip(self._keys, self._starts))},
            "taken": {**self._away, **dict(zip(self._keys, taken))},
        }

    def go_on(self, number: int, position: Mapping[str, Any]) -> None:
        """Continues a run at sample `number`.

        Args:
            number: Samples taken so far.
            position: From `position(number)` of the mixture that took them, which may be this one or another.
        """
        same = position.get("mixture") == self.fingerprint
        self._base = int(position["base"]) if same else number
        counts = dict(position.get("starts" if same else "taken", {}))
        self._starts = [int(counts.pop(key, 0)) for key in self._keys]
        self._away = counts

    def sample(self, number: int) -> Row:
        """The row that is sample `number` of a run."""
        source, inside = self.place(number)
        return self.sources[source].sample(inside)

    def origins_of_sample(self, number: int) -> list[str]:
        """Where the documents of sample `number` came from, as `file:line`."""
        source, inside = self.place(number)
        return self.sources[source].origins_of_sample(inside)


@functools.lru_cache(maxsize=4)
def _block(fingerprint: str, seed: int, block: int, counts: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Of each place of a block: the source, and how many of that source come before it in the block."""
    key = permutation_key(fingerprint, seed, block)
    # Source s stands at (k + shift) / quota for k = 0, 1, ...: evenly, with a shift of its own in every block.
    shifts = [_mix(key + source) / 2**64 for source in range(len(counts))]
    at = np.concatenate([(np.arange(count) + shift) / count for count, shift in zip(counts, shifts)])
    source = np.repeat(np.arange(len(counts)), counts)
    inside = np.concatenate([np.arange(count) for count in counts])
    order = np.argsort(at, kind="stable")
    return source[order], inside[order]
