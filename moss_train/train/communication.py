"""Bytes that a rank sends and receives in a step by ZeRO stage, and the time they take on given links.

What is transferred, how often and in which format is read from deepspeed 0.19.8, with the place named at each (paths below
deepspeed/runtime/). Volumes of collectives are those of rings (Thakur, Rabenseifner, Gropp: Optimization of Collective Communication
Operations in MPICH, 2005; Rajbhandari et al.: ZeRO, 2020, section 7): a gather or a scatter of S bytes over n ranks sends (n - 1) / n * S
from each of them, an all-reduce twice that; as much is received.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from moss_train.train.devices import Links
from moss_train.train.memory import (
    ALLGATHER_BUCKET,
    BYTES,
    FALLBACK_BUCKET,
    LIVE_PARAMETERS,
    PERSISTENCE_THRESHOLD,
    PREFETCH_BUCKET,
    REUSE_DISTANCE,
    Setup,
)

SUSTAINED = 0.8
"""Share of a link's data sheet that large collectives reach. NCCL's own model caps an A100's NVLink at 235 of 300 GB/s
(src/graph/tuning.cc)."""
_HOP_SECONDS = 3.4e-6
"""A step of a ring within a node: NCCL's model, NVLink, protocol Simple (src/graph/tuning.cc, hwLat)."""
_NETWORK_HOP_SECONDS = 9.6e-6
"""The same from node to node."""


class Phase(StrEnum):
    """When in a step something is transferred."""

    forward = "forward"
    backward = "backward"
    update = "update"
    """After the last backward pass."""


class Kind(StrEnum):
    """What a transfer does."""

    gather = "all-gather"
    scatter = "reduce-scatter"
    reduce = "all-reduce"
    to_host = "to the host"
    from_host = "from the host"


_PASSES = {Kind.gather: 1, Kind.scatter: 1, Kind.reduce: 2}


@dataclass(frozen=True)
class Transfer:
    """One kind of transfer of a step.

    Attributes:
        name: For tables.
        kind: What it does. phase: When.
        size: Bytes of the whole tensor of a collective; of a transfer to or from the host, those of this rank.
        calls: In how many pieces; ZeRO-3 fetches a large matrix at a time. times: How often in a step.
        ranks: That take part, neighbours by number.
        overlaps: Whether it runs beside the arithmetic of its phase.
    """

    name: str
    kind: Kind
    phase: Phase
    size: float
    calls: int
    times: int
    ranks: int
    overlaps: bool

    def sent(self) -> float:
        """Bytes of a step that a rank sends to other ranks."""
        return self.times * _PASSES.get(self.kind, 0) * self.size * (self.ranks - 1) / self.ranks

    def spans_nodes(self, links: Links) -> bool:
        """Whether it leaves the node."""
        return self.kind in _PASSES and self.ranks > links.node_size

    def through_nic(self, links: Links) -> float:
        """Of `sent`, what one GPU's share of the adapters carries: NCCL lays a ring through each adapter, and each ring crosses from node
        to node once, while it passes all GPUs of a node."""
        return self.sent() / links.node_size if self.spans_nodes(links) else 0.0

    def seconds(self, links: Links) -> float:
        """Time of a step for it: bytes over the narrowest link on their way, and the latency of each call."""
        if self.kind not in _PASSES:
            return self.times * self.size / (SUSTAINED * links.pcie)
        if self.ranks == 1:
            return 0.0
        rate = min(links.nvlink, links.node_size * links.nic) if self.spans_nodes(links) else links.nvlink
        return self.sent() / (SUSTAINED * rate) + self.times * self.calls * _latency(self.kind, self.ranks, links.node_size)


def _latency(kind: Kind, ranks: int, node_size: int) -> float:
    """Seconds of one call with no data, by NCCL's model (src/graph/tuning.cc): a ring takes a step a rank, an all-reduce may take a
    tree."""
    nodes = math.ceil(ranks / node_size)
    ring = (ranks - nodes) * _HOP_SECONDS + (nodes - 1) * _NETWORK_HOP_SECONDS
    if kind is not Kind.reduce:
        return ring
    tree = 2 * ((min(ranks, node_size) - 1) * _HOP_SECONDS + math.ceil(math.log2(nodes)) * _NETWORK_HOP_SECONDS)
    return min(2 * ring, tree)


