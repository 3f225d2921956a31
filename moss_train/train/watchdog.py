"""Watches a run from a thread of each rank, so that no rank waits for one that is gone.

What a rank meets while the others are inside a collective, they cannot be told through that collective. So each rank has a thread that
looks, twice a second, at a small store which rank 0 hosts:

- a rank that fails writes its message and exit code there; all others end with the same;
- a rank of this machine whose process is gone, or one of another machine that gives no sign of life, is named there;
- a rank that makes no progress for `train.hang_seconds` is named there, and every rank writes the stacks of its threads to `stacks/`;
- a launcher that is gone becomes a request to save and stop.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from moss_train.errors import LostRankError, report
from moss_train.train import engine as distributed
from moss_train.train.interrupt import Launcher, StopRequest, is_alive

_LOOK_SECONDS = 0.5
_SIGN_OF_LIFE_SECONDS = 5.0
_LOST_SECONDS = 45.0
"""A rank of another machine without a sign of life for this long is lost."""
_GRACE_SECONDS = 5.0
"""How long a rank may take to end by itself, with its own message, once a failure is known."""
_HEARD_SECONDS = 3.0
_REPORT_SECONDS = 20.0
"""How long the others wait for rank 0 to say what happened: a launcher kills it when one of them leaves."""


class Watchdog:
    """One rank's watch over a run.

    Args:
        directory: Of the run; stacks go to `stacks/` in it.
        hang_seconds: Longest time without progress.
        stop: Told when the launcher is gone.
        write_outcome: Writes status.json: exit code and message.
    """

    def __init__(self, directory: Path, hang_seconds: float, stop: StopRequest, write_outcome: Callable[[int, str], None]):
        self._directory = directory
        self._hang_seconds = hang_seconds
        self._stop = stop
        self._write_outcome = write_outcome
        self._rank = distributed.rank()
        self._world = distributed.world_size()
        self._launcher = Launcher()
        self._beat = (time.monotonic(), "starting")
        self._ending = threading.Event()
        self._closed = threading.Event()
        self._store = self._make_store()
        here = socket.gethostname()
        peers = distributed.gather((here, os.getpid()))
        self._local_peers = {rank: pid for rank, (host, pid) in enumerate(peers) if host == here and rank != self._rank}
        self._remote_peers = [rank for rank, (host, _) in enumerate(peers) if host != here]
        self._hosts = [host for host, _ in peers]
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def doing(self) -> str:
        """What this rank last said it was doing."""
        return self._beat[1]

    def beat(self, doing: str) -> None:
        """Tells that this rank makes progress."""
        self._beat = (time.monotonic(), doing)

    def rest(self, doing: str) -> None:
        """Tells that what comes now may take long without a sign: there is no limit until the next beat."""
        self._beat = (math.inf, doing)

    def failure(self, wait_seconds: float = 0.0) -> LostRankError | None:
        """What another rank was found to have met, if anything: the cause behind an error of a collective."""
        until = time.monotonic() + wait_seconds
        while True:
            try:
                known = self._read()
            except Exception:
                known = self._rank0_gone()
            if known is not None and known["rank"] != self._rank:
                return _as_error(known)
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)

    def fail(self, code: int, message: str) -> None:
        """Tells all ranks that this one ends, and how; rank 0 has then written the outcome before any rank leaves."""
        self._ending.set()
        self._publish(code, message)
        self._closed.set()
        if self._speaks:
            self._write_outcome(code, message)
            if self._rank != 0:
                report(message, code)
            self._tell_the_others()
        else:
            self._wait_for_report()

    def close(self) -> None:
        """Ends the watch; every rank has come to the end of the run."""
        self._ending.set()
        distributed.barrier()
        self._closed.set()
        self._thread.join()
        # Whoever hosts the store leaves last.
        distributed.barrier()
        self._store = None

    def _make_store(self) -> Any:
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        timeout = timedelta(seconds=30)
        store, port = None, 0
        if self._rank == 0:
            store = dist.TCPStore(address, 0, self._world, is_master=True, wait_for_workers=False, timeout=timeout)
            port = store.port
        port = distributed.gather(port)[0]
        return store or dist.TCPStore(address, port, self._world, is_master=False, wait_for_workers=False, timeout=timeout)

    def _watch(self) -> None:
        next_sign = 0.0
        while not self._closed.wait(_LOOK_SECONDS):
            now = time.monotonic()
            try:
                if now >= next_sign:
                    self._store.set(f"sign/{self._rank}", str(now))
                    next_sign = now + _SIGN_OF_LIFE_SECONDS
                known = self._read()
            except Exception:
                if self._closed.is_set() or self._ending.is_set():
                    return
                known = self._rank0_gone()
            if known is not None:
                self._end(known)
                return
            if self._launcher.is_gone():
                self._stop.ask("the launcher that started this rank is gone")
            if not self._ending.is_set():
                self._look_at_peers(now)
                self._look_at_progress(now)

    def _look_at_peers(self, now: float) -> None:
        for rank, pid in self._local_peers.items():
            if not is_alive(pid):
                # It may have told why before it left.
                time.sleep(1.0)
                if not self._ending.is_set():
                    self._publish(LostRankError.exit_code, self._gone(rank, pid))
                return
        if self._rank != 0:
            return
        for rank in self._remote_peers:
            sign = self._store.get(f"sign/{rank}") if self._store.check([f"sign/{rank}"]) else b""
            last, since = self._signs.get(rank, (b"", now))
            self._signs[rank] = (sign, now if sign != last else since)
            if now - self._signs[rank][1] > _LOST_SECONDS:
                self._publish(LostRankError.exit_code, self._gone(rank))
                return

    def _look_at_progress(self, now: float) -> None:
        since, doing = self._beat
        if now - since > self._hang_seconds:
            message = (
                f"rank {self._rank} on {self._hosts[self._rank]} has made no progress for {now - since:.0f} s (train.hang_seconds), after: "
                f"{doing}. The stacks of all ranks are in {self._directory / 'stacks'}; the newest checkpoint is untouched"
            )
            self._publish(LostRankError.exit_code, message, stacks=True)

    def _rank0_gone(self) -> dict[str, Any]:
        return {"rank": 0, "code": LostRankError.exit_code, "message": self._gone(0), "stacks": False}

    @property
    def _speaks(self) -> bool:
        """Whether this rank says how the run ended: rank 0, or rank 1 when the store is gone with rank 0."""
        if self._rank > 1:
            return False
        try:
            return self._rank == 0 or not self._store.check(["sign/0"])
        except Exception:
            return True

    def _gone(self, rank: int, pid: int | None = None) -> str:
        process = f" (process {pid})" if pid else ""
        return (
            f"rank {rank} on {self._hosts[rank]}{process} is gone: it was killed, or its machine is away or out of memory (see `dmesg` "
            "there). The newest checkpoint is untouched; the same command goes on from it"
        )

    def _publish(self, code: int, message: str, stacks: bool = False) -> None:
        record = json.dumps({"rank": self._rank, "code": code, "message": message, "stacks": stacks})
        # The first word stands: what follows on other ranks is its consequence.
        with contextlib.suppress(Exception):
            self._store.compare_set("failure", "", record)

    def _read(self) -> dict[str, Any] | None:
        if self._store is None or not self._store.check(["failure"]):
            return None
        record: dict[str, Any] = json.loads(self._store.get("failure"))
        return record

    def _tell_the_others(self) -> None:
        """Lets the other ranks leave, and waits until they have heard: the store ends with this process."""
        until = time.monotonic() + _HEARD_SECONDS
        with contextlib.suppress(Exception):
            self._store.set("reported", "1")
            alive = self._world - 1 - sum(not is_alive(pid) for pid in self._local_peers.values())
            while self._store.add("heard", 0) < alive and time.monotonic() < until:
                time.sleep(0.05)

    def _wait_for_report(self) -> None:
        until = time.monotonic() + _REPORT_SECONDS
        with contextlib.suppress(Exception):
            while not self._store.check(["reported"]) and time.monotonic() < until:
                time.sleep(0.1)
            self._store.add("heard", 1)

    def _end(self, known: dict[str, Any]) -> None:
        """Ends this process as `known` says, unless the main thread does so first."""
        if known["stacks"]:
            self._dump_stacks()
        elif self._ending.wait(_GRACE_SECONDS):
            return
        self._ending.set()
        if self._speaks:
            with contextlib.suppress(Exception):
                self._write_outcome(known["code"], known["message"])
            report(known["message"], known["code"])
            self._tell_the_others()
        else:
            self._wait_for_report()
        os._exit(known["code"])

    def _dump_stacks(self) -> None:
        with contextlib.suppress(OSError):
            folder = self._directory / "stacks"
            folder.mkdir(exist_ok=True)
            with (folder / f"rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank}, last said to be: {self.doing}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


def _as_error(known: dict[str, Any]) -> LostRankError:
    error = LostRankError(known["message"])
    error.exit_code = known["code"]
    return error
