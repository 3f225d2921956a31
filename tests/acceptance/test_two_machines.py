"""Two machines that share run.dir and nothing else: one is lost, both are started again, the run goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from moss_train.ports import free_port
from tests.forked import Ranks
from tests.launch import BIN, REPOSITORY, environment, losses
from tests.small_runs import arguments, status, steps, tensors_digest


def start_machine(number: int, port: int, folder: Path, line: list[str]) -> subprocess.Popen[bytes]:
    """A torchrun agent with one rank, in a working directory of its own, with a copy of the program."""
    own = folder / f"machine-{number}"
    if not own.exists():
        own.mkdir()
        shutil.copytree(REPOSITORY / "tests" / "programs", own / "programs")
    faults = [{"kind": "slow_step", "seconds": 0.3}, {"kind": "host", "rank": number, "name": f"machine-{number}"}]
    command = [
        str(BIN / "torchrun"), "--nnodes", "2", "--node_rank", str(number), "--nproc_per_node", "1",
        "--master_addr", "127.0.0.1", "--master_port", str(port), "programs/faulty.py", *line,
    ]  # fmt: skip
    with (own / "log").open("a") as log:
        env = environment(FAULTS=json.dumps(faults), PYTHONPATH=str(REPOSITORY))
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, cwd=own, env=env, start_new_session=True, **streams)


@pytest.mark.slow
def test_one_machine_is_lost_and_both_are_started_again(tmp_path: Path) -> None:
    line = arguments(tmp_path / "shared" / "run", "train.steps=10", "train.keep=99")
    port = free_port()
    machines = [start_machine(number, port, tmp_path, line) for number in (0, 1)]
    until = time.monotonic() + 120
    while not steps(tmp_path / "shared" / "run"):
        logs = "".join((tmp_path / f"machine-{number}" / "log").read_text()[-1500:] for number in (0, 1))
        assert all(machine.poll() is None for machine in machines), logs
        assert time.monotonic() < until, logs
        time.sleep(0.1)
    for process in [*children_of(machines[1].pid), machines[1].pid]:
        os.kill(process, signal.SIGKILL)
    since = time.monotonic()
    machines[0].wait(timeout=90)
    assert time.monotonic() - since < 60
    ended = status(tmp_path / "shared" / "run")
    assert ended["exit_code"] == 9
    assert "rank" in ended["message"]
    before = steps(tmp_path / "shared" / "run")
    port = free_port()
    again = [start_machine(number, port, tmp_path, line) for number in (0, 1)]
    assert [machine.wait(timeout=120) for machine in again] == [0, 0]
    found = steps(tmp_path / "shared" / "run")
    assert found[: len(before)] == before
    assert found[-1] == 10
    # As many threads as a rank takes that has a machine to itself.
    threads = str(len(os.sched_getaffinity(0)))
    reference = Ranks(2, "scripts/sft.py", *arguments(tmp_path / "reference", "train.steps=10"), OMP_NUM_THREADS=threads)
    assert reference.wait() == [0, 0]
    assert losses(tmp_path / "shared" / "run") == losses(tmp_path / "reference")
    assert tensors_digest(tmp_path / "shared" / "run", 10) == tensors_digest(tmp_path / "reference", 10)


def children_of(pid: int) -> list[int]:
    """Ranks that an agent started are leaders of groups of their own."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("silent", [0, 1])
def test_a_machine_that_falls_silent_is_named(tmp_path: Path, silent: int) -> None:
    """Stopped, not killed: no connection breaks, as when a cable is pulled. Its signs of life are missed."""
    faults = [{"kind": "slow_step", "seconds": 0.2}, *({"kind": "host", "rank": rank, "name": f"machine-{rank}"} for rank in (0, 1))]
    ranks = Ranks(2, "tests/programs/faulty.py", *arguments(tmp_path / "run", "train.steps=2000"), FAULTS=json.dumps(faults))
    until = time.monotonic() + 60
    while not steps(tmp_path / "run"):
        assert time.monotonic() < until, ranks.output
        time.sleep(0.1)
    ranks.ranks[silent].signal(signal.SIGSTOP)
    since = time.monotonic()
    assert ranks.ranks[1 - silent].wait(90) == 9
    assert time.monotonic() - since < 60
    assert f"rank {silent} on machine-{silent} is gone" in ranks.output
    assert status(tmp_path / "run")["exit_code"] == 9
    ranks.kill()
    ranks.wait(10)
