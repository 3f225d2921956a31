"""A copy of a run's state in the host's memory, from which a checkpoint is written while training goes on.

Each rank copies what its own optimizer holds: no rank waits for another one, and a step waits for one pass over memory. What other ranks
hold of the parameters that a rank writes comes later, over a process group that training does not use.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

from moss_train.train import engine as distributed
from moss_train.train import shards as sharding
from moss_train.train.checkpoint import State
from moss_train.train.shards import MOMENTS

KINDS = ("param", *MOMENTS)


class Snapshot:
    """The copy of one rank, 12 bytes for each element that its optimizer holds. The memory is taken once, pinned where there is CUDA.

    Made by a collective.

    Args:
        engine: From `engine.initialize`.
    """

    def __init__(self, engine: Any):
        self._engine = engine
        self._group = distributed.background_group()
        self._flats = sharding.flat_tensors(engine)
        self._shapes = sharding.trained_shapes(engine)
        self._where: dict[str, tuple[int, slice]] = {}
        number_of = {id(flat): number for number, flat in enumerate(self._flats)}
        held: dict[str, tuple[int, int]] = {}
        for shard in sharding.shards(engine):
            if shard.count and shard.flat is not None:
                self._where[shard.name] = number_of[id(shard.flat)], slice(shard.offset, shard.offset + shard.count)
                held[shard.name] = shard.start, shard.count
        self._held: list[dict[str, tuple[int, int]]] = distributed.gather(held)
        """By rank: name -> first element and number of elements of the flattened parameter."""
        for name, shape in self._shapes.items():
            found = sum(part[name][1] for part in self._held if name in part)
            if found != math.prod(shape):
                raise RuntimeError(f"all ranks together hold {found} of the {math.prod(shape)} elements of {name}")
        # After the collectives: a rank without memory then fails where the others hear of it.
        self._copies: list[dict[str, torch.Tensor]] = [
            # Filled, so that the pages are there before the first save.
            {kind: torch.zeros(flat.numel(), dtype=torch.float32, pin_memory=distributed.on_gpu()) for kind in KINDS}
            for flat in self._flats
        ]

    def take(self) -> None:
        """Copies the state as it is now. Whether it is finite is looked at when it is written: that takes a third as long as the copy."""
        for flat, copies in zip(self._flats, self._copies, strict=True):
            state = sharding.optimizer_state(self._engine, flat)
            for kind in KINDS:
                copies[kind].copy_((flat.data if kind == "param" else state[kind]).view(-1), non_blocking=True)
        if distributed.on_gpu():
            torch.cuda.synchronize()

    def _own(self, name: str, kind: str) -> torch.Tensor:
        """What this rank holds of a tensor, flat."""
        number, held = self._where[name]
        return self._copies[number][kind][held]

    def whole(self, writer_of: dict[str, int]) -> State:
        """The tensors that this rank writes, one after another; sends the others what they write. To be run to its end on all ranks.

        Args:
            writer_of: Name of each parameter -> the rank that writes it.
        """
        rank = distributed.rank()
        keys = [(name, kind) for name in self._shapes for kind in KINDS]
        # All at once: no rank then waits for the disk of another one.
        sending = [
            dist.isend(self._own(name, kind), writer_of[name], group=self._group, tag=tag)
            for tag, (name, kind) in enumerate(keys)
            if writer_of[name] != rank and name in self._where
        ]
        for tag, (name, kind) in enumerate(keys):
            if writer_of[name] == rank:
                yield name, kind, self._receive(name, kind, tag)
        _wait(sending)

    def _receive(self, name: str, kind: str, tag: int) -> torch.Tensor:
        shape, rank = self._shapes[name], distributed.rank()
        parts = {other: held[name] for other, held in enumerate(self._held) if name in held}
        if list(parts) == [rank]:
            return self._own(name, kind).view(shape)
        values = torch.empty(math.prod(shape), dtype=torch.float32)
        coming = [
            dist.irecv(values[start : start + count], other, group=self._group, tag=tag)
            for other, (start, count) in parts.items()
            if other != rank
        ]
        if rank in parts:
            start, count = parts[rank]
            values[start : start + count] = self._own(name, kind)
        _wait(coming)
        return values.view(shape)


def _wait(works: list[dist.Work | None]) -> None:
    for work in works:
        # None on a rank outside of the group.
        if work is not None:
            work.wait()
