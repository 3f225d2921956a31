"""Ranks without a launcher, forked from one process that has imported everything: a two-rank run starts in a second instead of ten.

What is tested of the launchers themselves goes through `launch.py`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moss_train.ports import free_port
from tests.launch import REPOSITORY, environment

_SERVER: list[tuple[subprocess.Popen[bytes], Path]] = []


class Rank:
    """One process of a run."""

    def __init__(self, script: Path, arguments: list[str], env: dict[str, str], cwd: Path, folder: Path, number: int):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(_server()))
        self.out, self.err = folder / f"out-{number}", folder / f"err-{number}"
        request = {"argv": [str(script), *arguments], "env": env, "cwd": str(cwd), "out": str(self.out), "err": str(self.err)}
        self._connection.sendall((json.dumps(request) + "\n").encode())
        self._lines = self._connection.makefile()
        self.pid = int(json.loads(self._lines.readline())["pid"])
        self._code: int | None = None

    def wait(self, timeout: float) -> int:
        """Its exit code; negative where a signal killed it."""
        if self._code is None:
            self._connection.settimeout(timeout)
            self._code = int(json.loads(self._lines.readline())["code"])
            self._connection.close()
        return self._code

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self.wait(10)
        return self._code is not None

    def signal(self, number: int) -> None:
        """Sends it a signal, if it is there."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return


class Ranks:
    """The ranks of one run.

    Args:
        count: How many. script: Relative to the repository. arguments: Of the script.
        cwd: Working directory. extra: Environment variables.
    """

    def __init__(self, count: int, script: str, *arguments: str, cwd: Path = REPOSITORY, **extra: str):
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        port = str(free_port())
        self.ranks = []
        for number in range(count):
            placed = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            env = environment(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, TORCH_CPP_LOG_LEVEL="ERROR", **{**placed, **extra})
            self.ranks.append(Rank(REPOSITORY / script, list(arguments), env, cwd, Path(self._folder.name), number))

    def wait(self, timeout: float = 300) -> list[int]:
        """Exit codes of all ranks; those that do not end in time are killed, which is an error."""
        until = time.monotonic() + timeout
        try:
            return [rank.wait(max(0.1, until - time.monotonic())) for rank in self.ranks]
        except TimeoutError:
            shown = self.output[-3000:]
            self.kill()
            raise AssertionError(f"ranks still running after {timeout} s\n{shown}") from None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends all ranks a signal."""
        for rank in self.ranks:
            rank.signal(number)

    @property
    def output(self) -> str:
        """What all ranks have printed so far, rank 0 first, stdout before stderr."""
        paths = [path for rank in self.ranks for path in (rank.out, rank.err)]
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.exists())


def forked(count: int, script: str, *arguments: str, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `count` ranks of a script to their end; the return code is the first that is not zero, as a launcher's would be."""
    ranks = Ranks(count, script, *arguments, **options)
    codes = ranks.wait(timeout)
    text = [
        "".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.exists())
        for paths in ([rank.out for rank in ranks.ranks], [rank.err for rank in ranks.ranks])
    ]
    return subprocess.CompletedProcess([script, *arguments], next((code for code in codes if code), 0), *text)


def _server() -> Path:
    if not _SERVER or _SERVER[0][0].poll() is not None:
        _SERVER.clear()
        path = Path(tempfile.mkdtemp(prefix="forkserver-")) / "socket"
        program = REPOSITORY / "tests" / "programs" / "forkserver.py"
        process = subprocess.Popen([sys.executable, str(program), str(path)], cwd=REPOSITORY, env=environment(), stdin=subprocess.PIPE)
        _SERVER.append((process, path))
        atexit.register(process.kill)
        until = time.monotonic() + 120
        while not path.exists():
            assert process.poll() is None, "the fork server ended"
            assert time.monotonic() < until, "the fork server did not start"
            time.sleep(0.05)
        time.sleep(0.1)
    return _SERVER[0][1]
