"""Calibration and temperature, against examples worked out by hand and against searching."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from moss_train.evaluate.preference_calibration import calibrate, fit_temperature, search_temperature
from moss_train.evaluate.preference_pairs import Judged, list_pairs
from tests.judged import judged, many


def logit(share: float) -> float:
    return math.log(share / (1 - share))


def of_margins(*margins: float) -> list[Judged]:
    return [judged([1, 0], [margin, 0.0], question=f" {number}?") for number, margin in enumerate(margins)]


def test_ece_of_two_bins() -> None:
    # Confidence 0.75 thrice, right twice; 0.9 once, wrong.
    found = calibrate(list_pairs(of_margins(logit(0.75), logit(0.75), -logit(0.75), -logit(0.9))), 1.0)
    assert found["ece"] == pytest.approx(3 / 4 * abs(2 / 3 - 0.75) + 1 / 4 * 0.9)
    assert found["ece_equal_mass"] == pytest.approx(found["ece"])
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 0.75**2 + 0.9**2) / 4)
    assert found["log_loss"] == pytest.approx(-(2 * math.log(0.75) + math.log(0.25) + math.log(0.1)) / 4)
    used = [one for one in found["bins"] if one["pairs"]]
    assert [(one["pairs"], one["confidence"], one["accuracy"]) for one in used] == [
        (3, pytest.approx(0.75), pytest.approx(2 / 3)),
        (1, pytest.approx(0.9), 0.0),
    ]
    assert all(one["low"] <= one["confidence"] <= one["high"] for one in used)


def test_bins_cover_all_confidences_once() -> None:
    found = calibrate(list_pairs(of_margins(0.0, 1e-9, 50.0, 1e6, -1e6)), 1.0)
    bins = found["bins"]
    assert len(bins) == 15
    assert (bins[0]["low"], bins[-1]["high"]) == (0.5, 1.0)
    assert [one["pairs"] for one in bins] == [2, *[0] * 13, 3]
    assert all(first["high"] == second["low"] for first, second in pairwise(bins))
    assert found["log_loss"] == pytest.approx((2 * math.log(2) + 1e6) / 5)


def test_pairs_of_a_large_comparison_weigh_less() -> None:
    ones = [judged([2, 1, 0], [2 * logit(0.8), logit(0.8), 0.0]), *of_margins(-logit(0.8))]
    found = calibrate(list_pairs(ones), 1.0)
    sure = 1 / (1 + math.exp(-2 * logit(0.8)))
    # Confidence 0.8: weights 1/3 and 1/3 right, 1 wrong; the other bin has weight 1/3.
    assert found["ece"] == pytest.approx((5 / 3 * abs(2 / 5 - 0.8) + 1 / 3 * (1 - sure)) / 2)


def test_equal_mass_spreads_what_equal_width_crowds() -> None:
    generator = np.random.default_rng(0)
    margins = 6 + generator.random(1500)
    margins[margins < 6.2] *= -1
    pairs = list_pairs(of_margins(*margins))
    found = calibrate(pairs, 1.0)
    # All in the last bin. Wrong ones are all among the least sure: bins of 100 pairs see it.
    assert found["bins"][-1]["pairs"] == 1500
    confidence = np.sort(1 / (1 + np.exp(-np.abs(margins))))
    right = (margins > 0)[np.argsort(np.abs(margins))]
    expected = sum(abs(right[i : i + 100].mean() - confidence[i : i + 100].mean()) for i in range(0, 1500, 100)) / 15
    assert found["ece_equal_mass"] == pytest.approx(expected, abs=1e-9)
    assert found["ece"] == pytest.approx(abs(right.mean() - confidence.mean()))


def test_a_crowd_of_equal_confidences_keeps_its_bin_to_itself() -> None:
    # One in thirty begins half a bin before the crowd, of which the middle is seven bins further.
    found = calibrate(list_pairs(of_margins(-logit(0.75), *[logit(0.9)] * 29)), 1.0)
    assert found["ece_equal_mass"] == pytest.approx(1 / 30 * 0.75 + 29 / 30 * 0.1)


def test_no_pairs_have_no_figures() -> None:
    found = calibrate(list_pairs([]), 1.0)
    assert found["ece"] is found["ece_equal_mass"] is found["brier"] is found["log_loss"] is None
    with pytest.raises(ValueError, match="a temperature needs one"):
        fit_temperature([])


def test_a_temperature_by_hand() -> None:
    # Margin 3 is right in three of four: sigmoid(3 / T) = 3/4.
    assert fit_temperature(of_margins(3, 3, 3, -3)) == pytest.approx(3 / math.log(3))


def test_a_planted_temperature_is_found() -> None:
    generator = np.random.default_rng(1)
    margins = generator.normal(scale=5, size=20_000)
    kept = generator.random(20_000) < 1 / (1 + np.exp(-margins / 2.5))
    assert fit_temperature(of_margins(*np.where(kept, margins, -margins))) == pytest.approx(2.5, rel=0.05)


def test_no_other_temperature_has_less_loss_and_it_scales_with_the_rewards() -> None:
    ones = many(80)
    pairs, best = list_pairs(ones), fit_temperature(ones)
    least = calibrate(pairs, best)["log_loss"]
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert calibrate(pairs, best * factor)["log_loss"] > least
    for factor in (1e-200, 1e-3, 7.0, 1e200):
        scaled = [replace(one, rewards=[factor * reward for reward in one.rewards]) for one in ones]
        assert fit_temperature(scaled) == pytest.approx(factor * best, rel=1e-6)


@pytest.mark.parametrize(
    ("margins", "bound"),
    [((1, 2, 3), "low"), ((1, 0), "low"), ((-1, -2), "high"), ((1, -1), "high"), ((1, -2), "high"), ((0, 0), "flat"), ((2, -1), None)],
)
def test_bounds_are_told(margins: tuple[float, ...], bound: str | None) -> None:
    found = search_temperature(list_pairs(of_margins(*margins)))
    assert found.bound == bound
    assert 0 < found.value < math.inf
    if bound == "low":
        assert found.value < 1e-3
    if bound == "high":
        assert found.value > 1e3
