"""Which levels a model is said to know: those whose tags it saw, before replies that it learned."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.sft.config import DialogueDataConfig, SFTConfig
from moss_train.sft.data import Rows, open_rows, render_inputs
from moss_train.sft.inputs import find_inputs
from moss_train.sft.main import require_levels

DIALOGUES = resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six dialogues of each of three levels."""
    path = tmp_path_factory.mktemp("tagged") / "tagged.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(DIALOGUES.read_text(encoding="utf-8").splitlines()[:18]):
            record = json.loads(text)
            for turn in record["chat"].values():
                turn["level"] = 1 + number % 3
            file.write(json.dumps(record) + "\n")
    return path


@pytest.fixture(scope="module")
def moss_tokenizer() -> MossTokenizer:
    return MossTokenizer.train(DIALOGUES.read_text(encoding="utf-8").splitlines()[:18], 600, reserved_tags=4)


def rows_of(tagged: Path, moss_tokenizer: MossTokenizer, tmp_path: Path, **values: Any) -> Rows:
    config = SFTConfig(data=replace(DialogueDataConfig(train=str(tagged), seq_len=1024, cache=str(tmp_path)), **values))
    inputs = find_inputs(config.data)
    said: list[str] = []
    entries = render_inputs(config, inputs, moss_tokenizer, said.append)
    return open_rows(config, inputs, entries, moss_tokenizer, said.append)


@pytest.mark.parametrize(
    ("values", "known"),
    [
        ({"tag_dropout": 0.1}, ["1", "2", "3"]),
        ({"tag_dropout": 0.1, "level_weights": [0.0, 0.2]}, ["2", "3"]),
    ],
)
def test_levels_that_nothing_is_learned_of_are_not_known(
    tagged: Path, moss_tokenizer: MossTokenizer, tmp_path: Path, values: dict[str, Any], known: list[str]
) -> None:
    rows = rows_of(tagged, moss_tokenizer, tmp_path, **values)
    assert list(rows.details["levels"]) == known
    require_levels(rows)


def test_without_any_tag_no_level_is_known(tagged: Path, moss_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    """Fine-tuning on the same replies untagged: whoever asks such a model for `auto` gets no tag, which it has never seen."""
    rows = rows_of(tagged, moss_tokenizer, tmp_path, tag_dropout=1.0)
    assert "levels" not in rows.details
    with pytest.raises(DataError, match=r"data\.tag_dropout=1\.0 and data\.level_weights=\[\] leave no level to be learned"):
        require_levels(rows)