def traffic(setup: Setup, stage: int | None = None) -> list[Transfer]:
    """Everything that a rank transfers in a step.

    Args:
        setup: Of the run.
        stage: Another ZeRO stage than that of the setup, 0 too: what it would be with it.
    """
    stage = setup.stage if stage is None else stage
    if stage == 3:
        return [*_gathers(setup), *_scatters(setup), *_offloading(setup)]
    return _reductions(setup, stage)


def _reductions(setup: Setup, stage: int) -> list[Transfer]:
    """ZeRO-0 to 2: gradients are summed, and from ZeRO-1 on the updated weights gathered.

    Gradients go out by all-reduce in ZeRO-1 and 2 too: `use_multi_rank_bucket_allreduce` is on by default (zero/stage_1_and_2.py,
    average_tensor), which is twice the bytes of the reduce-scatter of the ZeRO paper. Without it, each slice is reduced to its owner.
    ZeRO-2 does so in every forward-backward, the others once a step (engine.py, allreduce_gradients). Only ZeRO-2 does it beside the
    backward pass (`overlap_comm`); ZeRO-1 in bfloat16 is reduced after it (bf16_optimizer.py, engine.buffered_allreduce_fallback), in
    float32 too, unless `overlap_comm` is set. The format is `communication_data_type`, by default the model's (engine.py,
    communication_data_type).
    """
    trained, ranks = setup.count(setup.trained), setup.world_size
    one_by_one = stage > 0 and not setup.is_bf16_optimizer() and setup.zero.get("use_multi_rank_bucket_allreduce", True) is False
    bucket = FALLBACK_BUCKET if stage < 2 and setup.precision == "bf16" else setup.bucket()
    found = [
        Transfer(
            "gradients",
            Kind.scatter if one_by_one else Kind.reduce,
            Phase.backward if stage == 2 else Phase.update,
            setup.gradient_width * trained,
            math.ceil(trained / bucket) * (ranks if one_by_one else 1),
            setup.accumulation if stage == 2 else 1,
            ranks,
            overlaps=stage == 2 and bool(setup.zero.get("overlap_comm")),
        )
    ]
    if stage > 0:
        # runtime/utils.py, all_gather_into_tensor_dp_groups.
        calls = math.ceil(trained / setup.setting("allgather_bucket_size", ALLGATHER_BUCKET))
        found.append(Transfer("updated weights", Kind.gather, Phase.update, setup.width * trained, calls, 1, ranks, overlaps=False))
    return found


