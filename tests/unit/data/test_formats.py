"""Records in the formats of others: what is taken, what is refused and how that is said, and tool calls."""

from __future__ import annotations

from typing import Any

import pytest

from moss_train.data.dialogue import BY_MOSS, Dialogue, Turn, meta_instruction
from moss_train.data.formats import FORMATS, detect, parse, write
from moss_train.data.formats.calls import Call, read_commands, read_results, write_commands, write_results
from moss_train.data.records import RecordError
from moss_train.errors import DataError, UsageError

USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "Search", "arguments": '{"query": "q"}'}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "r"}


def messages(*items: Any, **more: Any) -> dict[str, Any]:
    return {"messages": list(items), **more}


def calling(**changes: Any) -> dict[str, Any]:
    return {**CALLING, **changes}


def function(name: Any, arguments: Any) -> dict[str, Any]:
    return calling(tool_calls=[{"function": {"name": name, "arguments": arguments}}])


def sharegpt(*items: Any, **more: Any) -> dict[str, Any]:
    return {"conversations": list(items), **more}


def said(who: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"from": who, "value": value, **more}


def turn_of(record: Any) -> Turn:
    (turn,) = parse(record, "x").turns
    return turn


SEARCHED = ' Search("q")', '\nSearch("q") =>\nr\n'


@pytest.mark.parametrize(
    ("record", "turn"),
    [
        (messages(USER, REPLY), Turn(" a", " None", " None", " None", " b")),
        (messages(USER, {**REPLY, "reasoning_content": "t"}), Turn(" a", " t", " None", " None", " b")),
        (messages(USER, {**REPLY, "tool_calls": None, "weight": None}), Turn(" a", " None", " None", " None", " b")),
        (messages(USER, {**REPLY, "weight": 0}), Turn(" a", " None", " None", " None", " b", BY_MOSS)),
        (messages(USER, CALLING, RESULT, REPLY), Turn(" a", " None", *SEARCHED, " b")),
        (messages(USER, calling(content="t"), RESULT, REPLY), Turn(" a", " t", *SEARCHED, " b")),
        (messages(USER, calling(content="t", reasoning_content="s"), RESULT, REPLY), Turn(" a", " s\nt", *SEARCHED, " b")),
        (messages(USER, calling(weight=0), RESULT, REPLY), Turn(" a", " None", *SEARCHED, " b", frozenset({"thoughts", "commands"}))),
        (messages(USER, CALLING, RESULT, {**REPLY, "train": False}), Turn(" a", " None", *SEARCHED, " b", frozenset({"moss"}))),
        (
            messages(
                USER,
                calling(tool_calls=None, function_call={"name": "Search", "arguments": {"query": "q"}}),
                {**RESULT, "role": "function"},
                REPLY,
            ),
            Turn(" a", " None", *SEARCHED, " b"),
        ),
        (
            messages(USER, function("now", ""), {"role": "tool", "content": ""}, REPLY),
            Turn(" a", " None", " now({})", "\nnow({}) =>\n\n", " b"),
        ),
        (sharegpt(said("human", "a"), said("gpt", "b", weight=0)), Turn(" a", " None", " None", " None", " b", BY_MOSS)),
        (
            sharegpt(
                said("user", "a"),
                said("assistant", "t"),
                said("function_call", '{"name": "Search", "arguments": {"query": "q"}}'),
                said("tool", "r"),
                said("gpt", "b"),
            ),
            Turn(" a", " t", *SEARCHED, " b"),
        ),
        ({"instruction": "a", "input": "more", "output": "b"}, Turn(" a\nmore", " None", " None", " None", " b")),
        ({"prompt": [USER], "completion": [CALLING, RESULT, REPLY]}, Turn(" a", " None", *SEARCHED, " b")),
    ],
)
def test_what_records_mean(record: Any, turn: Turn) -> None:
    assert turn_of(record) == turn
    assert parse(record, "x").meta_instruction == meta_instruction()


def test_keys_of_others_are_left_alone() -> None:
    assert turn_of(messages({**USER, "name": "Ann"}, {**REPLY, "refusal": None}, tools=[], source="web")) == turn_of(messages(USER, REPLY))


def test_who_speaks_earlier_in_a_prompt_carries_no_loss() -> None:
    dialogue = parse({"prompt": [USER, REPLY, USER], "completion": [REPLY]}, "x")
    assert [turn.untrained for turn in dialogue.turns] == [BY_MOSS, frozenset()]
    history = parse({"instruction": "c", "output": "d", "history": [["a", "b"]]}, "x")
    assert [(turn.human, turn.moss, turn.untrained) for turn in history.turns] == [(" a", " b", frozenset()), (" c", " d", frozenset())]


