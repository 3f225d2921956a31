"""Runs the project's programs the way a user does, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from moss_train.ports import free_port

REPOSITORY = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def environment(**extra: str) -> dict[str, str]:
    """The environment of a launched program: CPU, and no launcher's variables of ours."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
    return {**kept, "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "", **extra}


def run(command: list[str], cwd: Path = REPOSITORY, timeout: float = 420, **extra: str) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns what it printed, stdout and stderr apart."""
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def python(script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ARGUMENTS`."""
    return run([sys.executable, str(REPOSITORY / script), *arguments], **options)


def deepspeed(ranks: int, script: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_accelerators RANKS SCRIPT ARGUMENTS`."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return run([*launcher, str(REPOSITORY / script), *arguments], **options)


def succeeded(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """`result`, after checking that the program ended well; the end of its output is in the failure."""
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses(run_dir: Path) -> list[float]:
    """The training loss of each step."""
    return [event["train/loss"] for event in metrics(run_dir) if "train/loss" in event]
