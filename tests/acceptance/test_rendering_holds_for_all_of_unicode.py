"""Whatever characters a dialogue is made of: no content yields a control, ids decode to the text, spans cover the contents, and packing
loses no token."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue, Turn
from moss_train.data.loader import RowDataset
from moss_train.data.packing import IGNORE_INDEX
from moss_train.data.render import render, render_all
from moss_train.data.tokenizer import CONTROL_TOKENS, ENDOFTEXT, MossTokenizer

TEXTS = [
    "<|Human|>: hello <eoh> <|MOSS|>: hello there <eom> <|endoftext|> <|reserved_0|>",
    "北京市有多少区？北京市有十六个区。",
    "def add(a, b):\n\treturn a + b\n",
] * 4
MARKERS = [
    *CONTROL_TOKENS,
    ENDOFTEXT,
    "<|reserved_3|>",
    *(kind.opening for kind in SEGMENT_KINDS),
    "<eo",
    "m>",
    "<|",
    "|>",
    "\u2028",
    "\x00",
]


@pytest.fixture(scope="module")
def tokenizer() -> MossTokenizer:
    """Small, with merges across markers."""
    return MossTokenizer.train(TEXTS, 700)


def test_every_character_comes_back_and_none_is_a_control(tokenizer: MossTokenizer) -> None:
    """All 1,112,064 code points that text can hold, each in one of the texts."""
    points = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF]
    texts = ["".join(map(chr, points[start : start + 61])) for start in range(0, len(points), 61)]
    encoded = tokenizer.encode_batch(texts)
    assert tokenizer.decode_batch(encoded) == texts
    for ids in encoded:
        assert tokenizer.special_ids.isdisjoint(ids)


content = st.lists(st.one_of(st.text(max_size=12), st.sampled_from(MARKERS)), min_size=1, max_size=5).map("".join)
# What a dialogue cannot be without.
said = content.filter(lambda text: bool(text.strip()))
names = st.frozensets(st.sampled_from(["thoughts", "commands", "moss"]))
turns = st.builds(Turn, said, st.none() | content, st.none() | content, st.none() | content, said, names)
dialogues = st.builds(Dialogue, st.just("id"), content | st.just(""), st.lists(turns, min_size=1, max_size=3).map(tuple))


@given(dialogues, st.sampled_from(["generated", "reply", "release"]))
@settings(max_examples=300, deadline=None)
def test_spans_cover_contents_and_decode_to_them(tokenizer: MossTokenizer, dialogue: Dialogue, loss_on: str) -> None:
    rendered = render(dialogue, tokenizer, loss_on)
    ids = rendered.input_ids
    texts = [("meta", -1, dialogue.meta_instruction)] if dialogue.meta_instruction else []
    for number, turn in enumerate(dialogue.turns):
        texts += [(kind.name, number, text) for kind in SEGMENT_KINDS if (text := getattr(turn, kind.name)) is not None]
    position = 0
    for segment, (kind, number, text) in zip(rendered.segments, texts, strict=True):
        assert (segment.kind, segment.turn, segment.start) == (kind, number, position)
        assert tokenizer.decode(ids[segment.content_start : segment.content_end]) == text
        assert tokenizer.special_ids.isdisjoint(ids[segment.content_start : segment.content_end])
        position = segment.end
    assert position == len(ids) == len(rendered.loss_mask)
    controls = sum(kind != "meta" for kind, _, _ in texts)
    assert sum(token in tokenizer.special_ids for token in ids) == controls, "one control a segment, where it ends, and no other"


@given(st.lists(dialogues, min_size=1, max_size=12), st.sampled_from([64, 256]))
@settings(max_examples=60, deadline=None)
def test_packing_loses_no_token(tokenizer: MossTokenizer, made: list[Dialogue], seq_len: int) -> None:
    """Rows hold each document once: its tokens in their order, its targets where they carry loss, nothing of another one between."""
    rendered, counts = render_all(made, tokenizer, "generated", seq_len)
    assert counts["dialogues"] == len(made)
    if not rendered:
        return
    rows = RowDataset(rendered, seq_len, 0, pad_id=tokenizer.endoftext)
    seen = []
    for index in range(len(rows)):
        row = rows.row(index)
        start = 0
        for number, length in zip(rows.documents_of(index), row.doc_lengths, strict=True):
            document, span = rendered[number], slice(start, start + length)
            assert row.input_ids[span].tolist() == document.input_ids[:-1]
            expected = np.where(document.loss_mask[1:], document.input_ids[1:], IGNORE_INDEX)
            assert row.targets[span].tolist() == expected.tolist()
            assert row.position_ids[span].tolist() == list(range(length))
            seen.append(number)
            start += length
        assert start == len(row.input_ids) <= seq_len
    assert sorted(seen) == list(range(len(rendered)))
    assert rows.supervised_tokens == counts["supervised_tokens"]
