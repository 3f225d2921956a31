"""What quantising a model takes, before a device is taken: the job behind `scripts/plan.py stage=quantize`. Predicted by arithmetic alone.

    device memory   a layer in 16 bits; the second moments of its widest input, in float32, three times over while they are inverted;
                    the calibration texts' hidden states, twice: before and after the layer
    host memory     the weights once: GPTQModel reads and writes a layer at a time, which is not counted on
    time            two passes over the texts (before and after a layer changes), a Cholesky factor, and a step for each column

On a GPU none of these figures has been measured for a model of billions of parameters.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moss_train.artifacts.config import LEAST_TOKENS, MOST_KL, Method
from moss_train.config import ModelConfig
from moss_train.errors import UsageError

_GIB = 2**30
PREDICTED_FLOPS = {"H200": 400e12, "H100": 400e12, "A100-80GB": 150e12, "A100-40GB": 150e12, "cpu": 1e11}
"""What 16-bit products are taken to reach: a good share of a GPU's peak, and of a CPU a round figure."""
MEMORY = {"H200": 141e9, "H100": 80 * _GIB, "A100-80GB": 80 * _GIB, "A100-40GB": 40 * _GIB}
_INVERSES = 3
_SLOWDOWN = 20
"""Factors and updates run in float32: by so much slower than products."""
_COLUMN_SECONDS = 1e-3
"""A layer's columns are done one after another, and a step takes so long however small it is."""


@dataclass
class PlanQuantizeConfig:
    """What `scripts/plan.py stage=quantize` takes."""

    stage: str = "quantize"
    model: ModelConfig = field(default_factory=ModelConfig)
    """The architecture, as `model=moss_16b`."""
    init_from: str | None = None
    """A model directory to take it from instead; only its config.json is read."""
    bits: int = 4
    method: Method = Method.gptq
    group_size: int = 128
    samples: int = 256
    seq_len: int = 2048
    heldout_samples: int = 32
    heldout_seq_len: int = 256
    device: str = "H200"
    """Kind of device by its exact name, or cpu."""
    out: str | None = None
    """File for the plan as JSON."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = self.model.problems()
        if self.bits not in MOST_KL:
            found.append(f"bits is {self.bits}; expected 4 or 8")
        if self.device not in PREDICTED_FLOPS:
            found.append(f"device is {self.device}; expected one of {', '.join(PREDICTED_FLOPS)}")
        for key, least in (
            ("samples", 1),
            ("seq_len", LEAST_TOKENS),
            ("heldout_samples", 2),
            ("heldout_seq_len", LEAST_TOKENS),
            ("group_size", 1),
        ):
            if getattr(self, key) < least:
                found.append(f"{key} is {getattr(self, key)}; expected at least {least}")
        return found


@dataclass(frozen=True)
class QuantizePlan:
    """Predicted; bytes and seconds.

    Attributes:
        source: Weights in 16 bits. variant: Weight files of the variant.
        device: Memory of the device that computes; on a CPU it is part of the host's. host: Of the machine. disk: While it runs.
        seconds: Of quantising. compare_seconds: Of reading the source twice for the comparison, on the CPU.
    """

    parameters: int
    source: float
    variant: float
    device: float
    host: float
    disk: float
    seconds: float
    compare_seconds: float


def predict(config: PlanQuantizeConfig, model_config: Any) -> QuantizePlan:
    """The figures of a configuration and an architecture."""
    from moss_train.model.packed import GPTQ, TORCHAO, Packing, packed_bytes
    from moss_train.model.shapes import count_parameters

    parameters, hidden, layers = count_parameters(model_config), model_config.n_embd, model_config.n_layer
    inner, source = model_config.n_inner or 4 * hidden, 2.0 * parameters
    gptq = config.method is Method.gptq
    variant = float(packed_bytes(model_config, Packing(GPTQ if gptq else TORCHAO, config.bits, config.group_size if gptq else None), 2))
    layer = 4 * hidden**2 + 2 * hidden * inner
    speed = PREDICTED_FLOPS[config.device]
    tokens = config.samples * min(config.seq_len, model_config.n_positions)
    compared = config.heldout_samples * config.heldout_seq_len
    device, seconds = float(source), 60.0
    if gptq:
        device = 2.0 * layer + _INVERSES * 4 * inner**2 + 2 * 2 * tokens * hidden
        passes = 2 * 2 * tokens * layer * layers + 2 * tokens * layers * (3 * hidden**2 + inner**2)
        # A factor of K^3 and an update of N * K^2 for each product.
        solving = layers * (3 * hidden**3 + inner**3 + 3 * hidden * hidden**2 + inner * hidden**2 + hidden**3 + hidden * inner**2)
        seconds = (passes + _SLOWDOWN * solving) / speed + layers * (3 * hidden + inner) * _COLUMN_SECONDS
    logits = 3 * 4 * compared * model_config.vocab_size
    host = source + logits + (device if config.device == "cpu" and gptq else 0.0)
    compare = (2 if gptq else 1) * 2 * compared * parameters / PREDICTED_FLOPS["cpu"]
    # What the library writes and what is kept stand beside one another, and layers wait on the disk.
    disk = 2 * variant + (source if gptq else 0.0) + logits / 3
    return QuantizePlan(parameters, source, variant, device, host, disk, seconds, compare)


def plan(config: PlanQuantizeConfig) -> None:
    """Prints the plan, and writes it where `out` names a file.

    Raises:
        UsageError: The device is too small, or no architecture is named.
    """
    found = predict(config, _architecture(config))
    group = f", groups of {config.group_size}" if config.method is Method.gptq else ""
    method = f"{config.method.value}, {config.bits} bits{group}"
    print(f"{found.parameters:,} parameters | {method} | {config.device} | all predicted, nothing measured")
    print(f"weights: {found.source / 1e9:,.2f} GB in 16 bits, {found.variant / 1e9:,.2f} GB as the variant, on disk and in memory")
    print(f"device memory: {found.device / _GIB:,.2f} GiB | host memory: {found.host / _GIB:,.2f} GiB | disk: {found.disk / 1e9:,.1f} GB")
    print(f"time: {_hours(found.seconds)} to quantise, {_hours(found.compare_seconds)} to compare (on the CPU, at 0.1 TFLOP/s)")
    if config.out is not None:
        record = asdict(found) | {"assumptions": {"flops": PREDICTED_FLOPS[config.device], "measured": False}}
        Path(config.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    most = MEMORY.get(config.device, math.inf)
    if found.device > most:
        raise UsageError(
            f"quantising takes {found.device / _GIB:.1f} GiB of the device, and {config.device} has {most / _GIB:.1f}; take fewer samples, "
            "a smaller seq_len, or device=cpu"
        )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"


def _architecture(config: PlanQuantizeConfig) -> Any:
    from transformers import CodeGenConfig

    from moss_train.model.loading import read_model_config

    if config.init_from is not None:
        return read_model_config(config.init_from)
    shape = config.model
    if not shape.is_complete():
        raise UsageError("which model? Name an architecture (model=moss_16b), or a directory: init_from=DIR")
    return CodeGenConfig(
        vocab_size=shape.vocab_size or 51_200,
        n_positions=shape.max_positions,
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        rotary_dim=shape.rotary_dim,
        tie_word_embeddings=False,
    )
