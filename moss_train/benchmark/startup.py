"""The suite `startup`: what a user waits for before anything trains. Each is a process of its own, as a user starts it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.launch import ROOT, environment, launcher
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import FailedError

_FIRST_STEP = "step 1/"


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    if done.returncode:
        raise FailedError(f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return time.perf_counter() - started


def import_seconds(module: str) -> float:
    """Of one import, the interpreter's own start not counted."""
    code = f"import time; started = time.perf_counter(); import {module}; print(time.perf_counter() - started)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1])


def seconds_to_first_step(ranks: int) -> float:
    """From the command of `tiny_sft` to the line of its first step, on CPU ranks; kernels that DeepSpeed compiles are there before."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*launcher(ranks), str(ROOT / "scripts" / "sft.py"), "+config=tiny_sft"]
        command += [f"run.dir={folder}/run", "train.steps=1", "train.log_every=1", "train.eval_every=0", "train.eval_at_start=false"]
        command += ["train.save_every=0", "export.enabled=false"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment("cpu"))
        assert process.stdout is not None
        found, said = None, []
        for line in process.stdout:
            said.append(line)
            if found is None and _FIRST_STEP in line:
                found = time.perf_counter() - started
        if process.wait() or found is None:
            raise FailedError(f"tiny_sft ended with {process.returncode} before its first step: {''.join(said[-3:])}")
        return found


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Medians over rounds; the first, which reads files from the disk, is left out."""
    outcome = Outcome("startup", "seconds", "", settings={"ranks": config.ranks})
    helped = [sys.executable, str(ROOT / "scripts" / "sft.py"), "--help"]
    cases = {
        "import moss_train": lambda: import_seconds("moss_train"),
        "scripts/sft.py --help": lambda: _seconds(helped),
        f"launch to first step of tiny_sft, {config.ranks} CPU ranks": lambda: seconds_to_first_step(config.ranks),
        "for comparison, import torch": lambda: import_seconds("torch"),
        "for comparison, import transformers": lambda: import_seconds("transformers"),
        "for comparison, import deepspeed": lambda: import_seconds("deepspeed"),
    }
    for name, measure in cases.items():
        measure()
        found = statistics.median(measure() for _ in range(config.rounds))
        outcome.rows.append(Row("", name, found, ours=not name.startswith("for comparison")))
        if not name.startswith("for comparison"):
            outcome.figures[name] = found
    return outcome
