"""How sure shares are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Z = 1.959964
"""Of a 95 % interval."""
_RESAMPLES = 2000


def wilson(right: float, count: float) -> tuple[float, float]:
    """The 95 % interval of Wilson for a share; (0, 1) of nothing."""
    if count == 0:
        return 0.0, 1.0
    share = right / count
    middle = share + Z**2 / (2 * count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def difference(right: int, count: int, other_right: int, other_count: int) -> tuple[float, float]:
    """The 95 % interval of Newcombe for the difference of two independent shares, out of their intervals by Wilson."""
    first, second = right / max(1, count), other_right / max(1, other_count)
    low, high = wilson(right, count)
    other_low, other_high = wilson(other_right, other_count)
    gap = first - second
    return gap - math.hypot(first - low, other_high - second), gap + math.hypot(high - first, second - other_low)


def ratio_interval(told: Sequence[tuple[bool, bool]], controls: Sequence[tuple[bool, bool]], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of (cross - control) / (same - control), by resampling facts, each with both of its answers.

    Args:
        told: Of each fact that was told, whether it was right in its own language and in the other one.
        controls: The same, in that order of languages, of each that was not.
        seed: Of the resampling.
    """
    generator = np.random.default_rng(seed)
    first, second = np.array(told, dtype=float), np.array(controls, dtype=float)
    ratios = []
    for _ in range(_RESAMPLES):
        gain = first[generator.integers(len(first), size=len(first))].mean(0) - second[
            generator.integers(len(second), size=len(second))
        ].mean(0)
        if gain[0] > 0:
            ratios.append(gain[1] / gain[0])
    if not ratios:
        return -math.inf, math.inf
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def ratio_of_sums(parts: npt.ArrayLike, weights: npt.ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of sum(parts) / sum(weights), by resampling the items, each with its part and its weight.

    Equal items are drawn together (counts of a bootstrap sample are multinomial), so the order of the items does not matter.

    Args:
        parts, weights: `[items]`; weights above zero.
        seed: Of the resampling.
    """
    drawn = resample_ratios(np.column_stack([parts, weights]), seed)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(low), float(high)


def resample_ratios(columns: npt.ArrayLike, seed: int = 0) -> npt.NDArray[np.float64]:
    """The sums of columns over items that are drawn anew, `[resamples, columns]`.

    Args:
        columns: `[items, columns]`. seed: Of the resampling.
    """
    items, counts = np.unique(np.round(np.asarray(columns, dtype=float), 12), axis=0, return_counts=True)
    total = int(counts.sum())
    # 2^22 counts at a time: 32 MiB.
    at_once = max(1, 2**22 // len(items))
    generator = np.random.default_rng(seed)
    sums: list[npt.NDArray[np.float64]] = []
    while sum(map(len, sums)) < _RESAMPLES:
        size = min(at_once, _RESAMPLES - sum(map(len, sums)))
        sums.append(generator.multinomial(total, counts / total, size=size) @ items)
    return np.concatenate(sums)


def clustered_share(parts: npt.ArrayLike, weights: npt.ArrayLike, seed: int = 0) -> tuple[float, float, str]:
    """The 95 % interval of a share sum(parts) / sum(weights) over clusters, and how it was found.

    `wilson` where each cluster is one trial, right or wrong, and where all clusters have the same share, of which resampling would give an
    interval of no width; the number of trials is then the number of clusters, after Kish where their weights differ: (sum w)^2 / sum w^2.
    `bootstrap` over clusters otherwise.

    Args:
        parts, weights: `[clusters]`; 0 <= part <= weight, weight above zero.
        seed: Of the resampling.
    """
    part, weight = np.asarray(parts, dtype=float), np.asarray(weights, dtype=float)
    if len(part) == 0:
        return 0.0, 1.0, "wilson"
    shares = np.round(part / weight, 12)
    if len(np.unique(shares)) == 1 or (np.all(weight == weight[0]) and np.all((shares == 0) | (shares == 1))):
        trials = float(weight.sum() ** 2 / np.square(weight).sum())
        return *wilson(trials * float(part.sum() / weight.sum()), trials), "wilson"
    return *ratio_of_sums(part, weight, seed), "bootstrap"
