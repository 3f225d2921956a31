"""The objective of the preference model against its formulas, on literal numbers."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from moss_train.model.preference import Pairs, PreferenceLoss, PreferenceObjective, preference_loss

REWARDS = [1.5, -0.5, 0.25]
ALL = [(0, 2), (0, 1), (2, 1)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pairs(index: list[tuple[int, int]], strengths: list[float] | None = None, tied: list[bool] | None = None) -> Pairs:
    """Of one comparison."""
    count, ties = len(index), tied or [False] * len(index)
    untied = count - sum(ties)
    return Pairs(
        torch.tensor(index, dtype=torch.int64).reshape(-1, 2),
        torch.full((count,), 1 / max(1, count)),
        torch.tensor([0.0 if tie else 1 / untied for tie in ties]),
        torch.tensor(strengths or [1.0] * count),
        torch.tensor(ties, dtype=torch.bool),
    )


def loss(rewards: list[float], given: Pairs, **options: float | bool) -> PreferenceLoss:
    return preference_loss(torch.tensor(rewards), given, PreferenceObjective(**options))  # type: ignore[arg-type]


def test_one_pair_is_the_negative_log_of_the_sigmoid_of_the_margin() -> None:
    assert float(loss([2.0, -1.0], pairs([(0, 1)])).loss_sum) == pytest.approx(-math.log(sigmoid(3.0)), rel=1e-6)
    assert float(loss([2.0, -1.0], pairs([(1, 0)])).loss_sum) == pytest.approx(-math.log(sigmoid(-3.0)), rel=1e-6)
    assert float(loss([0.7, 0.7], pairs([(0, 1)])).loss_sum) == pytest.approx(math.log(2), rel=1e-6)


def test_k_responses_are_the_mean_over_their_explicit_pairs() -> None:
    together = float(loss(REWARDS, pairs(ALL)).loss_sum)
    apart = [float(loss([REWARDS[a], REWARDS[b]], pairs([(0, 1)])).loss_sum) for a, b in ALL]
    assert together == pytest.approx(sum(apart) / 3, rel=1e-6)
    assert together == pytest.approx(sum(-math.log(sigmoid(REWARDS[a] - REWARDS[b])) for a, b in ALL) / 3, rel=1e-6)


def test_each_comparison_counts_once_whatever_its_k() -> None:
    nine = [float(n) for n in range(9, 0, -1)]
    index = [*combinations(range(9), 2), (9, 10)]
    weight = torch.tensor([1 / 36] * 36 + [1.0])
    both = Pairs(torch.tensor(index), weight, weight, torch.ones(37), torch.zeros(37, dtype=torch.bool))
    found = float(loss([*nine, 0.5, 0.0], both).loss_sum)
    alone = float(loss(nine, pairs(index[:-1])).loss_sum) + float(loss([0.5, 0.0], pairs([(0, 1)])).loss_sum)
    assert found == pytest.approx(alone, rel=1e-6)


def test_options_are_their_formulas() -> None:
    margin, given = 3.0, pairs([(0, 1)], [2.0])
    rewards = [2.0, -1.0]
    assert float(loss(rewards, given, margin=0.5).loss_sum) == pytest.approx(-math.log(sigmoid(margin - 0.5 * 2)), rel=1e-6)
    assert float(loss(rewards, given, strength_as_weight=True).loss_sum) == pytest.approx(-2 * math.log(sigmoid(margin)), rel=1e-6)
    smoothed = -0.9 * math.log(sigmoid(margin)) - 0.1 * math.log(sigmoid(-margin))
    assert float(loss(rewards, given, label_smoothing=0.1).loss_sum) == pytest.approx(smoothed, rel=1e-6)
    centred = loss(rewards, given, centring=0.01)
    assert float(centred.loss_sum) == pytest.approx(-math.log(sigmoid(margin)) + 0.01 * (2.0 - 1.0) ** 2, rel=1e-6)
    assert float(centred.bradley_terry) == pytest.approx(-math.log(sigmoid(margin)), rel=1e-6)


def test_a_tie_is_smallest_where_rewards_are_equal_and_knows_no_margin() -> None:
    tie = pairs([(0, 1)], tied=[True])
    expected = -(math.log(sigmoid(3.0)) + math.log(sigmoid(-3.0))) / 2
    assert float(loss([2.0, -1.0], tie, margin=5.0, label_smoothing=0.2).loss_sum) == pytest.approx(expected, rel=1e-6)
    assert float(loss([0.0, 0.0], tie).loss_sum) == pytest.approx(math.log(2), rel=1e-6)
    rewards = torch.zeros(2, requires_grad=True)
    preference_loss(rewards, tie, PreferenceObjective()).loss_sum.backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [0.0, 0.0]


def test_the_gradient_is_that_of_the_formula() -> None:
    rewards = torch.tensor(REWARDS, requires_grad=True)
    preference_loss(rewards, pairs(ALL), PreferenceObjective(centring=0.1)).loss_sum.backward()
    expected = [0.0] * 3
    for a, b in ALL:
        slope, pull = -sigmoid(REWARDS[b] - REWARDS[a]), 0.2 * (REWARDS[a] + REWARDS[b])
        expected[a] += (slope + pull) / 3
        expected[b] += (-slope + pull) / 3
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_large_margins_stay_finite() -> None:
    rewards = torch.tensor([1e4, -1e4], requires_grad=True)
    found = preference_loss(rewards, pairs([(1, 0)]), PreferenceObjective())
    found.loss_sum.backward()
    assert float(found.loss_sum.detach()) == pytest.approx(2e4)
    assert rewards.grad is not None
    assert bool(rewards.grad.isfinite().all())


def test_figures_are_weighted_by_comparison_and_leave_ties_out() -> None:
    given = pairs([(0, 1), (2, 1), (0, 2)], tied=[False, False, True])
    metrics = loss([1.0, 0.0, -2.0], given).metrics
    assert metrics["accuracy"][1] == pytest.approx(1.0)
    assert float(metrics["accuracy"][0]) == pytest.approx(0.5)
    assert float(metrics["margin"][0]) == pytest.approx((1.0 - 2.0) / 2)
    assert float(metrics["brier"][0]) == pytest.approx((sigmoid(-1.0) ** 2 + sigmoid(2.0) ** 2) / 2, rel=1e-6)
    assert float(loss([1.0, 1.0], pairs([(0, 1)])).metrics["accuracy"][0]) == 0.5


def test_no_pair_is_a_loss_of_zero_that_can_be_gone_back_through() -> None:
    rewards = torch.zeros(0, requires_grad=True)
    found = preference_loss(rewards, pairs([]), PreferenceObjective())
    found.loss_sum.backward()
    assert float(found.loss_sum.detach()) == 0.0
