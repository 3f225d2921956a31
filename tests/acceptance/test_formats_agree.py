"""One conversation in every format is one dialogue, with the same ids and the same loss; and no format loses anything without an error."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.dialogue import BY_MOSS, Dialogue, Turn, read_dialogues
from moss_train.data.formats import FORMATS, detect, parse, write
from moss_train.data.records import read_records
from moss_train.data.render import render
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

META = "You are MOSS.\n"


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    texts = ["How many people live in Paris? None Search Calculate => \n", "北京市有十六个区。", "<|Human|>: <|Results|>: None"] * 4
    return MossTokenizer.train(texts, 480)


MARKS = [
    "<|MOSS|>:",
    "<eom>",
    "<eoh>",
    "<eoa>",
    "[Human]:",
    "[MOSS]:",
    "<|endoftext|>",
    " None",
    "None",
    '"',
    "\n",
    " ",
    "=>",
    "\u2028",
    "\0",
]
PIECES = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.sampled_from(MARKS))
TEXTS = st.lists(PIECES, max_size=4).map("".join)
FILLED = TEXTS.filter(lambda text: bool(text.strip()))
CALLS = st.lists(
    st.sampled_from(
        ['Search("q")', 'Calculate("2+3")', 'other("x")', 'book({"to": "Köln", "n": [1, null]})', "now({})", 'Search({"query": "a\\"b"})']
    ),
    min_size=1,
    max_size=3,
).map(lambda calls: " " + ", ".join(calls))
RESULTS = st.one_of(
    st.none(), st.sampled_from([" None", "\nNone\n", "\nSearch(\"q\") =>\n<|1|>: 'x'\n", '\nCalculate("2+3") => 5\n']), TEXTS
)


def canonical(texts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return texts.map(lambda text: f" {text}")


PLAIN_TURNS = st.builds(
    Turn,
    human=canonical(FILLED),
    thoughts=st.just(" None"),
    commands=st.just(" None"),
    results=st.just(" None"),
    moss=canonical(FILLED),
)
ANY_TURNS = st.builds(
    Turn,
    human=st.one_of(FILLED, canonical(FILLED)),
    thoughts=st.one_of(st.none(), TEXTS, canonical(TEXTS)),
    commands=st.one_of(st.none(), CALLS, TEXTS),
    results=RESULTS,
    moss=st.one_of(FILLED, canonical(FILLED)),
    untrained=st.frozensets(st.sampled_from(sorted(BY_MOSS))),
)


def dialogues(turns: st.SearchStrategy[Turn]) -> st.SearchStrategy[Dialogue]:
    return st.builds(
        Dialogue,
        id=st.one_of(st.just("somewhere:1"), FILLED),
        meta_instruction=st.one_of(st.just(META), TEXTS, TEXTS.map(lambda text: f"{text}\n")),
        turns=st.lists(turns, min_size=1, max_size=3).map(tuple),
        category=st.one_of(st.none(), TEXTS),
        origin=st.just("somewhere:1"),
    )


def read_back(record: dict[str, Any]) -> Dialogue:
    """Through JSON, and its format told by its keys."""
    return parse(json.loads(json.dumps(record)), "somewhere:1")


def write_if_held(dialogue: Dialogue, name: str) -> tuple[dict[str, Any] | None, str]:
    """The record, or None and why the format cannot hold the dialogue."""
    try:
        return write(dialogue, name), ""
    except DataError as error:
        return None, str(error)


@given(dialogues(ANY_TURNS))
@settings(max_examples=200, deadline=None)
def test_messages_and_sharegpt_hold_every_dialogue(dialogue: Dialogue) -> None:
    for name in ("messages", "sharegpt"):
        record = write(dialogue, name)
        assert detect(record, "x") == name
        assert read_back(record) == dialogue
    record, refusal = write_if_held(dialogue, "moss003")
    assert record is not None or "doubled_terminator" in refusal, "a control at the end of a content is taken for a doubled one"
    assert record is None or read_back(record) == dialogue


@given(dialogue=dialogues(PLAIN_TURNS), name=st.sampled_from(sorted(FORMATS)))
@settings(max_examples=200, deadline=None)
def test_plain_dialogues_come_back_from_every_format_or_are_refused(dialogue: Dialogue, name: str) -> None:
    if name == "prompt_completion":
        *earlier, last = dialogue.turns
        dialogue = replace(dialogue, turns=(*(replace(turn, untrained=BY_MOSS) for turn in earlier), last))
    record, refusal = write_if_held(dialogue, name)
    if record is None:
        assert name in ("moss002", "moss003"), "only these have marks of their own within texts"
        assert "cannot hold" in refusal
    else:
        assert detect(record, "x") == name
        assert read_back(record) == dialogue


@given(dialogue=dialogues(ANY_TURNS), name=st.sampled_from(["alpaca", "moss002", "prompt_completion"]))
@settings(max_examples=200, deadline=None)
def test_what_a_format_has_no_place_for_is_refused_by_name(dialogue: Dialogue, name: str) -> None:
    record, refusal = write_if_held(dialogue, name)
    assert record is not None or f"the format {name} cannot hold " in refusal
    assert record is None or read_back(record) == dialogue


# The same conversation, written by hand in every format that can hold it.
SAME = {
    "moss003": {
        "meta_instruction": META,
        "chat": {
            "turn_1": {
                "Human": "<|Human|>: Hi<eoh>\n",
                "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                "Commands": "<|Commands|>: None<eoc>\n",
                "Tool Responses": "<|Results|>: None<eor>\n",
                "MOSS": "<|MOSS|>: Hello<eom>\n",
            }
        },
    },
    "moss002": {"prefix": META, "plain_text": "[Human]: Hi<eoh> [MOSS]: Hello<eoa>"},
    "messages": {
        "messages": [{"role": "system", "content": META}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    },
    "messages, text parts": {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "You are "}, {"type": "text", "text": "MOSS."}]},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "Hello", "weight": 1},
        ]
    },
    "sharegpt": {"system": META, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    "sharegpt, pairs": {"meta_instruction": META, "conversation": [{"human": "Hi", "assistant": "Hello"}]},
    "sharegpt, roles": {"system": META, "conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello", "system": META, "history": []},
    "prompt_completion": {"prompt": "Hi", "completion": "Hello", "system": META},
    "prompt_completion, blank": {"prompt": "Hi", "response": " Hello", "system": META},
    "prompt_completion, messages": {
        "prompt": [{"role": "system", "content": META}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Hello"}],
    },
}


def test_one_conversation_has_the_same_ids_and_loss_in_all_formats(tokenizer: MossTokenizer) -> None:
    expected = render(parse(SAME["moss003"], "x"), tokenizer)
    for name, record in SAME.items():
        dialogue = parse(record, "x")
        assert dialogue == parse(SAME["moss003"], "x"), name
        rendered = render(dialogue, tokenizer)
        assert (rendered.input_ids, rendered.loss_mask) == (expected.input_ids, expected.loss_mask), name
    assert {name.split(",")[0] for name in SAME} == set(FORMATS)


WITH_TOOL = {
    "moss003": {
        "meta_instruction": META,
        "chat": {
            "turn_1": {
                "Human": "<|Human|>: 2+3? And Paris?<eoh>\n",
                "Inner Thoughts": "<|Inner Thoughts|>: Two tools.<eot>\n",
                "Commands": '<|Commands|>: Calculate("2+3"), Search("Paris")<eoc>\n',
                "Tool Responses": '<|Results|>:\nCalculate("2+3") => 5\nSearch("Paris") =>\n<|1|>: \'city\'\n<eor>\n',
                "MOSS": "<|MOSS|>: 5; a city.<eom>\n",
                "untrained": ["Inner Thoughts", "Commands"],
            }
        },
    },
    "messages": {
        "messages": [
            {"role": "system", "content": "You are MOSS."},
            {"role": "user", "content": "2+3? And Paris?"},
            {
                "role": "assistant",
                "content": "Two tools.",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "Calculate", "arguments": '{"expression": "2+3"}'}},
                    {"id": "b", "type": "function", "function": {"name": "Search", "arguments": {"query": "Paris"}}},
                ],
                "weight": 0,
            },
            {"role": "tool", "tool_call_id": "b", "content": "<|1|>: 'city'"},
            {"role": "tool", "tool_call_id": "a", "content": "5"},
            {"role": "assistant", "content": "5; a city."},
        ]
    },
    "sharegpt": {
        "system": "You are MOSS.",
        "conversations": [
            {"from": "human", "value": "2+3? And Paris?"},
            {"from": "gpt", "value": "Two tools.", "train": False},
            {
                "from": "function_call",
                "value": '[{"name": "Calculate", "arguments": {"expression": "2+3"}}, {"name": "Search", "arguments": {"query": "Paris"}}]',
                "train": False,
            },
            {"from": "observation", "value": "5"},
            {"from": "observation", "value": "<|1|>: 'city'"},
            {"from": "gpt", "value": "5; a city."},
        ],
    },
}


def test_tool_calls_have_the_same_ids_and_loss_in_all_formats(tokenizer: MossTokenizer) -> None:
    dialogue = parse(WITH_TOOL["moss003"], "x")
    assert dialogue.turns[0].untrained == {"thoughts", "commands"}
    for name, record in WITH_TOOL.items():
        assert parse(record, "x") == dialogue, name
    rendered = render(dialogue, tokenizer)
    trained = {segment.kind for segment in rendered.segments if any(rendered.loss_mask[segment.start : segment.end])}
    assert trained == {"moss"}, "what has weight 0 carries no loss"


TOOL_TURN = parse(WITH_TOOL["moss003"], "x").turns[0]
ODD_TURN = Turn("x", None, " 1. Search(x", "\nNone\n", "y\n", frozenset({"moss"}))
PLAIN_TURN = Turn(" a", " None", " None", " None", " b")


@pytest.mark.parametrize("name", list(FORMATS))
def test_tables_which_give_all_rows_the_same_keys_change_nothing(name: str, tmp_path: Path) -> None:
    turns: list[tuple[Turn, ...]] = [(PLAIN_TURN,), (TOOL_TURN, PLAIN_TURN), (ODD_TURN,), (TOOL_TURN,), (PLAIN_TURN, PLAIN_TURN)]
    written = []
    for number, some in enumerate(turns):
        dialogue = Dialogue(str(number), META, some, "x" if number else None, "x")
        record, _ = write_if_held(dialogue, name)
        # A column holds texts or lists, not both.
        if record is not None and not isinstance(record.get("prompt"), str):
            written.append((dialogue, record))
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_struct_array(pa.array([record for _, record in written])), path)
    assert written
    read = [replace(parse(record.value, record.origin), origin="x") for record in read_records(path)]
    assert read == [dialogue for dialogue, _ in written]


def test_real_dialogues_come_back_from_every_format_that_holds_them(real_data: Path, tokenizer: MossTokenizer) -> None:
    found, problems = read_dialogues(str(real_data / "moss-003-sft-sample" / "*.jsonl"))
    assert not problems.counts
    held: Counter[str] = Counter()
    for number, dialogue in enumerate(found):
        expected = render(dialogue, tokenizer) if number % 25 == 0 else None
        for name in FORMATS:
            record, refusal = write_if_held(dialogue, name)
            if record is None:
                assert "cannot hold" in refusal
                continue
            held[name] += 1
            back = parse(json.loads(json.dumps(record)), dialogue.origin)
            assert back == dialogue
            if expected is not None:
                assert render(back, tokenizer).input_ids == expected.input_ids
                assert render(back, tokenizer).loss_mask == expected.loss_mask
    assert held["moss003"] == held["messages"] == held["sharegpt"] == len(found) == 1008
    assert held["alpaca"] == held["moss002"] == 558, "those without tools"
    assert held["prompt_completion"] == 180, "those of one turn"
