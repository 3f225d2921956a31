"""What a preference model said of comparisons, pair by pair. C comparisons, P pairs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moss_train.data.comparisons import Comparison, context_to_json

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """A comparison with the rewards of its responses.

    Attributes:
        rewards: One per response, finite.
        lengths: Of each response, in tokens.
    """

    comparison: Comparison
    rewards: Sequence[float]
    lengths: Sequence[int]

    def __post_init__(self) -> None:
        """Raises ValueError, with the origin of the comparison, where rewards or lengths are not those of its responses."""
        origin, count = self.comparison.context.origin, len(self.comparison.responses)
        if len(self.rewards) != count or len(self.lengths) != count:
            raise ValueError(f"{origin}: {count} responses, but {len(self.rewards)} rewards and {len(self.lengths)} lengths.")
        if not all(math.isfinite(reward) for reward in self.rewards):
            raise ValueError(f"{origin}: rewards {[float(reward) for reward in self.rewards]}; expected finite numbers.")
        if any(length < 0 for length in self.lengths):
            raise ValueError(f"{origin}: lengths {[int(length) for length in self.lengths]}; expected none below zero.")


@dataclass(frozen=True)
class Pairs:
    """Pairs of all comparisons, either those with a better response or the ties.

    Attributes:
        count: C, with the comparisons that have none of these pairs.
        owner: `[P]`, number of the comparison.
        better, worse: `[P]`, numbers of the responses within the comparison.
        margin: `[P]`, reward of the better minus reward of the worse.
        better_length, worse_length: `[P]`, tokens.
        weight: `[P]`, 1 / number of these pairs in the comparison: each comparison weighs 1, whatever its K.
    """

    count: int
    owner: npt.NDArray[np.int64]
    better: npt.NDArray[np.int64]
    worse: npt.NDArray[np.int64]
    margin: Floats
    better_length: Floats
    worse_length: Floats
    weight: Floats

    def mean(self, values: Floats) -> float | None:
        """The weighted mean of `[P]`, or None of nothing."""
        return float(self.weight @ values / self.weight.sum()) if len(values) else None

    def by_comparison(self, values: Floats) -> Floats:
        """The weighted sum of `[P]` over the pairs of each comparison, of those that have any: their means, where all pairs are given."""
        has_pairs = np.bincount(self.owner, minlength=self.count) > 0
        return np.bincount(self.owner, weights=self.weight * values, minlength=self.count)[has_pairs].astype(float)

    def owners(self) -> npt.NDArray[np.int64]:
        """Numbers of the comparisons that have any of these pairs, in the order of `by_comparison`."""
        return np.unique(self.owner)


def list_pairs(judged: Sequence[Judged], *, tied: bool = False) -> Pairs:
    """The pairs with a better response, or the ties."""
    owner, better, worse, margin, lengths, weight = [], [], [], [], [], []
    for number, one in enumerate(judged):
        own = [pair for pair in one.comparison.pairs if pair.tied == tied]
        for pair in own:
            owner.append(number)
            better.append(pair.better)
            worse.append(pair.worse)
            margin.append(float(one.rewards[pair.better]) - float(one.rewards[pair.worse]))
            lengths.append((one.lengths[pair.better], one.lengths[pair.worse]))
            weight.append(1 / len(own))
    tokens = np.array(lengths, dtype=float).reshape(-1, 2)
    return Pairs(
        count=len(judged),
        owner=np.array(owner, dtype=np.int64),
        better=np.array(better, dtype=np.int64),
        worse=np.array(worse, dtype=np.int64),
        margin=np.array(margin, dtype=float),
        better_length=tokens[:, 0],
        worse_length=tokens[:, 1],
        weight=np.array(weight, dtype=float),
    )


def right(margin: Floats) -> Floats:
    """1 where the better response has the larger value, 0 where it has the smaller one, 1/2 where they are equal."""
    return (np.sign(margin) + 1) / 2


def context_key(comparison: Comparison) -> str:
    """What was asked, as text; equal for equal contexts."""
    return json.dumps(context_to_json(comparison.context), ensure_ascii=False, sort_keys=True)
