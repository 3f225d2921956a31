"""Tokenizers and dialogues for the data tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from moss_train.data.tokenizer import MossTokenizer
from tests.tokenizer_directories import learn_merges, write_gpt2_files

TEXTS = [
    "How many people live in Paris? About two million people live in Paris. <eoh> <|endoftext|>",
    "def add(a, b):\n    return a + b\n\n\nclass Point:\n\tx: int\n\t\ty: int\n",
    "北京市有多少区？北京市有十六个区。你知道吗？我知道。",
    "<|Human|>: hello <|MOSS|>: hello there <|Results|>: None <|Inner Thoughts|>: None <|Commands|>: None",
] * 4


@pytest.fixture(scope="session")
def byte_tokenizer() -> MossTokenizer:
    """One token a byte, no merges: ids can be read."""
    return MossTokenizer.train([""], 256 + 6 + 2, reserved_tags=2)


@pytest.fixture(scope="session")
def small_tokenizer() -> MossTokenizer:
    """Trained on a few sentences, so that merges lie across blanks, markers and Chinese characters."""
    return MossTokenizer.train(TEXTS, 512)


@pytest.fixture(scope="session")
def moss_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MossTokenizer:
    """Loaded from files in MOSS's layout, whitespace runs included."""
    return MossTokenizer.load(write_gpt2_files(tmp_path_factory.mktemp("moss"), *learn_merges(TEXTS, 480)))


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    """A path for a JSONL file."""
    return tmp_path / "rows.jsonl"
