"""`scripts/benchmark.py` from its command line: every suite that a CPU can run, at a size that takes a minute. No time is asserted.

Times are measured on a quiet machine by the same command with its defaults (docs/performance.md); here they are recorded only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import campaigns
from tests.launch import python, succeeded

SMALL = [
    "device=cpu", "rounds=1", "seq_len=512", "rows=1", "shape.hidden_size=256", "shape.num_layers=2", "shape.vocab_size=2048",
    "megabytes=2", "parameters=2_000_000", "dialogues=24", "ranks=2",
]  # fmt: skip


def measured(suite: str, out: Path, *options: str) -> dict[str, Any]:
    """What a suite writes."""
    succeeded(python("scripts/benchmark.py", f"suite=[{suite}]", f"out={out}", *options, timeout=1500))
    assert {path.name for path in out.iterdir()} == {f"{suite}.json", f"{suite}.md", f"{suite}.png"}
    found: dict[str, Any] = json.loads((out / f"{suite}.json").read_text(encoding="utf-8"))
    campaigns.record(f"benchmark {suite}", found)
    return found


@pytest.mark.parametrize("suite", ["loader", "checkpoint"])
def test_a_suite_runs_and_names_the_machine(suite: str, tmp_path: Path) -> None:
    found = measured(suite, tmp_path / "out", *SMALL, "seq_len=2048")
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["versions"]["torch"]
    assert found["rows"]
    assert all(row["value"] > 0 for row in found["rows"])


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["startup", "train", "attention", "generate", "sft", "prepare", "predict"])
def test_the_longer_suites_run_too(suite: str, tmp_path: Path) -> None:
    if suite == "prepare":
        pytest.importorskip("datatrove")
    found = measured(suite, tmp_path / "out", *SMALL, *(["seq_len=2048"] if suite == "sft" else []))
    assert all(row["value"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_the_loss_at_the_vocabulary_of_moss_takes_a_small_part_of_the_memory(tmp_path: Path) -> None:
    found = measured("loss", tmp_path / "out", "device=cpu", "rounds=1", "loss_tokens=8192")
    assert found["figures"]["peak memory over plain"] <= 0.15
    assert found["figures"]["largest difference of gradients, float32"] < 1e-5
