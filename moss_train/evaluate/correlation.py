"""Correlations of numbers that come in groups, ties included, and how sure they are. R resamples, G groups, N numbers.

Spearman's correlation is Pearson's of ranks; equal values have the mean of their ranks. Within groups, it is that of ranks within the
group, of which the group's mean is taken off: what makes whole groups differ, such as a question that is easy, has no part in it. Intervals
are at 95 %, percentiles of a bootstrap over groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_RESAMPLES = 2000
_AT_ONCE = 2**20
"""Numbers of a resample times resamples: 8 MiB an array."""


def ranks(values: Floats, groups: Integers) -> Floats:
    """Ranks within each group, from 0; equal values have the mean of theirs. Infinite values are equal to each other."""
    order = np.lexsort((values, groups))
    ordered, owner = values[order], groups[order]
    places = np.arange(len(values), dtype=float)
    # Compared, not subtracted: the difference of two infinities is no number.
    new = np.flatnonzero(np.r_[True, (ordered[1:] != ordered[:-1]) | (owner[1:] != owner[:-1])][: len(values)])
    sizes = np.diff(np.r_[new, len(values)])
    found = np.empty(len(values))
    found[order] = np.repeat(places[new] + (sizes - 1) / 2, sizes)
    first = np.r_[0, np.cumsum(np.bincount(groups))] if len(groups) else np.zeros(1)
    return found - first[groups]


def correlation(first: Floats, second: Floats, groups: Integers) -> float | None:
    """Pearson's, of what is left when the mean of the group is taken off; None where nothing is left of either."""
    if not len(first):
        return None
    left, right = (_demean(values, groups) for values in (first, second))
    sizes = float(np.linalg.norm(left)), float(np.linalg.norm(right))
    return float(np.clip((left / sizes[0]) @ (right / sizes[1]), -1, 1)) if all(sizes) else None


def spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's over all numbers; None where one side has equal values only."""
    together = np.zeros(len(first), dtype=np.int64)
    return correlation(ranks(first, together), ranks(second, together), together)


def spearman_within(first: Floats, second: Floats, groups: Integers) -> float | None:
    """Spearman's within groups; None where one side has equal values only in every group."""
    return correlation(ranks(first, groups), ranks(second, groups), groups)


def spearman_interval(first: Floats, second: Floats, groups: Integers, seed: int = 0) -> tuple[float, float] | None:
    """The interval of `spearman`, by resampling groups; ranks are those in the resample. None where no resample has a correlation.

    Args:
        first, second: `[N]`.
        groups: `[N]`, numbers from 0.
        seed: Of the resampling.
    """
    found: list[float] = []
    for drawn in _resamples(groups, seed):
        weights = drawn[:, groups]
        found += _weighted_correlation(_weighted_ranks(first, weights), _weighted_ranks(second, weights), weights)
    return _percentiles(found)


def spearman_within_interval(first: Floats, second: Floats, groups: Integers, seed: int = 0) -> tuple[float, float] | None:
    """The interval of `spearman_within`; arguments as for `spearman_interval`."""
    if not len(groups):
        return None
    # A group comes as a whole, so ranks within it stay as they are, and sums over it are enough.
    left, right = (_demean(ranks(values, groups), groups) for values in (first, second))
    products, lefts, rights = (np.bincount(groups, weights=part) for part in (left * right, left * left, right * right))
    found: list[float] = []
    for drawn in _resamples(groups, seed):
        sizes = (drawn @ lefts) * (drawn @ rights)
        found += np.clip((drawn @ products)[sizes > 0] / np.sqrt(sizes[sizes > 0]), -1, 1).tolist()
    return _percentiles(found)


def _resamples(groups: Integers, seed: int) -> Iterator[Floats]:
    """How often each group is drawn, some resamples at a time, `[R, G]`."""
    if not len(groups):
        return
    count = int(groups.max()) + 1
    generator = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(len(groups), count))
    for start in range(0, _RESAMPLES, at_once):
        yield generator.multinomial(count, np.full(count, 1 / count), size=min(at_once, _RESAMPLES - start)).astype(float)


def _weighted_ranks(values: Floats, weights: Floats) -> Floats:
    """Ranks, but for a constant, of numbers that occur as often as `weights` [R, N] says; equal ones have the mean of theirs."""
    order = np.argsort(values, kind="stable")
    ordered, sorted_weights = values[order], weights[:, order]
    new = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    totals = np.add.reduceat(sorted_weights, new, axis=1)
    middles = np.cumsum(totals, axis=1) - totals / 2
    found = np.empty_like(weights)
    found[:, order] = np.repeat(middles, np.diff(np.r_[new, len(values)]), axis=1)
    return found


def _weighted_correlation(first: Floats, second: Floats, weights: Floats) -> list[float]:
    """Pearson's of each resample [R, N] that has one."""
    total = weights.sum(axis=1, keepdims=True)
    left, right = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (first, second))
    products, lefts, rights = ((weights * part).sum(axis=1) for part in (left * right, left * left, right * right))
    # Of equal values a little is left by rounding: half a rank would be far more.
    defined = (lefts > 1e-6) & (rights > 1e-6)
    return np.clip(products[defined] / np.sqrt(lefts[defined] * rights[defined]), -1, 1).tolist()


def _percentiles(found: list[float]) -> tuple[float, float] | None:
    if not found:
        return None
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def _demean(values: Floats, groups: Integers) -> Floats:
    """Exactly zero in a group of equal values."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    # From the least one, not from zero: a constant is left without rounding.
    least = np.zeros(int(groups.max()) + 1)
    least[groups[order][starts]] = np.minimum.reduceat(values[order], starts)
    shifted = values - least[groups]
    counts = np.maximum(np.bincount(groups), 1)
    return shifted - (np.bincount(groups, weights=shifted) / counts)[groups]
