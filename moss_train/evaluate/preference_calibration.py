"""Whether sigmoid(margin / temperature) is the share of pairs in which the better response has the larger reward.

Of each pair, the model prefers one response with confidence max(p, 1 - p), p = sigmoid(margin / T), between 1/2 and 1. Bins are over that
confidence (Guo et al. 2017, "On Calibration of Modern Neural Networks", for ECE and for the one temperature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.evaluate.intervals import clustered_share
from moss_train.evaluate.preference_pairs import Floats, Judged, Pairs, list_pairs, right

BINS = 15
_REACH = 1e4
"""Temperatures are sought from 1 / this to this, times the mean absolute margin."""


class Temperature(NamedTuple):
    """A fitted temperature.

    Attributes:
        value: Above zero.
        bound: `low` where any lower one is better still: nearly all margins are above zero. `high` where any higher one is: the rewards
            say nothing, or the opposite. `flat` where all margins are zero and all temperatures are as good. None: inside the bounds.
    """

    value: float
    bound: str | None = None


def fit_temperature(judged: Sequence[Judged]) -> float:
    """The temperature with the least log loss of sigmoid(margin / T), each comparison weighing 1. `search_temperature` says whether a
    bound was hit.

    Raises:
        ValueError: There is no pair with a better response.
    """
    return search_temperature(list_pairs(judged)).value


def search_temperature(pairs: Pairs) -> Temperature:
    """The temperature with the least weighted log loss.

    The loss is convex in 1 / T, so its slope there changes sign once: the sign is bisected, over log T.

    Raises:
        ValueError: There are no pairs.
    """
    if not len(pairs.margin):
        raise ValueError("no pair has a better response; a temperature needs one.")
    scale = float(np.max(np.abs(pairs.margin)))
    if scale == 0:
        return Temperature(1.0, "flat")
    # The largest margin first, so that tiny and huge ones do not leave the range of floats.
    margin = pairs.margin / scale
    middle = float(pairs.weight @ np.abs(margin) / pairs.weight.sum())
    low, high = math.log(middle / _REACH), math.log(middle * _REACH)

    def is_too_low(log_temperature: float) -> bool:
        # d loss / d (1 / T) = -sum w m sigmoid(-m / T); above zero, a larger T is better.
        return float(pairs.weight @ (margin * _sigmoid(-margin * math.exp(-log_temperature)))) < 0

    if np.all(margin >= 0) or not is_too_low(low):
        return Temperature(scale * math.exp(low), "low")
    if is_too_low(high) or float(pairs.weight @ margin) <= 0:
        return Temperature(scale * math.exp(high), "high")
    for _ in range(100):
        half = (low + high) / 2
        low, high = (half, high) if is_too_low(half) else (low, half)
    return Temperature(scale * math.exp((low + high) / 2))


def calibrate(pairs: Pairs, temperature: float, seed: int = 0) -> dict[str, Any]:
    """How well calibrated sigmoid(margin / temperature) is, each comparison weighing 1.

    Args:
        pairs: With a better response.
        temperature: Above zero.
        seed: Of the intervals of the bins.

    Returns:
        `ece` over bins of equal width and `ece_equal_mass` over bins of about equal weight, shares; `brier`, mean of (1 - p)^2;
        `log_loss` in nats; `bins`, those of equal width, empty ones too. None where there are no pairs.
    """
    scaled = pairs.margin / temperature
    confidence = _sigmoid(np.abs(scaled))
    width = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    return {
        "temperature": temperature,
        "ece": _ece(pairs, confidence, width),
        "ece_equal_mass": _ece(pairs, confidence, _equal_mass(confidence, pairs.weight)),
        "brier": pairs.mean(_sigmoid(-scaled) ** 2),
        "log_loss": pairs.mean(np.logaddexp(0, -scaled)),
        "bins": [_bin(pairs, confidence, width == number, number, seed) for number in range(BINS)],
    }


def _sigmoid(values: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -values))


def _ece(pairs: Pairs, confidence: Floats, bins: npt.NDArray[np.int64]) -> float | None:
    """sum over bins of share of weight * |accuracy - mean confidence|."""
    if not len(confidence):
        return None
    gaps = np.bincount(bins, weights=pairs.weight * (right(pairs.margin) - confidence))
    return float(np.abs(gaps).sum() / pairs.weight.sum())


def _equal_mass(confidence: Floats, weight: Floats) -> npt.NDArray[np.int64]:
    """Numbers of bins of about equal weight `[P]`. Equal confidences share a bin: the one of the middle of their weight."""
    _, groups = np.unique(np.round(confidence, 12), return_inverse=True)
    weights = np.bincount(groups, weights=weight)
    middles = (np.cumsum(weights) - weights / 2) / max(weights.sum(), 1e-300)
    # Rounded: a middle on an edge must not depend on the order in which weights were added.
    return np.minimum(np.round(middles * BINS, 9).astype(np.int64), BINS - 1)[groups]


def _bin(pairs: Pairs, confidence: Floats, inside: npt.NDArray[np.bool_], number: int, seed: int) -> dict[str, Any]:
    weights = np.bincount(pairs.owner, weights=pairs.weight * inside, minlength=pairs.count)
    parts = np.bincount(pairs.owner, weights=pairs.weight * inside * right(pairs.margin), minlength=pairs.count)
    used, total = weights > 0, float(weights.sum())
    found: dict[str, Any] = {
        "low": 0.5 + number / (2 * BINS),
        "high": 0.5 + (number + 1) / (2 * BINS),
        "pairs": int(inside.sum()),
        "weight": total,
        "confidence": None,
        "accuracy": None,
        "interval": None,
    }
    if total:
        found["confidence"] = float((pairs.weight * inside) @ confidence) / total
        found["accuracy"] = float(parts.sum()) / total
        found["interval"] = list(clustered_share(parts[used], weights[used], seed)[:2])
    return found
