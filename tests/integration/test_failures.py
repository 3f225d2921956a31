"""What ends a run early: each with its exit code on every rank, one message, and nothing half-written under a final name."""

from __future__ import annotations

import fcntl
import json
import resource
from pathlib import Path

import pytest

from tests.forked import forked
from tests.launch import losses, metrics, succeeded

QUICK = ("+config=tiny_sft", "train.steps=3", "train.eval_every=0", "train.eval_at_start=false", "data.seq_len=512")


def test_a_loss_that_is_not_finite_is_exit_6(tmp_path: Path) -> None:
    result = forked(2, "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/run", "optim.lr=1e30", "optim.warmup=0")
    assert result.returncode == 6, result.stderr[-2000:]
    assert "the loss is nan" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "export").exists()
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["exit_code"] == 6


def test_no_space_for_the_export_is_exit_7_on_both_ranks(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: the write of the first shard fails on rank 0 while rank 1 is gathering."""
    program = tmp_path / "limited.py"
    program.write_text(
        "import errno, resource, signal, sys\n"
        "from moss_train import cli\n"
        "from moss_train import files\n"
        # EFBIG is what the limit gives; here it means a full disk.
        "files.errno.ENOSPC = errno.EFBIG\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
        "cli.run('sft')\n"
    )
    result = forked(2, str(program), *QUICK, f"run.dir={tmp_path}/run", "train.steps=1", "train.keep=0", timeout=120)
    assert result.returncode == 7, result.stderr[-2000:]
    assert f"no space is left at {tmp_path}/run for the export" in result.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()}.isdisjoint({"export", "export.tmp"})
    assert len(losses(tmp_path / "run")) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    with (tmp_path / "run" / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = forked(1, "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/run")
    assert result.returncode == 2
    assert "another run is writing" in result.stderr
    assert (tmp_path / "run" / "config.yaml").read_text() == "{}"


@pytest.mark.parametrize("where", ["/dev/null/run", "file"])
def test_a_run_directory_that_cannot_be_made_is_exit_2(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("something else")
    result = forked(1, "scripts/sft.py", *QUICK, f"run.dir={tmp_path / where}")
    assert result.returncode == 2
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr


def test_machines_with_other_data_refuse_to_train_together(tmp_path: Path) -> None:
    program = tmp_path / "other_data.py"
    program.write_text(
        "import os, socket, sys\n"
        "from moss_train import cli\n"
        # On one machine they could not have: one rank reads for all.
        "socket.gethostname = lambda: f'machine {os.environ[\"RANK\"]}'\n"
        "file = next(argument for argument in sys.argv if argument.endswith('.jsonl'))\n"
        "sys.argv.remove(file)\n"
        "sys.argv.append(f'data.train={file}#{100 + int(os.environ[\"RANK\"])}')\n"
        "cli.run('sft')\n"
    )
    bundled = Path(__file__).resolve().parents[2] / "moss_train/data/bundled/dialogues_train.jsonl"
    result = forked(2, str(program), str(bundled), *QUICK, f"run.dir={tmp_path}/run", timeout=120)
    assert result.returncode == 3, result.stderr[-2000:]
    assert "rank 1 are not those of rank 0" in result.stderr


def test_epochs_that_end_in_the_middle_of_a_step(tmp_path: Path) -> None:
    """1.1 epochs: the last step is filled with rows of weight zero, and every row of the first epoch is seen once."""
    bundled = Path(__file__).resolve().parents[2] / "moss_train/data/bundled/dialogues_train.jsonl"
    arguments = (
        "+config=tiny_sft",
        "train.steps=null",
        "train.epochs=1.1",
        "train.eval_every=0",
        "data.seq_len=512",
        "export.enabled=false",
    )
    shown = succeeded(forked(2, "scripts/sft.py", *arguments, f"data.train={bundled}#70", f"run.dir={tmp_path}/run")).stdout
    rows = int(shown.split(" dialogues in ")[1].split(" rows")[0])
    samples = round(1.1 * rows)
    assert samples % 4, "choose another number of dialogues: this one ends with a whole step"
    steps = [event for event in metrics(tmp_path / "run") if "train/loss" in event]
    assert len(steps) == -(-samples // 4)
    assert steps[-1]["train/supervised_tokens"] < steps[0]["train/supervised_tokens"]
