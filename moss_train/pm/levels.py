"""From rewards to levels: how good a response is, as a number from 1 to `levels`.

    quantiles    thresholds are quantiles of all rewards: every level gets the same share (Lu et al. 2022, Quark, section 2)
    thresholds   given rewards
    blended      a mean of a response's place among all rewards and its place among the responses to its own context, cut at quantiles: a
                 question that is easy for the model does not make all its answers good ones

What decides is a `Scale`. It is made from one pool of rewards and then stays as it is: another pool, such as the responses of the next
round, is measured with it too, so that a level keeps its meaning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train.errors import DataError

_GRID = 1001
"""Quantiles that stand for the distribution of a pool of rewards: a place is known to a thousandth."""


class LevelsBy(StrEnum):
    """What makes a level."""

    quantiles = "quantiles"
    """Of all rewards, the same share each."""
    thresholds = "thresholds"
    """Rewards that are given."""
    blended = "blended"
    """A response's place among all, and among the responses to its own context."""


@dataclass(frozen=True)
class Scale:
    """How rewards become levels.

    Attributes:
        by: See the module.
        thresholds: One less than there are levels, ascending: of rewards, or with `blended` of places from 0 to 1.
        mean, deviation: Of the rewards that it was made from; a deviation is the unit of `abstain`.
        grid: Quantiles of these rewards, 0 to 1 in equal steps; with `blended` only.
        within: With `blended`, the weight of the place within a context.
        abstain: Responses nearer to a threshold than this get no level: in deviations, or with `blended` in places.
    """

    by: LevelsBy
    thresholds: tuple[float, ...]
    mean: float
    deviation: float
    grid: tuple[float, ...] = ()
    within: float = 0.0
    abstain: float = 0.0

    @property
    def levels(self) -> int:
        """How many there are."""
        return len(self.thresholds) + 1

    def to_json(self) -> dict[str, Any]:
        """As values that JSON can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else str(value) if name == "by" else value for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Scale:
        """The scale that `to_json` made this of.

        Raises:
            DataError: It is none.
        """
        try:
            found = cls(
                LevelsBy(value["by"]),
                tuple(map(float, value["thresholds"])),
                float(value["mean"]),
                float(value["deviation"]),
                tuple(map(float, value["grid"])),
                float(value["within"]),
                float(value["abstain"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"this is no scale of levels: {error!r}") from error
        _check_thresholds(found.thresholds)
        return found


def make_scale(
    rewards: Sequence[Sequence[float | None]],
    by: LevelsBy,
    levels: int = 5,
    thresholds: Sequence[float] = (),
    within: float = 0.5,
    abstain: float = 0.0,
) -> Scale:
    """A scale from a pool of rewards.

    Args:
        rewards: Of each context's responses; None: there is none.
        by: See the module.
        levels: How many; with `thresholds`, one more than these.
        thresholds: Rewards, ascending, with `by=thresholds`.
        within: With `blended`, the weight of the place within a context, 0 to 1.
        abstain: See `Scale`.

    Raises:
        DataError: There are too few different rewards for so many levels, or thresholds that do not ascend.
    """
    pool = np.array([one for group in rewards for one in group if one is not None], dtype=np.float64)
    if not pool.size:
        raise DataError("there are no rewards to make levels of.")
    mean, deviation = float(pool.mean()), float(pool.std())
    if by is LevelsBy.thresholds:
        _check_thresholds(thresholds)
        return Scale(by, tuple(map(float, thresholds)), mean, deviation, abstain=abstain)
    shares = np.arange(1, levels) / levels
    if by is LevelsBy.quantiles:
        cuts = np.asarray(np.quantile(pool, shares), dtype=np.float64)
        return Scale(by, _distinct(cuts, pool, levels), mean, deviation, abstain=abstain)
    grid = tuple(np.quantile(pool, np.linspace(0, 1, _GRID)).tolist())
    blend = Scale(by, (), mean, deviation, grid, within, abstain)
    places = np.array([one for group in rewards for one in _values(blend, group) if one is not None])
    cuts = np.quantile(places, shares)
    return Scale(by, _distinct(cuts, places, levels), mean, deviation, grid, within, abstain)


def levels_of(scale: Scale, rewards: Sequence[float | None]) -> list[int | None]:
    """The levels of the responses to one context; None: no reward, or too near to a threshold."""
    unit = 1.0 if scale.by is LevelsBy.blended else scale.deviation
    found: list[int | None] = []
    for value in _values(scale, rewards):
        near = value is not None and any(abs(value - one) < scale.abstain * unit for one in scale.thresholds)
        found.append(None if value is None or near else 1 + bisect_right(scale.thresholds, value))
    return found


def _values(scale: Scale, rewards: Sequence[float | None]) -> list[float | None]:
    """What thresholds are compared with: rewards, or places from 0 to 1."""
    if scale.by is not LevelsBy.blended:
        return list(rewards)
    grid = np.array(scale.grid)
    own = sorted(one for one in rewards if one is not None)
    values: list[float | None] = []
    for reward in rewards:
        if reward is None:
            values.append(None)
            continue
        overall = _place(grid, reward)
        # Alone, a response has no place among others.
        mine = _place(np.array(own), reward) if len(own) > 1 else overall
        values.append((1 - scale.within) * overall + scale.within * mine)
    return values


def _place(ordered: npt.NDArray[np.float64], value: float) -> float:
    """Share of the others below a value, those that equal it counted half."""
    below, not_above = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right")
    others = max(1, ordered.size - 1)
    equal = max(0, int(not_above - below) - 1)
    return float(min(1.0, (below + equal / 2) / others))


def _distinct(cuts: npt.NDArray[np.float64], pool: npt.NDArray[np.float64], levels: int) -> tuple[float, ...]:
    if np.any(np.diff(cuts) <= 0) or cuts[0] <= pool.min():
        different = len(np.unique(pool))
        raise DataError(
            f"{different} different rewards among {pool.size} do not make {levels} levels of equal shares: many are equal; "
            "take fewer levels, or give thresholds."
        )
    return tuple(map(float, cuts))


def _check_thresholds(thresholds: Sequence[float]) -> None:
    if not len(thresholds) or not np.all(np.isfinite(thresholds)) or any(b <= a for a, b in pairwise(thresholds)):
        raise DataError(f"thresholds are {list(thresholds)}; expected numbers that ascend, one less than there are levels.")
