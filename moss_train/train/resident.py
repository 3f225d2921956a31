"""Memory of this process, in bytes, as the kernel and torch count it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"
_LOADED_LATE = (
    "torch._dynamo",
    "torch.profiler",
    "moss_train.model.codegen",
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.zero.stage3",
    # Asked for by every ZeRO optimizer, and by nothing before.
    _MUON,
)
"""What a run would load on its way: with the first model, the optimizer, the first step."""
_NO_COMPILER = "TORCHDYNAMO_DISABLE"
MAPPED_FROM = 2**20
"""Bytes from which a block of memory is a mapping of its own, see `map_large_blocks`."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_CONTROL_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Folder, file of the limit and of the usage, in version 2 and 1; a container sees its own group there."""
_imported = {"all": 0, "of files": 0}


def load_libraries() -> None:
    """Loads what a run loads sooner or later, and notes the memory of the program: what is taken from here on is the run's own."""
    for name in _LOADED_LATE:
        # It has a function compiled where it is defined, for an optimizer that no stage uses; torch's compiler, which that would bring
        # along, takes seconds to load.
        with _without_compiler() if name == _MUON else contextlib.nullcontext():
            importlib.import_module(name)
    _imported.update({"all": resident_bytes(), "of files": _file_bytes()})


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Lets `torch.compile` return functions as they are, as torch's own switch for it does."""
    before = os.environ.get(_NO_COMPILER)
    os.environ[_NO_COMPILER] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_COMPILER]
        else:
            os.environ[_NO_COMPILER] = before


def map_large_blocks() -> None:
    """Makes glibc return large tensors to the system when they are freed.

    By itself it raises that limit, up to 32 MiB, whenever a larger block is freed (mallopt(3), M_MMAP_THRESHOLD), and then keeps the
    gathered parameters and gradients of ZeRO-3, and the activations of recomputed blocks, in pieces. The second setting keeps the ratio
    of the two that glibc keeps.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, MAPPED_FROM)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * MAPPED_FROM)


def give_back() -> None:
    """Returns freed memory to the system. glibc keeps it for the next tensors, which may be too large to lie in what was left of reading
    data, or of building a model."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    """Most memory so far: of torch's tensors on a CUDA device, else resident. `getrusage` would tell that of the process this one was
    started from, where it was larger."""
    import torch

    if _on_cuda():
        return torch.cuda.max_memory_allocated()
    # Some kernels do not keep the peak.
    return _status_bytes("VmHWM") or resident_bytes()


def peak_growth_bytes() -> int:
    """`peak_bytes` without the program itself: what a plan predicts.

    The pages of a library are read as they are needed, those of a dataset are mapped from its file: neither was allocated.
    """
    if _on_cuda():
        return peak_bytes()
    return max(0, peak_bytes() - _imported["all"] - max(0, _file_bytes() - _imported["of files"]))


def free_host_bytes() -> int:
    """Memory of this machine that new allocations may take, within the limits of the control groups this process is in.

    Pages of files that can be dropped count as free, as the kernel's own estimate has it (proc(5), MemAvailable).
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for folder, limit, used in _CONTROL_GROUPS:
        with contextlib.suppress(OSError, ValueError):
            # "max" is no number: there is no limit.
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            droppable = int(stat.get("inactive_file") or stat.get("total_inactive_file") or 0)
            free = min(free, most - now + droppable)
    return max(0, free)


def restart_peak() -> None:
    """Counts the peak anew from now on: a sweep runs several jobs in a process."""
    import torch

    if _on_cuda():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        # proc(5): 5 resets the peak resident set size.
        Path("/proc/self/clear_refs").write_text("5")


def _file_bytes() -> int:
    """Resident pages of files, libraries among them."""
    return _status_bytes("RssFile")


def _status_bytes(name: str) -> int:
    """A figure of /proc/self/status, 0 where the kernel does not give it."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) * 1024 if name in lines else 0


def _on_cuda() -> bool:
    import torch

    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
