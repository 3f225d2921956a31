"""What happens when a run under each launcher is asked to stop, signal by signal: python -m tests.acceptance.signals [SAVE_SECONDS]

Starts real two-rank runs under `deepspeed`, `torchrun` and without a launcher, with saves that take SAVE_SECONDS longer than they would
(40 by default, longer than the 30 s that launchers wait before they kill), sends one signal to one process, and watches until no process
of the run is left. Prints the table of docs/cluster.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from moss_train.ports import free_port
from moss_train.train import manifest
from tests.launch import BIN, environment
from tests.small_runs import arguments, status, steps

FAULTY = "tests/programs/faulty.py"


@dataclass(frozen=True)
class Case:
    """One signal, to one process of a run under one launcher."""

    launcher: str
    target: str
    signal: str = "SIGTERM"

    def __str__(self) -> str:
        return f"{self.launcher}-{self.target.replace(' ', '_')}-{self.signal}"


CASES = (
    Case("deepspeed", "rank 1"),
    Case("deepspeed", "rank 0", "SIGUSR1"),
    Case("deepspeed", "launch.py"),
    Case("deepspeed", "deepspeed"),
    Case("deepspeed", "deepspeed", "SIGKILL"),
    Case("deepspeed", "process group"),
    Case("deepspeed", "process group", "SIGINT"),
    Case("torchrun", "rank 1"),
    Case("torchrun", "torchrun"),
    Case("torchrun", "torchrun", "SIGKILL"),
    Case("torchrun", "process group"),
    Case("none", "rank 0"),
    Case("none", "rank 0", "SIGINT"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    return_code: int
    """Of the process that was started."""
    state: str
    exit_code: int | None
    """From status.json."""
    last_before: int
    last_after: int
    """Newest good checkpoint, as a step, when the signal was sent and in the end."""
    lost: list[int]
    """Checkpoints that were committed before and are not good any more."""
    seconds: float
    """From the signal until no process of the run was left."""
    left_running: list[str]


def processes(run_dir: Path) -> dict[int, str]:
    """Processes whose command line names the run: launchers, ranks."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX" and f"run.dir={run_dir}" in words:
            found[int(entry.name)] = " ".join(words)
    return found


def rank_of(pid: int) -> str | None:
    """RANK in the environment of a process."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((word.removeprefix("RANK=") for word in words if word.startswith("RANK=")), None)


def find_target(case: Case, started: int, run_dir: Path) -> int:
    """The process that gets the signal; negative for a group."""
    if case.target == "process group":
        return -started
    if case.target in ("deepspeed", "torchrun"):
        return started
    found = processes(run_dir)
    if case.target == "launch.py":
        return next(pid for pid, command in found.items() if "deepspeed.launcher.launch" in command or "launch.py" in command)
    ranks = {pid: rank_of(pid) or "0" for pid, command in found.items() if pid != started or case.launcher == "none"}
    launchers = {pid for pid, command in found.items() if "launcher.launch" in command or "launch.py" in command}
    return next(pid for pid, rank in ranks.items() if rank == case.target.removeprefix("rank ") and pid not in launchers)


def run_case(case: Case, folder: Path, save_seconds: float, limit: float = 150.0) -> Outcome:
    """Starts the run, sends the signal, waits."""
    run_dir = folder / "run"
    command = {
        "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())],
        "none": [sys.executable],
    }[case.launcher]
    faults = [{"kind": "slow_save", "seconds": save_seconds}, {"kind": "slow_step", "seconds": 0.3}]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, FAULTY, *arguments(run_dir, "train.steps=400", "train.save_every=100")],
            env=environment(FAULTS=json.dumps(faults)),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for_steps(run_dir, process, folder, 2)
        target = find_target(case, process.pid, run_dir)
        before = steps(run_dir)
        since = time.monotonic()
        if target < 0:
            os.killpg(-target, getattr(signal, case.signal))
        else:
            os.kill(target, getattr(signal, case.signal))
        code = process.wait(timeout=limit)
        while (left := processes(run_dir)) and time.monotonic() - since < limit:
            time.sleep(0.1)
        seconds = time.monotonic() - since
    finally:
        for pid in processes(run_dir):
            os.kill(pid, signal.SIGKILL)
        if process.poll() is None:
            process.kill()
    lost = []
    for step in before:
        try:
            manifest.verify(run_dir / "checkpoints" / manifest.step_name(step))
        except manifest.DamagedError:
            lost.append(step)
    newest = manifest.newest_usable(run_dir / "checkpoints")
    ended = status(run_dir)
    return Outcome(
        code, ended["state"], ended["exit_code"], before[-1], newest[1].step if newest else -1, lost, round(seconds, 1), list(left.values())
    )


def wait_for_steps(run_dir: Path, process: subprocess.Popen[bytes], folder: Path, count: int) -> None:
    """Waits until the run has done some steps."""
    until = time.monotonic() + 120
    while True:
        path = run_dir / "metrics.jsonl"
        if path.is_file() and len(path.read_text().splitlines()) >= 2 + count:
            return
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        assert time.monotonic() < until, (folder / "log").read_text()[-3000:]
        time.sleep(0.1)


def first_checkpoint(folder: Path) -> None:
    """A run that has saved step 2 and been stopped, for the case to go on with."""
    from tests.forked import forked

    result = forked(2, "scripts/sft.py", *arguments(folder / "run", "train.steps=400", "train.save_every=100", "run.stop_after=2"))
    assert result.returncode == 75, result.stderr


def main() -> None:
    """All cases, as a table."""
    save_seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    print(f"| launcher | signal | to | the command returns | status.json | new checkpoint | lost | seconds | left running |\n|{'---|' * 9}")
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            first_checkpoint(Path(name))
            outcome = run_case(case, Path(name), save_seconds)
            saved = f"step {outcome.last_after}" if outcome.last_after > outcome.last_before else "no"
            ended = f"{outcome.state} ({outcome.exit_code})"
            print(
                f"| {case.launcher} | {case.signal} | {case.target} | {outcome.return_code} | {ended} | {saved} | {len(outcome.lost)} "
                f"| {outcome.seconds:.0f} | {len(outcome.left_running)} |",
                flush=True,
            )
            print(json.dumps({"case": str(case), **asdict(outcome)}), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
