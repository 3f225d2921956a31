"""Which parameters are decayed, and the learning rate as a pure function of the step."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from moss_train.config import Decay, OptimConfig, Schedule
from moss_train.errors import ConfigError


def is_decayed(name: str, dimensions: int, decay: Decay) -> bool:
    """Whether weight decay acts on a parameter.

    Args:
        name: Its Hugging Face name, for example `transformer.h.0.ln_1.weight`.
        dimensions: Of the whole tensor, not of a partition of it.
        decay: The rule.
    """
    if decay is Decay.release:
        return not name.endswith("bias")
    return dimensions >= 2


def freeze(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], patterns: Sequence[str]) -> int:
    """Leaves the parameters whose names match a pattern out of training.

    Args:
        named_parameters: Of the whole model.
        patterns: With `*`, `?` and `[...]`, as in file names.

    Returns:
        How many were left out.

    Raises:
        ConfigError: A pattern matches nothing, or nothing is left to train.
    """
    parameters = list(named_parameters)
    names = [name for name, _ in parameters]
    problems = [
        f"optim.freeze has {pattern!r}, which matches no parameter; there are, for example, {names[0]} and {names[-1]}"
        for pattern in patterns
        if not fnmatch.filter(names, pattern)
    ]
    frozen = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    if len(frozen) == len(names):
        problems.append("optim.freeze leaves nothing to train")
    if problems:
        raise ConfigError(problems)
    for name, parameter in parameters:
        if name in frozen:
            parameter.requires_grad_(False)
    return len(frozen)


def parameter_groups(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], config: OptimConfig) -> list[dict[str, Any]]:
    """AdamW's groups: decayed and not decayed, of the parameters that train; an empty group is left out.

    Under ZeRO-3 a parameter is an empty placeholder, so its dimensions are read from the shape DeepSpeed keeps.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            (decayed if is_decayed(name, len(shape), config.decay) else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    Linear warm-up that reaches `lr` at the last warm-up step, then the schedule, which would reach `lr * min_lr_ratio` at the step after
    the last one: neither the first step nor the last is spent at a rate of zero. The cosine is that of Loshchilov and Hutter 2017 (SGDR),
    equation 5, with one period.
    """
    warmup_steps = int(config.warmup) if config.warmup >= 1 else round(config.warmup * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (max(0, total_steps - warmup_steps) + 1)
    if config.schedule is Schedule.constant:
        factor = 1.0
    elif config.schedule is Schedule.linear:
        factor = 1 - progress
    else:
        factor = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * max(factor, 0.0))
