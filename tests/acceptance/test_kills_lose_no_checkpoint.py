"""SIGKILL at every place of saving, rotating and loading, and at random times: nothing that was committed is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns import record
from tests.programs.save_and_kill import MUTATIONS, PLACES

FAULTS = ("lost", "older", "wrong_start", "different", "damaged", "leftovers", "foreign", "error")


def campaign(repository: Path, directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Runs the program; returns its exit code and summary."""
    command = [sys.executable, "-m", "tests.programs.save_and_kill", str(directory), *options]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=580)
    assert result.stdout, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return result.returncode, summary


@pytest.mark.parametrize("kills", [60, pytest.param(700, marks=pytest.mark.slow)])
def test_kills_lose_nothing(repository: Path, tmp_path: Path, kills: int) -> None:
    code, summary = campaign(repository, tmp_path / "checkpoints", "--kills", str(kills), "--seed", "1")
    record(f"kills-{kills}", summary)
    assert {name: summary[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0), summary["faults"]
    assert summary["kills"] == kills
    assert summary["commits"] > kills / 2
    assert summary["kills_at_random"] > 0.25 * kills
    assert summary["places_without_a_kill"] == []
    assert code == 0
    if kills >= 700:
        for place in PLACES:
            assert {"before", "after"} <= summary["landed"][place].keys(), place
            assert ("halfway" in summary["landed"][place]) == ("write" in place), place
        assert sum("random" in counts for counts in summary["landed"].values()) >= 5


@pytest.mark.parametrize(
    ("mutation", "seen"),
    [("no-rename", "damaged"), ("rename-before-manifest", "damaged"), ("no-verification", "wrong_start"), ("old-first", "lost")],
)
def test_a_program_that_saves_carelessly_is_found_out(repository: Path, tmp_path: Path, mutation: str, seen: str) -> None:
    """The campaign can fail: the same one sees checkpoints written in place, trusted unread, or removed too early."""
    assert mutation in MUTATIONS
    code, summary = campaign(repository, tmp_path / "checkpoints", "--kills", "60", "--seed", "1", "--mutation", mutation)
    assert code == 1
    assert summary[seen] > 0, summary


def test_kills_that_miss_a_place_are_no_campaign(repository: Path, tmp_path: Path) -> None:
    code, summary = campaign(repository, tmp_path / "checkpoints", "--kills", "5", "--seed", "1")
    assert sum(summary[name] for name in FAULTS) == 0
    assert len(summary["places_without_a_kill"]) >= len(PLACES) - 5
    assert code == 1
