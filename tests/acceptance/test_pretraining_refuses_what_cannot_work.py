"""What pretraining is given and cannot use ends in the documented exit code and a message that says what, where, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.corpora import documents, write_jsonl
from tests.forked import forked
from tests.small_corpora import MIXED, arguments, write_corpus
from tests.small_runs import status
from tests.tokenizer_directories import learn_merges, write_gpt2_files


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("sound"))


def edit(corpus: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes corpus.json."""
    path = corpus / "corpus.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def empty(content: dict[str, Any]) -> None:
    """Leaves a source without a shard."""
    source = content["sources"]["zh"]
    for what in ("documents", "tokens", "bytes"):
        content["totals"][what] -= source[what]
        source[what] = 0
    source["shards"] = []


CASES: dict[str, tuple[list[str], Callable[[Path], Any], int, list[str]]] = {
    "weights that sum to nothing": (
        ["data.weights={zh: 0, en: 0}"],
        lambda corpus: None,
        2,
        ["data.weights sums to nothing ({'zh': 0.0, 'en': 0.0}); give at least one source a weight above zero"],
    ),
    "weights of nothing that is there": (
        ["data.weights={fr: 1}"],
        lambda corpus: None,
        2,
        ["data.weights has 'fr', which is neither a source (", "nor a language (", "zh"],
    ),
    "more passes than are allowed": (
        [MIXED, "data.max_epochs=0.5"],
        lambda corpus: None,
        2,
        ["the run would go through code", "give it at most", "of the tokens, shorten the run, add data, or allow it with data.max_epochs="],
    ),
    "weights given twice": (
        [MIXED, "data.phases=[{tokens: 1000, weights: {zh: 1}}]", "train.steps=null"],
        lambda corpus: None,
        2,
        ["data.weights and data.phases both give weights; expected one of them"],
    ),
    "an empty source": ([MIXED], lambda corpus: edit(corpus, empty), 3, ["corpus.json: the source zh is empty; leave it out"]),
    "a source that has vanished": (
        [MIXED],
        lambda corpus: shutil.rmtree(corpus / "en"),
        3,
        ["en/shard-00000.tokens.npy: No such file or directory, although the corpus names it; copy or prepare the corpus again."],
    ),
    "a shard that was cut": (
        [MIXED],
        lambda corpus: (corpus / "zh" / "shard-00000.tokens.npy").write_bytes(b"\0" * 100),
        3,
        ["zh/shard-00000.tokens.npy: has 100 bytes; expected more than", "the file is cut"],
    ),
    "a corpus that is not finished": (
        [MIXED],
        lambda corpus: ((corpus / "corpus.json").unlink(), (corpus / ".prepare").mkdir()),
        3,
        ["its preparation has not been finished; give the same command of scripts/prepare.py again"],
    ),
    "shards without their description": (
        [MIXED],
        lambda corpus: (corpus / "corpus.json").unlink(),
        3,
        ["holds shards but no corpus.json"],
    ),
    "no such directory": ([MIXED], shutil.rmtree, 3, ["expected a corpus that scripts/prepare.py wrote"]),
    "too little to hold out": ([MIXED, "data.seq_len=256", "data.holdout=0.999"], lambda corpus: None, 3, ["too few to keep data.holdout"]),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_what_to_do(name: str, sound: Path, tmp_path: Path) -> None:
    overrides, damage, code, words = CASES[name]
    corpus = Path(shutil.copytree(sound, tmp_path / "corpus"))
    damage(corpus)
    result = forked(1, "scripts/pretrain.py", *arguments(tmp_path / "run", corpus, *overrides))
    said = result.stdout + result.stderr
    assert result.returncode == code, said[-3000:]
    for part in words:
        assert part in said
    assert "Traceback" not in said
    if code == 3:
        assert status(tmp_path / "run")["exit_code"] == 3


def test_another_tokenizer_is_refused(sound: Path, tmp_path: Path) -> None:
    other = write_gpt2_files(tmp_path / "other", *learn_merges(documents("en", 40), 450))
    result = forked(1, "scripts/pretrain.py", *arguments(tmp_path / "run", sound, MIXED, f"tokenizer.path={other}"))
    said = result.stdout + result.stderr
    assert result.returncode == 3
    assert "was made with the tokenizer" in said
    assert "its ids would mean something else. Use that tokenizer, or prepare the corpus again." in said


def test_text_is_prepared_and_trained_on(tmp_path: Path) -> None:
    """Given text where a corpus is expected, with a tokenizer trained on it."""
    text = write_jsonl(tmp_path / "text.jsonl", documents("en", 60))
    result = forked(1, "scripts/pretrain.py", *arguments(tmp_path / "run", text, "train.steps=2", "tokenizer.train_vocab_size=512"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "is text: preparing a corpus of it in the cache" in result.stdout + result.stderr
