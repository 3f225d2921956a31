"""Watches a run from two threads of each rank, so that no rank waits for one that is gone.

What a rank meets while the others are inside a collective, they cannot be told through that collective. So each rank has a thread that
talks to a small store which rank 0 hosts, and one that draws the conclusions and never waits for anything:

- a rank that fails writes its message and exit code there; all others end with the same;
- a rank of this machine whose process is gone, or one of another machine that gives no sign of life, is named there;
- a rank that makes no progress for `train.hang_seconds`, in training or in what it writes beside it, is named there, and every rank writes
  the stacks of its threads to `stacks/`;
- a store that is gone, or does not answer, means that rank 0 or its machine is;
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

from moss_train.errors import FailedElsewhereError, LostRankError, report
from moss_train.train import engine as distributed
from moss_train.train.interrupt import Launcher, StopRequest, is_alive

_LOOK_SECONDS = 0.5
_SIGN_OF_LIFE_SECONDS = 5.0
_LOST_SECONDS = 35.0
"""A rank of another machine without a sign of life for this long is lost; so is rank 0 when its store does not answer."""
_GRACE_SECONDS = 5.0
"""How long a rank may take to end by itself, with its own message, once a failure is known."""
_PENDING_SECONDS = 10.0
"""How long a rank that failed waits for the others to come to where it can tell them, before it is told through the store."""
_HEARD_SECONDS = 8.0
"""How long rank 0, which hosts the store, waits until the others know how the run ended."""
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
        self._aside = (math.inf, "")
        """Of what is done beside training: neither hides that the other one hangs."""
        self._ending = threading.Event()
        self._closed = threading.Event()
        self._wake = threading.Event()
        self._known: dict[str, Any] | None = None
        self._reported = False
        """Rank 0 has said how the run ended."""
        self._heard = False
        """This rank knows that, and rank 0 knows that it does."""
        self._outbox: dict[str, Any] | None = None
        self._pending: tuple[int, str, float] | None = None
        self._answered = time.monotonic()
        self._store_is_gone = False
        self._store: Any = self._make_store()
        here = machine()
        peers = distributed.gather((here, socket.gethostname(), os.getpid()))
        self._hosts = [host for _, host, _ in peers]
        self._local_peers = {rank: pid for rank, (machine, _, pid) in enumerate(peers) if machine == here and rank != self._rank}
        self._remote_peers = [rank for rank, (machine, _, _) in enumerate(peers) if machine != here]
        self._signs: dict[int, tuple[bytes, float]] = {}
        self._threads = [
            threading.Thread(target=work, name=f"watchdog: {name}", daemon=True)
            for name, work in (("store", self._talk), ("watch", self._watch))
        ]
        for thread in self._threads:
            thread.start()

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

    def beat_aside(self, doing: str) -> None:
        """Tells that what this rank does beside training makes progress."""
        self._aside = (time.monotonic(), doing)

    def rest_aside(self) -> None:
        """Tells that nothing is done beside training, or what may take long without a sign."""
        self._aside = (math.inf, "")

    def failure(self, wait_seconds: float = 0.0) -> FailedElsewhereError | None:
        """What another rank was found to have met, if anything: the cause behind an error of a collective."""
        until = time.monotonic() + wait_seconds
        while True:
            known = self._known
            if known is None and self._store_is_gone:
                known = self._rank0_gone()
            if known is not None and known["rank"] != self._rank:
                return FailedElsewhereError(known["message"], known["code"])
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)

    @contextlib.contextmanager
    def pending(self, code: int, message: str) -> Any:
        """While this rank tries to tell the others of its failure in a collective: if they do not come there, the store tells them."""
        self._pending = (code, message, time.monotonic() + _PENDING_SECONDS)
        try:
            yield
        finally:
            self._pending = None

    def fail(self, code: int, message: str) -> None:
        """Tells all ranks that this one ends, and how; the outcome is written down before any rank leaves."""
        self._ending.set()
        if self._rank == 0:
            self._write_outcome(code, message)
        self._publish(code, message)
        self._leave(code, message, said=self._rank == 0)
        self._closed.set()

    def close(self) -> None:
        """Ends the watch; every rank has come to the end of the run."""
        self._ending.set()
        distributed.barrier()
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join()
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

    # The thread that talks to the store. A call may never return, when rank 0's machine is away.
    def _talk(self) -> None:
        next_sign = 0.0
        while not self._closed.is_set():
            try:
                if time.monotonic() >= next_sign:
                    since, doing = self._beat
                    self._store.set(f"sign/{self._rank}", json.dumps([time.time(), doing, round(time.monotonic() - since, 1)], default=str))
                    next_sign = time.monotonic() + _SIGN_OF_LIFE_SECONDS
                if self._outbox is not None:
                    # The first word stands: what follows on other ranks is its consequence.
                    self._store.compare_set("failure", "", json.dumps(self._with_the_slowest(self._outbox)))
                    self._outbox = None
                if self._known is None and self._store.check(["failure"]):
                    self._known = json.loads(self._store.get("failure"))
                if self._known is not None and not self._heard:
                    if self._rank == 0 and self._reported:
                        self._store.set("reported", "1")
                    if self._known["reported"] or self._store.check(["reported"]):
                        self._store.add("heard", 1)
                        self._heard = True
                if self._rank == 0 and self._known is None:
                    self._look_at_signs()
            except Exception:
                self._store_is_gone = True
                return
            self._answered = time.monotonic()
            self._wake.wait(0.1 if self._known is not None else _LOOK_SECONDS)
            self._wake.clear()

    def _look_at_signs(self) -> None:
        now = time.monotonic()
        for rank in self._remote_peers:
            sign = self._store.get(f"sign/{rank}") if self._store.check([f"sign/{rank}"]) else b""
            last, since = self._signs.get(rank, (b"", now))
            self._signs[rank] = (sign, now if sign != last else since)
            if now - self._signs[rank][1] > _LOST_SECONDS and not self._ending.is_set():
                self._publish(LostRankError.exit_code, self._gone(rank))
                return

    def _with_the_slowest(self, record: dict[str, Any]) -> dict[str, Any]:
        """Names, for a hang, the rank that has been silent longest: whose timer fires first is often one that waits for it."""
        if not record["stacks"]:
            return record
        silent = []
        for rank in range(self._world):
            if self._store.check([f"sign/{rank}"]):
                _, doing, seconds = json.loads(self._store.get(f"sign/{rank}"))
                silent.append((float(seconds), rank, doing))
        if silent:
            _, rank, doing = max(silent)
            slowest = f"Longest without progress: rank {rank} on {self._hosts[rank]}, after: {doing}"
            record = {**record, "message": f"{record['message']}. {slowest}"}
        return record

    # The thread that draws conclusions. It waits for nothing but the clock.
    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            now = time.monotonic()
            known = self._known
            if known is None and (self._store_is_gone or now - self._answered > _LOST_SECONDS):
                if self._ending.is_set():
                    return
                self._store_is_gone = True
                known = self._known = self._rank0_gone()
            if known is not None:
                self._end(known)
                return
            if self._launcher.is_gone():
                self._stop.ask("the launcher that started this rank is gone")
            if self._ending.is_set():
                continue
            self._look_at_local_peers()
            since, doing = self._longest_silence()
            if now - since > self._hang_seconds:
                self._publish(
                    LostRankError.exit_code,
                    f"rank {self._rank} on {self._hosts[self._rank]} has made no progress for {now - since:.0f} s (train.hang_seconds), "
                    f"after: {doing}. The stacks of all ranks are in {self._directory / 'stacks'}; the newest checkpoint is untouched",
                    stacks=True,
                )
            if self._pending is not None and now > self._pending[2]:
                self._publish(self._pending[0], self._pending[1])

    def _longest_silence(self) -> tuple[float, str]:
        """When this rank last gave a sign, in training or beside it, whichever was silent longer; and what it was doing."""
        return min(self._beat, self._aside)

    def _look_at_local_peers(self) -> None:
        for rank, pid in self._local_peers.items():
            if not is_alive(pid):
                # It may have told why before it left.
                time.sleep(1.0)
                if not self._ending.is_set() and self._known is None:
                    self._publish(LostRankError.exit_code, self._gone(rank, pid))
                return

    def _gone(self, rank: int, pid: int | None = None) -> str:
        process = f" (process {pid})" if pid else ""
        return (
            f"rank {rank} on {self._hosts[rank]}{process} is gone: it was killed, or its machine is away or out of memory (see `dmesg` "
            "there). The newest checkpoint is untouched; the same command goes on from it"
        )

    def _rank0_gone(self) -> dict[str, Any]:
        return {"rank": 0, "code": LostRankError.exit_code, "message": self._gone(0), "stacks": False, "reported": False}

    def _publish(self, code: int, message: str, stacks: bool = False) -> None:
        if self._outbox is None and self._known is None:
            said = self._rank == 0 and self._ending.is_set()
            self._outbox = {"rank": self._rank, "code": code, "message": message, "stacks": stacks, "reported": said}
            self._wake.set()

    def _end(self, known: dict[str, Any]) -> None:
        """Ends this process as `known` says, unless the main thread does so first."""
        if known["stacks"]:
            self._dump_stacks()
        elif self._ending.wait(_GRACE_SECONDS):
            return
        self._ending.set()
        self._leave(known["code"], known["message"], said=False)
        os._exit(known["code"])

    def _leave(self, code: int, message: str, said: bool) -> None:
        """Sees to it that how the run ended is written down and printed once, before this rank goes."""
        if self._rank == 0:
            if not said:
                self._say(code, message)
            self._reported = True
            self._wake.set()
            # The store ends with this process.
            self._wait(_HEARD_SECONDS, lambda: self._count_heard() >= self._count_alive())
            return
        self._wait(_REPORT_SECONDS, lambda: self._heard or self._store_is_gone)
        if not self._heard and self._is_lowest_of_the_living():
            self._say(code, message)

    def _say(self, code: int, message: str) -> None:
        with contextlib.suppress(Exception):
            self._write_outcome(code, message)
        report(message, code)

    def _is_lowest_of_the_living(self) -> bool:
        """Rank 0 is not there to speak: one rank of each machine does."""
        return not any(rank < self._rank and is_alive(pid) for rank, pid in self._local_peers.items() if rank != 0)

    def _count_alive(self) -> int:
        return 1 + sum(is_alive(pid) for pid in self._local_peers.values()) + len(self._remote_peers)

    def _count_heard(self) -> int:
        try:
            return int(self._store.add("heard", 0))
        except Exception:
            return self._world

    def _wait(self, seconds: float, done: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            time.sleep(0.05)

    def _dump_stacks(self) -> None:
        with contextlib.suppress(OSError):
            folder = self._directory / "stacks"
            folder.mkdir(exist_ok=True)
            with (folder / f"rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
                file.write(f"rank {self._rank}, last said to be: {self.doing}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)


def machine() -> tuple[str, ...]:
    """Tells machines apart, and containers of one machine whose processes do not see one another."""
    found = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            found.append(read().strip())
    return tuple(found)
