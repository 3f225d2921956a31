"""Figures of the report, against examples worked out by hand and against plain loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_train.data.comparisons import explicit_pairs
from moss_train.evaluate.preference_pairs import Judged
from moss_train.evaluate.preference_report import report
from moss_train.evaluate.preference_table import describe
from moss_train.evaluate.reliability_plot import reliability_diagram
from tests.judged import judged, many


def numbers(value: Any, where: str = "") -> dict[str, Any]:
    """All values of a report by their path."""
    if isinstance(value, dict):
        return {key: one for name, part in value.items() for key, one in numbers(part, f"{where}/{name}").items()}
    if isinstance(value, list):
        return {key: one for name, part in enumerate(value) for key, one in numbers(part, f"{where}/{name}").items()}
    return {where: value}


def assert_alike(first: dict[str, Any], second: dict[str, Any]) -> None:
    left, right = numbers(first), numbers(second)
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert right[key] == (pytest.approx(value, abs=1e-7) if isinstance(value, float) else value), key


def test_a_comparison_weighs_one_whatever_its_k() -> None:
    # Pairs (0,1) (0,2) (1,2): margins 1, -1, -2, so 1/3; and one pair that is right.
    found = report([judged([3, 2, 1], [2.0, 1.0, 3.0]), judged([1, 0], [1.0, 0.0], question=" B?")])
    assert (found["comparisons"], found["contexts"], found["responses"], found["pairs"], found["ties"]) == (2, 2, 5, 4, 0)
    assert found["accuracy"]["accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["by_k"]["3"]["accuracy"] == pytest.approx(1 / 3)
    assert found["by_k"]["2"]["accuracy"] == 1
    assert found["margin"]["mean"] == pytest.approx(((1 - 1 - 2) / 3 + 1) / 2)
    assert found["margin"]["mean_absolute"] == pytest.approx(((1 + 1 + 2) / 3 + 1) / 2)
    assert found["margin"]["share_negative"] == pytest.approx((2 / 3 + 0) / 2)


def test_equal_rewards_count_half_and_ties_do_not_count() -> None:
    found = report([judged([1, 0], [5.0, 5.0]), judged([1, 1, 0], [7.0, 4.0, 5.0]), judged([2, 2], [1.0, 3.0])])
    assert (found["pairs"], found["ties"], found["only_ties"]) == (3, 2, 1)
    # 1/2; and of pairs (0,2) and (1,2) one is right.
    assert found["accuracy"]["accuracy"] == pytest.approx(0.5)
    assert found["accuracy"]["comparisons"] == 2
    assert found["margin"]["share_zero"] == pytest.approx(0.5)
    assert found["tie_margin"] == {"mean_absolute": pytest.approx((3 + 2) / 2), "mean_absolute_of_others": pytest.approx((0 + 1.5) / 2)}


def test_the_best_of_k() -> None:
    # Two best ones of three, the top reward is one of them; all three have the same reward; the worst has the top reward.
    found = report(
        [judged([1, 1, 0], [5.0, 0.0, 4.0]), judged([2, 1, 0], [1.0, 1.0, 1.0]), judged([1, 0], [0.0, 1.0]), judged([1, 1], [0, 1])]
    )
    assert found["best_of_k"]["accuracy"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["best_of_k"]["random"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert found["best_of_k"]["comparisons"] == 3


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [((90, 100), "equal"), ((100, 90), "equal"), ((89, 100), "shorter"), ((100, 89), "longer"), ((0, 0), "equal"), ((0, 1), "shorter")],
)
def test_bins_of_length(lengths: tuple[int, int], expected: str) -> None:
    bins = report([judged([1, 0], [1.0, 0.0], lengths)])["by_length"]
    assert {name: part["pairs"] for name, part in bins.items()} == {name: int(name == expected) for name in ("shorter", "equal", "longer")}
    assert bins[expected]["accuracy"] == 1


def test_the_bins_of_length_add_up_to_the_whole() -> None:
    found = report(many(80))
    for split in ("by_length", "by_language", "by_category", "by_k"):
        parts = [part for part in found[split].values() if part["pairs"]]
        assert sum(part["pairs"] for part in parts) == found["pairs"]
        weights = [part["weight"] for part in parts]
        assert sum(weights) == pytest.approx(found["accuracy"]["comparisons"])
        assert np.average([part["accuracy"] for part in parts], weights=weights) == pytest.approx(found["accuracy"]["accuracy"])


def test_small_categories_are_pooled_and_come_last() -> None:
    found = report(many(80))
    assert list(found["by_category"]) == ["code", "math", "unknown", "other"]
    assert found["by_category"]["other"]["comparisons"] <= 8
    assert list(found["by_language"]) == ["en", "unknown", "zh"]


def test_against_plain_loops() -> None:
    ones = many(60, seed=3)
    found = report(ones)
    accuracies, margins, losses, briers, ties, hits = [], [], [], [], [], []
    for one in ones:
        pairs = [pair for pair in one.comparison.pairs if not pair.tied]
        gaps = [one.rewards[pair.better] - one.rewards[pair.worse] for pair in pairs]
        own_ties = [abs(one.rewards[pair.better] - one.rewards[pair.worse]) for pair in one.comparison.pairs if pair.tied]
        if own_ties:
            ties.append(sum(own_ties) / len(own_ties))
        if not pairs:
            continue
        accuracies.append(sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps) / len(gaps))
        margins.append(sum(gaps) / len(gaps))
        losses.append(sum(-math.log(1 / (1 + math.exp(-gap))) for gap in gaps) / len(gaps))
        briers.append(sum((1 - 1 / (1 + math.exp(-gap))) ** 2 for gap in gaps) / len(gaps))
        beaten = {pair.worse for pair in pairs}
        top = [i for i, reward in enumerate(one.rewards) if reward == max(one.rewards)]
        hits.append(sum(i not in beaten for i in top) / len(top))
    assert found["accuracy"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert found["margin"]["mean"] == pytest.approx(np.mean(margins))
    assert found["tie_margin"]["mean_absolute"] == pytest.approx(np.mean(ties))
    assert found["calibration"]["unscaled"]["log_loss"] == pytest.approx(np.mean(losses))
    assert found["calibration"]["unscaled"]["brier"] == pytest.approx(np.mean(briers))
    assert found["best_of_k"]["accuracy"] == pytest.approx(np.mean(hits))
    assert found["accuracy"]["interval_by"] == "bootstrap"
    # A bootstrap of a mean is about as wide as its standard error says.
    low, high = found["accuracy"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(accuracies) / math.sqrt(len(accuracies)), rel=0.1)


def test_correlation_with_length() -> None:
    # Within each context the longer reply has the smaller reward; over all, the longer one has the larger reward.
    ones = [judged([1, 0], [1.0, 0.0], [1, 2], question=" A?"), judged([1, 0], [9.0, 8.0], [11, 12], question=" B?")]
    found = report(ones)["reward_length"]
    rewards, lengths = [1, 0, 9, 8], [1, 2, 11, 12]
    assert found["pearson"] == pytest.approx(np.corrcoef(rewards, lengths)[0, 1])
    assert found["spearman"] == pytest.approx(np.corrcoef([1, 0, 3, 2], [0, 1, 2, 3])[0, 1])
    assert found["pearson_within"] == pytest.approx(-1)
    assert found["spearman_within"] == pytest.approx(-1)


def test_ranks_of_equal_values_are_their_mean() -> None:
    found = report([judged([2, 1, 0], [1.0, 1.0, 5.0], [3, 7, 7])])["reward_length"]
    expected = np.corrcoef([0.5, 0.5, 2], [0, 1.5, 1.5])[0, 1]
    assert found["spearman"] == pytest.approx(expected)
    assert found["spearman_within"] == pytest.approx(expected)


def test_a_context_is_one_however_its_responses_are_split() -> None:
    whole = judged([2, 1, 0], [0.3, 0.9, 0.1], [5, 6, 9])
    split = []
    for pair, one in zip(whole.comparison.pairs, explicit_pairs(whole.comparison)):
        split.append(Judged(one, [whole.rewards[n] for n in pair[:2]], [whole.lengths[n] for n in pair[:2]]))
    first, second = report([whole]), report(split)
    assert (second["comparisons"], second["contexts"]) == (3, 1)
    for name, value in first["reward_length"].items():
        assert second["reward_length"][name] == pytest.approx(value)


def test_constants_have_no_correlation() -> None:
    same_rewards = report([judged([2, 1, 0], [0.1, 0.1, 0.1], [1, 2, 3])])["reward_length"]
    same_lengths = report([judged([2, 1, 0], [0.1, 0.2, 0.7], [7, 7, 7])])["reward_length"]
    assert set(same_rewards.values()) == set(same_lengths.values()) == {None}


def test_a_scorer_of_length_is_shown_as_such() -> None:
    ones = [replace(one, rewards=[float(length) for length in one.lengths]) for one in many(60)]
    found = report(ones)
    assert found["by_length"]["longer"]["accuracy"] == 1
    assert found["by_length"]["shorter"]["accuracy"] == 0
    assert found["reward_length"] == {name: pytest.approx(1) for name in ("pearson", "spearman", "pearson_within", "spearman_within")}
    assert found["baselines"]["longer"]["difference"] == 0
    assert found["baselines"]["longer"]["difference_interval"] == [0, 0]
    assert found["baselines"]["longer"]["accuracy"] == found["accuracy"]["accuracy"]


def test_a_constant_added_to_the_rewards_of_a_context_changes_nothing_within() -> None:
    ones = many(60)
    # Multiples of 1/8, so that sums are exact.
    ones = [replace(one, rewards=[round(8 * reward) / 8 for reward in one.rewards]) for one in ones]
    shifted = [replace(one, rewards=[reward + 4.0 * number for reward in one.rewards]) for number, one in enumerate(ones)]
    first, second = report(ones), report(shifted)
    over_all = first.pop("reward_length"), second.pop("reward_length")
    assert_alike(first, second)
    for name in ("pearson_within", "spearman_within"):
        assert over_all[0][name] == pytest.approx(over_all[1][name])
    assert over_all[0]["pearson"] != pytest.approx(over_all[1]["pearson"])


def test_the_order_of_the_comparisons_does_not_matter() -> None:
    ones = many(60)
    assert_alike(report(ones), report(ones[::-1]))
    train = [one.comparison for one in many(40, seed=1)]
    assert_alike(report(ones, train=train), report(ones[7:] + ones[:7], train=train[::-1]))


def test_the_same_call_gives_the_same_report_and_a_seed_moves_only_intervals_and_folds() -> None:
    ones = many(40)
    assert report(ones) == report(ones)
    first, second = report(ones, seed=1), report(ones, seed=2)
    assert first["accuracy"]["accuracy"] == second["accuracy"]["accuracy"]
    assert first["accuracy"]["interval"] != second["accuracy"]["interval"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rewards_that_are_not_finite_are_refused_by_origin(bad: float) -> None:
    with pytest.raises(ValueError, match=r"pairs\.jsonl:17: rewards"):
        judged([1, 0], [1.0, bad], origin="pairs.jsonl:17")


def test_rewards_and_lengths_belong_to_the_responses() -> None:
    with pytest.raises(ValueError, match=r"made\.jsonl:1: 2 responses, but 3 rewards"):
        judged([1, 0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="expected none below zero"):
        judged([1, 0], [1.0, 2.0], [1, -1])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_is_above_zero(temperature: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        report(many(3), temperature=temperature)


@pytest.mark.parametrize(
    "ones", [[], [judged([1, 1], [0.0, 1.0])], [judged([1, 0], [0.0, 0.0])], many(30)], ids=["none", "tie", "flat", "many"]
)
def test_values_are_json_and_can_be_told_and_drawn(ones: list[Judged], tmp_path: Path) -> None:
    found = report(ones)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert "comparisons" in describe(found)
    reliability_diagram(found, tmp_path / "plots" / "reliability.png")
    assert (tmp_path / "plots" / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_one_pair_each_has_the_interval_of_wilson() -> None:
    ones = [judged([1, 0], [float(number < 8), 0.5], question=f" {number}?") for number in range(10)]
    found = report(ones)["accuracy"]
    assert (found["accuracy"], found["interval_by"]) == (pytest.approx(0.8), "wilson")
    assert found["interval"] == pytest.approx([0.4902, 0.9433], abs=1e-4)


def test_the_table_says_what_the_report_says() -> None:
    ones = [judged([1, 0], [float(number < 8), 0.5], question=f" {number}?", category="[bold]x\ny") for number in range(20)]
    told = describe(report(ones, temperature=2.0))
    assert "20 comparisons, 20 contexts, 40 responses, 20 pairs, 0 ties" in told
    row = next(line for line in told.splitlines() if line.strip().startswith("all pairs"))
    assert row.split()[2:5] == ["20", "20", "40.0"]
    assert "category [bold]x y" in told
    assert "given" in told
    assert max(map(len, told.splitlines())) <= 130
    assert "None" not in told
    assert "nan" not in told
