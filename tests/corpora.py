"""Small inputs for preparing corpora, and what a test needs to compare two of them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path

from moss_train.data.tokenizer import MossTokenizer
from tests.tokenizer_directories import learn_merges, write_gpt2_files

SENTENCES = {
    "zh": [
        "北京市有多少区？",
        "北京市有十六个区。",
        "你知道吗？我知道。",
        "今天天气很好，我们去公园散步吧。",
        "机器学习是人工智能的一个分支。",
    ],
    "en": [
        "How many people live in Paris? ",
        "It's about two million; they'll say they've counted. ",
        "I don't know what you'd do, but I'm sure we're fine. ",
        "The quick brown fox jumps over the lazy dog. ",
        "He said 12,345 of 67.8% were wrong!\n",
    ],
    "code": [
        "def add(a, b):\n    return a + b\n\n\n",
        "class Point:\n\tx: int\n\t\ty: int\n",
        "for i in range(10):\n        print(i)\n",
        "# TODO\n",
    ],
}


def documents(language: str, number: int, seed: int = 0, sentences: int = 12) -> list[str]:
    """Documents made of a few sentences in random order, each with a number of its own."""
    generator = random.Random(f"{language} {seed}")
    return [
        f"{index}: " + "".join(generator.choices(SENTENCES[language], k=generator.randint(1, sentences))) + f" {generator.random()}"
        for index in range(number)
    ]


def write_jsonl(path: Path, texts: Iterable[str], field: str = "text") -> Path:
    """A file with a record a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"id": n, field: text}, ensure_ascii=False) + "\n" for n, text in enumerate(texts)), encoding="utf-8"
    )
    return path


def write_tokenizer(folder: Path, size: int = 600) -> MossTokenizer:
    """A tokenizer in MOSS's layout, runs of blanks included, whose merges know contractions, Chinese and indented code."""
    texts = [text for sentences in SENTENCES.values() for text in sentences] * 4
    return MossTokenizer.load(write_gpt2_files(folder, *learn_merges(texts, size)))


def digests(corpus: Path) -> dict[str, str]:
    """sha256 of every file of a corpus but its record of lineage, which says when it was made."""
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file() and path.name != "lineage.json"
    }
