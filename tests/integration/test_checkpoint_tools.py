"""The programs that look at checkpoints, and the one that shows that resuming is exact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked import forked
from tests.launch import python, succeeded
from tests.small_runs import arguments, checkpoint

pytestmark = pytest.mark.xdist_group("checkpoint_tools")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What verify_resume left and said, on two ranks."""
    run_dir = tmp_path_factory.mktemp("verify") / "run"
    line = arguments(run_dir, "verify.steps=4", "verify.stop_at=2")
    return run_dir, succeeded(forked(2, "scripts/verify_resume.py", *line)).stdout


def test_an_exact_resume_is_shown_on_the_users_configuration(compared: tuple[Path, str]) -> None:
    assert "the same, bit for bit: 4 steps straight, and interrupted after 2" in compared[1]


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    """A run whose second start computes otherwise: the moments are forgotten."""
    program = tmp_path / "forgetful.py"
    program.write_text(
        "from moss_train import cli\n"
        "from moss_train.train import checkpoint, shards\n"
        "restore = checkpoint.restore\n"
        "def forgetful(model, saved, beat):\n"
        "    restore(model, saved, beat)\n"
        "    shards.set_adam_step(model, 0)\n"
        "checkpoint.restore = forgetful\n"
        "cli.run('verify_resume')\n"
    )
    result = forked(1, str(program), *arguments(tmp_path / "run", "verify.steps=4", "verify.stop_at=2"))
    assert result.returncode == 5
    assert "the interrupted run is not the straight one: step 4: train/loss " in result.stderr


def test_list_and_verify(compared: tuple[Path, str]) -> None:
    run_dir = compared[0] / "straight"
    listed = succeeded(python("scripts/checkpoint.py", "list", str(run_dir))).stdout
    assert "step-00000004" in listed
    assert "48 samples" in listed
    assert "  good" in succeeded(python("scripts/checkpoint.py", "verify", str(run_dir))).stdout
    victim = checkpoint(run_dir, 4) / "config.json"
    victim.write_text(victim.read_text().replace("codegen", "codegem"))
    result = python("scripts/checkpoint.py", "verify", str(run_dir), "--json")
    assert result.returncode == 4
    assert json.loads(result.stdout)["problem"] == "config.json is damaged: its sha256 is not the one in the manifest"
    assert python("scripts/checkpoint.py", "list", str(run_dir / "plots")).returncode == 4
