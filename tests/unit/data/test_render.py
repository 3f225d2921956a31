"""Rendering: ids and loss mask against literals, against an independent oracle, and against tampering."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.packing import IGNORE_INDEX, Example, build_row
from moss_train.data.render import LOSS_POLICIES, Rendered, Segment, _encode, _parts, _Writer, fit_turns, render, render_all, render_prompt
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, UsageError

TINY = Dialogue(
    id="1",
    meta_instruction="Be.\n",
    turns=(Turn(" 2+3?", " sum", " C(2)", "\n5\n", " 5"), Turn(" hi", moss=" yo")),
    origin="tiny.jsonl:1",
)
# With one token a byte, one character below is one token; a control is one character of its own: h m t c r for <eoh> and the rest.
WIRE = [
    ("Be.\n", "meta"),
    ("<|Human|>: 2+3?h\n", "human"),
    ("<|Inner Thoughts|>: sumt\n", "thoughts"),
    ("<|Commands|>: C(2)c\n", "commands"),
    ("<|Results|>:\n5\nr\n", "results"),
    ("<|MOSS|>: 5m\n", "moss"),
    ("<|Human|>: hih\n", "human"),
    ("<|MOSS|>: yom\n", "moss"),
]
# '#' carries loss.
MASKS = {
    "generated": [
        "....",
        ".................",
        "...................######",
        ".............#######",
        ".................",
        ".........####",
        "...............",
        ".........#####",
    ],
    "reply": [
        "....",
        ".................",
        ".........................",
        "....................",
        ".................",
        ".........####",
        "...............",
        ".........#####",
    ],
    "release": [
        "....",
        "#################",
        "#########################",
        "####################",
        "############...##",
        "#############",
        "###############",
        "##############",
    ],
}


def spell(rendered: Rendered, tokenizer: MossTokenizer) -> str:
    """Ids as one character each: the letter of the control, else the byte's character."""
    letters = {tokenizer.eoh: "h", tokenizer.eom: "m", tokenizer.eot: "t", tokenizer.eoc: "c", tokenizer.eor: "r"}
    return "".join(letters.get(token_id) or tokenizer.token_bytes(token_id).decode("latin-1") for token_id in rendered.input_ids)


@pytest.mark.parametrize("policy", LOSS_POLICIES)
def test_a_tiny_dialogue_literally(byte_tokenizer: MossTokenizer, policy: str) -> None:
    rendered = render(TINY, byte_tokenizer, policy)
    assert spell(rendered, byte_tokenizer) == "".join(text for text, _ in WIRE)
    assert "".join(".#"[mark] for mark in rendered.loss_mask) == "".join(MASKS[policy])
    assert [segment.kind for segment in rendered.segments] == [kind for _, kind in WIRE]
    assert rendered.segments[0] == Segment("meta", -1, 0, 4, 0, 4, trained=False)
    assert rendered.segments[4] == Segment("results", 0, 66, 83, 78, 81, trained=False)
    assert rendered.segments[7] == Segment("moss", 1, 111, 125, 120, 123, trained=True)
    assert rendered.supervised_tokens == "".join(MASKS[policy]).count("#")
    assert rendered.origin == "tiny.jsonl:1"


def test_the_first_id_is_never_predicted(byte_tokenizer: MossTokenizer) -> None:
    """Without a meta instruction, `release` marks the very first id, which has nothing before it."""
    rendered, counts = render_all([replace(TINY, meta_instruction="")], byte_tokenizer, "release")
    assert rendered[0].loss_mask[0]
    targets = build_row([Example(rendered[0].input_ids, rendered[0].loss_mask)], 200).targets
    assert counts["supervised_tokens"] == rendered[0].supervised_tokens == (targets != IGNORE_INDEX).sum() == 118 - 1


def test_parts_encoded_apart_give_the_ids_of_the_whole_field(small_tokenizer: MossTokenizer) -> None:
    for field in (" 2+3?", " None", "\nNone\n", " 北京市有多少区？", "  two blanks", "\tTab"):
        ids = render(Dialogue("1", "", (Turn(field, moss=field),)), small_tokenizer).input_ids
        whole = [*small_tokenizer.encode(f"<|Human|>:{field}"), small_tokenizer.eoh, small_tokenizer.newline]
        whole += [*small_tokenizer.encode(f"<|MOSS|>:{field}"), small_tokenizer.eom, small_tokenizer.newline]
        assert ids == whole


