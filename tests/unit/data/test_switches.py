"""Switches that are turned off at random take their calls with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moss_train.data.dialogue import Dialogue, Turn, meta_instruction, read_dialogues
from moss_train.data.render import render
from moss_train.data.switches import switch_off
from moss_train.data.tokenizer import MossTokenizer

META = meta_instruction(inner_thoughts=True, web_search=True, calculator=True)
ONE = Turn(" How far?", " I search.", ' Search("far")', '\nSearch("far") =>\n<|1|>: "10 km"\n', " 10 km.<sup><|1|></sup>")
TWO = Turn(
    " And twice?",
    " I search and calculate.",
    ' Search("far"), Calculate("2*10")',
    '\nSearch("far") =>\n<|1|>: "10 km"\nCalculate("2*10") => \'20\'\n',
    " 20 km.",
)
PLAIN = Turn(" Thanks", " None", " None", "\nNone\n", " You are welcome.")
DIALOGUE = Dialogue("7", META, (ONE, TWO, PLAIN), origin="made:1")


def only(api: str) -> Dialogue:
    """The dialogue with one tool switched off, by the first seed that does so."""
    names = {"Search": "Web search", "Calculate": "Calculator"}
    for seed in range(200):
        found = switch_off(DIALOGUE, 0.5, seed)
        off = {other for other, name in names.items() if f"- {name}: disabled." in found.meta_instruction}
        if off == {api}:
            return found
    raise AssertionError("no seed switches off one tool alone")


def test_with_probability_0_and_1() -> None:
    assert switch_off(DIALOGUE, 0.0, 3) == DIALOGUE
    off = switch_off(DIALOGUE, 1.0, 3)
    assert off.meta_instruction == meta_instruction(inner_thoughts=True)
    for turn, was in zip(off.turns[:2], DIALOGUE.turns):
        assert turn == Turn(was.human, " None", " None", "\nNone\n", was.moss, frozenset({"moss"}))
    assert off.turns[2] == PLAIN


def test_other_calls_of_a_turn_stay_with_their_results() -> None:
    found = only("Search")
    assert found.turns[0].commands == " None"
    assert found.turns[1].commands == ' Calculate("2*10")'
    assert found.turns[1].results == "\nCalculate(\"2*10\") => '20'\n"
    assert found.turns[1].untrained == {"moss", "thoughts"}
    found = only("Calculate")
    assert found.turns[0] == ONE
    assert found.turns[1].results == '\nSearch("far") =>\n<|1|>: "10 km"\n'


def test_it_depends_on_what_a_dialogue_says_not_on_where_it_stands() -> None:
    moved = replace(DIALOGUE, origin="elsewhere:9")
    for seed in range(20):
        assert switch_off(moved, 0.5, seed).turns == switch_off(DIALOGUE, 0.5, seed).turns
    assert len({switch_off(DIALOGUE, 0.5, seed).meta_instruction for seed in range(50)}) == 4
    others = [switch_off(replace(DIALOGUE, id=str(number)), 0.25, 0) for number in range(2000)]
    share = sum("- Calculator: disabled." in dialogue.meta_instruction for dialogue in others) / len(others)
    assert share == pytest.approx(0.25, abs=0.03)


def test_the_reply_that_told_what_the_tool_found_carries_no_loss(small_tokenizer: MossTokenizer) -> None:
    rendered = render(switch_off(DIALOGUE, 1.0, 0), small_tokenizer)
    trained = {(segment.turn, segment.kind): segment.trained for segment in rendered.segments}
    assert not trained[(0, "moss")]
    assert trained[(0, "commands")]
    assert trained[(0, "thoughts")]
    assert trained[(2, "moss")]
    for segment in rendered.segments:
        if segment.kind == "moss" and segment.turn < 2:
            assert not any(rendered.loss_mask[segment.start : segment.end]), "its terminator neither"


def test_no_call_of_a_disabled_tool_is_left_in_real_dialogues(real_data: Path) -> None:
    dialogues, _ = read_dialogues(str(real_data / "moss-003-sft-sample" / "dev.jsonl"))
    changed = 0
    for dialogue in dialogues:
        off = switch_off(dialogue, 1.0, 0)
        changed += off != dialogue
        assert "enabled. API" not in off.meta_instruction
        for turn in off.turns:
            assert '("' not in (turn.commands or "")
    assert changed > 30


def test_records_without_an_id_are_told_by_what_they_say() -> None:
    at = [replace(DIALOGUE, id=origin, origin=origin) for origin in ("a.jsonl:1", "elsewhere/b.jsonl:9")]
    for seed in range(20):
        assert switch_off(at[0], 0.5, seed).turns == switch_off(at[1], 0.5, seed).turns


def test_a_call_that_cannot_be_read_is_not_learned() -> None:
    odd = replace(DIALOGUE, turns=(replace(ONE, commands=' Search("far)'), PLAIN))
    turns = switch_off(odd, 1.0, 0).turns
    assert turns[0].untrained == {"thoughts", "commands", "moss"}
    assert turns[1] == PLAIN
