"""The sample contract: a keyed permutation of every epoch, the same for ever."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.mixture import BLOCK, Mixture, Phase, permutation_key, permuted_index, quotas, sample_index


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


class Taken(NamedTuple):
    """Stands for a row: of which source, and which of its samples."""

    name: str
    inside: int
    source: int = 0
    objective: float = 1.0


class Source:
    """As much of a `RowDataset` as a mixture needs."""

    def __init__(self, name: str, rows: int):
        self.fingerprint, self.rows = name, rows
        self.seq_len, self.pad_id, self.seed = 8, 0, 3
        self.tokens = self.supervised_tokens = self.documents = rows
        self.mean_context = 2.0

    def __len__(self) -> int:
        return self.rows

    def sample(self, number: int) -> Taken:
        return Taken(self.fingerprint, number)

    def origins_of_sample(self, number: int) -> list[str]:
        return [f"{self.fingerprint}:{number}"]


def mixture(*weights: float) -> Mixture:
    return Mixture([Source(f"source {place}", 10 * (place + 1)) for place in range(len(weights))], weights, [])  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_shares_of_a_block_add_up(weights: list[float]) -> None:
    counts = quotas(weights)
    assert sum(counts) == BLOCK
    assert min(counts) >= 1
    for count, weight in zip(counts, weights):
        assert abs(count - BLOCK * weight / sum(weights)) <= len(weights) + 1
    assert quotas([weight * 3 for weight in weights]) == pytest.approx(counts, abs=1)


@pytest.mark.parametrize("weights", [(1,), (0.7, 0.3), (1, 1, 1), (97, 2, 1), (5, 0.01)])
def test_each_prefix_of_a_run_has_the_shares_and_every_source_goes_on_where_it_was(weights: tuple[float, ...]) -> None:
    mixed = mixture(*weights)
    taken = [0] * len(weights)
    for number in range(2 * BLOCK + 100):
        name, inside, place, _ = mixed.sample(number)  # type: ignore[misc]
        source = int(str(name).split()[1])
        assert place == source
        assert inside == taken[source], "no sample of a source is left out or taken twice"
        taken[source] += 1
        for place, quota in enumerate(mixed.phases[0][1]):
            assert abs(taken[place] - (number + 1) * quota / BLOCK) < 2
    assert mixed.sample(5 * BLOCK + 17) == mixture(*weights).sample(5 * BLOCK + 17)


def test_a_mixture_is_told_by_its_sources_and_shares() -> None:
    base = mixture(0.7, 0.3).fingerprint
    assert base == mixture(7, 3).fingerprint
    assert base != mixture(0.6, 0.4).fingerprint
    assert len(mixture(0.7, 0.3)) == 30
    first = [mixture(0.5, 0.5).place(number)[0] for number in range(8)]
    assert sorted(first) == [0, 0, 0, 0, 1, 1, 1, 1]


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), st.integers(0, 700), st.integers(1, 9)), max_size=6
    ),
    st.integers(0, 600),
)
@settings(max_examples=60, deadline=None)
def test_in_any_order_of_mixtures_no_sample_of_a_source_is_repeated_or_left_out(
    changes: list[tuple[list[int], int, int]], last: int
) -> None:
    """Also where the run is interrupted within a mixture, and where sources come and go."""
    taken = dict.fromkeys(range(6), 0)
    number, position = 0, {}
    for names, length, weight in [*changes, ([0, 1], last, 1)]:
        sources = [Source(f"source {name}", 7 + name) for name in names]
        for part in (length // 3, length - length // 3):
            mixed = Mixture(sources, [weight, *[1] * (len(names) - 1)], [])  # type: ignore[arg-type]
            if position:
                mixed.go_on(number, position)
            for sample in range(number, number + part):
                name, inside, *_ = mixed.sample(sample)  # type: ignore[misc]
                source = int(str(name).split()[1])
                assert inside == taken[source]
                taken[source] += 1
            number += part
            position = json.loads(json.dumps(mixed.position(number)))
            assert {name: count for name, count in position["taken"].items() if count} == {
                f"source {name}": count for name, count in taken.items() if count
            }


def test_the_same_source_twice_has_two_positions() -> None:
    twice = Mixture([Source("a", 5), Source("a", 5)], [3, 1], [])  # type: ignore[list-item]
    position = twice.position(1000)
    assert sorted(position["taken"].values()) == [250, 750]
    again = Mixture([Source("a", 5), Source("a", 5)], [1, 1], [])  # type: ignore[list-item]
    again.go_on(1000, position)
    assert sorted(again.position(1000)["taken"].values()) == [250, 750]


PHASES = st.lists(st.tuples(st.integers(0, 900), st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any)), min_size=1, max_size=4)


def phased(phases: list[tuple[int, list[int]]], names: list[int]) -> Mixture:
    """A mixture of three sources in phases, the last of which has no end."""
    sources = [Source(f"source {name}", 5 + name) for name in names]
    stretches = [Phase(samples, tuple(weights)) for samples, weights in phases[:-1]]
    return Mixture(sources, [*stretches, Phase(None, tuple(phases[-1][1]))], [f"s{name}" for name in names])  # type: ignore[arg-type]


@given(st.lists(st.tuples(PHASES, st.permutations(range(5)), st.integers(0, 1500)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_through_phases_and_changes_of_them_every_source_goes_on_where_it_was(
    runs: list[tuple[list[tuple[int, list[int]]], list[int], int]],
) -> None:
    taken = dict.fromkeys(range(5), 0)
    number, position = 0, {}
    for phases, names, length in runs:
        for part in (length // 2, length - length // 2):
            mixed = phased(phases, names[:3])
            if position:
                mixed.go_on(number, position)
            begins = [0]
            for samples, _ in phases[:-1]:
                begins.append(begins[-1] + samples)
            for sample in range(number, number + part):
                name, inside, *_ = mixed.sample(sample)  # type: ignore[misc]
                source = int(str(name).split()[1])
                assert inside == taken[source]
                taken[source] += 1
                # Phases are counted from the start of the run; an empty one is over before it begins.
                phase = max(place for place, begin in enumerate(begins) if begin <= sample)
                assert phases[phase][1][names.index(source)] > 0
            number += part
            position = json.loads(json.dumps(mixed.position(number)))
            assert {name: count for name, count in position["taken"].items() if count} == {
                f"source {name}": count for name, count in taken.items() if count
            }
    assert [entry["from_sample"] for entry in position["history"]] == sorted(entry["from_sample"] for entry in position["history"])


def test_a_source_with_other_rows_under_an_old_name_is_told_of() -> None:
    before = Mixture([Source("a", 5), Source("b", 6)], [1, 1], ["zh", "en"])  # type: ignore[list-item]
    position = json.loads(json.dumps(before.position(7)))
    assert before.renewed(position) == []
    assert Mixture([Source("a", 5), Source("c", 6)], [1, 1], ["zh", "code"]).renewed(position) == []  # type: ignore[list-item]
    assert Mixture([Source("a2", 5), Source("b", 6)], [1, 1], ["zh", "en"]).renewed(position) == ["zh"]  # type: ignore[list-item]


def test_the_history_of_a_run_has_every_mixture_and_where_it_began() -> None:
    first, second = mixture(1, 1), mixture(3, 1)
    first.names = second.names = ["zh", "en"]
    second.go_on(100, json.loads(json.dumps(first.position(100))))
    again = mixture(3, 1)
    again.names = ["zh", "en"]
    again.go_on(150, json.loads(json.dumps(second.position(150))))
    assert [entry["from_sample"] for entry in again.history] == [0, 100]
    assert again.history == second.history


def test_it_is_known_where_other_data_begin() -> None:
    sources = [Source("a", 10), Source("b", 10)]
    phases = [Phase(20, (1.0, 0.0)), Phase(30, (1.0, 1.0)), Phase(None, (0.0, 1.0))]
    mixed = Mixture(sources, phases, ["a", "b"])  # type: ignore[arg-type]
    assert [first for first in range(0, 80, 8) if mixed.changes(first, first + 8)] == [0, 16, 48]
    other = Mixture(sources, [1.0, 1.0], ["a", "b"])  # type: ignore[arg-type]
    other.go_on(60, mixed.position(60))
    assert [first for first in range(60, 100, 8) if other.changes(first, first + 8)] == [60]


def test_with_many_sources_each_prefix_is_within_the_bound_that_is_told() -> None:
    count, weight = 200, 0.5
    mixed = mixture(weight, *[(1 - weight) / (count - 1)] * (count - 1))
    share = mixed.phases[0][1][0] / BLOCK
    off = max(abs(mixed.taken(number)[0] - number * share) for number in range(BLOCK))
    assert 2 < off < 1 + count * share
