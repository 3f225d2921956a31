"""Correlations against known values, and their intervals against a bootstrap in plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moss_train.evaluate.correlation import (
    ranks,
    spearman,
    spearman_interval,
    spearman_within,
    spearman_within_interval,
)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


def groups(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_equal_values_have_the_mean_of_their_ranks() -> None:
    assert ranks(floats(3, 1, 3, 2), groups(0, 0, 0, 0)).tolist() == [2.5, 0, 2.5, 1]
    assert ranks(floats(5, 1, 1, 7), groups(0, 1, 1, 0)).tolist() == [0, 0.5, 0.5, 1]
    assert ranks(floats(-math.inf, 0, -math.inf), groups(0, 0, 0)).tolist() == [0.5, 2, 0.5]
    assert ranks(floats(), groups()).tolist() == []


def test_known_values_of_spearman() -> None:
    # The example of scipy.stats.spearmanr: 0.8207826816681233; of ranks 1 2 3 4 5 and 1 2 3.5 5 3.5.
    assert spearman(floats(1, 2, 3, 4, 5), floats(5, 6, 7, 8, 7)) == pytest.approx(0.8207826816681233)
    # Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): differences -2, 1, 1 in 3 numbers.
    assert spearman(floats(1, 2, 3), floats(30, 10, 20)) == pytest.approx(1 - 6 * 6 / (3 * 8))
    assert spearman(floats(1, 2, 3), floats(9, 8, -math.inf)) == pytest.approx(-1)
    assert spearman(floats(1, 1, 1), floats(1, 2, 3)) is None
    assert spearman(floats(), floats()) is None


def test_what_makes_groups_differ_has_no_part_in_the_correlation_within() -> None:
    asked, group = floats(1, 2, 3, 1, 2, 3), groups(0, 0, 0, 1, 1, 1)
    reward = floats(100, 101, 102, 3, 2, 1)
    assert spearman_within(asked, floats(100, 101, 102, 1, 2, 3), group) == pytest.approx(1)
    assert spearman_within(asked, reward, group) == pytest.approx(0)
    assert spearman_within(asked, floats(5, 5, 5, 7, 7, 7), group) is None


def made(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Five numbers each in some groups, with ties, in no order."""
    generator = np.random.default_rng(1)
    group = generator.permutation(np.repeat(np.arange(count), 5))
    asked = generator.integers(1, 6, size=len(group)).astype(float)
    came = np.round(asked + generator.normal(size=count)[group] + generator.normal(size=len(group)))
    return asked, came, group


@pytest.mark.parametrize("within", [False, True])
def test_the_interval_is_that_of_a_bootstrap_over_groups(within: bool) -> None:
    asked, came, group = made(20)
    members = [np.flatnonzero(group == number) for number in range(20)]
    generator, found = np.random.default_rng(7), []
    for _ in range(1000):
        drawn = generator.integers(20, size=20)
        chosen = np.concatenate([members[number] for number in drawn])
        # A group that is drawn twice is two groups.
        anew = np.repeat(np.arange(20), 5)
        found.append(spearman_within(asked[chosen], came[chosen], anew) if within else spearman(asked[chosen], came[chosen]))
    expected = np.percentile(np.array(found, dtype=float), [2.5, 97.5])
    interval = (spearman_within_interval if within else spearman_interval)(asked, came, group)
    assert interval == pytest.approx(tuple(expected), abs=0.03)
    assert interval == (spearman_within_interval if within else spearman_interval)(asked, came, group)


def test_an_interval_of_nothing_is_none() -> None:
    for interval in (spearman_interval, spearman_within_interval):
        assert interval(floats(), floats(), groups()) is None
        assert interval(floats(1, 2), floats(3, 3), groups(0, 1)) is None
