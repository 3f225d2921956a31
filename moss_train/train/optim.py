"""Which parameters are decayed, and the learning rate as a pure function of steps or tokens."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from moss_train.config import CooldownShape, Decay, OptimConfig, Schedule
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


def learning_rate(config: OptimConfig, done: float, total: float, per_step: float = 1) -> float:
    """Learning rate of the optimizer step that follows `done`: a pure function of how far a run is.

    Linear warm-up that reaches `lr` at the last warm-up step, then the schedule, which would reach `lr * min_lr_ratio` at the step after
    the last one: neither the first step nor the last is spent at a rate of zero. The cosine is that of Loshchilov and Hutter 2017 (SGDR),
    equation 5, with one period. `wsd` stays at `lr` and falls over the last part (Hu et al. 2024, MiniCPM, arXiv 2404.06395); the form
    1 - sqrt is that of Hagele et al. 2024, arXiv 2405.18392.

    Args:
        config: The schedule.
        done: What the run has done before the step, in steps or in tokens.
        total: Of the whole run, in the same unit.
        per_step: Of one step, in the same unit.
    """
    warmup = _stretch(config.warmup, total, per_step)
    if done < warmup:
        return config.lr * min(1.0, (done + per_step) / warmup)
    if config.schedule is Schedule.constant:
        factor = 1.0
    elif config.schedule is Schedule.wsd:
        cooldown = min(_stretch(config.cooldown, total, per_step), max(0.0, total - warmup))
        factor = _fall(config.cooldown_shape, (done - (total - cooldown) + per_step) / (cooldown + per_step))
    else:
        progress = (done - warmup + per_step) / (max(0.0, total - warmup) + per_step)
        factor = _fall(CooldownShape(config.schedule.value), progress)
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * factor)


def _stretch(setting: float, total: float, per_step: float) -> float:
    """A share of the run (below 1) or a number of steps, in the unit of `total`, in whole steps."""
    return setting * per_step if setting >= 1 else round(setting * total / per_step) * per_step


def _fall(shape: CooldownShape, progress: float) -> float:
    """From 1 to 0 as `progress` goes from 0 to 1."""
    progress = min(max(progress, 0.0), 1.0)
    if shape is CooldownShape.linear:
        return 1 - progress
    return 1 - math.sqrt(progress) if shape is CooldownShape.sqrt else 0.5 * (1 + math.cos(math.pi * progress))
