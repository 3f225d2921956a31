"""Parsing MOSS-003 records, and the meta instruction."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.dialogue import Dialogue, Turn, meta_instruction, read_dialogues, spelled_segments
from moss_train.data.formats import parse_moss003
from moss_train.data.records import RecordError
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

TURN = {
    "Human": "<|Human|>: 2+3?<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: easy<eot>\n",
    "Commands": '<|Commands|>: Calculate("2+3")<eoc>\n',
    "Tool Responses": "<|Results|>:\nCalculate(\"2+3\") => '5'\n<eor>\n",
    "MOSS": "<|MOSS|>: 5<eom>\n",
}
PLAIN = {
    "Human": "<|Human|>: hi<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
    "MOSS": "<|MOSS|>: hello<eom>\n",
}
RECORD = {
    "conversation_id": 7,
    "meta_instruction": "Be MOSS.\n",
    "num_turns": 2,
    "chat": {"turn_1": TURN, "turn_2": PLAIN},
    "category": "tool",
}
PARSED = Dialogue(
    id="7",
    meta_instruction="Be MOSS.\n",
    turns=(
        Turn(" 2+3?", " easy", ' Calculate("2+3")', "\nCalculate(\"2+3\") => '5'\n", " 5"),
        Turn(" hi", " None", " None", " None", " hello"),
    ),
    category="tool",
    origin="here:1",
)


def changed(path: str, value: Any = None) -> dict[str, Any]:
    """A copy of the record with one place set, or removed where the value is None."""
    record = copy.deepcopy(RECORD)
    *parents, last = path.split("/")
    place: Any = record
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


def test_plain_and_plugin_turns_keep_their_contents_to_the_blank() -> None:
    assert parse_moss003(RECORD, "here:1") == PARSED


def test_the_order_of_keys_does_not_matter() -> None:
    chance = random.Random(0)

    def shuffle(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: shuffle(value[key]) for key in chance.sample(sorted(value), len(value))}

    for _ in range(20):
        assert parse_moss003(shuffle(RECORD), "here:1") == PARSED


def test_eleven_turns_are_in_the_order_of_their_numbers() -> None:
    chat = {f"turn_{n}": {"Human": f"<|Human|>: {n}<eoh>\n", "MOSS": "<|MOSS|>: ok<eom>\n"} for n in sorted(range(1, 12), key=str)}
    assert [turn.human for turn in parse_moss003({"chat": chat}, "here:1").turns] == [f" {n}" for n in range(1, 12)]


def test_what_may_be_missing() -> None:
    dialogue = parse_moss003({"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "MOSS": "<|MOSS|>:b<eom>\n"}}}, "here:1")
    assert dialogue == Dialogue("here:1", meta_instruction(), (Turn(" a", moss="b"),), None, "here:1")
    assert parse_moss003(changed("meta_instruction"), "x", default_meta="M").meta_instruction == "M"
    assert parse_moss003(changed("meta_instruction", ""), "x").meta_instruction == "", "an empty one is meant"
    assert parse_moss003(changed("check", {"answer": 1}), "here:1") == PARSED, "keys of others are left alone"
    assert parse_moss003(changed("chat/turn_2/MOSS"), "x", open_end=True).turns[1].moss is None


@pytest.mark.parametrize(
    ("record", "code", "said"),
    [
        ([1], "not_an_object", "an array"),
        (None, "not_an_object", "null"),
        ("text", "not_an_object", "text"),
        (changed("chat"), "no_chat", "keys: conversation_id"),
        (changed("chat", []), "no_chat", "expected 'chat'"),
        (changed("chat", {}), "no_chat", "expected 'chat'"),
        (changed("meta_instruction", 3), "meta_not_text", "a number (3)"),
        (changed("num_turns", 3), "num_turns", "num_turns is 3, but chat has 2"),
        (changed("num_turns", "2"), "num_turns", "'2'"),
        (changed("num_turns", True), "num_turns", "True"),
        (changed("num_turns", -2), "num_turns", "-2"),
        (changed("chat", {"turn_1": TURN, "turn_3": TURN}), "turn_numbers", "'turn_3' among 2 turns"),
        (changed("chat", {"turn_1": TURN, "turn_01": TURN}), "turn_numbers", "'turn_01' among 2 turns"),
        (changed("chat/turn_1", "text"), "turn_not_an_object", "turn_1 is text"),
        (changed("chat/turn_1/System", "x"), "unknown_role", "'System'"),
        (changed("chat/turn_1/Human"), "no_human", "turn_1 has no Human"),
        (changed("chat/turn_2/MOSS"), "no_reply", "turn_2 has no MOSS"),
        (changed("chat/turn_1/Human", ["x"]), "field_not_text", "an array"),
        (changed("chat/turn_1/Human", "hi"), "no_opening", "begins with 'hi'; expected '<|Human|>:'"),
        (changed("chat/turn_1/Human", " <|Human|>: hi<eoh>\n"), "no_opening", "begins with"),
        (changed("chat/turn_1/Human", "<|MOSS|>: hi<eoh>\n"), "no_opening", "begins with"),
        (changed("chat/turn_1/MOSS", "<|MOSS|>: hi"), "no_terminator", "may have been cut"),
        (changed("chat/turn_1/MOSS", "<|MOSS|>: hi<eoh>\n"), "no_terminator", "expected '<eom>\\n'"),
        (changed("chat/turn_1/MOSS", "<|MOSS|>: hi<eom>\n\n"), "no_terminator", "ends with"),
        (changed("chat/turn_1/MOSS", "<|MOSS|>: hi<eom>\n<eom>\n"), "doubled_terminator", "twice"),
        (changed("chat/turn_1/Human", "<|Human|>: <eoh>\n"), "empty_human", "no text"),
        (changed("chat/turn_1/MOSS", "<|MOSS|>:<eom>\n"), "empty_moss", "no text"),
        (changed("category", 3), "category_not_text", "a number"),
    ],
)
def test_a_bad_record_is_refused_with_what_where_and_what_to_do(record: Any, code: str, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_moss003(record, "data.jsonl:12")
    assert caught.value.code == code
    assert str(caught.value).startswith(f"data.jsonl:12: {code}: ")
    assert said in str(caught.value)


def test_only_the_last_turn_may_be_open() -> None:
    with pytest.raises(RecordError, match="no_reply"):
        parse_moss003(changed("chat/turn_1/MOSS"), "x", open_end=True)


def test_all_bad_records_are_told_together(jsonl: Path) -> None:
    rows = [json.dumps(RECORD), json.dumps(changed("num_turns", 9)), "{", json.dumps(changed("chat")), json.dumps(RECORD)]
    jsonl.write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        read_dialogues([str(jsonl)])
    message = str(caught.value)
    assert message.startswith("3 bad of 5 records")
    assert [f"{jsonl}:{line}: " in message for line in range(1, 6)] == [False, True, True, True, False]

    dialogues, problems = read_dialogues(str(jsonl), on_bad="skip", max_bad_share=0.9)
    assert len(dialogues) == 2
    assert problems.counts == {"num_turns": 1, "bad_json": 1, "unknown_format": 1}
    with pytest.raises(DataError, match=r"more than the 1\.0%"):
        read_dialogues(str(jsonl), on_bad="skip")


def test_an_empty_file_is_told(jsonl: Path) -> None:
    jsonl.write_text("\n")
    with pytest.raises(DataError, match="no records"):
        read_dialogues([str(jsonl)])


def test_the_meta_instruction_is_the_published_one() -> None:
    text = meta_instruction(inner_thoughts=True, web_search=True, text_to_image=True)
    assert text.startswith("You are an AI assistant whose name is MOSS.\n- MOSS is a conversational language model")
    assert "comprehensively covering mutiple aspects.\n" in text
    assert text.endswith(
        "Capabilities and tools that MOSS can possess.\n"
        "- Inner thoughts: enabled.\n"
        "- Web search: enabled. API: Search(query)\n"
        "- Calculator: disabled.\n"
        "- Equation solver: disabled.\n"
        "- Text-to-image: enabled. API: Text2Image(description)\n"
        "- Image edition: disabled.\n"
        "- Text-to-speech: disabled.\n"
    )
    assert "- Calculator: enabled. API: Calculate(expression)\n- Equation solver: enabled. API: Solve(equation)\n" in meta_instruction(
        calculator=True, equation_solver=True
    )
    assert len(text.splitlines()) == 17


def test_a_tokenizer_learns_the_markers_of_turns() -> None:
    segments = spelled_segments(PARSED.turns[0])
    assert segments[0] == "<|Human|>: 2+3?"
    assert len(segments) == 5
    assert spelled_segments(Turn(human=" hi", moss=" hello")) == ["<|Human|>: hi", "<|MOSS|>: hello"]
    tokenizer = MossTokenizer.train(spelled_segments(PARSED.turns[1]) * 50, 1024)
    # As pieces "<|", "Human", "|>:", and not as letters: in every turn they are the most of it.
    assert len(tokenizer.encode("<|Human|>:")) == 3
