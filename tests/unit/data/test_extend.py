"""An extended tokenizer: where every id went, that old text keeps its ids, and that no text yields a control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.extend import Extension, extend_tokenizer, text_tokens, tokens_of
from moss_train.data.merges import learn_merges
from moss_train.data.pieces import PieceCounter
from moss_train.data.tokenizer import CONTROL_TOKENS, MossTokenizer
from moss_train.errors import DataError, UsageError
from tests.codegen_base import BLANKS, write_vocabulary

CHINESE = ["今天天气很好，我们去公园散步。", "人工智能的发展很快，人工智能模型很好。", "我们今天学习人工智能。"]
ENGLISH = ["def main():\n    return  1\n", "the weather is good today, the model is good", "for x in range(10):\n\t\tprint(x)\n"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_vocabulary(folder, ENGLISH * 3, 60)
    return folder


def extend(folder: Path, new_tokens: int, **options: object) -> tuple[MossTokenizer, Extension]:
    tokenizer = MossTokenizer.load(folder)
    counter = PieceCounter(2**30)
    for text in CHINESE:
        counter.add(text)
    pieces = counter.symbols(tokenizer)
    merges = learn_merges(pieces, text_tokens(tokenizer), new_tokens, 2)
    return tokenizer, extend_tokenizer(tokenizer, merges, trained=tokens_of(folder), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def extended(base: Path) -> MossTokenizer:
    return extend(base, 12)[1].tokenizer


def test_ids_lie_as_in_moss(base: Path) -> None:
    """Text, end of text, blanks, controls, tags: in the places that the published vocabulary has them, counted from the end of the text."""
    old, extension = extend(base, 12)
    new, end = extension.tokenizer, len(text_tokens(old)) + 12
    assert new.endoftext == end
    assert [new.encode(run) for run in BLANKS] == [[end + 1 + place] for place in range(38)]
    assert [new.control_ids[name] for name in CONTROL_TOKENS] == [end + 39 + place for place in range(5)]
    assert new.tag_ids == list(range(end + 44, end + 60))
    assert new.size == end + 60
    assert new.vocab_size % 128 == 0
    moved = extension.new_ids
    assert moved[: end - 12].tolist() == list(range(end - 12))
    assert moved[old.endoftext] == end
    assert [moved[old.encode(run)[0]] for run in BLANKS] == [end + 1 + place for place in range(38)]
    assert extension.old_ids[new.endoftext] == old.endoftext
    assert extension.old_ids[new.eom] == -1  # the model has no row of its own for it


def test_the_published_layout_follows_from_the_published_sizes() -> None:
    """50,257 + 38 ids and 55,772 new ones: the arithmetic of the layout gives MOSS's ids."""
    end = 50_256 + 55_772
    assert (end, end + 1, end + 39, end + 40, end + 44) == (106_028, 106_029, 106_067, 106_068, 106_072)


def test_text_without_the_script_keeps_its_ids(base: Path) -> None:
    old, extension = extend(base, 12)
    for text in [*ENGLISH, "naïve “quotes” — and   blanks\t\t", "<eom><|endoftext|> is text here"]:
        assert extension.new_ids[old.encode(text)].tolist() == extension.tokenizer.encode(text)


def test_new_tokens_are_used_and_made_of_their_pieces(base: Path) -> None:
    old, extension = extend(base, 12)
    new = extension.tokenizer
    assert sum(len(new.encode(text)) for text in CHINESE) < 0.8 * sum(len(old.encode(text)) for text in CHINESE)
    assert extension.learned.tolist() == list(range(old.endoftext, old.endoftext + 12))
    for token, pieces in zip(extension.learned.tolist(), extension.pieces):
        assert new.token_bytes(token) == b"".join(old.token_bytes(piece) for piece in pieces)
        assert len(pieces) >= 2
    assert bool((extension.old_ids[extension.learned] == -1).all())


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("人工智能 今天\n<eom>", max_size=40))
def test_every_text_comes_back(extended: MossTokenizer, text: str) -> None:
    ids = extended.encode(text)
    assert extended.decode(ids) == text
    assert extended.special_ids.isdisjoint(ids)


def test_an_extended_tokenizer_can_be_saved_opened_and_extended_again(base: Path, tmp_path: Path) -> None:
    _, first = extend(base, 6)
    first.tokenizer.save(tmp_path / "once")
    reopened = MossTokenizer.load(tmp_path / "once")
    assert reopened.fingerprint == first.tokenizer.fingerprint
    old, second = extend(tmp_path / "once", 6)
    assert second.tokenizer.size == old.size + 6
    # Controls and tags have rows now, and move.
    assert second.new_ids[old.eom] == second.tokenizer.eom
    assert second.new_ids[old.tag_ids].tolist() == second.tokenizer.tag_ids


def test_rows_and_tags_can_be_set(base: Path) -> None:
    _, extension = extend(base, 4, rows=512, reserved_tags=20)
    assert extension.tokenizer.vocab_size == len(extension.old_ids) == 512
    assert len(extension.tokenizer.tag_ids) == 20
    with pytest.raises(UsageError, match="vocab_size=64 is smaller than the"):
        extend(base, 4, rows=64)


def test_shares_tell_how_often_a_piece_went_on(base: Path) -> None:
    tokenizer = MossTokenizer.load(base)
    counter = PieceCounter(2**30)
    counter.add("天天，天，天天，地")
    pieces = counter.symbols(tokenizer)
    tokens = text_tokens(tokenizer)
    before = pieces.count(len(tokens))
    merges = learn_merges(pieces, tokens, 5, 2)
    extension = extend_tokenizer(tokenizer, merges, trained=frozenset(), counts=(before, pieces.count(len(tokens) + 5)))
    shares = {extension.tokenizer.decode([token]): float(np.exp(share)) for token, share in zip(extension.learned, extension.log_shares)}
    # The byte that begins 天 begins 地 too: six times in all. 天天 stands twice in the end, and 天 alone once.
    assert shares["天天"] == pytest.approx(2 / 6)
    assert shares["天"] == pytest.approx(1 / 6)


def test_a_vocabulary_with_gaps_is_refused(base: Path) -> None:
    description = MossTokenizer.load(base).description
    vocabulary = description["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] += 1
    for entry in description["added_tokens"]:
        entry["id"] += 1
    with pytest.raises(DataError, match="without gaps"):
        text_tokens(MossTokenizer(description, 1024))
