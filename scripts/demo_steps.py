"""How the demo runs its commands: shown, one after another, or two at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LAUNCHER = [str(BIN / "deepspeed"), "--num_accelerators", "2"]
# Optimizer state and gradients are partitioned; the parameters, 7 MB, stay whole on both ranks: it takes longer to gather them.
WHOLE = "deepspeed.zero_optimization.stage3_param_persistence_threshold=10_000_000"
# Runs in a process that imports transformers alone.
STOCK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not report["missing_keys"] and not report["unexpected_keys"], report
print(type(model).__name__, f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
print("moss_train imported:", "moss_train" in sys.modules)
"""


@dataclass
class Demo:
    """Where everything goes, and the source of random numbers. `texts`: Of the bundled dialogues, by language."""

    run: Path
    seed: int
    texts: Path
    thorough: bool = False
    together: list[tuple[str, Sequence[str]]] | None = None
    """Steps put off, to be run side by side."""

    def step(self, title: str, command: Sequence[str]) -> None:
        """Shows a command and runs it; the demo ends with its exit code when it fails."""
        if self.together is not None:
            self.together.append((title, command))
            return
        announce(title, command)
        started = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env=environment()).returncode
        if code:
            sys.exit(code)
        took(started)

    @contextlib.contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Steps of one process each, which do not wait for each other: two at a time. What each has printed comes when it has ended."""
        self.together = []
        yield
        steps, self.together = self.together, None
        for first in range(0, len(steps), 2):
            with contextlib.ExitStack() as stack:
                running = []
                started = time.monotonic()
                for title, command in steps[first : first + 2]:
                    said = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
                    # Half of the cores each: the threads of two processes on the same cores wait for each other at every product.
                    cores = sorted(os.sched_getaffinity(0))
                    own = cores[len(running) :: 2] or cores
                    pin = functools.partial(os.sched_setaffinity, 0, own)
                    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=said, stderr=subprocess.STDOUT, preexec_fn=pin)
                    running.append((title, command, said, process))
                codes = []
                for title, command, said, process in running:
                    codes.append(process.wait())
                    announce(title, command)
                    said.seek(0)
                    print(said.read(), end="", flush=True)
                took(started)
            if any(codes):
                sys.exit(next(code for code in codes if code))

    def one(self, title: str, script: str, *options: str) -> None:
        """A command of one process."""
        self.step(title, [sys.executable, f"scripts/{script}.py", *options])

    def two(self, title: str, script: str, *options: str) -> None:
        """A command of two ranks."""
        self.step(title, [*LAUNCHER, f"scripts/{script}.py", *options])

    def train(self, title: str, stage: str, out: str, steps: int, *options: str, log: int = 20, evaluate: int | None = None) -> None:
        """A stage of training: two ranks, ZeRO-3. Validated at its begin, its end, and every `evaluate` steps."""
        counted = [f"train.steps={steps}", f"train.eval_every={evaluate or steps}", f"train.log_every={log}", "train.save_every=500"]
        shared = [f"+config=tiny_{stage}", f"run.dir={self.run}/{out}", f"run.seed={self.seed}", *counted, WHOLE]
        self.two(f"{title} (two ranks, ZeRO-3)", stage, *shared, *options)


def announce(title: str, command: Sequence[str]) -> None:
    """Shows a command."""
    program = [Path(part).name if part in (sys.executable, LAUNCHER[0]) else "..." if part == STOCK else part for part in command]
    print(f"\n\033[1m== {title}\033[0m\n$ {shlex.join(program)}", flush=True)


def took(started: float) -> None:
    """Says how long a step took since `started`, of the monotonic clock."""
    print(f"\033[2m({time.monotonic() - started:.1f} s)\033[0m", flush=True)


def environment() -> dict[str, str]:
    """Of every command."""
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
