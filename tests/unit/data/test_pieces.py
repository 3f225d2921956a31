"""Counting pieces: what is counted, what is cut, and what happens when memory is short."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from moss_train.data.pieces import BASE_BYTES, MAX_RUN, MIN_MEMORY_BYTES, PieceCounter
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError

MUCH = 4 * 2**30


def counts(scripts: str, *texts: str, memory: int = MUCH) -> dict[str, int]:
    counter = PieceCounter(memory, scripts)
    for text in texts:
        counter.add(text)
    return counter.counts


def test_pieces_are_those_of_gpt2() -> None:
    assert counts("all", "It's 12  o'clock，中文abc\n") == {
        "It": 1, "'s": 1, " 12": 1, " ": 1, " o": 1, "'": 1, "clock": 1, "，": 1, "中文abc": 1, "\n": 1,
    }  # fmt: skip


def test_of_mixed_pieces_only_the_characters_of_the_script_count() -> None:
    assert counts("cjk", "使用Python的async语法。“好”——é", "no such thing, naïve “quotes”") == {
        "使用": 1,
        "的": 1,
        "语法": 1,
        "。": 1,
        "好": 1,
    }


def test_long_runs_are_cut() -> None:
    counter = PieceCounter(MUCH)
    counter.add("汉" * 10_000)
    assert counter.seen.cut == 1
    assert counter.counts == {"汉" * MAX_RUN: 10_000 // MAX_RUN, "汉" * (10_000 % MAX_RUN): 1}


def test_when_memory_is_short_the_counts_are_thinned_and_shares_stay() -> None:
    """A fifth of the pieces are the same; after thinning they still are about a fifth, and the report says how much was used."""
    draw = random.Random(3)
    letters = [chr(0x4E00 + number) for number in range(3000)]
    counter = PieceCounter(BASE_BYTES + 64 * 2**20, seed=1)
    for _ in range(60):
        pieces = ["".join(draw.choices(letters, k=60)) for _ in range(800)]
        counter.add("，".join(piece for pair in zip(pieces, ["常见词语"] * 200 + ["。"] * 600) for piece in pair))
    seen = counter.seen
    assert 1 / 16 <= seen.share <= 1 / 2
    assert seen.texts_used < seen.texts == 60
    expected = 60 * 200 * seen.share
    assert abs(counter.counts["常见词语"] - expected) < 0.25 * expected
    assert counter._table_bytes < 64 * 2**20


def test_thinning_depends_on_the_seed_and_the_texts_alone() -> None:
    draw = random.Random(4)
    texts = ["，".join("".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(50)) for _ in range(500)) for _ in range(400)]
    first, again = counts("cjk", *texts, memory=MIN_MEMORY_BYTES), counts("cjk", *texts, memory=MIN_MEMORY_BYTES)
    assert first == again
    assert len(first) < 400 * 500


def test_symbols_are_the_ids_of_the_tokenizer() -> None:
    tokenizer = MossTokenizer.train(["中文，中文，汉字"] * 3, 290)
    counter = PieceCounter(MUCH)
    counter.add("中文中文，汉字，汉字")
    expected = [(tokenizer.encode(piece), count) for piece, count in counter.counts.items()]
    pieces = counter.symbols(tokenizer)
    ends = np.flatnonzero(pieces.symbols[: pieces.used] < 0)
    found = [pieces.symbols[begin + 1 : end].tolist() for begin, end in itertools.pairwise(ends)]
    assert found == [ids for ids, _ in expected]
    assert [int(pieces.weights[begin + 1]) for begin in ends[:-1]] == [count for _, count in expected]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="GiB for learning merges; expected"):
        PieceCounter(2**20)
    with pytest.raises(UsageError, match="scripts='latin': expected one of cjk, all"):
        PieceCounter(MUCH, "latin")
