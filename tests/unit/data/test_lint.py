"""What is suspicious about dialogues: failed tools, commands, citations, repetition."""

from __future__ import annotations

from pathlib import Path

import pytest

from moss_train.data.dialogue import BY_MOSS, Dialogue, Turn, meta_instruction
from moss_train.data.lint import EXPLANATIONS, Finding, Warnings, lint
from moss_train.data.outcomes import find_outcomes, invented_value
from moss_train.data.repeats import Repeats
from moss_train.data.selection import Selection

META = meta_instruction(calculator=True, web_search=True)


def turn(
    commands: str = " None", results: str = " None", moss: str = " Yes.", human: str = " 2+3?", untrained: frozenset[str] = frozenset()
) -> Turn:
    return Turn(human, " None", commands, results, moss, untrained)


def findings(*turns: Turn, meta: str = META, own_meta: bool = True) -> list[Finding]:
    return list(lint(Dialogue("1", meta, turns, origin="a.jsonl:1"), own_meta))


FAILED = ' Calculate("2+3")', "\nCalculate(\"2+3\") => 'No result.'\n"


@pytest.mark.parametrize(
    "result", ["'No result.'", "No result.", "No calculation results.", "", "None", "Error: division by zero", '{"error": "x"}']
)
def test_results_that_are_none(result: str) -> None:
    (outcome,) = find_outcomes(turn(FAILED[0], f'\nCalculate("2+3") => {result}\n'))
    assert (outcome.tool, outcome.failed) == ("Calculate", True)


@pytest.mark.parametrize("result", ["'5'", "x = 2", "<|1|>: 'Error bars explained'", "0", "Nonetheless"])
def test_results_that_are_some(result: str) -> None:
    (outcome,) = find_outcomes(turn(FAILED[0], f'\nCalculate("2+3") => {result}\n'))
    assert not outcome.failed


def test_headers_of_published_results_that_are_no_calls() -> None:
    odd = turn(
        ' Solve("x=1", "x"), Calculate("("+ str(2))', '\nSolve("x=1"), "x" =>\nNo result.\nCalculate("(")+ str(2) => \'No result.\'\n'
    )
    assert [(one.tool, one.failed) for one in find_outcomes(odd)] == [("Solve", True), ("Calculate", True)]
    code = turn(' Search("map")', "\nSearch(\"map\") =>\n<|1|>: 'use\nmap((x) => x)\nso'\n")
    assert [(one.tool, one.failed) for one in find_outcomes(code)] == [("Search", False)]


def test_results_in_the_form_of_each_tool() -> None:
    several = turn(
        ' Search("a (b)"), Solve("x=1"), Calculate("7")',
        "\nSearch(\"a (b)\") =>\n<|1|>: 'one'\n<|2|>: 'two'\nSolve(\"x=1\") =>\nNo result.\nCalculate(\"7\") => '7'\n",
    )
    assert [(one.tool, one.failed) for one in find_outcomes(several)] == [("Search", False), ("Solve", True), ("Calculate", False)]
    assert find_outcomes(several)[0].result == "<|1|>: 'one'\n<|2|>: 'two'"
    image = turn(' Text2Image("a dog")', " Image generated successfully.")
    assert [(one.tool, one.failed) for one in find_outcomes(image)] == [("Text2Image", False)]
    assert [one.failed for one in find_outcomes(turn(' Solve("x=1"), Solve("y=2")', "\nNone\n"))] == [True, True]
    assert find_outcomes(turn()) == []


@pytest.mark.parametrize(
    ("moss", "value"),
    [
        (" It is 6.", "6"),
        (" 经过计算，答案是6.5。", "6.5"),
        (" About 1,234.5 of them.", "1,234.5"),
        # Known from the question, or cited, or a number in a list.
        (" You asked for 2+3.", None),
        (" That is 200%.", None),
        (" See <sup><|7|></sup>.", None),
        ("\n1. Add.\n4. Go on.", None),
        # It says that it failed.
        (" I am sorry, I could not find it; maybe 6.", None),
        (" 很抱歉，我无法计算出6。", None),
    ],
)
def test_a_value_after_a_failed_call(moss: str, value: str | None) -> None:
    one = turn(*FAILED, moss)
    assert invented_value([], one, find_outcomes(one)) == value
    assert [finding.code for finding in findings(one) if finding.code != "bad_citation"] == (["failed_tool"] if value else [])
    given = findings(turn(FAILED[0], "\nCalculate(\"2+3\") => '5'\n", moss))
    assert "failed_tool" not in [finding.code for finding in given]
    assert findings(turn(*FAILED, moss, untrained=frozenset({"moss"}))) == [], "what carries no loss teaches nothing"


def test_a_value_known_from_an_earlier_turn_or_another_tool() -> None:
    assert findings(turn(moss=" There are 6."), turn(*FAILED, " It is 6.")) == []
    both = turn(' Search("a"), Calculate("2+3")', "\nSearch(\"a\") =>\n<|1|>: '6 of them'\nCalculate(\"2+3\") => 'No result.'\n", " 6.")
    assert findings(both) == []


