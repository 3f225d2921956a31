"""Every kind of bad row is reported by its file, line and kind before a model is built; what is legal by design is taken as it stands.

The kinds are a table: a good row before and after each, so that the line of the bad one is known and its neighbours are kept.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import zstandard

from moss_train.data.dialogue import Dialogue, meta_instruction, read_dialogues
from moss_train.data.records import MAX_LINE_BYTES
from moss_train.data.render import render, render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from tests.forked import forked

PLAIN = {"Human": "<|Human|>: hi<eoh>\n", "MOSS": "<|MOSS|>: hello<eom>\n"}
TURN = {
    "Human": "<|Human|>: 2+3?<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: easy<eot>\n",
    "Commands": '<|Commands|>: Calculate("2+3")<eoc>\n',
    "Tool Responses": '<|Results|>:\nCalculate("2+3") => 5\n<eor>\n',
    "MOSS": "<|MOSS|>: 5<eom>\n",
}
RECORD = {"conversation_id": 7, "meta_instruction": "Be MOSS.\n", "num_turns": 2, "chat": {"turn_1": TURN, "turn_2": PLAIN}}
GOOD = json.dumps(RECORD).encode()


def changed(path: str, value: Any = None) -> bytes:
    """The good row with one place set, or removed where the value is None."""
    record = copy.deepcopy(RECORD)
    *parents, last = path.split("/")
    place: Any = record
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(record, ensure_ascii=False).encode()


def human(text: str) -> bytes:
    return changed("chat/turn_2/Human", f"<|Human|>: {text}<eoh>\n")


BAD: dict[str, tuple[bytes, str]] = {
    # Lines that are not JSON, or JSON that would be read as something else than it says.
    "cut JSON": (GOOD[:60], "bad_json"),
    "single quotes": (GOOD.replace(b'"', b"'"), "bad_json"),
    "a second object": (GOOD + b" {}", "bad_json"),
    "a comma at the end": (GOOD[:-1] + b",}", "bad_json"),
    "a NUL in a text": (GOOD.replace(b"hello", b"hel\0lo"), "bad_json"),
    "a NUL alone": (b"\0", "bad_json"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, "byte_order_mark"),
    "a byte that is not UTF-8": (GOOD.replace(b"hello", b"hel\xfflo"), "not_utf8"),
    "Latin-1": (GOOD.replace(b"hello", "h\xe9llo".encode("latin-1")), "not_utf8"),
    "an array": (b"[1]", "not_an_object"),
    "a number": (b"3", "not_an_object"),
    "null": (b"null", "not_an_object"),
    "a text": (b'"chat"', "not_an_object"),
    "a key twice": (b'{"num_turns": 2, ' + GOOD[1:], "duplicate_key"),
    "NaN": (GOOD[:-1] + b', "score": NaN}', "not_a_number"),
    "Infinity": (GOOD[:-1] + b', "score": -Infinity}', "not_a_number"),
    "half a surrogate pair": (GOOD.replace(b"hello", b"\\ud83d"), "lone_surrogate"),
    "200,000 arrays in one another": (b"[" * 200_000 + b"]" * 200_000, "bad_json"),
    "5,000 digits": (GOOD[:-1] + b', "score": ' + b"9" * 5000 + b"}", "bad_json"),
    "a line above the limit": (b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}', "line_too_long"),
    # Objects that are not dialogues.
    "no chat": (changed("chat"), "unknown_format"),
    "a misspelt key": (GOOD.replace(b'"chat"', b'"chats"'), "unknown_format"),
    "an empty chat": (changed("chat", {}), "no_chat"),
    "chat as an array": (changed("chat", [TURN]), "no_chat"),
    "num_turns too big": (changed("num_turns", 3), "num_turns"),
    "num_turns too small": (changed("num_turns", 1), "num_turns"),
    "num_turns 0": (changed("num_turns", 0), "num_turns"),
    "num_turns as text": (changed("num_turns", "2"), "num_turns"),
    "num_turns with a fraction": (changed("num_turns", 2.5), "num_turns"),
    "num_turns negative": (changed("num_turns", -2), "num_turns"),
    "a gap between turns": (GOOD.replace(b'"turn_2"', b'"turn_3"'), "turn_numbers"),
    "a turn too many": (changed("chat/turn_0", PLAIN), "turn_numbers"),
    "a key that is no turn": (changed("chat/notes", PLAIN), "turn_numbers"),
    "a turn that is no object": (changed("chat/turn_2", "hi"), "turn_not_an_object"),
    "an unknown role": (changed("chat/turn_2/System", "<|System|>: x"), "unknown_role"),
    "a field that is no text": (changed("chat/turn_1/Human", 3), "field_not_text"),
    "a field that is null": (GOOD.replace(b'"<|MOSS|>: hello<eom>\\n"', b"null"), "field_not_text"),
    "a meta instruction that is no text": (changed("meta_instruction", ["x"]), "meta_not_text"),
    "an empty Human": (human(""), "empty_human"),
    "an empty MOSS": (changed("chat/turn_2/MOSS", "<|MOSS|>: <eom>\n"), "empty_moss"),
    "no MOSS": (changed("chat/turn_1/MOSS"), "no_reply"),
    "ends with Human": (changed("chat/turn_2/MOSS"), "no_reply"),
    "no Human": (changed("chat/turn_1/Human"), "no_human"),
    # Marks.
    "no marker": (changed("chat/turn_1/MOSS", "5<eom>\n"), "no_opening"),
    "the marker of another role": (changed("chat/turn_1/MOSS", "<|Human|>: 5<eom>\n"), "no_opening"),
    **{
        f"no {control}": (changed(f"chat/turn_1/{key}", TURN[key].replace(control, "")), "no_terminator")
        for key, control in zip(TURN, ("<eoh>", "<eot>", "<eoc>", "<eor>", "<eom>"), strict=True)
    },
    "the control of another role": (changed("chat/turn_1/MOSS", "<|MOSS|>: 5<eoh>\n"), "no_terminator"),
    "a control twice": (changed("chat/turn_1/MOSS", "<|MOSS|>: 5<eom>\n<eom>\n"), "doubled_terminator"),
    # Other formats: more of them in the tests of the formats.
    "messages without a reply": (b'{"messages": [{"role": "user", "content": "a"}]}', "no_reply"),
    "two messages of the user": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        "two_user_messages",
    ),
    "a tool that was not called": (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}',
        "tool_without_call",
    ),
    "an unknown message role": (b'{"conversations": [{"from": "bing", "value": "a"}]}', "unknown_role"),
    "the keys of two formats": (b'{"prompt": "a", "completion": "b", "messages": []}', "unknown_format"),
    "a misspelt key of a message": (b'{"messages": [{"role": "user", "contents": "a"}]}', "missing_key"),
}


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_row_is_told_with_its_line(tmp_path: Path, kind: str) -> None:
    row, code = BAD[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + row + b"\n" + GOOD + b"\n")
    with pytest.raises(DataError) as caught:
        read_dialogues(str(path))
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith("1 bad of 3 records:\n")
    assert f"{path}:2: {code}: " in message
    assert f"totals: {code} 1\n" in message
    assert len(message) < 2000, "a long row does not flood the terminal"
    dialogues, problems = read_dialogues(str(path), on_bad="skip", max_bad_share=0.5)
    assert [dialogue.origin for dialogue in dialogues] == [f"{path}:1", f"{path}:3"]
    assert problems.counts == {code: 1}


def test_all_kinds_in_one_file_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kinds = {kind: row for kind, row in BAD.items() if len(row[0]) < 500_000}
    path.write_bytes(b"\n".join(row for row, _ in kinds.values()))
    with pytest.raises(DataError) as caught:
        read_dialogues(str(path))
    first = list(kinds.values())[:20]
    assert [f"{path}:{line}: {code}: " in str(caught.value) for line, (_, code) in enumerate(first, 1)] == [True] * 20
    assert f"... and {len(kinds) - 20} more\ntotals: " in str(caught.value)
    _, problems = read_dialogues(str(path), on_bad="skip", max_bad_share=1.0)
    assert problems.counts == Counter(code for _, code in kinds.values())


def turns(dialogues: list[Dialogue]) -> list[str]:
    return [turn.human for dialogue in dialogues for turn in dialogue.turns]


ZERO_WIDTH = "<\u200b|MOSS|>: <eom\u200b> ＜|MOSS|＞"
LEGAL: dict[str, tuple[bytes, list[str]]] = {
    # Line ends and blanks.
    "CRLF": (GOOD + b"\r\n" + GOOD + b"\r\n", [" 2+3?", " hi"] * 2),
    "CRLF and LF": (GOOD + b"\r\n" + GOOD + b"\n", [" 2+3?", " hi"] * 2),
    "blank lines": (b"\n" + GOOD + b"\n \n\t\r\n" + GOOD + b"\n\n", [" 2+3?", " hi"] * 2),
    "no newline at the end": (GOOD, [" 2+3?", " hi"]),
    "U+2028 and U+0085 within a text": (human("a\u2028b\u0085c"), [" 2+3?", " a\u2028b\u0085c"]),
    # What may be missing or in another order.
    "no num_turns": (changed("num_turns"), [" 2+3?", " hi"]),
    "num_turns 2.0": (changed("num_turns", 2.0), [" 2+3?", " hi"]),
    "turns in another order": (
        json.dumps({**RECORD, "chat": {"turn_2": PLAIN, "turn_1": TURN}}).encode(),
        [" 2+3?", " hi"],
    ),
    # Text that looks like a mark is text; it is encoded apart from the marks.
    "a marker within Human": (human("say <|MOSS|>: x"), [" 2+3?", " say <|MOSS|>: x"]),
    "a marker in a code block": (human("```\n<|Human|>: <eoh>\n```"), [" 2+3?", " ```\n<|Human|>: <eoh>\n```"]),
    "a control within a text": (human("<eom> <|endoftext|> <eoh> x"), [" 2+3?", " <eom> <|endoftext|> <eoh> x"]),
    "look-alikes": (human(ZERO_WIDTH), [" 2+3?", f" {ZERO_WIDTH}"]),
    "control characters and direction marks": (human("\x1b[31m\u202e\x00"), [" 2+3?", " \x1b[31m\u202e\x00"]),
    # The published data has both.
    "an unknown tool": (changed("chat/turn_1/Commands", '<|Commands|>: Count("x")<eoc>\n'), [" 2+3?", " hi"]),
    "a quote left open in Commands": (changed("chat/turn_1/Commands", '<|Commands|>: Search("x)<eoc>\n'), [" 2+3?", " hi"]),
    # Names of conversations name nothing here.
    "a conversation_id twice, same content": (GOOD + b"\n" + GOOD, [" 2+3?", " hi"] * 2),
    "a conversation_id twice, other content": (GOOD + b"\n" + human("x"), [" 2+3?", " hi", " 2+3?", " x"]),
}


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    return MossTokenizer.train(["<|Human|>: <|MOSS|>: <eom> hello None Calculate"], 300)


@pytest.mark.parametrize("kind", LEGAL)
def test_what_is_legal_is_taken_as_it_stands(tmp_path: Path, kind: str, tokenizer: MossTokenizer) -> None:
    content, expected = LEGAL[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    dialogues, problems = read_dialogues(str(path))
    assert turns(dialogues) == expected
    assert not problems.counts
    for dialogue in dialogues:
        rendered = render(dialogue, tokenizer)
        controls = sum(token in tokenizer.special_ids for token in rendered.input_ids)
        segments = sum(segment.kind != "meta" for segment in rendered.segments)
        assert controls == segments, "text gives no control ids"


def test_a_missing_meta_instruction_is_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(changed("meta_instruction"))
    assert read_dialogues(str(path))[0][0].meta_instruction == meta_instruction()


def test_the_order_of_the_five_fields_changes_nothing(tmp_path: Path, tokenizer: MossTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + changed("chat/turn_1", dict(reversed(TURN.items()))))
    first, second = (render(dialogue, tokenizer) for dialogue in read_dialogues(str(path))[0])
    assert (first.input_ids, first.loss_mask) == (second.input_ids, second.loss_mask)


def test_marker_text_can_be_made_an_error(tmp_path: Path, tokenizer: MossTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + LEGAL["a marker within Human"][0])
    with pytest.raises(DataError, match=rf"{path}:2: marker_in_text: turn 2, human: the text holds '<\|MOSS\|>'"):
        render_all(read_dialogues(str(path))[0], tokenizer, on_marker="error")


def test_dialogues_that_are_too_long_are_counted(tmp_path: Path, tokenizer: MossTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    long = "x" * 500
    path.write_bytes(GOOD + b"\n" + human(long) + b"\n" + changed("chat/turn_1/Human", f"<|Human|>: {long}<eoh>\n"))
    rendered, counts = render_all(read_dialogues(str(path))[0], tokenizer, max_tokens=300)
    assert len(rendered) == counts["dialogues_rendered"] == 2
    assert counts["dialogues_shortened"] == counts["dialogues_dropped_first_turn_too_long"] == 1
    assert counts["turns_dropped_too_long"] == 3
    rendered, counts = render_all(read_dialogues(f"{path}#1")[0], tokenizer, loss_on="release", max_tokens=20)
    assert rendered == []
    assert counts["dialogues_dropped_first_turn_too_long"] == 1, "nothing is cut within a turn, so that no dialogue is left without labels"


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n"])
def test_a_file_without_records_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: no records"):
        read_dialogues(str(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
    path.write_bytes(pack((GOOD + b"\n") * 3)[:-3])
    with pytest.raises(DataError, match=r"rows\.jsonl\.\w+:\d: truncated_archive: "):
        read_dialogues(str(path))


@pytest.mark.slow
def test_a_run_ends_with_exit_3_before_a_model_is_built(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    kinds = ["cut JSON", "a key twice", "no <eom>", "no chat", "num_turns too big", "half a surrogate pair", "messages without a reply"]
    path.write_bytes(b"\n".join([GOOD, *(BAD[kind][0] for kind in kinds), GOOD]))
    result = forked(
        1, "scripts/sft.py", "+config=tiny_sft", f"data.train={path}", f"run.dir={tmp_path / 'run'}", f"data.cache={tmp_path / 'cache'}"
    )
    assert result.returncode == 3
    assert "Traceback" not in result.stdout + result.stderr
    for line, kind in enumerate(kinds, 2):
        assert f"{path}:{line}: {BAD[kind][1]}: " in result.stderr
    assert f"{len(kinds)} bad of {len(kinds) + 2} records" in result.stderr
    assert "weights:" not in result.stdout + result.stderr, "no model was built"


def test_the_published_data_has_no_bad_row(real_data: Path) -> None:
    dialogues, problems = read_dialogues(str(real_data / "moss-003-sft-sample" / "*.jsonl"))
    assert (len(dialogues), problems.counts) == (1008, Counter())
