"""Preference-aware training: replies with levels in, a model that can be asked for the best out, and its record."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from tests.forked import forked
from tests.launch import python, succeeded

DIALOGUES = resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"
QUICK = (
    "+config=tiny_preference",
    "init_from=null",
    "model.num_layers=1",
    "model.hidden_size=64",
    "data.holdout=0",
    "data.seq_len=1024",
    "train.epochs=null",
    "train.steps=2",
)


def test_a_model_trained_on_levels_is_asked_for_the_best(tmp_path: Path) -> None:
    records = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()[:12]]
    plain, tagged = tmp_path / "plain.jsonl", tmp_path / "tagged.jsonl"
    plain.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    refused = python(
        "scripts/preference.py", *QUICK, f"data.train={plain}", f"run.dir={tmp_path / 'refused'}", "tokenizer.train_vocab_size=600"
    )
    assert refused.returncode == 3
    assert "no reply in data.train has a level" in refused.stderr

    for number, record in enumerate(records):
        for turn in record["chat"].values():
            turn["level"] = 1 + number % 3
    tagged.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    run = tmp_path / "run"
    succeeded(forked(2, "scripts/preference.py", *QUICK, f"data.train={tagged}", f"run.dir={run}", "tokenizer.train_vocab_size=600"))
    record = json.loads((run / "export" / "lineage.json").read_text(encoding="utf-8"))
    assert record["stage"] == "preference"
    assert list(record["details"]["levels"]) == ["1", "2", "3"]
    assert record["details"]["tag_dropout"] == 0.1

    asked = (f"model={run / 'export'}", "prompt=Hi", "temperature=0", "max_new_tokens=4")
    for tag in ("auto", "none"):
        succeeded(python("scripts/generate.py", *asked, f"tag={tag}"))
    beyond = python("scripts/generate.py", *asked, "tag=99")
    assert beyond.returncode != 0
    assert "the tokenizer has tags for the levels 1 to 16" in beyond.stderr
