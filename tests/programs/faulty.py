"""scripts/sft.py with faults: faulty.py [overrides], with FAULTS in the environment.

FAULTS is a JSON list; each fault has a `kind`, and `step` (optimizer step, from 1) and `rank` where it strikes once:

    nan_loss, nan_gradient   the loss of the first micro-batch, or only its gradient, becomes nan
    nan_state                after the step, one of AdamW's moments has a nan
    spike                    the loss of every micro-batch is multiplied by `factor` (give `rank` -1: all ranks)
    raise, memory            an exception of the program; one as torch raises it when memory is out
    die, sleep               SIGKILL to itself; sleeps for ever
    slow_save                each save takes `seconds` longer (no step or rank)
    die_in_save              SIGKILL to itself at the `ordinal`-th call of `call` (write_piece, sync, rename, remove) in moss_train.files
                             once the first step is done (no step); with `beside`, of those outside of the main thread
    host                     the rank says it is on the machine `name` (no step)
    full_disk                writing fails with ENOSPC (or `errno`) once `byte` bytes of checkpoints are written on that rank (no step)
    slow_step                each step takes `seconds` longer (no step or rank)
    slow_render              rendering takes `seconds` longer, and a rank waits in a collective for 5 s at most (no step)
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import threading
import time
from typing import Any

import torch

from moss_train import cli, files
from moss_train.data import render_files
from moss_train.train import engine as distributed
from moss_train.train import loop, shards, tensors

TRAINED = [False]
"""Whether this process has come to its first step."""
FAULTS: list[dict[str, Any]] = json.loads(os.environ.get("FAULTS", "[]"))


def faults_of(kinds: tuple[str, ...], step: int) -> list[dict[str, Any]]:
    """The faults of these kinds that strike now, on this rank."""
    return [f for f in FAULTS if f["kind"] in kinds and f.get("step", step) == step and f.get("rank", -1) in (-1, distributed.rank())]


def strike(step: int) -> None:
    """Before a step."""
    for fault in faults_of(("raise", "memory", "die", "sleep", "slow_step"), step):
        if fault["kind"] == "raise":
            raise ValueError(f"an injected error at step {step}")
        if fault["kind"] == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        if fault["kind"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(fault.get("seconds", 10_000))


def scaled(output: Any, factor: float) -> Any:
    """The output of a forward with its loss multiplied."""
    metrics = {name: (value * factor, count) for name, (value, count) in output.metrics.items()}
    return output._replace(loss_sum=output.loss_sum * factor, metrics=metrics)


def watch_loop() -> None:
    """Puts the faults of steps into the loop."""
    accumulate = loop._accumulate

    def faulty(engine: Any, batches: Any, weight: float, progress: loop.Progress, beat: Any) -> Any:
        step = progress.step + 1
        TRAINED[0] = True
        beat(f"step {step}, micro-batch 1 of {len(batches)}: {list(batches[0].inputs['input_ids'].shape)} tokens")
        strike(step)
        struck = faults_of(("nan_loss", "nan_gradient", "spike"), step)
        forwards = 0

        def spoil(_module: Any, _args: Any, output: Any) -> Any:
            nonlocal forwards
            forwards += 1
            for fault in struck:
                if fault["kind"] == "spike":
                    output = scaled(output, fault["factor"])
                elif forwards == 1 and fault["kind"] == "nan_loss":
                    output = scaled(output, float("nan"))
                elif forwards == 1:
                    output.loss_sum.register_hook(lambda gradient: gradient * float("nan"))
            return output

        hook = engine.module.register_forward_hook(spoil) if struck else None
        try:
            found = accumulate(engine, batches, weight, progress, beat)
            if faults_of(("nan_state",), step):
                flat = shards.flat_tensors(engine)[0]
                shards.optimizer_state(engine, flat)["exp_avg"][0] = float("nan")
            return found
        finally:
            if hook is not None:
                hook.remove()

    loop._accumulate = faulty


def watch_saves() -> None:
    """Puts the faults of saves into the writing of checkpoints."""
    add, written = tensors.TensorFile.add, 0
    slow = [fault["seconds"] for fault in FAULTS if fault["kind"] == "slow_save"]
    rank = int(os.environ.get("RANK", "0"))
    full = next(([f["byte"], f.get("errno", "ENOSPC")] for f in FAULTS if f["kind"] == "full_disk" and f.get("rank", 0) == rank), None)
    write_piece = files.write_piece
    first: set[int] = set()

    def slow_add(self: tensors.TensorFile, name: str, tensor: torch.Tensor) -> None:
        if slow and id(self) not in first:
            # The model's file and the optimizer's, at the same time.
            first.add(id(self))
            time.sleep(sum(slow))
        add(self, name, tensor)

    def full_write(descriptor: int, piece: memoryview) -> int:
        nonlocal written
        if full and "/checkpoints/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            if written + len(piece) > full[0]:
                raise OSError(getattr(errno, full[1]), os.strerror(getattr(errno, full[1])))
            written += len(piece)
        return write_piece(descriptor, piece)

    tensors.TensorFile.add = slow_add  # type: ignore[method-assign]
    files.write_piece = full_write
    for fault in FAULTS:
        if fault["kind"] == "die_in_save" and fault["rank"] == rank:
            die_at_call(fault["call"], fault["ordinal"], fault.get("beside", False))


def die_at_call(name: str, ordinal: int, beside: bool) -> None:
    """Kills this process at a call of one of the four functions through which files change."""
    real, calls = getattr(files, name), 0

    def deadly(*arguments: Any) -> Any:
        nonlocal calls
        counts = TRAINED[0] and not (beside and threading.current_thread() is threading.main_thread())
        calls += counts
        if calls == ordinal and counts:
            if name == "write_piece":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(files, name, deadly)


def slow_rendering(seconds: float) -> None:
    """Makes rendering take longer than any collective may."""
    real = render_files.render_files

    def slow(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    render_files.render_files = slow


if __name__ == "__main__":
    for fault in FAULTS:
        if fault["kind"] == "slow_render":
            distributed.TIMEOUT_MINUTES = 5 / 60  # type: ignore[assignment]
            if fault.get("rank") in (None, int(os.environ.get("RANK", "0"))):
                slow_rendering(fault["seconds"])
        if fault["kind"] == "host" and fault["rank"] == int(os.environ.get("RANK", "0")):
            os.environ["MOSS_TRAIN_CACHE"] = fault.get("cache", os.environ.get("MOSS_TRAIN_CACHE", ""))
            socket.gethostname = lambda name=fault["name"]: name  # type: ignore[misc]
    watch_loop()
    watch_saves()
    cli.run("sft")