@pytest.mark.parametrize(
    ("commands", "codes"),
    [
        (" None", []),
        (" None.", []),
        (' Calculate("2+3")', []),
        (' Search("a"), Calculate("2+3")', []),
        (' Search("a"), None', ["commands_not_calls"]),
        (' 1. Calculate("20/2")  # radius', ["commands_not_calls"]),
        (" add 2 and 3", ["commands_not_calls"]),
        (' Solve("x=1")', ["disabled_tool"]),
        (' Count("a")', ["unknown_tool"]),
        (' Count("a"), Count("b"), Text2Image("a dog")', ["unknown_tool", "disabled_tool"]),
    ],
)
def test_commands(commands: str, codes: list[str]) -> None:
    assert [finding.code for finding in findings(turn(commands, " fine"))] == codes
    assert findings(turn(commands, " fine", untrained=BY_MOSS)) == []


def test_tools_of_a_meta_instruction_of_ones_own() -> None:
    assert findings(turn(' Count("a")', " 7"), meta="You can Count(text).\n") == []
    assert [finding.code for finding in findings(turn(' Count("a")', " 7"), meta="You can Recount(text).\n")] == ["unknown_tool"]
    assert findings(turn(' Calculate("2+3")', " fine"), meta="- Calculator: disabled.\n")[0].text.endswith("has 'Calculator: disabled.'")
    assert "data.plugins" in findings(turn(' Calculate("2+3")', " fine"), meta=meta_instruction(), own_meta=False)[0].text


def test_citations() -> None:
    two = "\nSearch(\"a\") =>\n<|1|>: 'x'\n<|2|>: 'y'\n"
    assert findings(turn(' Search("a")', two, " x<sup><|2|></sup>")) == []
    assert findings(turn(' Search("a")', two, " x"), turn(moss=" y<sup><|1|></sup>")) == [], "results of an earlier turn"
    (found,) = findings(turn(' Search("a")', two, " x<sup><|3|></sup>"))
    assert found == ("bad_citation", "turn 1: <sup><|3|></sup> in the reply, with results up to <|2|>")
    assert findings(turn(moss=" x<sup><|1|></sup>"))[0].text.endswith("with no numbered result")
    assert findings(turn(moss=f" x<sup><|{'9' * 5000}|></sup>")) == [], "no number of such length is read"


def test_repetition() -> None:
    warnings = Warnings()
    for number, (name, moss) in enumerate([("1", " a"), ("2", " b"), ("1", " c"), ("4", " a "), ("a.jsonl:5", " d"), ("1", " a")], 1):
        warnings.add(Dialogue(name, META, (turn(moss=moss),), origin=f"a.jsonl:{number}"))
    warnings.finish()
    assert warnings.counts == {"duplicate_id": 2, "duplicate_dialogue": 2}
    assert warnings.examples["duplicate_id"] == ["a.jsonl:3: as a.jsonl:1"]
    assert warnings.examples["duplicate_dialogue"] == ["a.jsonl:4: as a.jsonl:1"]
    assert set(warnings.counts) <= set(EXPLANATIONS)


def test_texts_that_came_before() -> None:
    first, second = Repeats(), Repeats()
    assert first.repeated(3) == (0, [])
    for line, text in enumerate("abcab", 1):
        first.add(text, f"x:y.jsonl:{line}")
    for line, text in enumerate("bzab", 1):
        second.add(text, f"other.jsonl:{line}")
    assert first.repeated(1) == (2, [["x:y.jsonl:1", "x:y.jsonl:4"]])
    assert second.shared_with(first, 1) == (3, [["other.jsonl:1", "x:y.jsonl:2"]])


def test_published_data(real_data: Path) -> None:
    """What is known of the sample: 18 of 180 turns with the calculator alone got no result, 32 of 90 with the solver alone."""
    warnings = Warnings()
    failed = {"Calculator": [0, 0], "Equation solver": [0, 0]}
    for example in Selection([str(real_data / "moss-003-sft-sample" / "*.jsonl")]).examples():
        dialogue = example.dialogue
        assert example.own_meta
        warnings.add(dialogue)
        enabled = [
            name
            for name in ("Web search", "Calculator", "Equation solver", "Text-to-image")
            if f"- {name}: enabled" in dialogue.meta_instruction
        ]
        if len(enabled) == 1 and enabled[0] in failed:
            failed[enabled[0]][0] += sum(any("No result" in one.result for one in find_outcomes(turn)) for turn in dialogue.turns)
            failed[enabled[0]][1] += len(dialogue.turns)
    warnings.finish()
    assert failed == {"Calculator": [18, 180], "Equation solver": [32, 90]}
    assert warnings.counts == {"failed_tool": 44, "commands_not_calls": 17, "unknown_tool": 1, "bad_citation": 59, "duplicate_id": 741}
    assert "Count is called" in warnings.examples["unknown_tool"][0]
