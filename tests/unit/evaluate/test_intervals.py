"""Intervals of shares over clusters."""

from __future__ import annotations

import numpy as np
import pytest

from moss_train.evaluate.intervals import clustered_share, ratio_of_sums, wilson


def test_resampling_is_a_bootstrap_over_items() -> None:
    generator = np.random.default_rng(0)
    weights = generator.integers(1, 5, size=50).astype(float)
    parts = weights * generator.random(50)
    drawn = generator.integers(50, size=(20_000, 50))
    expected = np.percentile(parts[drawn].sum(1) / weights[drawn].sum(1), [2.5, 97.5])
    assert ratio_of_sums(parts, weights) == pytest.approx(tuple(expected), abs=0.008)


def test_the_order_of_items_does_not_matter() -> None:
    parts, weights = [0.0, 1.0, 1.0, 0.5, 1 / 3], [1.0, 1.0, 2.0, 1.0, 1.0]
    assert ratio_of_sums(parts, weights) == ratio_of_sums(parts[::-1], weights[::-1])


def test_how_an_interval_is_found() -> None:
    assert clustered_share([1, 0, 1, 1], [1, 1, 1, 1]) == (*wilson(3, 4), "wilson")
    assert clustered_share([0.5, 0.5], [0.5, 0.5]) == (*wilson(2, 2), "wilson")
    # All alike, with weights 1 and 2: (1 + 2)^2 / (1 + 4) trials.
    assert clustered_share([1, 2], [1, 2]) == (*wilson(1.8, 1.8), "wilson")
    assert clustered_share([1, 0.5, 0, 1], [1, 1, 1, 1])[2] == "bootstrap"
    assert clustered_share([1, 0], [1, 0.5])[2] == "bootstrap"
    assert clustered_share([], []) == (0.0, 1.0, "wilson")


def test_an_interval_covers_the_truth_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        skill = generator.beta(7, 3, size=60)
        low, high, _ = clustered_share(generator.binomial(3, skill) / 3, np.ones(60), seed=number)
        covered += low <= 0.7 <= high
    assert 0.9 <= covered / 200 <= 0.99
