"""Which row is sample i of a run: a pure function of (data fingerprint, seed, epoch, i), and which source it is from, in a mixture.

No index array is shuffled or stored, and nothing depends on ranks, workers or micro-batches, so a run's position is one integer and a
resumed run continues at exactly the next sample under any number of ranks.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
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


class MixedSource(Protocol):
    """What is mixed: an endless order of rows, epoch after epoch."""

    seq_len: int
    pad_id: int
    seed: int
    fingerprint: str
    tokens: int
    supervised_tokens: int
    documents: int

    def __len__(self) -> int: ...

    @property
    def mean_context(self) -> float: ...

    def sample(self, number: int) -> Row: ...

    def origins_of_sample(self, number: int) -> list[str]: ...


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with shares of its own.

    Attributes:
        samples: Its length; None: to the end of the run.
        weights: Of every source, in any scale; with 0 a source is not used.
    """

    samples: int | None
    weights: tuple[float, ...]


@dataclass(frozen=True)
class _Segment:
    """A stretch of samples with one order of sources.

    Attributes:
        start, end: The first sample, and the one after the last; no end is None.
        key: Names the order. quotas: Samples of each source in a block.
        taken: Samples of each source that the run has taken when it begins.
    """

    start: int
    end: int | None
    key: str
    quotas: tuple[int, ...]
    taken: tuple[int, ...]

    def counts(self, samples: int, seed: int) -> tuple[int, ...]:
        """Of each source, how many the run has taken after `samples` of this segment."""
        block, inside = divmod(samples, BLOCK)
        partly = [0] * len(self.quotas)
        if inside:
            order, _ = _block(self.key, seed, block, self.quotas)
            partly = np.bincount(order[:inside], minlength=len(self.quotas)).tolist()
        return tuple(before + block * quota + extra for before, quota, extra in zip(self.taken, self.quotas, partly))


def quotas(weights: Sequence[float]) -> list[int]:
    """Samples of each source in a block, by largest remainders; at least one for every source that has a weight.

    Raises:
        ValueError: The weights sum to nothing, or there are more sources than places in a block.
    """
    total = sum(weights)
    used = [weight > 0 for weight in weights]
    if total <= 0 or sum(used) > BLOCK:
        raise ValueError(f"weights of {sum(used)} sources that sum to {total}; expected 1 to {BLOCK} sources and a sum above zero")
    exact = [BLOCK * weight / total for weight in weights]
    counts = [max(int(one), int(share)) for one, share in zip(used, exact)]
    by_remainder = sorted((source for source, one in enumerate(used) if one), key=lambda source: (counts[source] - exact[source], source))
    for turn in range(abs(BLOCK - sum(counts))):
        if sum(counts) < BLOCK:
            counts[by_remainder[turn % len(by_remainder)]] += 1
        else:
            counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
    return counts


