"""Locks that killed processes leave on compiled operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moss_train.train import build_locks
from moss_train.train.build_locks import remove_stale_build_locks
from tests.forked import forked
from tests.launch import succeeded
from tests.small_runs import arguments

HOLD = "import sys, os; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); sys.stdin.readline()"


def test_only_a_lock_that_nobody_holds_is_removed(tmp_path: Path) -> None:
    for name in ("stale", "held"):
        (tmp_path / "py311_cpu" / name).mkdir(parents=True)
    stale, held = (tmp_path / "py311_cpu" / name / "lock" for name in ("stale", "held"))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(held)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        stale.touch()
        assert remove_stale_build_locks(tmp_path) == [stale]
        assert held.exists()
        holder.kill()
    assert remove_stale_build_locks(tmp_path) == [held]


def test_on_a_network_file_system_only_an_old_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "op").mkdir()
    lock = tmp_path / "op" / "lock"
    lock.touch()
    monkeypatch.setattr(build_locks, "_file_system", lambda path: "nfs4")
    assert remove_stale_build_locks(tmp_path) == []
    os.utime(lock, (0, 0))
    assert remove_stale_build_locks(tmp_path) == [lock]


def test_a_run_removes_the_lock_that_another_was_killed_with(tmp_path: Path) -> None:
    operator = tmp_path / "compiled" / "fused_adam"
    operator.mkdir(parents=True)
    (operator / "lock").touch()
    run = arguments(tmp_path / "run", "train.steps=1")
    succeeded(forked(2, "scripts/sft.py", *run, timeout=60, TORCH_EXTENSIONS_DIR=str(tmp_path / "compiled")))
    assert not (operator / "lock").exists()