def test_meta_instructions_and_names() -> None:
    system = {"role": "system", "content": "S"}
    assert parse(messages(system, USER, REPLY), "x").meta_instruction == "S\n"
    assert parse(messages({**system, "content": ""}, USER, REPLY), "x").meta_instruction == "", "an empty one is meant"
    assert parse(messages(USER, REPLY), "x", default_meta="M").meta_instruction == "M"
    assert parse(messages(USER, REPLY, meta_instruction="exactly"), "x").meta_instruction == "exactly"
    with pytest.raises(RecordError, match="two_meta_instructions"):
        parse(messages(system, USER, REPLY, meta_instruction="exactly"), "x")
    named = parse(messages(USER, REPLY, id=7, category="tool"), "x")
    assert (named.id, named.category, parse(messages(USER, REPLY), "x").id) == ("7", "tool", "x")


@pytest.mark.parametrize(
    ("record", "code", "text"),
    [
        ({"mesages": []}, "unknown_format", "did you mean 'messages' where 'mesages' stands"),
        ({"instruction": "a", "ouput": "b"}, "unknown_format", "did you mean 'output' where 'ouput' stands"),
        ({"text": "a"}, "unknown_format", "keys found: text). Expected moss003: chat; moss002: plain_text; messages: messages; sharegpt"),
        ({"prompt": "a", "completion": "b", "messages": [USER, REPLY]}, "unknown_format", "keys of messages and of prompt_completion"),
        (messages(), "no_turns", "messages is an empty array"),
        (messages({"role": "system", "content": "s"}), "no_turns", "no message of a user"),
        ({"messages": "a"}, "no_turns", "messages is text ('a')"),
        (messages("a"), "message_not_an_object", "messages[0] is text"),
        (messages({"rôle": "user"}), "missing_key", "did you mean 'role' where 'rôle' stands"),
        (messages({"role": "bot", "content": "a"}), "unknown_role", "messages[0] has the role text ('bot')"),
        (messages(USER, {"role": "assistant"}), "missing_key", "messages[1] has no 'content'"),
        (messages(USER, {"role": "assistant", "content": 3}), "field_not_text", "messages[1], content is a number (3)"),
        (messages({"role": "user", "content": [{"type": "image_url"}]}), "field_not_text", "'image_url'"),
        (messages({"role": "user", "content": " "}, REPLY), "empty_human", "messages[0]"),
        (messages(USER, {"role": "assistant", "content": ""}), "empty_moss", "messages[1]"),
        (messages(USER, USER), "two_user_messages", "messages[1] is of the user"),
        (messages(USER), "no_reply", "no reply follows messages[0]"),
        (messages(USER, CALLING, RESULT), "no_reply", "no reply follows messages[1]"),
        (messages(REPLY), "no_human", "messages[0] is of the assistant"),
        (messages(USER, REPLY, REPLY), "no_human", "messages[2]"),
        (messages(USER, REPLY, {"role": "system", "content": "s"}), "system_not_first", "messages[2]"),
        (messages(USER, RESULT, REPLY), "tool_without_call", "messages[1]"),
        (messages(USER, REPLY, RESULT), "tool_without_call", "messages[2]"),
        (messages(USER, CALLING, REPLY), "missing_tool_result", "messages[1] makes 1 calls, and 0 results follow"),
        (messages(USER, CALLING, RESULT, RESULT, REPLY), "missing_tool_result", "2 results"),
        (messages(USER, CALLING, {**RESULT, "tool_call_id": "9"}, REPLY), "unknown_tool_call", "messages[2] answers the call '9'"),
        (messages(USER, CALLING, RESULT, CALLING, RESULT, REPLY), "several_tool_rounds", "messages[3]"),
        (messages(USER, CALLING, RESULT, {**REPLY, "reasoning_content": "t"}), "thoughts_after_results", "messages[3]"),
        (messages(USER, calling(tool_calls=["x"]), RESULT, REPLY), "bad_tool_call", "messages[1], tool_calls[0] is text"),
        (messages(USER, calling(tool_calls={}), RESULT, REPLY), "bad_tool_call", "tool_calls is an object"),
        (messages(USER, function("a b", {}), RESULT, REPLY), "bad_tool_call", "the name text ('a b')"),
        (messages(USER, function("a", "{"), RESULT, REPLY), "bad_tool_arguments", "arguments of a: "),
        (messages(USER, function("a", '{"x": 1, "x": 2}'), RESULT, REPLY), "bad_tool_arguments", "occurs twice"),
        (messages(USER, function("a", "[1]"), RESULT, REPLY), "bad_tool_arguments", "an array"),
        (messages(USER, {**REPLY, "weight": 0.5}), "bad_weight", "weight is a number (0.5)"),
        (messages(USER, {**REPLY, "moss_exact": {"MOSS": "other"}}), "exact_differs", "another text for MOSS"),
        (messages(USER, {**REPLY, "moss_exact": {"Comands": "x"}}), "unknown_role", "did you mean 'Commands'"),
        (messages(USER, {**REPLY, "moss_exact": {"absent": ["MOSS"]}}), "bad_segments", "some of Inner Thoughts, Commands, Tool Responses"),
        (sharegpt({"from": "human"}), "missing_key", "conversations[0] has no 'value'"),
        (sharegpt({"form": "human", "value": "a"}), "missing_key", "did you mean 'from' where 'form' stands"),
        (sharegpt(said("bing", "a")), "unknown_role", "conversations[0] is from text ('bing')"),
        (sharegpt(said("gpt", "a"), said("human", "b")), "no_human", "conversations[0]"),
        (sharegpt(said("human", "a"), said("function_call", "Search(q)")), "bad_tool_call", "value of a function_call"),
        (
            sharegpt(said("human", "a"), said("gpt", "t", weight=0), said("function_call", '{"name": "f"}')),
            "bad_weight",
            "one step of the assistant",
        ),
        (sharegpt(said("human", "a"), said("gpt", "b"), system=3), "meta_not_text", "system is a number"),
        ({"conversation": [{"human": "a"}]}, "missing_key", "conversation[0] has no 'assistant'"),
        ({"instruction": "", "output": "b"}, "empty_human", "what the human says"),
        ({"instruction": "a", "output": ""}, "empty_moss", "the reply"),
        ({"instruction": "a", "output": ["b"]}, "field_not_text", "output is an array"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "no_turns", "history[0]"),
        ({"prompt": "a", "completion": ["b"]}, "field_not_text", "completion is an array"),
        ({"prompt": [USER], "completion": "b"}, "no_turns", "completion is text"),
        ({"plain_text": ""}, "no_turns", "plain_text is empty"),
        ({"plain_text": "Human: a"}, "no_opening", "turn 1 has no '[Human]:'"),
        ({"plain_text": "[Human]: a [MOSS]: b<eoa>"}, "no_terminator", "turn 1 has no '<eoh>'"),
        ({"plain_text": "[Human]: a<eoh> [MOSS]: b<eoa> [Human]: c<eoh>"}, "no_reply", "turn 2 has no '[MOSS]:'"),
        ({"plain_text": "[Human]: a<eoh> [MOSS]: b"}, "no_terminator", "turn 1 has no '<eoa>'"),
        ({"plain_text": "[Human]: a<eoh> [MOSS]: b<eoa>", "num_turns": 2}, "num_turns", "plain_text has 1 turns"),
        ({"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "MOSS": "<|MOSS|>: b<eom>", "train": 0}}}, "bad_weight", "true or false"),
        (
            {"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "MOSS": "<|MOSS|>: b<eom>", "untrained": ["Human"]}}},
            "bad_segments",
            "some of",
        ),
        ({"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>", "Mos": "<|MOSS|>: b<eom>"}}}, "unknown_role", "did you mean 'MOSS'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_record_is_refused_with_what_where_and_what_to_do(record: Any, code: str, text: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse(record, "data.jsonl:12")
    assert str(caught.value).startswith(f"data.jsonl:12: {code}: ")
    assert text in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, "x", [USER]])
@pytest.mark.parametrize("name", ["auto", *FORMATS])
def test_a_record_that_is_no_object(value: Any, name: str) -> None:
    with pytest.raises(RecordError, match="not_an_object"):
        parse(value, "x", name)


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_record_without_the_keys_of_its_format(name: str) -> None:
    with pytest.raises(RecordError, match="no_chat" if name == "moss003" else "missing_key"):
        parse({}, "x", name)


def test_names_of_formats() -> None:
    with pytest.raises(UsageError, match="expected auto or one of moss003, moss002, messages"):
        parse(messages(USER, REPLY), "x", "openai")
    with pytest.raises(UsageError):
        write(parse(messages(USER, REPLY), "x"), "openai")
    assert [detect(record, "x") for record in (messages(USER), sharegpt(), {"conversation": []}, {"chat": {}})] == [
        "messages",
        "sharegpt",
        "sharegpt",
        "moss003",
    ]


@pytest.mark.parametrize(
    ("record", "name", "turns"),
    [
        (messages(USER), "auto", 1),
        (messages(USER, REPLY, USER), "auto", 2),
        (sharegpt(said("human", "a")), "auto", 1),
        ({"conversation": [{"human": "a"}]}, "auto", 1),
        ({"plain_text": "[Human]: a<eoh> [MOSS]:"}, "auto", 1),
        ({"instruction": "a"}, "alpaca", 1),
        ({"prompt": "a"}, "prompt_completion", 1),
        ({"prompt": [USER]}, "prompt_completion", 1),
    ],
)
def test_prompts_may_end_before_the_reply(record: Any, name: str, turns: int) -> None:
    dialogue = parse(record, "x", name, open_end=True)
    assert len(dialogue.turns) == turns
    assert dialogue.turns[-1] == Turn(" a")


def test_results_of_a_prompt_are_kept() -> None:
    assert parse(messages(USER, CALLING, RESULT), "x", open_end=True).turns == (Turn(" a", " None", *SEARCHED),)


@pytest.mark.parametrize(
    ("turns", "name", "said"),
    [
        ([Turn(" a", " t", " None", " None", " b")], "alpaca", "the Inner Thoughts of turn 1 (' t')"),
        ([Turn(" a", " None", " x", " None", " b")], "moss002", "the Commands of turn 1"),
        ([Turn(" a", None, " None", " None", " b")], "alpaca", "lacks the segment Inner Thoughts"),
        ([Turn("a", " None", " None", " None", " b")], "alpaca", "begins without a blank"),
        ([Turn(" a", " None", " None", " None", " b", frozenset({"moss"}))], "alpaca", "carries no loss on MOSS"),
        ([Turn(" a<eoh>", " None", " None", " None", " b")], "moss002", "'<eoh>' within turn 1"),
        ([Turn(" a", " None", " None", " None", " b")] * 2, "prompt_completion", "loss on turn 1 of 2"),
        ([Turn(" a")], "messages", "turn 1, which has no reply"),
    ],
)
def test_what_a_format_cannot_hold_is_named(turns: list[Turn], name: str, said: str) -> None:
    with pytest.raises(DataError, match=f"the format {name} cannot hold") as caught:
        write(Dialogue("1", "M\n", tuple(turns), None, "d.jsonl:3"), name)
    assert said in str(caught.value)
    assert str(caught.value).startswith("d.jsonl:3: ")


def test_commands_that_are_no_calls_are_kept_beside_the_messages() -> None:
    turn = Turn(" a", " t", ' 1. Calculate("2") # so', "\nNone\n", " b")
    record = write(Dialogue("1", "M\n", (turn,), None, "x"), "messages")
    assert record["messages"][-1]["moss_exact"] == {"Commands": ' 1. Calculate("2") # so', "Tool Responses": "\nNone\n"}
    assert turn_of(record) == turn


@pytest.mark.parametrize(
    ("calls", "content"),
    [
        ([Call("Search", {"query": "a, b"}), Call("Calculate", {"expression": "1"})], ' Search("a, b"), Calculate("1")'),
        ([Call("Search", {"query": 'say "x"'})], ' Search({"query": "say \\"x\\""})'),
        ([Call("f", {"input": "a"}), Call("g", {"x": "a"}), Call("h", {})], ' f("a"), g({"x": "a"}), h({})'),
        ([Call("Search", {"text": "é"})], ' Search({"text": "é"})'),
        ([Call("f", {"input": 1})], ' f({"input": 1})'),
        ([Call("f", {"input": "a", "n": [1, None, {"b": 0.5}]})], ' f({"input": "a", "n": [1, null, {"b": 0.5}]})'),
    ],
)
def test_calls_and_commands(calls: list[Call], content: str) -> None:
    assert write_commands(calls) == content
    assert read_commands(content) == calls
    results = ["one\n", "", "\nthree"][: len(calls)]
    assert read_results(write_results(calls, results), calls) == results


@pytest.mark.parametrize(
    "content",
    [
        " None",
        "",
        " ",
        'Search("a")',
        ' Search("a"),Search("b")',
        ' Search("a"), ',
        ' Search("a"',
        ' Search({"query": "a"})',
        " f({)",
        ' f("a") ',
    ],
)
def test_what_is_no_list_of_calls(content: str) -> None:
    assert read_commands(content) is None


def test_results_stand_behind_their_calls() -> None:
    calls = [Call("Calculate", {"expression": "1"}), Call("Search", {"query": "q"})]
    assert (
        write_results(calls, ["'1'", "<|1|>: 'x'\n<|2|>: 'y'"]) == "\nCalculate(\"1\") => '1'\nSearch(\"q\") =>\n<|1|>: 'x'\n<|2|>: 'y'\n"
    )
    for content in ("", "\n", " None", "\nNone\n", '\nCalculate("1") => 1\n', '\nCalculate("1") => 1\nSearch("q") =>\nx'):
        assert read_results(content, calls) is None
