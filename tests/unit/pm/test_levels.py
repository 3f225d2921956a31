"""Levels from rewards, on numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.errors import DataError
from moss_train.pm.levels import LevelsBy, Scale, levels_of, make_scale


def test_quantiles_give_every_level_the_same_share() -> None:
    rewards = [[float(number) for number in range(start, start + 10)] for start in range(0, 100, 10)]
    scale = make_scale(rewards, LevelsBy.quantiles, 5)
    assert np.allclose(scale.thresholds, [19.8, 39.6, 59.4, 79.2])
    found = [levels_of(scale, group) for group in rewards]
    assert Counter(level for group in found for level in group) == dict.fromkeys(range(1, 6), 20)
    assert found[0] == [1] * 10
    assert found[9] == [5] * 10
    assert math.isclose(scale.mean, 49.5)


def test_thresholds_are_of_rewards_and_belong_to_the_level_above() -> None:
    scale = make_scale([[0.0, 1.0]], LevelsBy.thresholds, thresholds=[-1.0, 0.5])
    assert scale.levels == 3
    assert levels_of(scale, [-2.0, -1.0, 0.4999, 0.5, 9.0, None]) == [1, 2, 2, 3, 3, None]


def test_a_place_among_its_own_counts_where_levels_are_blended() -> None:
    # An easy question, all answers of which are rewarded more than all those of a hard one.
    easy, hard = [10.0, 11.0, 12.0, 13.0], [0.0, 1.0, 2.0, 3.0]
    alone = make_scale([easy, hard], LevelsBy.quantiles, 2)
    assert [levels_of(alone, group) for group in (easy, hard)] == [[2] * 4, [1] * 4]
    own = make_scale([easy, hard], LevelsBy.blended, 2, within=1.0)
    assert [levels_of(own, group) for group in (easy, hard)] == [[1, 1, 2, 2]] * 2
    half = make_scale([easy, hard], LevelsBy.blended, 4, within=0.5)
    # Overall places are sevenths 4..7 and 0..3, own places thirds 0..3.
    assert [levels_of(half, group) for group in (easy, hard)] == [[2, 3, 4, 4], [1, 1, 2, 3]]


def test_equal_responses_have_equal_levels() -> None:
    scale = make_scale([[1.0, 1.0, 2.0, 3.0], [4.0, 5.0]], LevelsBy.blended, 2)
    first, second, *_ = levels_of(scale, [1.0, 1.0, 2.0, 3.0])
    assert first == second == 1


def test_near_a_threshold_there_is_no_level() -> None:
    scale = make_scale([[0.0, 10.0]], LevelsBy.thresholds, thresholds=[5.0], abstain=0.1)
    # The deviation of 0 and 10 is 5, a tenth of it a half.
    assert levels_of(scale, [4.4, 4.6, 5.0, 5.4, 5.6]) == [1, None, None, None, 2]


@pytest.mark.parametrize("by", list(LevelsBy))
def test_a_scale_survives_json_and_does_not_change_with_another_pool(by: LevelsBy) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(50, 4)).tolist(), rng.normal(2.0, size=(50, 4)).tolist()
    scale = make_scale(first, by, 5, thresholds=[-1.0, -0.5, 0.5, 1.0], abstain=0.01)
    again = Scale.from_json(json.loads(json.dumps(scale.to_json())))
    assert again == scale
    levels = [level for group in second for level in levels_of(again, group) if level is not None]
    assert np.mean(levels) > 3.2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=6), min_size=3, max_size=20),
    st.sampled_from([LevelsBy.quantiles, LevelsBy.blended]),
)
def test_within_a_context_a_larger_reward_is_never_a_lower_level(rewards: list[list[float]], by: LevelsBy) -> None:
    try:
        scale = make_scale(rewards, by, 3)
    except DataError:
        return
    for group in rewards:
        found = levels_of(scale, group)
        order = sorted(range(len(group)), key=lambda number: group[number])
        assert [found[number] for number in order] == sorted(level for level in found if level is not None)


def test_what_makes_no_levels_is_told() -> None:
    with pytest.raises(DataError, match="1 different rewards among 8 do not make 5 levels"):
        make_scale([[1.0] * 8], LevelsBy.quantiles, 5)
    with pytest.raises(DataError, match="no rewards"):
        make_scale([[None], []], LevelsBy.quantiles, 5)
    for thresholds in ([], [1.0, 1.0], [2.0, 1.0], [math.nan]):
        with pytest.raises(DataError, match="numbers that ascend"):
            make_scale([[1.0]], LevelsBy.thresholds, thresholds=thresholds)
    with pytest.raises(DataError, match="no scale of levels"):
        Scale.from_json({"by": "quantiles"})
