"""The sample contract: a keyed permutation of every epoch, the same for ever."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.mixture import permutation_key, permuted_index, sample_index


@given(key=st.integers(0, 2**64 - 1), n=st.integers(1, 700))
@settings(max_examples=100, deadline=None)
def test_it_is_a_permutation(key: int, n: int) -> None:
    assert sorted(permuted_index(key, n, i) for i in range(n)) == list(range(n))


@given(key=st.integers(0, 2**64 - 1), n=st.integers(2**20, 2**50))
@settings(max_examples=30, deadline=None)
def test_large_ranges_give_distinct_places_inside(key: int, n: int) -> None:
    places = [permuted_index(key, n, i) for i in [*range(50), *range(n - 50, n)]]
    assert len(set(places)) == 100
    assert all(0 <= place < n for place in places)


def test_the_order_never_changes() -> None:
    """Frozen: a run resumed with a newer version must continue the same permutation."""
    key = permutation_key("fingerprint", 42, 0)
    assert key == 10041085484618505099
    assert [permuted_index(key, 10, i) for i in range(10)] == [8, 7, 0, 5, 9, 2, 3, 4, 6, 1]
    assert [permuted_index(key, 10**9, i) for i in range(4)] == [69956993, 622928009, 179530075, 491187603]


@pytest.mark.parametrize("n", [2, 3, 5, 16, 100])
def test_every_place_is_as_likely_as_any_other(n: int) -> None:
    """Chi-squared over keys of where positions 0 and n - 1 go; the bound is about six standard deviations."""
    for position in (0, n - 1):
        keys = 200 * n
        counts = Counter(permuted_index(permutation_key("f", seed, 0), n, position) for seed in range(keys))
        chi_squared = sum((counts[place] - 200) ** 2 / 200 for place in range(n))
        assert chi_squared < (n - 1) + 6 * (2 * (n - 1)) ** 0.5 + 10


def test_small_permutations_all_occur() -> None:
    seen = Counter(tuple(permuted_index(permutation_key("f", seed, 0), 3, i) for i in range(3)) for seed in range(600))
    assert len(seen) == 6
    assert max(seen.values()) < 2 * min(seen.values())


def test_neighbours_are_scattered() -> None:
    """Consecutive samples are not consecutive rows: the mean distance of a random permutation is n / 3."""
    key, n = permutation_key("f", 1, 1), 5000
    order = [permuted_index(key, n, i) for i in range(n)]
    distance = sum(abs(a - b) for a, b in pairwise(order)) / n
    assert 0.31 * n < distance < 0.36 * n
    assert sum(b - a == 1 for a, b in pairwise(order)) < 10


def test_samples_run_across_epochs() -> None:
    samples = [sample_index("f", 3, i, 7) for i in range(21)]
    assert [epoch for epoch, _ in samples] == [0] * 7 + [1] * 7 + [2] * 7
    epochs = [[row for _, row in samples[start : start + 7]] for start in (0, 7, 14)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [sample_index("f", 4, i, 7)[1] for i in range(7)] != epochs[0]
    assert [sample_index("g", 3, i, 7)[1] for i in range(7)] != epochs[0]


def test_a_position_outside_is_a_defect() -> None:
    for i in (-1, 5):
        with pytest.raises(ValueError, match="outside"):
            permuted_index(1, 5, i)
