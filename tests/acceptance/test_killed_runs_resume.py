"""Whole runs, killed at random and inside saves, go on bit for bit. The campaign of 300 kills: kill_runs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.kill_runs import PHASES, Campaign


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