CONTENT = st.lists(
    st.one_of(
        st.sampled_from(["<|MOSS|>:", "<|Human|>", "<eom>\n", "<eoh>", "<|Results|>: None", "<|endoftext|>", " ", "\n", "None", "区"]),
        st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
    ),
    min_size=1,
    max_size=5,
).map("".join)
OPTIONAL = st.none() | CONTENT
TURNS = st.lists(st.builds(Turn, CONTENT, OPTIONAL, OPTIONAL, OPTIONAL, CONTENT), min_size=1, max_size=3).map(tuple)
DIALOGUES = st.builds(Dialogue, st.just("1"), st.just("") | CONTENT, TURNS)

# The oracle's own table, written from the published format and not from the code.
ORACLE = [
    ("human", "<|Human|>:", "eoh", {"release": "oct", "generated": "", "reply": ""}),
    ("thoughts", "<|Inner Thoughts|>:", "eot", {"release": "oct", "generated": "ct", "reply": ""}),
    ("commands", "<|Commands|>:", "eoc", {"release": "oct", "generated": "ct", "reply": ""}),
    ("results", "<|Results|>:", "eor", {"release": "ot", "generated": "", "reply": ""}),
    ("moss", "<|MOSS|>:", "eom", {"release": "oct", "generated": "ct", "reply": "ct"}),
]


@given(dialogue=DIALOGUES, policy=st.sampled_from(sorted(LOSS_POLICIES)))
@settings(max_examples=300, deadline=None)
def test_any_dialogue_against_an_oracle(small_tokenizer: MossTokenizer, dialogue: Dialogue, policy: str) -> None:
    tokenizer = small_tokenizer
    expected: list[tuple[int, bool]] = [(token_id, False) for token_id in tokenizer.encode(dialogue.meta_instruction)]
    for turn in dialogue.turns:
        for name, opening, control, trained in ORACLE:
            text = getattr(turn, name)
            if text is not None:
                expected += [(token_id, "o" in trained[policy]) for token_id in tokenizer.encode(opening)]
                expected += [(token_id, "c" in trained[policy]) for token_id in tokenizer.encode(text)]
                expected += [(token_id, "t" in trained[policy]) for token_id in (getattr(tokenizer, control), tokenizer.newline)]
    rendered = render(dialogue, tokenizer, policy)
    assert list(zip(rendered.input_ids, rendered.loss_mask)) == expected

    controls = [position for position, token_id in enumerate(rendered.input_ids) if token_id in tokenizer.special_ids]
    assert controls == [segment.content_end for segment in rendered.segments if segment.kind != "meta"], "only terminators are controls"
    for segment in rendered.segments:
        text = dialogue.meta_instruction if segment.turn < 0 else getattr(dialogue.turns[segment.turn], segment.kind)
        assert tokenizer.decode(rendered.input_ids[segment.content_start : segment.content_end]) == text
    assert render_all([dialogue, dialogue], tokenizer, policy)[0] == [rendered, rendered] * bool(rendered.supervised_tokens)


@pytest.mark.parametrize("text", [" see <|MOSS|>: no", " <|Inner Thoughts|>", " end <eom>", " <|endoftext|>"])
def test_policies_for_markers_in_text(small_tokenizer: MossTokenizer, text: str) -> None:
    dialogue = replace(TINY, turns=(Turn(text, moss=" ok"),))

    def content(on_marker: str) -> str:
        rendered = render(dialogue, small_tokenizer, on_marker=on_marker)
        human = rendered.segments[1]
        return small_tokenizer.decode(rendered.input_ids[human.content_start : human.content_end])

    assert content("keep") == text
    assert content("space") == re.sub("<(?=[|e])", "< ", text)
    with pytest.raises(DataError, match=r"tiny.jsonl:1: marker_in_text: turn 1, human: the text holds '<"):
        content("error")
    for on_marker in ("error", "space"):
        assert render(TINY, small_tokenizer, on_marker=on_marker) == render(TINY, small_tokenizer)


def test_citations_are_no_markers(small_tokenizer: MossTokenizer) -> None:
    render(replace(TINY, turns=(Turn(" q", moss=" a <sup><|1|></sup>"),)), small_tokenizer, on_marker="error")