class Mixture:
    """Rows of several sources in given shares, which may differ by phases of the run.

    Every source has its own endless order, epoch after epoch, each of which takes all of its rows once; the mixture says which source comes
    next. Of the first n samples of a phase, source s of S has n * weight, but for less than 1 + S * weight: sources are spread evenly, not
    drawn.

    A run may be gone on with in another mixture (`go_on`): each source then continues where it was, so that no row of it is repeated or
    left out; a new source begins at its beginning. Phases are counted from the start of the run.

    Args:
        sources: Each with at least one row; of one seed, row length and padding.
        weights: Shares of the rows, in any scale, or phases one after another; the last one goes on to the end.
        names: Of the sources.
        objectives: What a token of each source counts in the loss; by default 1.

    Attributes:
        fingerprint: Of sources and shares.
        tokens, supervised_tokens, documents: Of all sources, each counted once.
        history: What was mixed since the start of the run, as JSON: from which sample on, phases and shares by name.
    """

    def __init__(
        self,
        sources: Sequence[MixedSource],
        weights: Sequence[float] | Sequence[Phase],
        names: Sequence[str],
        objectives: Sequence[float] | None = None,
    ):
        self.sources, self.names = list(sources), list(names)
        self.objectives = list(objectives) if objectives is not None else [1.0] * len(sources)
        phases = [one for one in weights if isinstance(one, Phase)] or [Phase(None, tuple(weights))]  # type: ignore[arg-type]
        self.phases = [(phase.samples, tuple(quotas(phase.weights))) for phase in phases]
        self.seq_len, self.pad_id, self.seed = sources[0].seq_len, sources[0].pad_id, sources[0].seed
        self.tokens = sum(source.tokens for source in sources)
        self.supervised_tokens = sum(source.supervised_tokens for source in sources)
        self.documents = sum(source.documents for source in sources)
        # The same data may stand in a mixture twice.
        prints = [source.fingerprint for source in sources]
        self._keys = [f"{one} {prints[:place].count(one)}" if one in prints[:place] else one for place, one in enumerate(prints)]
        self.fingerprint = self._fingerprint(prints)
        self._base = 0
        """Number of the first sample of this mixture; before it the run had another one."""
        self._starts = [0] * len(sources)
        """Samples of each source that were taken before."""
        self._away: dict[str, int] = {}
        """The same of sources that were in an earlier mixture of the run and are not in this one: they may come back."""
        self._away_names: dict[str, str] = {}
        self.history = [self._described(0)]
        self._segments = self._divide()

    def _fingerprint(self, prints: Sequence[str]) -> str:
        """Of one phase, or of all."""
        if len(self.phases) == 1:
            text = "\n".join(f"{one} {quota}" for one, quota in zip(prints, self.phases[0][1]))
            kind = "mixture v1"
        else:
            text = "\n".join([*prints, *(f"{samples} {counts}" for samples, counts in self.phases)])
            kind = "mixture of phases v1"
        # What a token counts decides nothing about which samples come, but two runs that differ in it are not the same run.
        if any(objective != 1 for objective in self.objectives):
            text += f"\nobjectives {self.objectives}"
        return hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()

    def _divide(self) -> list[_Segment]:
        """The segments from the base on: the phases that have not ended by then."""
        segments: list[_Segment] = []
        begin, taken = 0, tuple(self._starts)
        for number, (samples, counts) in enumerate(self.phases):
            end = None if samples is None or number == len(self.phases) - 1 else begin + samples
            if end is None or end > self._base:
                key = self.fingerprint if len(self.phases) == 1 else f"{self.fingerprint} phase {number}"
                segments.append(_Segment(max(begin, self._base), end, key, counts, taken))
                if end is None:
                    break
                taken = segments[-1].counts(end - segments[-1].start, self.seed)
            begin = end if end is not None else begin
        return segments

    def _described(self, first: int) -> dict[str, Any]:
        """This mixture in the history of a run."""
        shares = [
            {"samples": samples, "shares": {name: round(quota / BLOCK, 6) for name, quota in zip(self.names, counts)}}
            for samples, counts in self.phases
        ]
        return {"from_sample": first, "mixture": self.fingerprint, "phases": shares}

    def __len__(self) -> int:
        """Rows of one epoch: as many as all sources have together, though not each of them once."""
        return sum(map(len, self.sources))

    @property
    def mean_context(self) -> float:
        """Keys a token attends to, on average over the tokens as they are mixed in the last phase."""
        tokens = [quota * source.tokens / len(source) for source, quota in zip(self.sources, self.phases[-1][1])]
        return sum(count * source.mean_context for source, count in zip(self.sources, tokens)) / sum(tokens)

    def _segment(self, number: int) -> _Segment:
        """The segment of a sample, or the one that ends there."""
        for segment in self._segments:
            if segment.end is None or number < segment.end:
                return segment
        return self._segments[-1]

    def place(self, number: int) -> tuple[int, int]:
        """The source of sample `number`, and the number of the sample within that source."""
        segment = self._segment(number)
        block, position = divmod(number - segment.start, BLOCK)
        order, before = _block(segment.key, self.seed, block, segment.quotas)
        source = int(order[position])
        return source, segment.taken[source] + block * segment.quotas[source] + int(before[position])

    def changes(self, first: int, end: int) -> bool:
        """Whether a phase, or this mixture, begins among the samples from `first` to `end`, the latter not included."""
        return any(first <= segment.start < end for segment in self._segments)

    def taken(self, number: int) -> tuple[int, ...]:
        """How many samples of each source a run has taken when it has taken those below `number`."""
        segment = self._segment(number)
        return segment.counts(number - segment.start, self.seed)

    def position(self, number: int) -> dict[str, Any]:
        """Where a run is that has taken the samples below `number`: for its checkpoints, and for `go_on`."""
        return {
            "mixture": self.fingerprint,
            "seed": self.seed,
            "base": self._base,
            "starts": {**self._away, **dict(zip(self._keys, self._starts))},
            "taken": {**self._away, **dict(zip(self._keys, self.taken(number)))},
            "names": {**self._away_names, **dict(zip(self._keys, self.names))},
            "history": self.history,
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
        self._away_names = {key: name for key, name in position.get("names", {}).items() if key in counts}
        before = list(position.get("history", []))
        self.history = before or self.history if same else [*before, self._described(number)]
        self._segments = self._divide()

    def renewed(self, position: Mapping[str, Any]) -> list[str]:
        """Names of sources that the run had under the same name with other rows: going on with them begins them anew."""
        had = {name: key for key, name in position.get("names", {}).items()}
        return [name for key, name in zip(self._keys, self.names) if name in had and had[name] != key and key not in position["taken"]]

    def sample(self, number: int) -> Row:
        """The row that is sample `number` of a run."""
        source, inside = self.place(number)
        return self.sources[source].sample(inside)._replace(source=source, objective=self.objectives[source])

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
