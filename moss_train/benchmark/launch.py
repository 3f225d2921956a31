"""How a suite starts the launcher: as a user does, but on a port that is free, beside whatever else runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from moss_train.ports import free_port

ROOT = Path(__file__).parents[2]
_BIN = Path(sys.executable).parent


def launcher(ranks: int) -> list[str]:
    """The beginning of a command of `deepspeed` with so many ranks."""
    return [str(_BIN / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def environment(device: str) -> dict[str, str]:
    """Of such a command."""
    found = {**os.environ, "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    return {**found, "DS_ACCELERATOR": "cpu"} if device == "cpu" else found
