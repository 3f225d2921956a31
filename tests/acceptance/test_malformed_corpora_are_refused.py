"""However the files of a corpus are wrong, it ends in exit code 3 and a message that names the file, what was found and expected."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_train.data.corpus import open_corpus
from moss_train.data.corpus_check import check_corpus
from moss_train.data.corpus_tool import main as tool
from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.errors import DataError
from tests.corpora import documents, write_jsonl, write_tokenizer

SEED = 5
SHARD = "zh/shard-00001"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_tokenizer(folder / "tokenizer")
    sources = {}
    for language in ("zh", "en"):
        sources[language] = SourceConfig(str(write_jsonl(folder / f"{language}.jsonl", documents(language, 60))), language)
    prepare(PrepareConfig(str(folder / "tokenizer"), str(folder / "corpus"), sources, shard_mb=0.006, workers=1))
    return folder / "corpus"


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrites an array or a JSON file."""
    if path.suffix == ".npy":
        np.save(path, edit(np.load(path)))
    else:
        value = json.loads(path.read_text())
        edited = edit(value)
        path.write_text(json.dumps(value if edited is None else edited))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def put(array: Any, place: int, value: int) -> Any:
    array[place] = value
    return array


def damage(corpus: Path, name: str) -> None:
    """One kind of damage."""
    tokens, ends, record = (corpus / f"{SHARD}.{suffix}" for suffix in ("tokens.npy", "ends.npy", "json"))
    description = corpus / "corpus.json"
    {
        "tokens cut": lambda: cut(tokens, tokens.stat().st_size - 10),
        "tokens empty": lambda: cut(tokens, 0),
        "tokens cut in the header": lambda: cut(tokens, 60),
        "tokens longer": lambda: tokens.write_bytes(tokens.read_bytes() + b"\0\0\0\0"),
        "tokens of another type": lambda: change(tokens, lambda array: array.astype(np.uint16)),
        "tokens with two dimensions": lambda: change(tokens, lambda array: array.reshape(-1, 1)),
        "tokens fewer than counted": lambda: change(tokens, lambda array: array[:-1]),
        "an id past the vocabulary": lambda: change(tokens, lambda array: put(array, 7, 5_000_000)),
        "not a .npy file": lambda: tokens.write_bytes(b"hello" * 100),
        "a pickled array": lambda: np.save(tokens, np.array([{}], dtype=object), allow_pickle=True),
        "tokens missing": tokens.unlink,
        "ends cut": lambda: cut(ends, ends.stat().st_size - 1),
        "ends missing": ends.unlink,
        "ends of another type": lambda: change(ends, lambda array: array.astype(np.int32)),
        "ends that do not grow": lambda: change(ends, lambda array: put(array, 2, int(array[1]))),
        "ends that begin below zero": lambda: change(ends, lambda array: put(array, 0, -3)),
        "ends beyond the tokens": lambda: change(ends, lambda array: put(array, -1, int(array[-1]) + 5)),
        "ends of a document too few": lambda: change(ends, lambda array: np.delete(array, 1)),
        "an end that is elsewhere": lambda: change(ends, lambda array: put(array, 1, int(array[1]) + 1)),
        "a control in the text": lambda: change(tokens, lambda array: put(array, 0, int(array[-1]))),
        "one other id": lambda: change(tokens, lambda array: put(array, 0, int(array[0]) ^ 1)),
        "record missing": record.unlink,
        "record not JSON": lambda: record.write_text("{"),
        "record of another count": lambda: change(record, lambda value: value.update(documents=1)),
        "record of another tokenizer": lambda: change(record, lambda value: value.update(tokenizer="0" * 64)),
        "a shard too many": lambda: shutil.copy(tokens, corpus / "zh" / "shard-00077.tokens.npy"),
        "a source that vanished": lambda: shutil.rmtree(corpus / "zh"),
        "tokenizer missing": lambda: shutil.rmtree(corpus / "tokenizer"),
        "description missing": description.unlink,
        "description cut": lambda: cut(description, 200),
        "description of something else": lambda: description.write_text('{"model_type": "codegen"}'),
        "description of a later version": lambda: change(description, lambda value: value.update(version=9)),
        "description without a key": lambda: change(description, lambda value: value.pop("sources") and None),
        "description without sources": lambda: change(description, lambda value: value.update(sources={})),
        "an empty source": lambda: change(
            description, lambda value: value["sources"]["zh"].update(documents=0, tokens=0, bytes=0, shards=[])
        ),
        "counts that do not add up": lambda: change(description, lambda value: value["sources"]["zh"].update(tokens=3)),
        "totals that do not add up": lambda: change(description, lambda value: value["totals"].update(tokens=3)),
    }[name]()  # type: ignore[no-untyped-call]


