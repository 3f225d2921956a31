"""A person at the terminal."""

from __future__ import annotations

import io

import pytest

from moss_train.pm.person import parse_order, rank_line
from tests.unit.pm.ranking_lines import line

LINE = line(["aa", "b", "cc\x1b[2J", "b"])


@pytest.mark.parametrize(
    ("answer", "ranks"),
    [
        ("2 1=3", [2, 1, 2]),
        ("2 > 1 = 3\n", [2, 1, 2]),
        ("3,1,2", [2, 3, 1]),
        ("1=2=3", [1, 1, 1]),
        ("1 2", "3 is missing"),
        ("", "'' is not one of the numbers 1 to 3"),
        ("1 2 4", "'4' is not one of the numbers 1 to 3"),
        ("1 2 2", "2 is named twice"),
        ("0 1 2", "'0' is not one of the numbers 1 to 3"),
        ("1 2 x\x1b", "'x␛' is not one of the numbers 1 to 3"),
    ],
)
def test_answers(answer: str, ranks: list[int] | str) -> None:
    assert parse_order(answer, 3) == ranks


def test_ranks_are_those_of_the_responses_whatever_the_order_they_are_shown_in(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = rank_line(LINE, 1, 9, "eve", 0, io.StringIO("nonsense\n1 2=3\n"))
    assert outcome is not None
    shown = outcome.provenance["shown"]
    assert sorted(shown) == [0, 1, 2]
    assert [outcome.ranks[number] for number in shown] == [1, 2, 2]
    assert outcome.ranks[3] == outcome.ranks[1]
    assert outcome.provenance["person"] == "eve"
    printed = capsys.readouterr().out
    assert "'nonsense' is not one of the numbers" in printed
    assert "\x1b" not in printed
    assert "Human: 2+3?" in printed


def test_the_order_follows_from_seed_and_line() -> None:
    orders = set()
    for seed in range(20):
        first, again = (rank_line(LINE, 1, 9, "eve", seed, io.StringIO("1 2 3\n")) for _ in range(2))
        assert first == again
        assert first is not None
        orders.add(tuple(first.provenance["shown"]))
    assert len(orders) > 3


def test_skip_and_stop() -> None:
    skipped = rank_line(LINE, 1, 9, "eve", 0, io.StringIO("s\n"))
    assert skipped is not None
    assert skipped.name == "skipped"
    assert rank_line(LINE, 1, 9, "eve", 0, io.StringIO("q\n")) is None
    assert rank_line(LINE, 1, 9, "eve", 0, io.StringIO("")) is None