def _gathers(setup: Setup) -> list[Transfer]:
    """ZeRO-3: parameters are gathered for every forward, and again for every backward where they were released between.

    They are kept where the trace comes back to them within `stage3_max_reuse_distance` elements (zero/partitioned_param_coordinator.py,
    __params_to_release). From its forward to its backward, a parameter with x elements behind it is 2 x elements away; with recompute the
    blocks behind it are passed three times. They are kept, too, where the prefetcher has come across their next use (fetch_sub_module): it
    runs ahead at every module until `stage3_max_live_parameters` are whole, and finds the last ones of the forward pass still there.
    Recomputing itself gathers nothing more: its forward is followed by the backward that needs the same.

    With hpZ (`zero_hpz_partition_size`) a group keeps a copy divided among its ranks, from a parameter's first release in a step until the
    update (zero/partition_parameters.py, _partition_param_sec; zero/stage3.py, _post_step); everything but the step's first forward gathers
    within the group. Parameters of at most `stage3_param_persistence_threshold` elements stay whole, and are gathered once after the
    update.
    """
    ranks, small = setup.world_size, setup.setting("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)
    sizes = [math.prod(shape) for shape in setup.shapes.values()]
    divided = [size for size in sizes if size > small]
    distance = setup.setting("stage3_max_reuse_distance", REUSE_DISTANCE)
    ahead = setup.setting("stage3_prefetch_bucket_size", PREFETCH_BUCKET)
    live = setup.setting("stage3_max_live_parameters", LIVE_PARAMETERS) if ahead else 0
    kept = kept_for_backward(divided, _within(setup, distance), live)
    again, forwards = divided[: len(divided) - kept], setup.accumulation
    group = min(setup.hpz, ranks)

    def gather(name: str, phase: Phase, elements: list[int], times: int, among: int) -> Transfer:
        return Transfer(name, Kind.gather, phase, setup.width * sum(elements), len(elements), times, among, overlaps=True)

    persistent = setup.width * (sum(sizes) - sum(divided))
    update = Transfer("small weights", Kind.gather, Phase.update, persistent, 1, 1, ranks, overlaps=False)
    if group == 1:
        return [
            gather("parameters", Phase.forward, divided, forwards, ranks),
            gather("parameters, again", Phase.backward, again, forwards, ranks),
            update,
        ]
    return [
        gather("parameters", Phase.forward, divided, 1, ranks),
        gather("parameters, within the group", Phase.forward, divided, forwards - 1, group),
        gather("parameters, again, within the group", Phase.backward, again, forwards, group),
        update,
    ]


def _within(setup: Setup, distance: float) -> float:
    """Elements that may lie behind a parameter whose backward pass comes within `distance`: see `_gathers`.

    Blocks that keep all are passed twice, and are the last ones; those before them three times.
    """
    if not setup.recompute:
        return distance / 2
    block = 4 * setup.hidden_size**2 + 2 * setup.hidden_size * setup.inner_size
    twice = (setup.num_layers - setup.recomputed_blocks) * block
    return distance / 2 if distance / 2 <= twice else (distance + twice) / 3


def kept_for_backward(sizes: list[int], within: float, live: int) -> int:
    """How many of the last parameters are still whole when the backward pass needs them.

    Args:
        sizes: Elements of the parameters, in the order of the forward pass.
        within: Elements that may lie behind a parameter that is kept.
        live: Elements that may be whole at a time where the prefetcher keeps them.
    """
    kept, behind = 0, 0
    for size in reversed(sizes):
        if behind >= within and behind + size > live:
            break
        kept, behind = kept + 1, behind + size
    return kept


def _scatters(setup: Setup) -> list[Transfer]:
    """ZeRO-3: every backward pass reduces its gradients to their owners, beside the arithmetic (zero/stage3.py, partition_grads).

    The stream is one of its own with `overlap_comm` (on by default in ZeRO-3). Without `reduce_scatter` it is an all-reduce.
    """
    trained = setup.count(setup.trained)
    kind = Kind.scatter if setup.zero.get("reduce_scatter", True) else Kind.reduce
    return [
        Transfer(
            "gradients",
            kind,
            Phase.backward,
            setup.gradient_width * trained,
            math.ceil(trained / setup.bucket()),
            setup.accumulation,
            setup.world_size,
            overlaps=bool(setup.zero.get("overlap_comm", True)),
        )
    ]


def _offloading(setup: Setup) -> list[Transfer]:
    """Optimizer state on the host: a rank's part of the gradients goes there after every backward and comes back for the next sum
    (zero/stage3.py, partition_grads), the last in float32; the updated parameters come back once a step."""
    if not setup.offloads:
        return []
    shard = math.ceil(setup.count(setup.trained) / setup.world_size)
    sums, width = BYTES[setup.grad_accum] * shard, setup.width

    def move(name: str, kind: Kind, phase: Phase, size: float, times: int) -> Transfer:
        return Transfer(name, kind, phase, size, 1, times, 1, overlaps=phase is Phase.backward)

    return [
        move("gradients", Kind.to_host, Phase.backward, sums, setup.accumulation),
        move("gradients", Kind.from_host, Phase.backward, sums, setup.accumulation),
        move("gradients, last", Kind.to_host, Phase.backward, 4 * shard, 1),
        move("updated weights", Kind.from_host, Phase.update, width * shard, 1),
    ]
