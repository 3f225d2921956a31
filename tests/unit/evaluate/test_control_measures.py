"""What is measured of responses, against examples worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from moss_train.errors import DataError
from moss_train.evaluate.config import BestOfConfig, EvaluateConfig
from moss_train.evaluate.control_conditions import Condition, by_speaker, list_conditions
from moss_train.evaluate.control_measures import (
    Response,
    about_equal,
    agreement,
    correctness,
    distinct,
    make_measure,
    matrix,
    measured_level,
    refuses,
    side_effects,
    steering,
    win_rate,
)
from moss_train.evaluate.control_report import conclude, describe, measure, report
from moss_train.evaluate.intervals import wilson
from moss_train.pm.levels import LevelsBy, Scale


def response(reward: float | None = 0.0, length: int = 5, correct: bool | None = None, **values: object) -> Response:
    known = {"empty": False, "ids": tuple(range(length)), "tokens": length + 1, "finished": True, "refuses": False, "correct": correct}
    return Response(**{"reward": reward, **known, **values})  # type: ignore[arg-type]


def answers(*rewards: Sequence[float | None]) -> list[list[Response]]:
    """Of each prompt the rewards of its responses."""
    return [[response(one) for one in some] for some in rewards]


EMPTY = response(None, 0, empty=True)


def test_every_pair_of_a_prompt_counts_and_each_prompt_weighs_one() -> None:
    # 4 pairs: 2 > 1, 2 = 2, 0 < 1, 0 < 2, so 1.5 of 4; and 1 of 1.
    found = win_rate(answers([2.0, 0.0], [3.0]), answers([1.0, 2.0], [1.0]))
    assert found["rate"] == pytest.approx((1.5 / 4 + 1) / 2)
    assert (found["prompts"], found["pairs"]) == (2, 5)
    assert found["interval_by"] == "bootstrap"
    turned = win_rate(answers([1.0, 2.0], [1.0]), answers([2.0, 0.0], [3.0]))
    assert turned["rate"] == pytest.approx(1 - found["rate"])


def test_equal_conditions_win_half() -> None:
    same = answers([1.0, 1.0], [2.0, 2.0])
    found = win_rate(same, same)
    assert (found["rate"], found["interval"], found["interval_by"]) == (0.5, list(wilson(1, 2)), "wilson")


def test_a_response_without_text_loses_and_one_that_was_not_read_is_left_out() -> None:
    assert win_rate([[EMPTY]], answers([-1000.0]))["rate"] == 0
    assert win_rate([[EMPTY]], [[EMPTY]])["rate"] == 0.5
    found = win_rate([[response(None), response(1.0)], [response(None)]], answers([0.0], [0.0]))
    assert (found["rate"], found["prompts"], found["pairs"]) == (1, 1, 1)
    assert win_rate([[response(None)]], answers([0.0])) == {"rate": None, "interval": None, "interval_by": None, "prompts": 0, "pairs": 0}


def test_lengths_are_about_equal_within_a_tenth_or_one_token() -> None:
    assert about_equal(0, 1)
    assert not about_equal(1, 3)
    assert about_equal(10, 11)
    assert not about_equal(10, 12)
    assert about_equal(90, 100)
    assert not about_equal(89, 100)
    assert about_equal(100, 90)


def test_pairs_of_equal_length_keep_their_share_of_the_prompts_weight() -> None:
    first = [[response(1.0, 5), response(0.0, 50)], [response(0.0, 5)]]
    second = [[response(0.5, 5)], [response(1.0, 5)]]
    # Of the first prompt one of two pairs is left, a win with weight 1/2; the second is a loss with weight 1.
    found = win_rate(first, second, near=True)
    assert found["rate"] == pytest.approx(0.5 / 1.5)
    assert (found["prompts"], found["pairs"]) == (2, 2)


def test_a_model_that_obeys_has_its_levels_on_the_diagonal_and_one_that_does_not_has_them_nowhere() -> None:
    obeys = {level: answers(*[[10.0 * level + prompt / 10] for prompt in range(4)]) for level in (1, 2, 5)}
    scale = make_measure(obeys)
    # Tertiles of 12 numbers, at places 11/3 and 22/3 of them in order.
    assert scale.thresholds == pytest.approx((10.3 + 2 / 3 * 9.7, 20.3 + 1 / 3 * 29.7))
    found = matrix(scale, {f"level {level}": obeys[level] for level in obeys}, [1, 2, 5])
    assert found["counts"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert found["shares"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found["intervals"][0][0] == list(wilson(4, 4))
    assert agreement(scale, obeys)["share"] == 1
    # Ranks of what was asked are 4 from their mean in 8 of 12, those of 12 different rewards have 143 as the sum of squares.
    assert steering(obeys, lambda one: one.standing)["value"] == pytest.approx((128 / 143) ** 0.5)
    assert steering(obeys, lambda one: measured_level(scale, [1, 2, 5], one))["value"] == pytest.approx(1)
    ignores = {level: answers(*[[float(prompt)] for prompt in range(6)]) for level in (1, 2, 5)}
    same = make_measure(ignores)
    assert matrix(same, {"x": ignores[1]}, [1, 2, 5])["shares"] == [pytest.approx([1 / 3] * 3)]
    assert agreement(same, ignores)["share"] == pytest.approx(1 / 3)
    found = steering(ignores, lambda one: one.standing)
    assert (found["value"], found["interval"], found["within"], found["responses"]) == (0, [0, 0], None, 18)


def test_the_scale_is_of_all_levels_that_were_asked_for() -> None:
    with pytest.raises(DataError, match="do not make 2 levels of equal shares"):
        make_measure({1: answers([1.0]), 2: answers([1.0])})
    scale = Scale(LevelsBy.quantiles, (1.0, 2.0), 0.0, 1.0)
    found = [measured_level(scale, [1, 3, 4], one) for one in (response(0.5), response(1.0), response(2.5), EMPTY, response(None))]
    assert found == [1, 3, 4, 1, None]
    # Responses without text have no reward to make a scale of.
    assert make_measure({1: [[EMPTY, response(1.0)]], 2: answers([2.0])}).thresholds == (1.5,)


def test_correct_shares_are_of_prompts_with_a_checker() -> None:
    given = [
        [response(correct=True), response(correct=False)],
        [response(correct=True), response(correct=True)],
        [response(), response()],
    ]
    found = correctness(given, ["sums", "facts", "chat"])
    assert found is not None
    assert (found["share"], found["prompts"], found["responses"]) == (0.75, 2, 4)
    assert {name: one["share"] for name, one in found["by_category"].items()} == {"facts": 1, "sums": 0.5}
    assert correctness(given[2:], ["chat"]) is None


def test_different_grams_over_all_of_them() -> None:
    made = [response(ids=(1, 2, 1)), response(ids=(1, 2)), response(ids=(7,)), EMPTY]
    # 1 2 1 1 2 7, and 12 21 12.
    assert distinct(made, 1) == pytest.approx(3 / 6)
    assert distinct(made, 2) == pytest.approx(2 / 3)
    assert distinct([EMPTY], 1) is None


def test_side_effects_count_responses() -> None:
    made = [[response(1.0, 4, calls=True, calls_formed=True), response(3.0, 6, finished=False)], [EMPTY, response(None, 10, refuses=True)]]
    found = side_effects(made)
    assert (found["responses"], found["empty"], found["not_read"]) == (4, 1, 1)
    assert found["reward"]["mean"] == 2
    assert found["length"]["mean"] == 5
    assert [found[name]["share"] for name in ("finished", "refused", "calls", "calls_formed")] == [0.75, 0.25, 0.25, 1]
    assert found["calls_formed"]["responses"] == 1
    assert side_effects([[response()]])["calls_formed"]["share"] is None


@pytest.mark.parametrize(
    "text", ["I’m sorry, but no.", " I cannot do that.", "SORRY", "抱歉，我不能。", "对不起", "“As an AI model", "作为一个AI助手"]
)
def test_refusals_are_told_by_how_they_begin(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize("text", ["", "Yes, I cannot complain.", "I candidly agree.", "Sorrysorry", "他说对不起", "I can do that."])
def test_what_is_no_refusal(text: str) -> None:
    assert not refuses(text)


def test_conditions_of_one_model_and_strength_share_a_speaker() -> None:
    given = EvaluateConfig(out="o", model="m", against={"sft": "s", "other": "t"}, best_of=BestOfConfig("s", "p", 8), guidance=[1.5, 2.0])
    conditions = list_conditions(given, [1, 3])
    guided = [f"level {level}, guidance {one}" for one in ("1.5", "2") for level in (1, 3)]
    names = ["none", "level 1", "level 3", *guided, "sft", "other", "best of 8"]
    assert [one.name for one in conditions] == names
    assert conditions[4] == Condition(names[4], "m", 3, guidance=1.5)
    grouped = [[one.name for one in group] for group in by_speaker(conditions)]
    assert grouped == [names[:3], names[3:5], names[5:7], ["sft", "best of 8"], ["other"]]


@pytest.mark.parametrize("source", ["worst", "1", "01"])
def test_no_level_is_led_away_from_itself(source: str) -> None:
    given = EvaluateConfig(out="o", model="m", guidance=[2.0], guidance_from=source)
    assert [one.name for one in list_conditions(given, [1, 3])] == ["none", "level 1", "level 3", "level 3, guidance 2"]


# ---------------------------------------------------------------------- who wins


def judged(best: float, worst: float, count: int = 40) -> dict[str, list[list[Response]]]:
    """Answers that stand `best` and `worst` beside 0 without a tag, and are right where they are best."""
    noise = [(number * 7 % 11 - 5) / 10 for number in range(count)]

    def made(base: float, right: bool) -> list[list[Response]]:
        return [[response(base + one, correct=right), response(base - one, correct=right)] for one in noise]

    return {"none": made(0, False), "level 1": made(worst, False), "level 2": made(best, True)}


def test_who_wins_is_said_where_intervals_are_apart() -> None:
    found = report(measure(judged(0.4, -0.4), [1, 2], ["all"] * 40))
    said = found["conclusion"]
    assert said[0].startswith("The tag steers, over all responses: Spearman +0.")
    assert said[2].startswith("Best over none (level 2 over none): ")
    assert said[2].endswith(": level 2 wins.")
    assert said[4].endswith(": none wins.")
    assert said[5].startswith("By the judge's rewards over `none`, level 2 is first with ")
    assert said[5].endswith("all others are below its interval.")
    assert said[6].startswith("By answers that were checked, level 2 is first with 100.0 %")
    assert said[6].endswith("all others are below its interval.")


def test_guidance_is_measured_at_all_levels() -> None:
    # With guidance the levels are further apart; away from the worst, the worst is the same with any.
    plain, led = judged(0.2, -0.2), judged(2.0, -2.0)
    guided = {f"level {level}, guidance 2": led[f"level {level}"] for level in (1, 2)}
    alone = report(measure(plain, [1, 2], ["all"] * 40))
    found = report(measure({**plain, **guided}, [1, 2], ["all"] * 40, [2.0]))
    assert (alone["guided"], found["spearman"], found["matrix"]) == ([], alone["spearman"], alone["matrix"])
    (stronger,) = found["guided"]
    assert stronger["guidance"] == 2
    # Two levels without overlap, as many responses to each: the correlation of ranks with a half and a half.
    assert stronger["spearman"]["reward"]["value"] == pytest.approx(0.866, abs=0.001)
    assert found["spearman"]["reward"]["value"] < 0.8
    assert [(one["first"], one["second"]) for one in stronger["contrasts"]] == [
        ("level 2, guidance 2", "none"),
        ("level 2, guidance 2", "level 1, guidance 2"),
        ("none", "level 1, guidance 2"),
    ]
    assert any(one.startswith("The tag steers, with guidance 2, over all responses: Spearman +0.87") for one in found["conclusion"])
    from_worst = report(measure({**plain, "level 2, guidance 2": led["level 2"]}, [1, 2], ["all"] * 40, [2.0]))
    assert from_worst["guided"][0]["contrasts"][1]["second"] == "level 1"


def test_who_wins_is_not_said_where_intervals_overlap() -> None:
    found = report(measure(judged(0.0, 0.0), [1, 2], ["all"] * 40))
    said = found["conclusion"]
    assert said[0] == "That the tag steers cannot be told, over all responses: Spearman +0.00 (+0.00 to +0.00)."
    assert all(": not distinguishable." in one for one in said[2:5])
    assert said[5].startswith("By the judge's rewards over `none`, none is first with 50.0 %; not distinguishable from it, at 95 %: ")
    turned = report(measure(judged(-0.4, 0.4), [1, 2], ["all"] * 40))["conclusion"]
    assert turned[0].startswith("The tag steers the wrong way")
    assert turned[3].endswith(": level 1 wins.")


def test_one_level_has_no_matrix_and_no_worst() -> None:
    given = judged(0.4, 0.0)
    found = report(measure({"none": given["none"], "level 2": given["level 2"]}, [2], ["all"] * 40))
    assert (found["matrix"], found["scale"], found["agreement"]) == (None, None, None)
    assert [one["name"] for one in found["contrasts"]] == ["best over none"]
    assert found["spearman"]["reward"]["value"] is None
    assert conclude(found) == found["conclusion"]
    shown = describe({"prompts": 40, "samples": 2, "model": {"name": "m"}, "judge": {"name": "j"}, **found})
    assert "No measured levels: the model was trained with one level only" in shown


def test_the_table_has_all_conditions_and_its_columns_are_aligned() -> None:
    given = judged(0.4, -0.4)
    found = report(measure({**given, "sft": given["none"]}, [1, 2], ["all"] * 40))
    lines = describe({"prompts": 40, "samples": 2, "model": {"name": "m"}, "judge": {"name": "j"}, **found}).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[:6]] == ["condition", "---------", "none", "level 1", "level 2", "sft"]
    assert len({len(line) for line in table[:6]}) == 1
    assert "over sft" in table[0]
    assert " calls " not in table[0]
