"""How sure shares are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959964
"""Of a 95 % interval."""
_RESAMPLES = 2000


def wilson(right: int, count: int) -> tuple[float, float]:
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
