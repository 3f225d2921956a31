"""How long a step takes: arithmetic at a share of the peak, and the communication that does not fit behind it.

The model, in full:

    step = arithmetic + exposed communication + update
    arithmetic = FLOPs of forward and backward, recomputed ones too / (peak * efficiency)
    exposed of a phase = what cannot overlap + max(0, what can overlap - arithmetic of that phase)
    update = bytes of the optimizer's tensors / the memory's rate

Forward and backward are each taken as a whole: what the first layer waits for, and what communication takes from the arithmetic beside it,
is in `efficiency`, the one figure that is calibrated. Communication is in `communication.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from moss_train.train.communication import Phase, Transfer, traffic
from moss_train.train.devices import Device, Links
from moss_train.train.memory import Setup

UPDATE_BYTES = 40
"""That an update moves through memory, a parameter: the norm reads 4, flattening reads and writes 8, AdamW reads weight, gradient and two
moments and writes weight and moments, 28."""
HOST_PARAMETERS_PER_SECOND = 4e9
"""That DeepSpeed's CPU Adam updates on one machine: 1e9 in 0.22 s, 1e10 in 2.57 s (Ren et al.: ZeRO-Offload, 2021, table 4)."""


@dataclass(frozen=True)
class Machine:
    """What a rank computes on.

    Attributes:
        peak: FLOP/s in the format of the training. efficiency: Share of it that training's arithmetic reaches.
        memory_rate: Bytes/s of its memory. links: To other ranks.
    """

    peak: float
    efficiency: float
    memory_rate: float
    links: Links


@dataclass(frozen=True)
class Speed:
    """A step, in seconds.

    Attributes:
        arithmetic: Forward and backward. update: The optimizer.
        communication: All of it. exposed: What of it the arithmetic waits for.
        tokens: Of a step, over all ranks.
        mfu: Model FLOPs, without recomputed ones, over the peak of all ranks.
    """

    arithmetic: float
    update: float
    communication: float
    exposed: float
    tokens: int
    mfu: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.arithmetic + self.update + self.exposed

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.tokens / self.step


@dataclass(frozen=True)
class Work:
    """FLOPs of a rank's forward pass over a micro-batch, and of what its backward pass computes again.

    A backward pass takes twice the forward one: gradients of inputs and of weights (Kaplan et al. 2020, section 2.1).
    """

    forward: float
    again: float

    @property
    def model(self) -> float:
        """Forward and backward."""
        return 3 * self.forward


def machine_of(device: Device, peak: float) -> Machine:
    """A rank of a kind of device.

    Args:
        device: The kind. peak: Its FLOP/s, from `stage.PEAK_FLOPS`.
    """
    return Machine(peak, device.efficiency, device.memory_rate, device.links)


def work_of(setup: Setup) -> Work:
    """As `stage.training_flops_per_token` counts it, with every row one document.

    Recompute runs a block's forward once more, up to the last tensor that its backward pass needs (torch.utils.checkpoint stops early):
    the input of fc_out, whose product is left out.
    """
    embedding = math.prod(setup.shapes["transformer.wte.weight"])
    d, attention = setup.hidden_size, 4 * setup.num_layers * setup.hidden_size * (setup.seq_len + 1) / 2
    forward = setup.tokens * (2 * (setup.parameters - embedding) + attention)
    block = setup.num_layers * 2 * (4 * d * d + d * setup.inner_size)
    return Work(forward, setup.tokens * (block + attention) * setup.recomputed_blocks / setup.num_layers)


def predict_speed(setup: Setup, machine: Machine) -> Speed:
    """The step of a configuration on a machine."""
    shard = math.ceil(setup.count(setup.trained) / setup.world_size)
    if setup.offloads:
        update = shard * min(setup.world_size, machine.links.node_size) / HOST_PARAMETERS_PER_SECOND
    else:
        update = UPDATE_BYTES * shard / machine.memory_rate
    return step_of(work_of(setup), traffic(setup), machine, setup.tokens, setup.accumulation, setup.world_size, update)


def step_of(
    work: Work, transfers: list[Transfer], machine: Machine, tokens: int, accumulation: int, world_size: int, update: float = 0.0
) -> Speed:
    """The step of a system of which only work and transfers are known.

    Args:
        work: Of a rank's micro-batch. transfers: Of a rank's step.
        machine: Of each rank.
        tokens: Of a rank's micro-batch. accumulation: Micro-batches of a step. world_size: Ranks.
        update: Seconds.
    """
    rate = machine.peak * machine.efficiency
    arithmetic = {
        Phase.forward: accumulation * work.forward / rate,
        Phase.backward: accumulation * (2 * work.forward + work.again) / rate,
        Phase.update: 0.0,
    }
    exposed = communication = 0.0
    for phase, seconds in arithmetic.items():
        overlapping = sum(transfer.seconds(machine.links) for transfer in transfers if transfer.phase is phase and transfer.overlaps)
        alone = sum(transfer.seconds(machine.links) for transfer in transfers if transfer.phase is phase and not transfer.overlaps)
        exposed += alone + max(0.0, overlapping - seconds)
        communication += alone + overlapping
    total = sum(arithmetic.values())
    mfu = accumulation * work.model / (machine.peak * (total + exposed + update))
    return Speed(total, update, communication, exposed, tokens * accumulation * world_size, mfu)
