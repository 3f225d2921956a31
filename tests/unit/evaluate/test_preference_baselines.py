"""Trivial scorers: what they find, what they do not, and how sure the difference is."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from moss_train.evaluate import preference_baselines
from moss_train.evaluate.preference_baselines import bag_of_words_margins, compare_baselines, count_words, spread_at_random
from moss_train.evaluate.preference_pairs import Judged, list_pairs, right
from tests.judged import comparison, judged, many


def planted(count: int, seed: int, good: str, fillers: str) -> list[Judged]:
    """Replies of random words, of which the better one has the planted word."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        with_it, without = ([str(word) for word in generator.choice(fillers.split(), size=6)] for _ in range(2))
        with_it[int(generator.integers(6))] = good
        join = "" if ord(good[0]) > 0x3000 else " "
        replies = [" " + join.join(with_it), " " + join.join(without)]
        flipped = bool(generator.integers(2))
        order = (1, 0) if flipped else (0, 1)
        standings = [float(index == 0) for index in order]
        made.append(judged(standings, [0.0, 0.0], question=f" {seed}-{number}?", replies=[replies[index] for index in order]))
    return made


def test_lengths() -> None:
    ones = [judged([1, 0], [1.0, 0.0], lengths) for lengths in ((5, 3), (9, 4), (2, 8), (6, 6))]
    found = compare_baselines(ones)
    assert found["longer"]["accuracy"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert found["shorter"]["accuracy"] == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    assert found["longer"]["difference"] == pytest.approx(1 - 2.5 / 4)
    assert found["random"]["difference"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("good", "fillers"), [("indeed", "alpha beta gamma delta epsilon zeta"), ("确实", "今天 我们 可以 学习 数学 历史")]
)
def test_the_bag_of_words_finds_a_planted_word(good: str, fillers: str) -> None:
    ones = planted(120, 0, good, fillers)
    train = [one.comparison for one in planted(120, 1, good, fillers)]
    fitted, folds = compare_baselines(ones, train=train)["bag_of_words"], compare_baselines(ones)["bag_of_words"]
    assert fitted["accuracy"] > 0.97
    assert folds["accuracy"] > 0.97
    assert (fitted["fitted_on"], fitted["trained_on"], fitted["seen_contexts"]) == ("train", 120, 0)
    assert folds["fitted_on"] == "folds"
    assert fitted["difference"] == pytest.approx(0.5 - fitted["accuracy"])


def test_without_training_comparisons_no_reply_is_scored_by_what_it_taught() -> None:
    # Every reply is its own word: what was fitted on it would be right of it, what was not knows nothing.
    ones = [judged([1, 0], [0.0, 0.0], question=f" {n}?", replies=[f" good{n}", f" bad{n}"]) for n in range(40)]
    assert compare_baselines(ones)["bag_of_words"]["accuracy"] == pytest.approx(0.5, abs=0.05)
    seen = compare_baselines(ones, train=[one.comparison for one in ones])["bag_of_words"]
    assert (seen["accuracy"], seen["seen_contexts"]) == (1, 40)


def test_all_comparisons_of_a_context_are_in_one_fold() -> None:
    ones = [judged([1, 0], [0.0, 0.0], replies=[" a", f" b{n}"]) for n in range(20)]
    assert compare_baselines(ones)["bag_of_words"] is None


def test_the_fit_is_where_the_slope_is_zero() -> None:
    # One pair that differs in two words: theta = (a, -a), a = log(2) * sigmoid(-2 a log(2)).
    one = judged([1, 0], [0.0, 0.0], replies=[" yes", " no"])
    margin = bag_of_words_margins([one], train=[one.comparison])
    assert margin is not None
    a = margin[0] / (2 * math.log(2))
    assert a == pytest.approx(math.log(2) / (1 + math.exp(2 * a * math.log(2))), rel=1e-6)


def test_nothing_to_fit_on() -> None:
    one = judged([1, 0], [0.0, 0.0])
    assert compare_baselines([one])["bag_of_words"] is None
    assert compare_baselines([one], train=[])["bag_of_words"] is None
    assert compare_baselines([one], train=[comparison([1, 1])])["bag_of_words"] is None
    assert set(compare_baselines([]).values()) == {None}


def test_of_too_many_comparisons_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preference_baselines, "TRAINED_ON", 60)
    ones = planted(100, 0, "indeed", "alpha beta gamma delta")
    train = [one.comparison for one in planted(100, 1, "indeed", "alpha beta gamma delta")]
    found = compare_baselines(ones, train=train)["bag_of_words"]
    assert found["trained_on"] == 60
    assert found["accuracy"] > 0.95
    again = bag_of_words_margins(ones, train=train[::-1])
    assert again == pytest.approx(bag_of_words_margins(ones, train=train))


def test_words_and_characters() -> None:
    assert count_words(" Yes, yes.") == count_words("YES yes , .")
    assert sorted(count_words("yes yes no").values()) == pytest.approx([math.log(2), math.log(3)])
    # Three characters, two pairs of neighbours.
    assert len(count_words("数学好")) == 5
    assert len(count_words("用Python写")) == 3
    assert count_words("") == {}


@pytest.mark.parametrize("standings", [[1, 0], [2, 1, 0], [1, 1, 0], [3, 2, 1, 0], [1, 0, 0, 0], [2, 1, 1, 0]])
def test_the_spread_of_a_random_scorer(standings: list[float]) -> None:
    accuracies = []
    for order in permutations(range(len(standings))):
        pairs = list_pairs([judged(standings, [float(place) for place in order])])
        accuracies.append(pairs.by_comparison(right(pairs.margin))[0])
    pairs = list_pairs([judged(standings, [0.0] * len(standings))])
    assert np.mean(accuracies) == pytest.approx(0.5)
    assert spread_at_random(pairs) == pytest.approx(np.std(accuracies))
    four = list_pairs([judged(standings, [0.0] * len(standings), question=f" {n}?") for n in range(4)])
    assert spread_at_random(four) == pytest.approx(np.std(accuracies) / 2)


def test_paired_differences_are_surer_than_unpaired_ones() -> None:
    # The model is the longer-wins scorer but for one comparison in ten.
    ones = []
    for number, one in enumerate(many(200)):
        sign = -1 if number % 10 == 0 else 1
        ones.append(Judged(one.comparison, [sign * float(length) for length in one.lengths], one.lengths))
    found = compare_baselines(ones)["longer"]
    low, high = found["difference_interval"]
    wide = found["interval"][1] - found["interval"][0]
    assert low <= found["difference"] <= high
    assert high - low < 0.75 * wide


def test_a_difference_that_is_the_same_everywhere_still_has_a_width() -> None:
    ones = [judged([1, 0], [1.0, 0.0], (3, 5), question=f" {n}?") for n in range(5)]
    found = compare_baselines(ones)["longer"]
    assert found["difference"] == 1
    low, high = found["difference_interval"]
    assert 0 < low < 0.5
    assert high == 1