# What is damaged -> what is said; the file first.
EXPECTED = {
    "tokens cut": r"shard-00001\.tokens\.npy: has \d+ bytes; expected \d+: the file is cut\. Copy or prepare",
    "tokens empty": r"tokens\.npy: is not a \.npy file, or its header is damaged",
    "tokens cut in the header": r"tokens\.npy: is not a \.npy file, or its header is damaged",
    "tokens longer": r"tokens\.npy: has \d+ bytes; expected \d+: the file is longer than it says",
    "tokens of another type": r"tokens\.npy: holds uint16; expected uint32",
    "tokens with two dimensions": r"tokens\.npy: has the shape \(\d+, 1\); expected \(\d+,\), the number of tokens",
    "tokens fewer than counted": r"tokens\.npy: has the shape \(\d+,\); expected \(\d+,\), the number of tokens",
    "an id past the vocabulary": r"tokens\.npy: token 7 is 5000000; expected an id below \d+, the size of the vocabulary",
    "not a .npy file": r"tokens\.npy: is not a \.npy file",
    "a pickled array": r"tokens\.npy: holds object; expected uint32",
    "tokens missing": r"tokens\.npy: missing, although corpus\.json names it",
    "ends cut": r"ends\.npy: has \d+ bytes; expected \d+: the file is cut",
    "ends missing": r"ends\.npy: missing, although corpus\.json names it",
    "ends of another type": r"ends\.npy: holds int32; expected int64",
    "ends that do not grow": r"ends\.npy: document 2 ends at token \d+, the one before it at \d+; ends must grow",
    "ends that begin below zero": r"ends\.npy: document 0 ends at token -3, the one before it at 0; ends must grow",
    "ends beyond the tokens": r"ends\.npy: the last document ends at token \d+; expected \d+, the number of tokens",
    "ends of a document too few": r"ends\.npy: has the shape \(\d+,\); expected \(\d+,\), the number of documents",
    "an end that is elsewhere": r"tokens\.npy: document 1 is not closed: token \d+ is \d+, expected \d+ \(<\|endoftext\|>\)",
    "a control in the text": r"tokens\.npy: <\|endoftext\|> occurs \d+ times; expected \d+, once a document",
    "one other id": r"tokens\.npy: its sha256 is .*; expected .*: a byte has changed",
    "record missing": r"shard-00001\.json: missing, although corpus\.json names the shard",
    "record not JSON": r"shard-00001\.json: cannot be read as JSON",
    "record of another count": r"shard-00001\.json: documents is 1; expected \d+, as corpus\.json says",
    "record of another tokenizer": r"shard-00001\.json: tokenizer is '0+'; expected '[0-9a-f]+'",
    "a shard too many": r"shard-00077\.tokens\.npy: is named nowhere in corpus\.json",
    "a source that vanished": r"zh/shard-00000\.json: missing, although corpus\.json names the shard",
    "tokenizer missing": r"tokenizer: no tokenizer found",
    "description missing": r"holds no corpus\.json, so it is not a corpus",
    "description cut": r"corpus\.json: cannot be read as JSON",
    "description of something else": r"corpus\.json: is not the description of a corpus: format is None, expected 'moss-train-corpus'",
    "description of a later version": r"corpus\.json: has version 9; this program reads version 1",
    "description without a key": r"corpus\.json: has no key 'sources'",
    "description without sources": r"corpus\.json: names no sources",
    "an empty source": r"corpus\.json: the source zh is empty",
    "counts that do not add up": r"corpus\.json: the shards of zh have \d+ tokens, but the source says 3",
    "totals that do not add up": r"corpus\.json: the sources have \d+ tokens, but the totals say 3",
}


def read_all(corpus: Path) -> None:
    """Every window of every shard."""
    for shard in open_corpus(corpus).shards():
        shard.ends_within(0, shard.tokens)
        shard.read(0, shard.tokens)


@pytest.mark.parametrize("name", EXPECTED)
def test_damage_is_told(corpus: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage(corpus, name)
    assert tool(["check", str(corpus)]) == 3
    said = capsys.readouterr()
    assert re.search(EXPECTED[name], said.out + said.err), said.out + said.err


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in EXPECTED
        if name.startswith(("tokens", "ends", "an id", "not a", "a pickled", "description", "an empty", "counts", "totals"))
    ],
)
def test_what_reading_meets_is_refused_there(corpus: Path, name: str) -> None:
    """Without a check before: whoever trains on it meets the same messages."""
    damage(corpus, name)
    with pytest.raises(DataError, match=EXPECTED[name]):
        read_all(corpus)


def test_another_tokenizer_is_refused(corpus: Path) -> None:
    with pytest.raises(DataError, match="was made with the tokenizer"):
        open_corpus(corpus, "0" * 64)


def flip(corpus: Path, generator: random.Random) -> str:
    """Changes one bit of one file."""
    path = generator.choice(sorted(path for path in corpus.rglob("*") if path.suffix == ".npy" or path.name.startswith("shard-")))
    content = bytearray(path.read_bytes())
    place = generator.randrange(len(content))
    content[place] ^= 1 << generator.randrange(8)
    path.write_bytes(content)
    return f"{path.relative_to(corpus)} byte {place}"


@pytest.mark.parametrize("number", range(25))
def test_no_flipped_bit_passes(corpus: Path, number: int) -> None:
    what = flip(corpus, random.Random(f"{SEED} {number}"))
    problems = list(check_corpus(open_corpus(corpus)))
    # Blanks and such in a record mean the same; all else is found.
    assert problems or what.split()[0].endswith(".json"), what


def test_a_sound_corpus_passes(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(["check", str(sound)]) == 0
    assert capsys.readouterr().out.startswith("OK: ")
