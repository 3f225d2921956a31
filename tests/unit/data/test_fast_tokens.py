from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from moss_train.data import fast_tokens
from moss_train.data.backend import added_token
from moss_train.data.fast_tokens import FastEncoder, SlowEncoder, installed_differences
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from tests.corpora import SENTENCES, write_tokenizer

NEW_LETTER = "\u088f"
"""A letter of Unicode 17."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MossTokenizer:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def rows(encoder: FastEncoder, texts: list[str]) -> list[list[int]]:
    encoded = encoder.encode([text.encode() for text in texts])
    ends = np.cumsum(encoded.lengths)
    assert encoded.ids.dtype == np.uint32
    assert encoded.lengths.dtype == np.int64
    return [encoded.ids[end - length : end].tolist() for end, length in zip(ends, encoded.lengths)]


@pytest.mark.parametrize("kind", [FastEncoder, SlowEncoder])
def test_ids_are_those_of_the_tokenizer(kind: type[FastEncoder], tokenizer: MossTokenizer) -> None:
    texts = ["", *(text for texts in SENTENCES.values() for text in texts), "<|endoftext|><eom>   \t\t  x", "a\r\nb\rc", ""]
    assert rows(kind(tokenizer), texts) == [tokenizer.encode(text) for text in texts]
    assert rows(kind(tokenizer), []) == []


def test_gigatoken_is_used(tokenizer: MossTokenizer) -> None:
    encoder = FastEncoder(tokenizer)
    assert encoder.note is None
    assert encoder.name.startswith("gigatoken ")


def test_characters_that_the_libraries_class_differently_go_to_tokenizers(tokenizer: MossTokenizer) -> None:
    text = f"{NEW_LETTER}'s"
    expected = tokenizer.encode(text)
    trusting = FastEncoder(tokenizer, differences=())
    if rows(trusting, [text]) == [expected]:
        assert not any(first <= ord(NEW_LETTER) <= last for first, last in installed_differences())
    assert rows(FastEncoder(tokenizer), ["It's", text, "", text, "fine"]) == [
        tokenizer.encode(one) for one in ("It's", text, "", text, "fine")
    ]


def test_every_such_character_is_noticed(tokenizer: MossTokenizer) -> None:
    encoder = FastEncoder(tokenizer)
    for first, last in encoder.differences:
        for code in {first, (first + last) // 2, last}:
            assert encoder._is_unsure(f"x{chr(code)}y".encode())
        assert encoder._is_unsure(chr(first).encode())
    for text in ("", "plain", "北京市", "👍🏽", "\u0e01\u0e02", "한국어"):
        assert not encoder._is_unsure(text.encode())


def test_a_difference_is_told_with_its_place(tokenizer: MossTokenizer) -> None:
    encoder = FastEncoder(tokenizer)
    text = b"How many people live in Paris? "
    ids = np.array(tokenizer.encode(text.decode()), dtype=np.uint32)
    encoder.check_same(text, ids, "zh/shard-00000, document 3")
    wrong = ids.copy()
    wrong[2] = 7
    with pytest.raises(DataError, match=rf"^zh/shard-00000, document 3: token 2 is 7 by gigatoken .*, but {ids[2]} by tokenizers"):
        encoder.check_same(text, wrong, "zh/shard-00000, document 3")
    with pytest.raises(DataError, match=f"token {len(ids) - 1} is no more by"):
        encoder.check_same(text, ids[:-1], "x")


def test_without_gigatoken_tokenizers_encode(tokenizer: MossTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = FastEncoder(tokenizer)
    assert encoder.name.startswith("tokenizers ")
    assert 'pip install "moss-train[prepare]"' in str(encoder.note)
    assert rows(encoder, ["It's", ""]) == [tokenizer.encode("It's"), []]


def test_a_special_token_that_overlaps_text_is_left_to_tokenizers(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    description = tokenizer.text_description
    size = max(max(description["model"]["vocab"].values()), *tokenizer.special_ids, *(one["id"] for one in description["added_tokens"])) + 1
    special = [added_token(tokenizer.control_ids.get(name, 0), name, True) for name in tokenizer.control_ids]
    description["added_tokens"] += [*special, *(added_token(tag, f"<|reserved_{n}|>", True) for n, tag in enumerate(tokenizer.tag_ids))]
    description["added_tokens"].append(added_token(size, "<a  b>", True))
    odd = MossTokenizer(description, tokenizer.vocab_size + 64)
    encoder = FastEncoder(odd)
    assert "'<a  b>' shares characters" in str(encoder.note)
    assert rows(encoder, ["<a  b>  "]) == [odd.encode("<a  b>  ")]


def test_what_is_remembered_is_bounded(tokenizer: MossTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = FastEncoder(tokenizer)
    first = encoder._fast
    assert rows(encoder, ["It's"]) == [tokenizer.encode("It's")]
    assert encoder._fast is first
    monkeypatch.setattr(fast_tokens, "MOST_REMEMBERED", -1)
    assert rows(encoder, ["It's"]) == [tokenizer.encode("It's")]
    assert encoder._fast is not first


def test_versions_not_known_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_tokens, "KNOWN_DIFFERENCES", {})
    monkeypatch.setattr(fast_tokens, "_differing", lambda start, end: iter([5, 6, 7, 9] if start == 0 else []))
    assert installed_differences() == [(5, 7), (9, 9)]


def test_the_known_differences_are_found(tokenizer: MossTokenizer) -> None:
    """In the planes' first blocks; all of Unicode is compared in the acceptance tests."""
    found = list(fast_tokens._differing(0, 0x2000))
    expected = [code for first, last in installed_differences() for code in range(first, last + 1) if code < 0x2000]
    assert found == expected
