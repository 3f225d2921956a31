"""Speeds that others published, and what the plan's model of speed says of them.

`python -m tests.published` prints the table of docs/scaling.md. What is published are tokens/s a GPU; the systems are others (FSDP,
InternEvo), so their transfers are written down here and go through the same formulas as ours. Nothing of a row but its hardware, shape,
batch and links goes into its prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from moss_train.train.communication import Kind, Phase, Transfer
from moss_train.train.devices import DEVICES
from moss_train.train.speed import Work, machine_of, step_of
from moss_train.train.stage import PEAK_FLOPS

FOUNDRY = "https://github.com/mosaicml/llm-foundry/blob/main/scripts/train/benchmarking/README.md"
INTERNEVO = "https://github.com/InternLM/InternEvo/blob/develop/doc/en/train_performance.md"
TORCHTITAN = "https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md"
FMS_FSDP = "https://github.com/foundation-model-stack/fms-fsdp/blob/main/README.md"


@dataclass(frozen=True)
class Shape:
    """A decoder.

    Attributes:
        layers, width: Of it. blocks: Parameters of a block's matrices. last: Of these, of the MLP's last matrix.
        rest: Other parameters that multiply: the output projection.
        stored: Further ones, that do not: the embedding, where it is another tensor.
    """

    layers: int
    width: int
    blocks: float
    last: float
    rest: float
    stored: float = 0.0

    @property
    def parameters(self) -> float:
        """All of them; biases and norms left out."""
        return self.layers * self.blocks + self.rest + self.stored


def mpt(layers: int, width: int) -> Shape:
    """MPT: 12 width^2 a block, a vocabulary of 50,368 with the embedding as output projection."""
    return Shape(layers, width, 12 * width**2, 4 * width**2, 50368 * width)


def llama(layers: int, width: int, inner: int, keys: int, vocabulary: int) -> Shape:
    """Llama: keys and values of `keys` numbers, an MLP of three matrices, an output projection of its own."""
    blocks = 2 * width**2 + 2 * width * keys + 3 * width * inner
    return Shape(layers, width, blocks, width * inner, vocabulary * width, vocabulary * width)


SHAPES = {
    "MPT 1B": mpt(24, 2048),
    "MPT 3B": mpt(32, 2560),
    "MPT 7B": mpt(32, 4096),
    "MPT 13B": mpt(40, 5120),
    "MPT 30B": mpt(48, 7168),
    "MPT 70B": mpt(80, 8192),
    "InternLM 7B": llama(32, 4096, 11008, 4096, 103168),
    "Llama 3.1 8B": llama(32, 4096, 14336, 1024, 128256),
    "Llama 2 7B": llama(32, 4096, 11008, 4096, 32000),
    "Llama 2 13B": llama(40, 5120, 13824, 5120, 32000),
}


@dataclass(frozen=True)
class Row:
    """A published figure.

    Attributes:
        source: Where. shape: Name in SHAPES. device: Name in DEVICES. gpus: How many.
        seq_len, micro, accumulation: Tokens of a row, rows of a forward, forwards of a step.
        recompute: "none", "full", or "every second product" (torchtitan's selective checkpointing).
        measured: Tokens/s a GPU.
        system: "fsdp" (gradients in bfloat16), "fsdp, float32 gradients", "zero1", or "zero1 within a node".
        nic: Bytes/s a GPU, where it is told.
    """

    source: str
    shape: str
    device: str
    gpus: int
    seq_len: int
    micro: int
    accumulation: int
    recompute: str
    measured: float
    system: str = "fsdp, float32 gradients"
    nic: float | None = None
    calibrates: bool = False


def _foundry(device: str, system: str, nic: float | None, rows: list[tuple[str, int, int, int, str, float]]) -> list[Row]:
    return [
        Row(FOUNDRY, f"MPT {size}", device, n, 2048, micro, acc, again, speed, system, nic) for size, n, micro, acc, again, speed in rows
    ]


_CALIBRATING = {("MPT 7B", "H100"), ("MPT 13B", "H100"), ("MPT 7B", "A100-80GB"), ("MPT 13B", "A100-80GB")}
"""On eight GPUs: the efficiency of a chip is the geometric mean of these two."""

_H100 = [
    ("7B", 8, 6, 1, "none", 10643),
    ("13B", 8, 2, 1, "none", 4792),
    ("13B", 16, 2, 1, "none", 4767),
    ("13B", 32, 2, 1, "none", 4811),
    ("13B", 64, 2, 1, "none", 4800),
    ("3B", 16, 10, 3, "none", 24142),
    ("3B", 32, 6, 3, "none", 23021),
    ("3B", 64, 6, 3, "none", 22525),
    ("1B", 8, 14, 1, "none", 45455),
    ("1B", 64, 20, 1, "none", 44402),
    ("30B", 8, 3, 21, "full", 2002),
    ("30B", 16, 10, 3, "full", 2263),
    ("30B", 32, 14, 3, "full", 2308),
    ("70B", 32, 2, 16, "full", 882),
    ("70B", 64, 8, 4, "full", 1039),
]
_A100_80 = [
    ("7B", 8, 6, 2, "none", 4641),
    ("13B", 8, 2, 3, "none", 2262),
    ("3B", 8, 10, 2, "none", 10811),
    ("1B", 8, 14, 4, "none", 20513),
    ("30B", 8, 3, 21, "full", 916),
]
_A100_40 = [
    ("13B", 8, 4, 16, "full", 1668),
    ("13B", 16, 10, 1, "full", 1993),
    ("13B", 32, 14, 1, "full", 1998),
    ("13B", 64, 16, 1, "full", 1976),
    ("13B", 128, 16, 1, "full", 1972),
    ("7B", 8, 12, 4, "full", 3679),
    ("7B", 32, 18, 1, "full", 3725),
    ("7B", 128, 18, 1, "full", 3623),
    ("3B", 8, 5, 8, "none", 10065),
    ("3B", 32, 6, 1, "none", 9914),
    ("3B", 128, 6, 1, "none", 9538),
    ("1B", 8, 8, 8, "none", 19271),
    ("1B", 128, 10, 1, "none", 18647),
    ("30B", 32, 4, 1, "full", 857),
    ("30B", 128, 6, 1, "full", 865),
    ("70B", 64, 2, 1, "full", 276),
    ("70B", 128, 4, 1, "full", 376),
]
_INTERNEVO_ZERO1 = {8: 4062, 16: 3842, 32: 3752, 64: 3690, 128: 3571, 256: 3209, 512: 2861, 1024: 2271}
_INTERNEVO_WITHIN = {8: 4078, 16: 3939, 32: 3919, 64: 3944, 128: 3928, 256: 3920, 512: 3835, 1024: 3625}


def rows() -> list[Row]:
    """All of them, those of the calibration marked."""
    # 1,600 Gb/s a node of the A100s; of the H100s it is not told.
    found = _foundry("H100", "fsdp, float32 gradients", None, _H100)
    found += _foundry("A100-80GB", "fsdp, float32 gradients", 25e9, _A100_80)
    found += _foundry("A100-40GB", "fsdp", 25e9, _A100_40)
    # Four adapters of 100 Gb/s for eight GPUs.
    for system, speeds in (("zero1", _INTERNEVO_ZERO1), ("zero1 within a node", _INTERNEVO_WITHIN)):
        found += [Row(INTERNEVO, "InternLM 7B", "A100-80GB", n, 2048, 2, 4, "none", v, system, 6.25e9) for n, v in speeds.items()]
    # bfloat16 with torch.compile.
    for gpus, speed in ((8, 6667), (128, 6514)):
        found.append(Row(TORCHTITAN, "Llama 3.1 8B", "H100", gpus, 8192, 2, 1, "every second product", speed, nic=50e9))
    found.append(Row(FMS_FSDP, "Llama 2 7B", "H100", 96, 4096, 2, 1, "none", 9600, "fsdp"))
    found.append(Row(FMS_FSDP, "Llama 2 7B", "A100-80GB", 128, 4096, 2, 1, "none", 4550, "fsdp"))
    calibrating = [row.gpus == 8 and row.source == FOUNDRY and (row.shape, row.device) in _CALIBRATING for row in found]
    return [replace(row, calibrates=mark) for row, mark in zip(found, calibrating)]


def work(row: Row) -> Work:
    """FLOPs of a forward and of what is computed again; attention is causal."""
    shape = SHAPES[row.shape]
    tokens = row.micro * row.seq_len
    attention = 4 * shape.layers * shape.width * (row.seq_len + 1) / 2
    again = {
        "none": 0.0,
        # torch's checkpointing stops before the last product of a block.
        "full": 2 * shape.layers * (shape.blocks - shape.last) + attention,
        "every second product": shape.layers * shape.blocks,
    }[row.recompute]
    return Work(tokens * (2 * (shape.layers * shape.blocks + shape.rest) + attention), tokens * again)


def transfers(row: Row) -> list[Transfer]:
    """What the row's system moves."""
    shape, gpus = SHAPES[row.shape], row.gpus
    weights = 2 * shape.parameters
    if row.system.startswith("fsdp"):
        # A block at a time: gathered for the forward, again for the backward, gradients scattered.
        gradients = weights * (1 if row.system == "fsdp" else 2)
        calls, times = shape.layers + 1, row.accumulation
        return [
            Transfer("parameters", Kind.gather, Phase.forward, weights, calls, times, gpus, True),
            Transfer("parameters, again", Kind.gather, Phase.backward, weights, calls, times, gpus, True),
            Transfer("gradients", Kind.scatter, Phase.backward, gradients, calls, times, gpus, True),
        ]
    # Gradients are summed beside the last backward, the updated weights sent to all after the update.
    within = row.system != "zero1"
    buckets = math.ceil(weights / (512 * 2**20))
    return [
        Transfer("gradients", Kind.reduce if within else Kind.scatter, Phase.backward, weights, buckets, 1, gpus, True),
        Transfer("weights", Kind.gather, Phase.update, weights, buckets, 1, min(gpus, 8) if within else gpus, False),
    ]


def predicted(row: Row, efficiency: float | None = None) -> float:
    """Tokens/s a GPU."""
    device = DEVICES[row.device]
    machine = machine_of(device, PEAK_FLOPS[device.driver_name])
    if row.nic is not None:
        machine = replace(machine, links=replace(machine.links, nic=row.nic))
    if efficiency is not None:
        machine = replace(machine, efficiency=efficiency)
    speed = step_of(work(row), transfers(row), machine, row.micro * row.seq_len, row.accumulation, row.gpus)
    return speed.tokens_per_second / row.gpus


def table() -> str:
    """Markdown."""
    names = {FOUNDRY: "llm-foundry", INTERNEVO: "InternEvo", TORCHTITAN: "torchtitan", FMS_FSDP: "fms-fsdp"}
    lines = [
        "| source | model | GPUs | rows x tokens x forwards | recompute | transfers | published | predicted | predicted / published |",
        "|---|---|---:|---|---|---|---:|---:|---:|",
    ]
    for row in rows():
        found = predicted(row)
        mark = " (calibrates)" if row.calibrates else ""
        batch = f"{row.micro} x {row.seq_len} x {row.accumulation}"
        figures = f"{row.measured:,.0f} | {found:,.0f} | {found / row.measured:.2f}"
        gpus = f"{row.gpus:,} x {row.device}"
        lines.append(f"| {names[row.source]}{mark} | {row.shape} | {gpus} | {batch} | {row.recompute} | {row.system} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
