"""Whole runs, killed at random and inside saves, go on bit for bit. The campaign of 300 kills: kill_runs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.kill_runs import PHASES, SAVING, Campaign


def test_a_few_kills(tmp_path: Path) -> None:
    summary = Campaign(tmp_path, seed=11, steps=16).run(3)
    assert (summary["lost"], summary["differences"]) == (0, 0)
    assert summary["kills"] == 3
    assert any(phase.startswith("saving") for phase in summary["phases"])


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_three_hundred_kills_strike_every_phase(tmp_path: Path) -> None:
    summary = Campaign(tmp_path, seed=7).run(300)
    assert (summary["lost"], summary["differences"]) == (0, 0)
    assert set(PHASES) <= set(summary["phases"])
    assert sum(count for phase, count in summary["phases"].items() if phase.startswith("saving")) >= 100


def test_a_few_kills_while_a_checkpoint_is_written_beside_training(tmp_path: Path) -> None:
    summary = Campaign(tmp_path, seed=11, steps=12, beside=True).run(2)
    assert (summary["lost"], summary["differences"]) == (0, 0)
    assert sum(count for phase, count in summary["phases"].items() if phase in SAVING) == 2


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_fifty_kills_while_checkpoints_are_written_beside_training(tmp_path: Path) -> None:
    summary = Campaign(tmp_path, seed=7, steps=30, beside=True).run(50)
    assert (summary["lost"], summary["differences"]) == (0, 0)
    assert set(summary["phases"]) == set(SAVING)
    assert summary["runs_finished"] >= 1
