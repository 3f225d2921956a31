"""What may stand in the `deepspeed` section, checked before anything is loaded; and what a plan is asked for."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

# Settings of these have one owner elsewhere; two owners of a value is how the wrong one wins.
OWNED_ELSEWHERE = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "optim.clip",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "optimizer": "the optim section",
    "scheduler": "optim.schedule",
    "managed_gradient_accumulation": "nothing: the loop relies on it",
    "gradient_allreduce_op": "nothing: the loop scales the loss for the average",
    "steps_per_print": "train.log_every",
    "zero_force_ds_cpu_optimizer": "nothing: the optimizer follows offload_optimizer",
}

DEEPSPEED_KEYS = frozenset(
    [
        "zero_optimization",
        "data_types",
        "communication_data_type",
        "seq_parallel_communication_data_type",
        "prescale_gradients",
        "gradient_predivide_factor",
        "sparse_gradients",
        "activation_checkpointing",
        "aio",
        "comms_logger",
        "flops_profiler",
        "wall_clock_breakdown",
        "memory_breakdown",
        "dump_state",
        "compile",
        "zero_allow_untested_optimizer",
    ]
)
"""Keys of the DeepSpeed section that are passed on; DeepSpeed itself ignores those it does not know."""


AUTO = "auto"
"""Value of `zero_optimization.stage` that leaves it to the run, see `auto.py`."""
AUTO_MEMORY = "memory_gib"
"""Key beside it: GiB that a rank may take."""


def is_auto(section: dict[str, Any]) -> bool:
    """Whether ZeRO's stage is left to the run."""
    return bool((section.get("zero_optimization") or {}).get("stage") == AUTO)


def deepspeed_problems(section: dict[str, Any]) -> list[str]:
    """Problems of the DeepSpeed section: keys that other settings own, and stages that do not fit the loop."""
    found = [f"deepspeed.{key} may not be set there; its owner is {owner}" for key, owner in OWNED_ELSEWHERE.items() if key in section]
    for key in section:
        if key == AUTO_MEMORY and is_auto(section):
            continue
        if key not in OWNED_ELSEWHERE and key not in DEEPSPEED_KEYS:
            close = difflib.get_close_matches(str(key), [*DEEPSPEED_KEYS, *OWNED_ELSEWHERE], n=1)
            found.append(f"deepspeed.{key}: there is no such key" + (f"; did you mean deepspeed.{close[0]}?" if close else ""))
    accumulation = (section.get("data_types") or {}).get("grad_accum_dtype", "fp32")
    if accumulation not in ("fp32", "bf16", "fp16"):
        found.append(f"deepspeed.data_types.grad_accum_dtype is {accumulation!r}; expected fp32 (the default), bf16 or fp16")
    zero = section.get("zero_optimization") or {}
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero.get(key), dict) and zero[key].get("device") == "nvme":
            found.append(
                f"deepspeed.zero_optimization.{key}.device is nvme; expected cpu or none: checkpoints cannot be made of swapped state"
            )
    offload = zero.get("offload_optimizer")
    if isinstance(offload, dict) and offload.get("ratio", 1.0) != 1.0:
        ratio = offload["ratio"]
        found.append(f"deepspeed.zero_optimization.offload_optimizer.ratio is {ratio}; expected 1: the rest would not be saved")
    for key in ("zenflow", "super_offload"):
        if zero.get(key) or (isinstance(offload, dict) and offload.get(key)):
            found.append(f"deepspeed.zero_optimization has {key}; expected none: checkpoints cannot be made of its state")
    if is_auto(section):
        return found + _auto_problems(section)
    stage = zero.get("stage")
    if stage not in (1, 2, 3):
        found.append(
            f"deepspeed.zero_optimization.stage is {stage!r}; expected 1, 2, 3 or auto (stage 0 cannot accumulate bf16 gradients in "
            "float32; stage 1 on one rank costs the same)"
        )
    return found


LINK_KEYS = {"nvlink_gb_per_second": "nvlink", "nic_gb_per_second": "nic", "pcie_gb_per_second": "pcie"}
"""Option of a plan, in GB/s -> the link of `devices.Links`."""


def _auto_problems(section: dict[str, Any]) -> list[str]:
    """Problems of a section that leaves the stage to the run."""
    found, memory = [], section.get(AUTO_MEMORY)
    if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int | float) or not 0 < memory < math.inf):
        found.append(f"deepspeed.{AUTO_MEMORY} is {memory!r}; expected a number of GiB above zero, or null for what the device has")
    for key in ("offload_optimizer", "offload_param", "zero_hpz_partition_size"):
        if section["zero_optimization"].get(key) is not None:
            found.append(
                f"deepspeed.zero_optimization.{key} may not be set with stage auto, which decides it; choose "
                "deepspeed=zero3 and set it there"
            )
    return found


@dataclass
class PlanOptions:
    """What `scripts/plan.py` takes beside a stage's own settings."""

    stage: str = "sft"
    """Which stage is planned; by default the one that the preset's name has in it."""
    world_size: int = 1
    """Ranks."""
    device: str = "H200"
    """Kind of device by its exact name, or cpu."""
    memory_gib: float | None = None
    """Memory of one rank, GiB; by default that of the device. Must be given for cpu."""
    gpus: list[int] = field(default_factory=list)
    """Numbers of GPUs: a line for each, with the lowest ZeRO stage that fits and its speed, instead of the plan of one."""
    efficiency: float | None = None
    """Share of the device's peak that arithmetic reaches while nothing waits for communication; by default that of the device's kind, from
    published figures (docs/scaling.md)."""
    mfu: float | None = None
    """Share of the peak that training reaches with all its waiting, where it is known; by default predicted."""
    node_size: int | None = None
    """GPUs of a node; by default 8."""
    nvlink_gb_per_second: float | None = None
    """From one GPU to the others of its node, in one direction, by its data sheet; by default the device's."""
    nic_gb_per_second: float | None = None
    """From one GPU to other nodes, in one direction: a node's adapters, divided by its GPUs; by default those of the vendor's machine."""
    pcie_gb_per_second: float | None = None
    """Between one GPU and the host, in one direction; by default the device's."""
    rows: int | None = None
    """Rows of an epoch, from which the length of a run of `train.epochs` follows."""
    out: str | None = None
    """File for the plan as JSON."""

    def plan_problems(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        found = []
        for key in ("world_size", "memory_gib", "rows", "node_size", *LINK_KEYS):
            value = getattr(self, key)
            if value is not None and value <= 0:
                found.append(f"{key} is {value}; expected a number above zero")
        for key in ("mfu", "efficiency"):
            value = getattr(self, key)
            if value is not None and not 0 < value <= 1:
                found.append(f"{key} is {value}; expected a share above 0, up to 1")
        if wrong := [count for count in self.gpus if count <= 0]:
            found.append(f"gpus has {', '.join(map(str, wrong))}; expected numbers above zero, as in gpus=[1,8,64]")
        return found
