"""docs/pm.md, "Another round": its commands as they stand, one after another, on a tiny model and preference model made on the spot.

What makes it short is what it is given: two layers, replies of some thirty tokens, a handful of prompts.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts import lineage
from moss_train.artifacts.export import write_export
from moss_train.data.formats import parse
from moss_train.pm.levels import Scale, levels_of
from tests.launch import REPOSITORY, environment, python, succeeded
from tests.preference_models import read_lines, save_pm, write_lines
from tests.tagged_models import TEXTS, tagged_model

pytestmark = pytest.mark.xdist_group("rounds")

PAGE = REPOSITORY / "docs" / "pm.md"
PROMPTS = [{"prompt": f"{text} ({number})"} for number, text in enumerate(TEXTS * 2)]


def commands() -> str:
    """The one block of the section that is for a shell."""
    (section,) = re.findall(r"^## Another round\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which the commands were given, and what they printed."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "scripts").symlink_to(REPOSITORY / "scripts")
    model, tokenizer = tagged_model()
    record = lineage.Lineage("export", "sft", details={"meta_instruction": "Be brief.\n", "middle_segments": False})
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    (folder / "runs" / "sft").mkdir(parents=True)
    write_export(
        folder / "runs" / "sft" / "export", parameters, model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9
    )  # fmt: skip
    lineage.write(save_pm(folder / "runs" / "pm" / "export"), lineage.Lineage("pm", "pm", number_format="fp32"))
    write_lines(folder / "prompts.jsonl", PROMPTS)
    result = subprocess.run(
        ["bash", "-euc", commands()], cwd=folder, env=environment(), capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL
    )
    printed = result.stdout + result.stderr
    assert result.returncode == 0, printed[-6000:]
    return folder, printed


def tagging(folder: Path, number: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"tagged_{number}.jsonl.tagging.json").read_text(encoding="utf-8"))
    return found


def id_of(artefact: Path) -> str:
    record = lineage.read(artefact)
    assert record is not None, artefact
    return str(record["id"])


def test_levels_are_those_of_the_first_round(rounds: tuple[Path, str]) -> None:
    folder, printed = rounds
    first, second = tagging(folder, 1), tagging(folder, 2)
    # Numbers are written so that reading them gives the same bits.
    assert json.dumps(second["scale"]) == json.dumps(first["scale"])
    content = (folder / "tagged_1.jsonl.tagging.json").read_bytes()
    assert (first["frozen_from"], second["frozen_from"]) == (None, hashlib.sha256(content).hexdigest())
    assert second["frozen_counts"] == first["counts"]
    assert first["preference_model"] == second["preference_model"] == [id_of(folder / "runs" / "pm" / "export")]
    scale = Scale.from_json(first["scale"])
    for number in (1, 2):
        rewards = [
            one["reward"]
            for line in read_lines(folder / f"scored_{number}.jsonl")
            for one in line["responses"]
            if one["finish"] == "stop" and one["reward"] is not None
        ]
        found = [parse(one, "tagged:1").turns[-1].level for one in read_lines(folder / f"tagged_{number}.jsonl")]
        assert found == levels_of(scale, rewards)
        assert len(found) > 40
    # Other answers than those of the first round, which had equal shares by construction.
    shares = [tagging(folder, number)["counts"] for number in (1, 2)]
    assert shares[0] != shares[1]
    assert re.search(
        r"by the levels of tagged_1\.jsonl\.tagging\.json: level_1 [\d.]+% -> [\d.]+%, .*; mean level \d\.\d\d -> \d\.\d\d", printed
    )


def test_the_final_model_leads_to_both_rounds(rounds: tuple[Path, str]) -> None:
    folder, _ = rounds
    final = folder / "runs" / "round_2" / "export"
    shown = json.loads(succeeded(python("scripts/lineage.py", "show", str(final), "--json")).stdout)
    nodes = {node["id"]: node for node in shown["nodes"]}
    for name in (
        "tagged_1.jsonl",
        "tagged_1.jsonl.tagging.json",
        "tagged_2.jsonl",
        "tagged_2.jsonl.tagging.json",
        "responses_2.jsonl",
        "runs/round_1/export",
        "runs/sft/export",
        "runs/pm/export",
    ):
        assert id_of(folder / name) in nodes, name
    # The weights begin with those of the SFT model; the model of the first round has answered the prompts of the second.
    parents = {parent["role"]: parent["id"] for parent in nodes[id_of(final)]["parents"]}
    assert parents["init"] == id_of(folder / "runs" / "sft" / "export")
    answered = nodes[id_of(folder / "responses_2.jsonl")]
    assert {"role": "model", "id": id_of(folder / "runs" / "round_1" / "export")} in answered["parents"]
    assert answered["details"]["tag"] == "best"
    frozen = {"role": "source", "id": id_of(folder / "tagged_1.jsonl.tagging.json")}
    assert frozen in nodes[id_of(folder / "tagged_2.jsonl.tagging.json")]["parents"]
    rounds_of = [tagging(folder, number)["counts"] for number in (1, 2)]
    known = {level: sum(counts[f"level_{level}"] for counts in rounds_of) for level in range(1, 6)}
    assert nodes[id_of(final)]["details"]["levels"] == {str(level): count for level, count in known.items() if count}


def test_all_of_it_verifies(rounds: tuple[Path, str]) -> None:
    folder, printed = rounds
    assert re.search(r"runs/round_2/export: every byte of \d+ artefacts, all good", printed)
    told = json.loads(succeeded(python("scripts/lineage.py", "verify", str(folder), "--json")).stdout)
    assert all(one["good"] and not one["absent"] for one in told)
    checked = {item["path"] for one in told for item in one["checked"]}
    assert len(checked) >= 14
