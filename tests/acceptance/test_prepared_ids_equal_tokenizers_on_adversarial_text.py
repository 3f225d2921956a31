"""Whatever a text holds, the ids of a prepared corpus are those of `MossTokenizer.encode`, and none of them is a control's.

All of Unicode, control characters, long runs, texts that spell controls and runs of blanks, lone carriage returns, emoji and combining
marks, and random mixtures of these; for a tokenizer in MOSS's layout, whose runs of blanks are tokens, and for one that was trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moss_train.data.corpus import open_corpus
from moss_train.data.fast_tokens import FastEncoder, find_differences, installed_differences
from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from tests.campaigns import record
from tests.corpora import SENTENCES, write_jsonl, write_tokenizer

SEED = 11
PIECES = [
    *(" " * n for n in (1, 2, 3, 31, 32, 33, 62)), *("\t" * n for n in (1, 2, 9, 10)), "<|endoftext|>",
    "<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>", "<|reserved_0|>", "<|Human|>:", "\r", "\r\n", "\n", "\n\n",
    "\u2028", "\u2029", "\x85", "\xa0", "\u3000", "\u200b", "\u200d", "\ufeff", "👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽",
    "e\u0301", "\u0301", "a\u0300\u0301\u0302\u0303", "'s", "'S", "'ll", "'t", "'re", "don't", "’s", "\x00",
    "\x1c", "\x1f", "\x7f", "1234", "½", "²", "١٢٣", "Ⅷ", "a", "Z", "中", "。", "한", "ひ", "\U0010ffff",
    "\ue000", "\ufffe", "\ufdd0", "\ufffd", "_", "__init__", "\u180e", "\u0600", "ǅ", "ª", "\u0345", "\u202e",
    "\u088f", "\u0c5c", "\U000323b0", "\U00033479", "\U0001e6c0", "\U00011de5",
]  # fmt: skip


@pytest.fixture(scope="module", params=["MOSS's layout", "trained"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MossTokenizer:
    if request.param == "trained":
        return MossTokenizer.train([text for texts in SENTENCES.values() for text in texts] * 4, 700)
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def all_characters(start: int, end: int) -> list[str]:
    """Every character there is."""
    return [chr(code) for code in range(start, end) if not 0xD800 <= code < 0xE000]


def long_runs() -> list[str]:
    """Runs that a pre-tokenizer takes for one piece."""
    once = [
        "a",
        " ",
        "\n",
        "\t",
        "\r",
        "中",
        "1",
        ".",
        "👍",
        "\u0301",
        "\x00",
        "<eoh>",
        "'s",
        " \n",
        "\n ",
        "\u3000",
        "ab",
        "中文",
        "\u088f",
    ]
    return [one * (10_000 // len(one)) for one in once] + ["x" + " " * 10_000 + "y", "\n" * 10_000 + "x", "a" * 200_000, " " * 200_000]


def mixtures(number: int, generator: random.Random, most: int = 0x110000) -> Iterator[str]:
    """Texts of pieces that are hard, and of characters from anywhere."""
    for _ in range(number):
        parts = []
        for _ in range(generator.randint(1, 14)):
            code = generator.randrange(most)
            odd = generator.random() < 0.25 and not 0xD800 <= code < 0xE000
            parts.append(chr(code) if odd else generator.choice(PIECES) * generator.choice([1, 1, 1, 2, 3]))
        yield "".join(parts)


def require_equal(tokenizer: MossTokenizer, texts: list[str]) -> int:
    """Encodes both ways; returns the number of ids."""
    encoder = FastEncoder(tokenizer)
    encoded = encoder.encode([text.encode() for text in texts])
    ends = np.cumsum(encoded.lengths)
    assert not tokenizer.special_ids & set(np.unique(encoded.ids).tolist())
    for place, expected in enumerate(tokenizer.encode_batch(texts)):
        got = encoded.ids[ends[place] - encoded.lengths[place] : ends[place]]
        assert got.tolist() == expected, f"{texts[place][:60]!r}"
    return len(encoded.ids)


def test_every_block_of_unicode(tokenizer: MossTokenizer) -> None:
    """A sample of each block of 64 characters, in contexts that divide differently after a letter, a number, a blank, and others."""
    generator = random.Random(SEED)
    chosen = [
        character for start in range(0, 0x110000, 64) for character in all_characters(start, start + 64)[:: generator.randint(21, 63)]
    ]
    require_equal(tokenizer, [f"{one}'s{one}1{one}a {one}. {one}\n" for one in chosen] + ["".join(chosen), " ".join(chosen)])


def test_long_runs(tokenizer: MossTokenizer) -> None:
    require_equal(tokenizer, long_runs())


def test_mixtures_of_what_is_hard(tokenizer: MossTokenizer) -> None:
    require_equal(tokenizer, list(mixtures(6000, random.Random(SEED))))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_of_unicode_and_many_mixtures(tokenizer: MossTokenizer) -> None:
    found = find_differences()
    assert found == [tuple(one) for one in installed_differences()]
    ids = texts = 0
    for start in range(0, 0x110000, 0x4000):
        batch = [f"{one}'s{one}1{one}a {one}. {one}\n" for one in all_characters(start, start + 0x4000)]
        ids, texts = ids + require_equal(tokenizer, batch), texts + len(batch)
    generator = random.Random(SEED)
    for _ in range(40):
        batch = list(mixtures(10_000, generator))
        ids, texts = ids + require_equal(tokenizer, batch), texts + len(batch)
    record("prepared_ids", {"seed": SEED, "texts": texts, "ids": ids, "differences": 0, "guarded_ranges": len(found)})


def test_a_corpus_of_such_texts(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    """Through files, batches and shards."""
    texts = [*long_runs()[:19], *mixtures(300, random.Random(SEED + 1)), *PIECES]
    tokenizer.save(tmp_path / "tokenizer")
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    out = tmp_path / "corpus"
    prepare(PrepareConfig(str(tmp_path / "tokenizer"), str(out), {"odd": SourceConfig(str(path), "any")}, shard_mb=0.05, workers=1))
    shards = open_corpus(out).sources["odd"].shards
    documents = [shard.document(number).tolist() for shard in shards for number in range(shard.documents)]
    assert len(shards) > 3
    assert documents == [[*tokenizer.encode(text), tokenizer.endoftext] for text in texts]


def test_half_a_surrogate_pair_is_told(tokenizer: MossTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "cut \\ud83d"}\n' + json.dumps({"text": "🙂"}) + "\n")
    config = PrepareConfig(
        str(tmp_path / "tokenizer"), str(tmp_path / "o"), {"odd": SourceConfig(str(tmp_path / "a.jsonl"), "any")}, workers=1
    )
    with pytest.raises(DataError, match=r"a\.jsonl:2: lone_surrogate: a text holds half of a surrogate pair"):
        prepare(config)
