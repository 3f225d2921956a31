"""A configuration on other numbers of GPUs, by simulation: which ZeRO stage fits, how fast it is, what waits for communication.

    python scripts/plan.py +config=moss_moon_003_base device=H200 gpus=[1,8,64,1024]

The batch of a step stays as configured, so that every line trains the same run: more GPUs make fewer forwards each, then smaller ones.
Memory is that of `memory.py`, time that of `speed.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from moss_train.train.auto import SECTIONS, Room
from moss_train.train.communication import traffic
from moss_train.train.config import LINK_KEYS, PlanOptions
from moss_train.train.devices import CPU, DEVICES, Links
from moss_train.train.memory import Memory, Setup, predict
from moss_train.train.speed import Machine, Speed, machine_of, predict_speed

_GIB = 2**30
_IN_MEMORY = ("zero1", "zero2", "zero3")
_STAGES = range(4)
_TABLE_WIDTH = 150


@dataclass(frozen=True)
class Point:
    """A number of GPUs.

    Attributes:
        gpus: How many. global_batch: Rows of a step; more than configured where there are more GPUs than rows.
        section: Name of the DeepSpeed section, or None where nothing fits; the rest is then of the one that takes least.
        setup: With everything that was changed.
        memory: Of a rank. speed: Of a step.
        others: What fits too, with as much recompute and as large a micro-batch -> its speed; hpZ among them where there are several nodes.
    """

    gpus: int
    global_batch: int
    section: str | None
    setup: Setup
    memory: Memory
    speed: Speed
    others: dict[str, Speed]

    def fastest(self) -> str:
        """The section that is predicted to be the fastest; a lower stage sends less, a higher one more of it beside the arithmetic."""
        found = {self.section or "": self.speed, **self.others}
        return min(found, key=lambda name: found[name].step)


def machine_for(options: PlanOptions) -> Machine | None:
    """What a rank computes on by the options of a plan; None for a CPU, whose speed no table has."""
    if options.device == CPU:
        return None
    from moss_train.train.stage import PEAK_FLOPS

    device = DEVICES[options.device]
    given = {link: value * 1e9 for key, link in LINK_KEYS.items() if (value := getattr(options, key)) is not None}
    links: Links = replace(device.links, node_size=options.node_size or device.links.node_size, **given)
    machine = replace(machine_of(device, PEAK_FLOPS[device.driver_name]), links=links)
    return machine if options.efficiency is None else replace(machine, efficiency=options.efficiency)


def sweep(setup: Setup, global_batch: int, counts: list[int], room: Room, machine: Machine) -> list[Point]:
    """The lowest ZeRO stage that fits, and its speed, for each number of GPUs.

    Args:
        setup: Of the run; its ranks and section do not matter.
        global_batch: Rows of a step.
        counts: Numbers of GPUs.
        room: Of a rank.
        machine: Of each rank.
    """
    return [_point(setup, global_batch, gpus, room, machine) for gpus in counts]


def _point(setup: Setup, global_batch: int, gpus: int, room: Room, machine: Machine) -> Point:
    rows = math.ceil(global_batch / gpus) * gpus if global_batch % gpus else global_batch
    least: tuple[Memory, Setup] | None = None
    for name, candidate in _ways(setup, rows, gpus):
        memory = predict(candidate)
        if room.holds(memory):
            return Point(gpus, rows, name, candidate, memory, predict_speed(candidate, machine), _others(name, candidate, room, machine))
        if least is None or memory.peak_bytes < least[0].peak_bytes:
            least = memory, candidate
    assert least is not None
    return Point(gpus, rows, None, least[1], least[0], predict_speed(least[1], machine), {})


def _ways(setup: Setup, rows: int, gpus: int) -> Iterator[tuple[str, Setup]]:
    """Setups of `rows` rows a step, the cheapest change first: a higher stage, recompute, a smaller micro-batch, then offloading."""
    micros = [size for size in range(setup.micro_batch_size, 0, -1) if rows % (size * gpus) == 0]
    for names in (_IN_MEMORY, ("zero3_offload",)):
        for micro in micros:
            for recompute in (setup.recompute,) if setup.recompute else (False, True):
                for name in names:
                    yield (
                        name,
                        replace(
                            setup,
                            zero=SECTIONS[name],
                            world_size=gpus,
                            micro_batch_size=micro,
                            accumulation=rows // (micro * gpus),
                            recompute=recompute,
                        ),
                    )


def _others(chosen: str, setup: Setup, room: Room, machine: Machine) -> dict[str, Speed]:
    """Speeds of the other sections without offloading that fit, and of hpZ with a copy in each node."""
    size, found = machine.links.node_size, {}
    sections = {name: SECTIONS[name] for name in _IN_MEMORY if name != chosen}
    if setup.world_size > size and setup.world_size % size == 0:
        sections["zero3_hpz"] = {**SECTIONS["zero3"], "zero_hpz_partition_size": size}
    for name, section in sections.items():
        changed = replace(setup, zero=section)
        if room.holds(predict(changed)):
            found[name] = predict_speed(changed, machine)
    return found


def communication(setup: Setup, machine: Machine) -> dict[str, Any]:
    """By ZeRO stage, what a rank sends in a step (and receives as much), in bytes, and in seconds of the links."""
    return {
        f"zero{stage}": {
            "sent_bytes": sum(transfer.sent() for transfer in moved),
            "sent_between_nodes_bytes": sum(transfer.through_nic(machine.links) for transfer in moved),
            "host_bytes": sum(transfer.times * transfer.size for transfer in moved if "host" in transfer.kind),
            "seconds": sum(transfer.seconds(machine.links) for transfer in moved),
            "transfers": [
                {**asdict(transfer), "sent_bytes": transfer.sent(), "seconds": transfer.seconds(machine.links)} for transfer in moved
            ],
        }
        for stage, moved in ((stage, traffic(setup, stage)) for stage in _STAGES)
    }


def _console() -> Any:
    """A console wide enough for the tables: figures must not be cut off, whatever the output is."""
    from rich.console import Console

    console = Console(soft_wrap=True)
    console.width = max(console.width, _TABLE_WIDTH)
    return console


def show_communication(setup: Setup, machine: Machine) -> None:
    """Prints what ranks send under each ZeRO stage, and the transfers of the configured one."""
    from rich.table import Table

    console = _console()
    found, links = communication(setup, machine), machine.links
    console.print(
        f"links, one direction: NVLink {links.nvlink / 1e9:.0f} GB/s, a GPU's share of the adapters {links.nic / 1e9:.1f} GB/s, PCIe "
        f"{links.pcie / 1e9:.0f} GB/s, {links.node_size} GPUs a node"
    )
    table = Table("a rank sends in a step, and receives", "GB", "of it between nodes, GB", "seconds of the links")
    for stage, row in zip(_STAGES, found.values()):
        mark = " (as configured)" if stage == setup.stage else ""
        figures = f"{row['sent_bytes'] / 1e9:.2f}", f"{row['sent_between_nodes_bytes'] / 1e9:.2f}", f"{row['seconds']:.3f}"
        table.add_row(f"ZeRO-{stage}{mark}", *figures)
    console.print(table)
    table = Table("transfer", "what", "when", "GB", "times", "ranks", "sent, GB", "seconds", "beside arithmetic")
    for transfer in traffic(setup):
        table.add_row(
            transfer.name,
            transfer.kind.value,
            transfer.phase.value,
            f"{transfer.size / 1e9:.3f}",
            str(transfer.times),
            str(transfer.ranks),
            f"{transfer.sent() / 1e9:.2f}",
            f"{transfer.seconds(links):.3f}",
            "yes" if transfer.overlaps else "no",
        )
    console.print(table)


def show_sweep(points: list[Point], setup: Setup, device: str, room: Room, machine: Machine) -> None:
    """Prints a line for each number of GPUs."""
    from rich.table import Table

    console, links = _console(), machine.links
    console.print(
        f"{setup.parameters:,} parameters | {setup.precision}, gradients {setup.grad_accum} | rows of {setup.seq_len} tokens | {device}: "
        f"{room} may be filled, {machine.peak / 1e12:.0f} TFLOP/s, of which arithmetic reaches {machine.efficiency:.1%}, which is an "
        f"assumption | NVLink {links.nvlink / 1e9:.0f}, adapters {links.nic / 1e9:.1f} GB/s a GPU, {links.node_size} GPUs a node"
    )
    table = Table("GPUs", "fits", "recompute", "rows x forwards", "GiB a rank", "s a step", "tokens/s", "a GPU", "MFU", "waits", "fastest")
    for point in points:
        speed = point.speed
        table.add_row(
            f"{point.gpus:,}",
            point.section or "no",
            "on" if point.setup.recompute else "off",
            f"{point.setup.micro_batch_size} x {point.setup.accumulation}",
            f"{point.memory.peak_bytes / _GIB:.1f}",
            f"{speed.step:.3g}",
            f"{speed.tokens_per_second:,.0f}",
            f"{speed.tokens_per_second / point.gpus:,.0f}",
            f"{speed.mfu:.1%}",
            f"{speed.exposed / speed.step:.1%}",
            f"{name} {point.others[name].tokens_per_second:,.0f}" if (name := point.fastest()) in point.others else "",
        )
    console.print(table)
    console.print(
        '"fits": the lowest ZeRO stage that does; "waits": share of a step in which arithmetic waits for communication; "fastest": a '
        "section that fits too, and its tokens/s, where it is predicted to be faster"
    )


def sweep_json(points: list[Point], machine: Machine) -> dict[str, Any]:
    """The sweep as JSON; bytes and seconds, of a rank unless said otherwise."""
    return {
        "assumptions": {
            "efficiency": machine.efficiency,
            "peak_flops": machine.peak,
            "links_bytes_per_second": asdict(machine.links),
            "context": "every row is one document, every token supervised",
        },
        "points": [
            {
                "gpus": point.gpus,
                "fits": point.section is not None,
                "deepspeed": point.section,
                "zero_stage": point.setup.stage,
                "recompute": point.setup.recompute,
                "global_batch_size": point.global_batch,
                "micro_batch_size": point.setup.micro_batch_size,
                "accumulation": point.setup.accumulation,
                "memory_bytes": point.memory.peak_bytes,
                "host_bytes": point.memory.host_bytes,
                "sent_bytes": sum(transfer.sent() for transfer in traffic(point.setup)),
                "exposed_share": point.speed.exposed / point.speed.step,
                "seconds_per_step": point.speed.step,
                "tokens_per_second": point.speed.tokens_per_second,
                "mfu": point.speed.mfu,
                "other_tokens_per_second": {name: speed.tokens_per_second for name, speed in point.others.items()},
            }
            for point in points
        ],
    }
