"""How many cores this process may use, and its share of them beside other ranks."""

from __future__ import annotations

import os


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def local_ranks() -> int:
    """Ranks of this run on this machine, as its launcher says."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ.get("WORLD_SIZE") or "1"))


def threads_per_rank() -> int:
    """CPU threads for this rank: the cores shared among the ranks of this machine, or what OMP_NUM_THREADS asks above 1.

    Launchers set OMP_NUM_THREADS=1 to be safe, which leaves most of a CPU idle; ranks that each take all cores are slower still.
    """
    asked = int(os.environ.get("OMP_NUM_THREADS") or "0")
    return asked if asked > 1 else max(1, cores() // local_ranks())
