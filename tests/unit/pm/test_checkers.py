"""Checkers: what makes a reply correct."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.records import RecordError, read_records
from moss_train.pm.checkers import check_line, last_number, numbers, rank_line
from moss_train.pm.rank_config import Checker
from tests.unit.pm.ranking_lines import line


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 12.", "12"),
        ("so 1,234,567.50 in all", "1234567.5"),
        ("一共是１，２３４．５元。", "1234.5"),
        ("答案是-3", "-3"),
        ("10-3", "3"),
        ("(5)-3", "3"),
        ("= -3", "-3"),
        ("−3 degrees", "-3"),
        ("a loss of -$1,000", "-1000"),
        ("$18", "18"),
        ("about 2e3", "2000"),
        ("12 m²", "12"),
        ("so...12", "12"),
        ("等于…12", "12"),
        (".5", "0.5"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("<<20*2=40>>40\n#### 17\nor 3", "17"),
        ("#### none, but 4 before 5", "4"),
        ("v1.2", None),
        ("GPT4", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_number_a_reply_comes_to(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numbers_in_order() -> None:
    assert numbers("From 3 to 4.50, then 5") == [3, Decimal("4.5"), 5]


CALL = {"thoughts": " t", "results": "\nr\n"}


@pytest.mark.parametrize(
    ("checker", "keys", "replies", "ranks"),
    [
        (Checker.number, {"answer": 5}, ["It is 5.0", "6", "none", "５"], [1, 2, 2, 1]),
        (Checker.number, {"answer": "x\n#### 1,000"}, ["1000 it is", "100"], [1, 2]),
        (Checker.number, {"answer": 5}, [{"moss": " 5", "finish": "length"}, {"moss": " five 5", "finish": "stop"}], [2, 1]),
        (Checker.exact, {"answer": "Paris"}, ["paris.", "In Paris", "“PARIS”"], [1, 2, 1]),
        (Checker.exact, {"answers": ["Yes", "Yeah"]}, ["yeah!", "no"], [1, 2]),
        (Checker.exact, {"answer": "北京"}, ["北京。", "上海"], [1, 2]),
        (Checker.contains, {"answer": "no"}, ["No, it is not.", "It is not."], [1, 2]),
        (Checker.contains, {"answer": "北京"}, ["首都是北京市。", "上海"], [1, 2]),
        (Checker.contains, {"answer": 5}, ["It is 5", "It is 15"], [1, 2]),
        (
            Checker.calls,
            {"call": 'Calculate("12*3")'},
            [
                {**CALL, "commands": ' Calculate("3 * 12")', "moss": " It is 36."},
                {**CALL, "commands": ' Calculate("12*3")', "moss": " It is 35."},
                {**CALL, "commands": ' Calculate("36")', "moss": " 36 it is"},
                {**CALL, "commands": ' Solve("12*3")', "moss": " 36"},
                {"commands": " None", "moss": " It is 36"},
            ],
            [1, 2, 2, 2, 2],
        ),
        (
            Checker.calls,
            {"call": 'Search("capital of France")', "answer": "Paris"},
            [{**CALL, "commands": ' Search("Capital of  France")', "moss": " Paris."}, {"commands": " None", "moss": " Paris"}],
            [1, 2],
        ),
    ],
)
def test_correct_above_wrong(checker: Checker, keys: dict[str, Any], replies: list[Any], ranks: list[int]) -> None:
    outcome = rank_line(line(replies, **keys), checker)
    assert (outcome.name, outcome.ranks) == ("ranked", ranks)
    assert outcome.provenance == {"by": "checker", "checker": checker.value}


def test_a_line_names_its_checker() -> None:
    assert rank_line(line(["Paris", "Lyon"], checker="exact", answer="paris"), None).provenance["checker"] == "exact"


def test_lines_without_a_difference_are_left_out_by_name() -> None:
    assert rank_line(line(["5", "five: 5"], answer=5), Checker.number).name == "all_correct"
    assert rank_line(line(["6", "7"], answer=5), Checker.number).name == "all_wrong"


def test_without_text_there_is_no_rank() -> None:
    assert rank_line(line(["5", "", "6"], answer=5), Checker.number).ranks == [1, None, 2]


def test_of_equal_texts_the_cut_one_says_nothing() -> None:
    outcome = rank_line(line([{"moss": " 5", "finish": "length"}, {"moss": " 5"}, {"moss": " 6"}], answer=5), Checker.number)
    assert outcome.ranks == [None, 1, 2]


@pytest.mark.parametrize(
    ("checker", "keys", "code"),
    [
        (None, {"answer": 5}, "no_checker"),
        (None, {"checker": "sum", "answer": 5}, "unknown_checker"),
        (None, {"checker": ["number"], "answer": 5}, "unknown_checker"),
        (Checker.number, {}, "no_answer"),
        (Checker.number, {"answer": "five"}, "no_answer"),
        (Checker.exact, {"answer": "."}, "no_answer"),
        (Checker.exact, {"answers": [True]}, "no_answer"),
        (Checker.calls, {}, "bad_call"),
        (Checker.calls, {"call": "12*3"}, "bad_call"),
        (Checker.calls, {"call": 'Search("x")'}, "no_answer"),
    ],
)
def test_what_a_line_lacks_is_named(checker: Checker | None, keys: dict[str, Any], code: str) -> None:
    with pytest.raises(RecordError) as caught:
        check_line(line(["5", "6"], **keys), checker)
    assert caught.value.code == code


def test_the_checker_agrees_with_the_marks_of_real_solutions(real_data: Path) -> None:
    """All solutions of four models, which their makers marked."""
    differ = total = 0
    for record in read_records(str(real_data / "gsm8k" / "model_solutions.jsonl")):
        answer = last_number(record.value["ground_truth"])
        for solution in record.value.values():
            if isinstance(solution, dict):
                total += 1
                differ += (last_number(solution["solution"]) == answer) != solution["is_correct"]
    assert (total, differ) == (4220, 0)
