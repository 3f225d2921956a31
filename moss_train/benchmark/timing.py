"""How sides are timed: in turns, in one process, so that what else the machine does meets all of them; memory in a process of its own.

A machine's speed drifts by tens of percent. So a ratio is taken within each round, where both sides ran within seconds of each other, and
the median over rounds is reported with the smallest and the largest. No ratio is made of two figures from different runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timed:
    """Seconds of each side in each round, by name; the first side is what ratios are over."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, side: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[side])

    def ratio(self, side: str, over: str | None = None) -> dict[str, float]:
        """How many times as fast a side is as another, by default the first: `median`, `min`, `max` over rounds."""
        base = self.seconds[over or next(iter(self.seconds))]
        return spread([theirs / own for theirs, own in zip(base, self.seconds[side], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def synchronize(device: str) -> None:
    """Waits for what was launched on a device."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def in_turns(sides: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu", repeats: int = 1) -> Timed:
    """Times calls in turns; every second round in the opposite order.

    Args:
        sides: By name. Each is called once untimed before: kernels are chosen, memory is taken. rounds: How often each is timed.
        device: `cpu` or `cuda`, which is waited for. repeats: Calls in one timing, for short ones; seconds are of one call.
    """
    for run in sides.values():
        run()
    synchronize(device)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            gc.collect()
            synchronize(device)
            started = time.perf_counter()
            for _ in range(repeats):
                sides[name]()
            synchronize(device)
            seconds[name].append((time.perf_counter() - started) / repeats)
    return Timed(seconds)


def peak_growth(run: Callable[[], Any], device: str) -> int:
    """Bytes by which memory grew at its highest while something ran: of the device, or resident of this process."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    # Makes the highest mark the present size (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    run()
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    """Bytes, from the kernel."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


class FailedError(RuntimeError):
    """A process apart ended with an error; its last lines say which."""


def apart(function: str, arguments: Mapping[str, Any], timeout: float = 1800) -> Any:
    """What a function gives in a process of its own, whose memory nothing else has touched.

    Args:
        function: `module:name`. arguments: By name, values of JSON, as is what it returns. timeout: Seconds.

    Raises:
        FailedError: It failed, ran out of memory or took too long.
    """
    command = [sys.executable, "-m", "moss_train.benchmark.timing", function, json.dumps(arguments)]
    # A freed block goes back to the system at once: the next side does not find it.
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{function} took more than {timeout:.0f} s") from error
    if done.returncode:
        raise FailedError(f"{function} ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing was said'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Runs one function in this process; the last line printed is what it gave."""
    reference, arguments = sys.argv[1:]
    module, name = reference.split(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(arguments))))


if __name__ == "__main__":
    main()