def test_whole_turns_are_dropped_from_the_end(byte_tokenizer: MossTokenizer) -> None:
    whole = render(TINY, byte_tokenizer)
    first_turn = 4 + sum(len(text) for text, _ in WIRE[1:6])
    for limit in range(first_turn, 126):
        rendered, counts = fit_turns(TINY, byte_tokenizer, "generated", limit)
        assert rendered is not None
        kept = first_turn if limit < 125 else 125
        assert rendered.input_ids == whole.input_ids[:kept]
        assert rendered.loss_mask == whole.loss_mask[:kept]
        assert rendered.segments == [segment for segment in whole.segments if segment.end <= kept]
        assert counts["turns_dropped_too_long"] == counts["dialogues_shortened"] == (limit < 125)
        assert counts["tokens"] + counts["tokens_dropped"] == 125
        assert counts["supervised_tokens"] + counts["supervised_tokens_dropped"] == whole.supervised_tokens

    rendered, counts = fit_turns(TINY, byte_tokenizer, "generated", first_turn - 1)
    assert rendered is None
    assert counts == {
        "dialogues": 1,
        "dialogues_dropped_first_turn_too_long": 1,
        "turns": 2,
        "turns_dropped_too_long": 2,
        "tokens_dropped": 125,
        "supervised_tokens_dropped": whole.supervised_tokens,
    }


def test_counts_of_many(byte_tokenizer: MossTokenizer) -> None:
    silent = replace(TINY, turns=(Turn(" hi", thoughts=" t"),))
    long = replace(TINY, turns=(Turn(" x" * 200, moss=" y"),))
    rendered, counts = render_all([TINY, silent, long, TINY], byte_tokenizer, "reply", 110)
    assert len(rendered) == 2
    assert counts["dialogues"] == 4
    assert counts["dialogues_rendered"] == counts["dialogues_shortened"] == 2
    assert counts["dialogues_dropped_no_loss"] == counts["dialogues_dropped_first_turn_too_long"] == 1
    assert counts["turns"] == 6
    assert counts["turns_dropped_too_long"] == 3
    assert counts["tokens"] == sum(len(item.input_ids) for item in rendered)


def test_prompts_end_with_the_opening(byte_tokenizer: MossTokenizer) -> None:
    open_turn = replace(TINY, turns=(Turn(" hi", thoughts=" hm"),))
    ids = render_prompt(open_turn, byte_tokenizer, "commands")
    assert byte_tokenizer.decode(ids) == "Be.\n<|Human|>: hi<eoh>\n<|Inner Thoughts|>: hm<eot>\n<|Commands|>:"
    with pytest.raises(UsageError, match="results"):
        render_prompt(open_turn, byte_tokenizer, "results")


def test_the_checks_find_tampering(byte_tokenizer: MossTokenizer) -> None:
    """Each promise about a row, broken by hand."""
    parts = _parts(TINY, "keep", 0)
    encoded = _encode([part.text for part in parts], byte_tokenizer)
    writer = _Writer(byte_tokenizer, "generated")
    good = writer.write(parts, encoded, TINY.origin)

    def flipped(position: int) -> list[bool]:
        return [mark != (place == position) for place, mark in enumerate(good.loss_mask)]

    def other(position: int, token_id: int) -> list[int]:
        return [token_id if place == position else kept for place, kept in enumerate(good.input_ids)]

    def moved(**change: int) -> list[Segment]:
        return [*good.segments[:4], good.segments[4]._replace(**change), *good.segments[5:]]

    tampered = {
        "the terminator of turn 1, moss has the wrong loss": replace(good, loss_mask=flipped(94)),
        "the content of turn 1, human has the wrong loss": replace(good, loss_mask=flipped(15)),
        "the opening of turn 1, moss has the wrong loss": replace(good, loss_mask=flipped(83)),
        "does not begin with its opening": replace(good, input_ids=other(5, 9)),
        "does not hold its content": replace(good, input_ids=other(16, 9)),
        "does not end with its terminator": replace(good, input_ids=other(19, byte_tokenizer.eom)),
        "does not follow its predecessor": replace(good, segments=moved(start=67)),
        "a segment is missing": replace(good, segments=good.segments[:-1]),
        "do not cover all ids": replace(good, input_ids=[*good.input_ids, 1], loss_mask=[*good.loss_mask, False]),
        "loss marks": replace(good, loss_mask=good.loss_mask[:-1]),
    }
    for promise, row in tampered.items():
        with pytest.raises(DataError, match=rf"tiny.jsonl:1: rendering went wrong: .*{promise}"):
            writer.check(row, parts, encoded)

    forged = {**encoded, " 5": [byte_tokenizer.eom]}
    with pytest.raises(DataError, match="has a control token in its content"):
        writer.write(parts, forged, TINY.origin)


def test_unknown_names_are_refused(byte_tokenizer: MossTokenizer) -> None:
    with pytest.raises(UsageError, match="expected one of generated, reply, release"):
        render(TINY, byte_tokenizer, "assistant")
    with pytest.raises(UsageError, match="expected one of keep, space, error"):
        render(TINY, byte_tokenizer, on_marker="drop")
    with pytest.raises(DataError, match="no turns"):
        render(replace(TINY, turns=()), byte_tokenizer)
