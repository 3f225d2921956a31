"""What a DeepSpeed engine holds of each parameter on this rank: its slice, and AdamW's state of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shard:
    """What this rank's optimizer holds of one parameter.

    Attributes:
        name: Hugging Face name. shape: Of the whole parameter.
        start: First element held, counted over the flattened parameter. count: Elements held; 0 where other ranks hold all of it.
        flat: The flat float32 tensor the optimizer steps, and the key of its state. None with a count of 0.
        offset: Where in `flat` the elements are.
        model_values: The model's own values: this rank's part under ZeRO-3 (which may be longer, by padding), else the whole parameter.
        is_partitioned: Whether `model_values` is only this rank's part.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    flat: torch.Tensor | None
    offset: int
    model_values: torch.Tensor
    is_partitioned: bool


MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of AdamW's state that is as large as the parameter; `step` is the rest of it."""


def trained_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """The parameters that train, in the model's order, with their whole shapes."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters() if p.requires_grad}


def frozen_names(engine: Any) -> list[str]:
    """The parameters that do not train."""
    return [name for name, parameter in engine.module.named_parameters() if not parameter.requires_grad]


def shards(engine: Any) -> list[Shard]:
    """This rank's part of every parameter that trains, in the model's order.

    Read from DeepSpeed's private bookkeeping: its public setters fail under ZeRO-3 where a size does not divide by the number of ranks, and
    want every rank to hold the whole tensor.
    """
    optimizer = engine.optimizer
    found = []
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_id"):
            group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = length * optimizer._get_param_partition_rank(parameter)
            count = max(0, min(length, parameter.ds_numel - start))
            flat = optimizer.fp32_partitioned_groups_flat[group]
            found.append(Shard(name, tuple(parameter.ds_shape), start, count, flat, offset, parameter.ds_tensor, True))
        elif parameter._hp_mapping is None:
            found.append(Shard(name, tuple(parameter.shape), 0, 0, None, 0, parameter.data, False))
        else:
            mapping = parameter._hp_mapping
            flat = optimizer.optimizer.param_groups[mapping.param_group_index]["params"][0]
            inside, held = mapping.lp_fragment_address, mapping.hp_fragment_address
            found.append(Shard(name, tuple(parameter.shape), inside.start, inside.numel, flat, held.start, parameter.data, False))
    return found


def flat_tensors(engine: Any) -> list[torch.Tensor]:
    """The flat float32 tensors that the optimizer steps. ZeRO-3 puts them into its groups one at a time, only while stepping."""
    partitioned = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    return (
        list(partitioned) if partitioned is not None else [p for group in engine.optimizer.optimizer.param_groups for p in group["params"]]
    )


def optimizer_state(engine: Any, flat: torch.Tensor) -> dict[str, Any]:
    """The state of one flat tensor; made as the optimizer's first step would, where that is still to come."""
    inner = engine.optimizer.optimizer
    state = inner.state[flat]
    if not state:
        # torch's AdamW counts steps in a tensor beside the parameter when it is fused; DeepSpeed's counts in an integer.
        is_torch = isinstance(inner, torch.optim.AdamW)
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device) if is_torch else 0
        state |= {key: torch.zeros_like(flat.data, memory_format=torch.preserve_format) for key in MOMENTS}
    return state


def adam_step(engine: Any) -> int:
    """How many updates AdamW has counted."""
    return max(int(optimizer_state(engine, flat)["step"]) for flat in flat_tensors(engine))


def set_adam_step(engine: Any, step: int) -> None:
    """Sets how many updates AdamW has counted, from which its bias correction follows."""
    flats = flat_tensors(engine)
    for flat in flats:
        state = optimizer_state(engine, flat)
        state["step"] = torch.full_like(state["step"], float(step)) if torch.is_tensor(state["step"]) else step
    inner = engine.optimizer.optimizer
    if hasattr(inner, "ds_opt_adam"):
        # DeepSpeed's CPU optimizer multiplies powers of beta up in float32 from call to call. Going through the calls again, on a dummy of
        # one element, gives the products of a run without a break; computed anew they differ in the last bit.
        values = [torch.zeros(1) for _ in range(4)]
        group = inner.param_groups[0]
        settings = (group["lr"], *group["betas"], group["eps"], group["weight_decay"], group["bias_correction"])
        for number in range(1, step + 1):
            for _ in flats:
                inner.ds_opt_adam.adam_update(inner.opt_id, number, *settings, *values)


def is_finite(values: torch.Tensor) -> bool:
    """Whether no value is nan or infinite.

    A sum is finite only where every term is; it is one pass over memory, `isfinite` five. One that overflows decides nothing.
    """
    return math.isfinite(float(values.sum())) or bool(torch.isfinite(values).all())
