"""Requests to save and stop: signals, a launcher that is gone, a step to stop after.

A request sets a flag, on whichever ranks it reaches. The loop sums the flags of all ranks with the weights of every step, so all ranks see
it at the same step, save together and leave together. Before training begins there is nothing to save, and a signal ends the run at once.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from moss_train.errors import PreemptedError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# A terminal and a launcher both pass Ctrl-C on, within moments; a second one after this many seconds is meant.
_SECOND_CTRL_C_SECONDS = 2.0


class StopRequest:
    """Whether this rank was asked to stop, and by what. Installed for as long as a run is open."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.at_once = True
        """Whether a signal ends what is running by an exception; off while there is something to save."""
        self._first_ctrl_c = math.inf
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Takes over SIGTERM, SIGINT and SIGUSR1. Only the main thread can."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._handle)

    def uninstall(self) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def ask(self, reason: str) -> None:
        """Asks for a stop, from any thread."""
        if self.reason is None:
            self.reason = reason

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if number == signal.SIGINT:
            self._first_ctrl_c = min(self._first_ctrl_c, now)
        if number == signal.SIGINT and now - self._first_ctrl_c > _SECOND_CTRL_C_SECONDS:
            print("\nstopped at once by a second Ctrl-C; what was saved before stays", file=sys.stderr, flush=True)
            os._exit(130)
        first = self.reason is None
        self.ask(name)
        if self.at_once and first:
            raise PreemptedError(f"stopped by {name} before training began; there was nothing to save")


_LAUNCHER: list[int | None] = []
"""The process that launched this one, or None where it was started by hand."""


def note_launcher() -> None:
    """Remembers who launched this process. Called first before a process group exists: a run started by hand then gets the variables of a
    launcher too."""
    if not _LAUNCHER:
        _LAUNCHER.append(os.getppid() if "LOCAL_RANK" in os.environ else None)


class Launcher:
    """The processes that started this rank: when one of them is gone, nobody would end the ranks.

    Measured: SIGTERM to the `deepspeed` command ends it alone; its child `launch.py` and the ranks live on.
    """

    def __init__(self) -> None:
        self._watched: list[tuple[int, str]] = []
        note_launcher()
        parent = _LAUNCHER[0]
        if parent is None:
            # Started by hand: a shell that is closed is no reason to stop.
            return
        self._watch(parent)
        if "deepspeed.launcher.launch" in _command_line(parent) or "launcher/launch.py" in _command_line(parent):
            grandparent = _parent_of(parent)
            words = _command_line(grandparent).split("\0") if grandparent else []
            if any(Path(word).name in ("deepspeed", "ds", "deepspeed.pt") for word in words[:3]):
                self._watch(grandparent)

    def is_gone(self) -> bool:
        """Whether one of them has ended."""
        return any(_started(pid) != started for pid, started in self._watched)

    def _watch(self, pid: int) -> None:
        started = _started(pid)
        if pid > 1 and started:
            self._watched.append((pid, started))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and waits to be collected does not."""
    return bool(_started(pid))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    """When a process was started, which tells it from a later one with its number; empty when it is not running."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] not in "ZX" else ""


def _parent_of(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
