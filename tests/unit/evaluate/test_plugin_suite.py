"""What is counted of turns with tools: by hand-made answers, whose figures are known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from moss_train.data.dialogue import Dialogue, Turn, meta_instruction
from moss_train.evaluate.asking import AskedTurn, End, Segment
from moss_train.evaluate.dialogue_suite import judge_format
from moss_train.evaluate.plugin_suite import Answer, Question, calls_in, compare, find_questions, guess, majority_of, run_calls, tally
from moss_train.inference.plugins import make_toolbox

META = meta_instruction(inner_thoughts=True, calculator=True, web_search=True)


def gold(commands: str, results: str = "\nNone\n", moss: str = " ok") -> Turn:
    return Turn(" q", " think", commands, results, moss)


def written(commands: str, reply: str = " ok", end: End = End.own) -> AskedTurn:
    return AskedTurn(
        {"thoughts": Segment(" t", End.own), "commands": Segment(commands, end), "moss": Segment(reply, End.own)}, "\nNone\n", 0
    )


CALCULATE = ' Calculate("2+3")'
SEARCH = ' Search("capital of Egypt")'
FOUND = "\nSearch(\"capital of Egypt\") =>\n<|1|>: 'Cairo'\n"
DIALOGUES = [
    Dialogue("a", META, (gold(CALCULATE), gold(" None"), gold(CALCULATE))),
    Dialogue("b", META, (gold(SEARCH, FOUND), gold(" None"))),
    Dialogue("off", meta_instruction(inner_thoughts=True), (gold(" None"),)),
    Dialogue("plain", META, (Turn(" q", moss=" a"),)),
]


@pytest.fixture
def questions() -> list[Question]:
    found, left_out = find_questions(DIALOGUES)
    assert left_out == Counter(turns_without_commands=1)
    assert [one.on for one in found] == [True] * 5 + [False]
    # Up to the decision, where there is nothing to use.
    assert (found[5].asked.thoughts, found[5].asked.moss) == (" think", None)
    return found[:5]


def answer(commands: str, results: list[Any] | None = None, reply: str = " ok", end: End = End.own) -> Answer:
    return Answer(written(commands, reply, end), calls_in(commands), results or [])


def figures(questions: list[Question], answers: list[Answer | None]) -> dict[str, float | None]:
    return {name.removeprefix("plugins/"): one.value for name, one in tally(questions, answers).items()}


def test_commands_are_none_calls_or_unreadable() -> None:
    assert calls_in(" None") == calls_in("None.") == calls_in("") == []
    assert [one.name for one in calls_in(SEARCH) or []] == ["Search"]
    assert calls_in(" Search(capital") is None


def test_a_model_that_does_as_the_data(questions: list[Question]) -> None:
    result = (questions[0].calls or [])[0], "'5'"
    answers = [
        answer(' Calculate("3+2")', [result], " It is 5."),
        answer(" None"),
        answer(CALCULATE, [result], " It is 6."),
        answer(SEARCH),
        answer(" None."),
    ]
    found = figures(questions, answers)  # type: ignore[arg-type]
    for name in ("accuracy", "precision", "recall", "f1", "well_formed", "tool", "arguments", "arguments_given_tool", "ended"):
        assert found[name] == 1, name
    assert found["uses_result"] == 0.5
    assert (found["tool/Calculate"], found["tool/Search"], found["language/en/f1"]) == (1, 1, 1)


def test_what_is_wrong_is_counted(questions: list[Question]) -> None:
    answers = [
        # The wrong tool, a call too many, one that cannot be read, none where there should be one, and the right tool with other words.
        answer(SEARCH),
        answer(CALCULATE),
        answer(" Calculate(2+3"),
        answer(' Search("capital of Spain")', end=End.other),
        answer(" None"),
    ]
    found = figures(questions, answers)  # type: ignore[arg-type]
    assert found["accuracy"] == 4 / 5
    assert (found["precision"], found["recall"]) == (3 / 4, 1)
    assert found["f1"] == pytest.approx(6 / 7)
    assert found["well_formed"] == 2 / 4
    assert (found["tool"], found["arguments"], found["arguments_given_tool"]) == (1 / 3, 0, 0)
    assert found["ended"] == 4 / 5


def test_the_baseline_does_what_is_done_most(questions: list[Question]) -> None:
    majority, baseline = majority_of(questions)
    assert majority == {"calls": True, "tool": "Calculate", "tools": {"Calculate": 2, "Search": 1}}
    values = {name: baseline[f"plugins/{name}"].value for name in ("accuracy", "precision", "recall", "f1", "tool", "arguments")}
    assert values == {"accuracy": 3 / 5, "precision": 3 / 5, "recall": 1, "f1": pytest.approx(6 / 8), "tool": 2 / 3, "arguments": 0}
    never, baseline = majority_of([one for one in questions if not one.called] + questions[:1])
    assert never["calls"] is False
    assert baseline["plugins/precision"].value is None
    assert baseline["plugins/f1"].value == 0


def test_calls_as_switched(questions: list[Question]) -> None:
    off = Question("off", DIALOGUES[2], 0, [], on=False)
    every = [*questions, off]
    found = guess(every, [one.on for one in every], "Search")
    assert found["plugins/accuracy"].value == 4 / 6
    assert found["plugins/on/accuracy"].value == 3 / 5
    assert found["plugins/recall"].value == 1
    called = figures(
        [off], [Answer(AskedTurn({"thoughts": Segment(" t", End.own), "commands": Segment(SEARCH, End.own)}, None, 0), calls_in(SEARCH))]
    )
    assert (called["accuracy"], called["on/accuracy"], called["precision"], called["uses_result"]) == (0, None, 0, None)


def test_the_difference_to_the_baseline_is_of_the_same_turns(questions: list[Question]) -> None:
    _, baseline = majority_of(questions)
    measures = tally(questions, [answer(one.gold.commands or "") for one in questions])
    found = compare(measures, baseline, 0)["plugins/accuracy"]
    assert found["value"] == 3 / 5
    assert found["model_minus_it"]["value"] == pytest.approx(2 / 5)
    assert found["model_minus_it"]["items"] == 2


def test_calls_are_run_here_or_taken_from_the_data(questions: list[Question]) -> None:
    toolbox = make_toolbox()
    text, results = run_calls(' Calculate("6*7")', questions[0], toolbox)
    assert text == "\nCalculate(\"6*7\") => '42'\n"
    assert results[0][1] == "'42'"
    # The same search in other words has the results of the data; another one has none.
    text, results = run_calls(' Search("Capital of  Egypt?")', questions[3], toolbox)
    assert text == FOUND
    assert results == [((questions[3].calls or [])[0], "<|1|>: 'Cairo'")]
    text, results = run_calls(' Search("capital of Spain")', questions[3], toolbox)
    assert results[0][1] == "No result."
    assert run_calls(" None", questions[3], toolbox)[0] == "\nNone\n"


@pytest.mark.parametrize(
    ("turn", "holds"),
    [
        (written(CALCULATE), {"all": 1, "ends": 1, "order": 1, "reply": 1, "commands": 1}),
        (written(" None"), {"all": 1, "ends": 1, "order": 1, "reply": 1, "commands": 1}),
        (written(" Calculate(2"), {"all": 0, "ends": 1, "order": 1, "reply": 1, "commands": 0}),
        (written(CALCULATE, end=End.other), {"all": 0, "ends": 0, "order": 0, "reply": 1, "commands": 1}),
        (written(CALCULATE, end=End.none), {"all": 0, "ends": 0, "order": 1, "reply": 1, "commands": 1}),
        (written(CALCULATE, "  "), {"all": 0, "ends": 1, "order": 1, "reply": 0, "commands": 1}),
        (written(CALCULATE, " ok <|Human|>: and"), {"all": 0, "ends": 1, "order": 0, "reply": 1, "commands": 1}),
        (written(CALCULATE, " ok<eom>"), {"all": 0, "ends": 1, "order": 0, "reply": 1, "commands": 1}),
    ],
)
def test_format(turn: AskedTurn, holds: dict[str, int]) -> None:
    assert {name: part for name, (part, _) in judge_format(turn).items()} == holds


def test_a_turn_without_commands_has_none_to_judge() -> None:
    found = judge_format(AskedTurn({"moss": Segment(" ok", End.own)}, None, 0))
    assert found["commands"][1] == 0
    assert found["all"] == (1, 1)
