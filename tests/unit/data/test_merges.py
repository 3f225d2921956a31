"""Learning merges: the same as the trainer of `tokenizers`, exact counts, and continuing an existing vocabulary."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from moss_train.data.backend import BYTE_UNITS
from moss_train.data.extend import extend_tokenizer, text_tokens
from moss_train.data.merges import LONGEST_PIECE, Merge, Pieces, learn_merges
from moss_train.data.pieces import PATTERN, PieceCounter
from moss_train.data.tokenizer import MossTokenizer
from tests.codegen_base import write_vocabulary

# Byte-level BPE numbers the bytes by their printable stand-ins.
BYTE_TOKENS = [bytes([BYTE_UNITS[unit]]) for unit in sorted(BYTE_UNITS)]
BYTE_SYMBOLS = np.argsort([token[0] for token in BYTE_TOKENS]).astype(np.int32)


def learned(texts: list[str], count: int, min_count: int) -> list[tuple[int, int]]:
    counts = Counter(piece for text in texts for piece in PATTERN.findall(text))
    encoded = [piece.encode() for piece in counts]
    pieces = Pieces()
    pieces.add(
        BYTE_SYMBOLS[np.frombuffer(b"".join(encoded), dtype=np.uint8)],
        np.array([len(piece) for piece in encoded], dtype=np.int64),
        np.array(list(counts.values()), dtype=np.int64),
    )
    return [(merge.left, merge.right) for merge in learn_merges(pieces, BYTE_TOKENS, count, min_count)]


def reference(texts: list[str], count: int, min_count: int) -> list[tuple[int, int]]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, min_frequency=min_count, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


@pytest.mark.parametrize("seed", range(40))
def test_merges_equal_those_of_tokenizers(seed: int) -> None:
    """Few different letters give many ties, overlapping pairs (`aaa`), and tokens that two merges make."""
    draw = random.Random(seed)
    letters = ("ab", "aaab ", "abc 中文国", "a1 .中,")[seed % 4]
    texts = ["".join(draw.choice(letters) for _ in range(draw.randint(0, 80))) for _ in range(draw.randint(1, 40))]
    count, least = draw.choice([5, 50, 400]), draw.choice([1, 2, 3])
    assert learned(texts, count, least) == reference(texts, count, least)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="aab\n 中国é😀1", max_size=60), min_size=1, max_size=12), st.integers(1, 120))
def test_merges_equal_those_of_tokenizers_on_any_text(texts: list[str], count: int) -> None:
    assert learned(texts, count, 1) == reference(texts, count, 1)


def test_a_piece_counts_as_often_as_it_occurs() -> None:
    pieces = Pieces(4)  # too small: the arrays grow
    pieces.add(np.array([0, 1, 1, 2], dtype=np.int32), np.array([2, 2]), np.array([5, 7]))
    assert pieces.count(3).tolist() == [5, 12, 7]
    merges = learn_merges(pieces, [b"a", b"b", b"c"], 2)
    assert merges == [Merge(1, 2, 3, 7), Merge(0, 1, 4, 5)]
    assert pieces.count(5).tolist() == [0, 0, 0, 7, 5]


def test_learning_ends_where_no_pair_is_frequent_enough() -> None:
    pieces = Pieces()
    pieces.add(np.array([0, 1, 0, 1, 2, 2], dtype=np.int32), np.array([2, 4]), np.array([1, 1]))
    assert [merge.count for merge in learn_merges(pieces, [b"a", b"b", b"c"], 100, min_count=2)] == [2]
    assert learn_merges(Pieces(), [b"a"], 10) == []


def test_symbols_of_a_vocabulary_go_on_where_it_ended() -> None:
    """Tokenizing with the old merges and then with the new ones is what a tokenizer with both does."""
    texts = ["的是了的是了是了", "的是 了是了", "了的了的"]
    base = MossTokenizer.train(["plain English text, and more of it"], 300)
    ids = base.encode_batch(texts)
    pieces = Pieces()
    flat = np.array([token for piece in ids for token in piece], dtype=np.int32)
    pieces.add(flat, np.array([len(piece) for piece in ids]), np.ones(len(ids), dtype=np.int64))
    merges = learn_merges(pieces, text_tokens(base), 6)
    extended = extend_tokenizer(base, merges, trained=frozenset()).tokenizer
    standing = pieces.symbols[: pieces.used]
    assert standing[standing >= 0].tolist() == [token for piece in extended.encode_batch(texts) for token in piece]
    assert len(extended.encode(texts[0])) < len(ids[0])


def test_no_merge_reaches_across_an_added_token() -> None:
    """Runs of blanks have ids above those of the text, where the new tokens will be: pieces are divided at them."""
    indented = ["        ab\n" * 9 + "    fg\n" * 9]
    with tempfile.TemporaryDirectory() as name:
        used = write_vocabulary(Path(name), ["plain"], 0)
        base = MossTokenizer.load(name, vocab_size=used + 64)
    counter = PieceCounter(2**30, "all")
    counter.add(indented[0])
    assert max(base.encode(indented[0])) > len(text_tokens(base))
    pieces = counter.symbols(base)
    merges = learn_merges(pieces, text_tokens(base), 50, 2)
    assert {merge.token for merge in merges} == set(range(len(text_tokens(base)), len(text_tokens(base)) + len(merges)))
    made = extend_tokenizer(base, merges, trained=frozenset()).tokenizer
    assert {made.token_bytes(merge.token) for merge in merges} == {b"ab", b"fg", b" ab", b" fg"}
    assert made.decode(made.encode(indented[0])) == indented[0]


def test_pieces_that_are_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="cut pieces"):
        Pieces().add(np.zeros(LONGEST_PIECE + 1, dtype=np.int32), np.array([LONGEST_PIECE + 1]), np.array([1]))
