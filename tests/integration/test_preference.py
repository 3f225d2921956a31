"""Preference-aware training: replies with levels in, a model that can be asked for the best out, and its record."""

from __future__ import annotations

import json
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from moss_train.artifacts.lineage import Lineage
from moss_train.artifacts.lineage import write as write_record
from tests.forked import forked
from tests.launch import python, succeeded
from tests.preference_models import save_pm

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


def lineage(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python("scripts/lineage.py", *map(str, arguments))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues without a level."""
    path = tmp_path_factory.mktemp("plain") / "plain.jsonl"
    path.write_text("".join(f"{line}\n" for line in DIALOGUES.read_text(encoding="utf-8").splitlines()[:12]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chain(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a preference model, dialogues that it scored, their levels, and a model trained on them on two ranks."""
    folder = tmp_path_factory.mktemp("chain")
    write_record(save_pm(folder / "pm", positions=4096), Lineage("pm", "pm", number_format="fp32"))
    scored, tagged = folder / "scored.jsonl", folder / "tagged.jsonl"
    succeeded(forked(1, "scripts/score.py", f"model={folder / 'pm'}", f"dialogues={plain}", f"out={scored}"))
    succeeded(forked(1, "scripts/tag.py", f"scored={scored}", f"out={tagged}", "levels=3"))
    run = (f"run.dir={folder / 'run'}", "tokenizer.train_vocab_size=600")
    succeeded(forked(2, "scripts/preference.py", *QUICK, f"data.train={tagged}", *run))
    return folder


def test_data_without_a_level_are_refused(plain: Path, tmp_path: Path) -> None:
    refused = python("scripts/preference.py", *QUICK, f"data.train={plain}", f"run.dir={tmp_path}", "tokenizer.train_vocab_size=600")
    assert refused.returncode == 3
    assert "no reply in data.train has a level" in refused.stderr


def test_a_model_trained_on_levels_is_asked_for_the_best(chain: Path) -> None:
    export = chain / "run" / "export"
    record = json.loads((export / "lineage.json").read_text(encoding="utf-8"))
    assert record["stage"] == "preference"
    counts = json.loads((chain / "tagged.jsonl.tagging.json").read_text(encoding="utf-8"))["counts"]
    assert record["details"]["levels"] == {str(level): counts[f"level_{level}"] for level in (1, 2, 3)}
    assert record["details"]["tag_dropout"] == 0.1

    asked = (f"model={export}", "prompt=Hi", "temperature=0", "max_new_tokens=4")
    for tag in ("auto", "none"):
        succeeded(python("scripts/generate.py", *asked, f"tag={tag}"))
    beyond = python("scripts/generate.py", *asked, "tag=99")
    assert beyond.returncode != 0
    assert "the tokenizer has tags for the levels 1 to 16" in beyond.stderr


def test_the_model_leads_to_what_gave_the_levels(chain: Path) -> None:
    """The id of the preference model, the thresholds and the counts by level, from the export alone."""
    shown = json.loads(succeeded(lineage("show", chain / "run" / "export", "--json")).stdout)
    nodes = {node["id"]: node for node in shown["nodes"]}
    waiting, ancestors = [shown["root"]], set()
    while waiting:
        waiting += [parent["id"] for parent in nodes[waiting.pop()]["parents"] if parent["id"] not in ancestors]
        ancestors |= set(waiting)
    (tagging,) = [nodes[one] for one in ancestors if nodes[one]["name"] == "tagged.jsonl.tagging.json"]
    said = json.loads((chain / "tagged.jsonl.tagging.json").read_text(encoding="utf-8"))
    for key in ("preference_model", "scale", "counts"):
        assert tagging["details"][key] == said[key]
    thresholds = tagging["details"]["scale"]["thresholds"]
    assert len(thresholds) == 2
    assert thresholds[0] < thresholds[1]
    assert min(tagging["details"]["counts"][f"level_{level}"] for level in (1, 2, 3)) > 0
    # As a node it is there too, with the scored file between.
    (preference_model,) = tagging["details"]["preference_model"]
    assert preference_model in ancestors
    assert nodes[preference_model]["kind"] == "pm"


def changed_byte(content: bytes) -> bytes:
    """The content with one bit of a byte in its second half changed."""
    place = len(content) * 3 // 4
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("name", ["pm/model.safetensors", "tagged.jsonl.tagging.json", "scored.jsonl"])
def test_what_gave_the_levels_cannot_be_changed_unseen(chain: Path, name: str) -> None:
    path, final = chain / name, chain / "run" / "export"
    content = path.read_bytes()
    assert "all good" in succeeded(lineage("verify", final)).stdout
    path.write_bytes(changed_byte(content))
    try:
        found = lineage("verify", final)
    finally:
        path.write_bytes(content)
    assert found.returncode == 4
    assert f"changed: {path.name} is changed: its sha256 is not the one in the record" in found.stdout
    assert "1 wrong" in found.stdout
    assert "all good" in succeeded(lineage("verify", final)).stdout
