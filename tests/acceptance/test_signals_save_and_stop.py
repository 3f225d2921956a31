"""A request to stop, through each launcher: a checkpoint is saved, none is lost, no process is left. The whole table: signals.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.signals import CASES, Case, first_checkpoint, run_case

# Under SIGTERM the launcher's child returns 1 and torchrun 1, whatever the ranks return; a launcher that is killed returns nothing of ours.
EVERY_DAY = (
    Case("deepspeed", "deepspeed"),
    Case("none", "rank 0", "SIGINT"),
)


def check(case: Case, folder: Path, save_seconds: float, patience: float) -> None:
    """One case."""
    first_checkpoint(folder)
    outcome = run_case(case, folder, save_seconds)
    assert outcome.lost == []
    assert outcome.left_running == []
    assert outcome.seconds < save_seconds + patience
    if save_seconds < 30 or case.launcher == "none" or "rank" in case.target:
        assert (outcome.state, outcome.exit_code) == ("preempted", 75)
        assert outcome.last_after > outcome.last_before
    if case.launcher == "none" or (case.launcher == "deepspeed" and "rank" in case.target):
        assert outcome.return_code == 75


@pytest.mark.parametrize("case", EVERY_DAY, ids=str)
def test_a_short_save_is_finished(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, 2.0, 30.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_save_of_forty_seconds(case: Case, tmp_path: Path) -> None:
    """Longer than the 30 s after which launchers kill: what was committed before is there, and nothing runs on."""
    check(case, tmp_path, 40.0, 60.0)
