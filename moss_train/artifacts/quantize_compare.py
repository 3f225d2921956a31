"""What a variant's answers differ from its source's, and what mere rounding to the same bits would have made of them.

The source is read a layer at a time, in float32, so it takes the memory of a layer. Perplexity does not tell variants apart (rounding has
been seen to lower it); the divergence from the source does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from moss_train.artifacts.reopen import Tracer
from moss_train.model.loading import iterate_parameters
from moss_train.model.packed import is_packed
from moss_train.model.shapes import PM, head_of

_CHUNK = 512
"""Tokens whose probabilities are held at once."""


@dataclass(frozen=True)
class Difference:
    """Of a variant from its source.

    Attributes:
        kl: KL(source || variant) in nats: of the next token, over all tokens; of a preference model, of which of two neighbouring responses
            is the better one, over these pairs.
        agreement: Share of tokens whose most likely next one is the same; of pairs, whose better response is.
        count: Tokens, or pairs.
    """

    kl: float
    agreement: float
    count: int


def source_values(
    source: Path, model_config: Any, rows: list[list[int]], change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> Any:
    """What a model computes for rows: float32 logits [all tokens, V]; of a preference model the reward of each row.

    Args:
        source: Its directory. model_config: Its configuration.
        rows: Ids.
        change: Done to the weight of every layer that is quantised.
    """
    tracer = Tracer(model_config, rows)
    for name, tensor in iterate_parameters(source):
        changes = change is not None and name.endswith(".weight") and is_packed(name.removesuffix(".weight"))
        tracer.feed(name, change(tensor) if changes and change is not None else tensor)
    if tracer.logits is None:
        raise RuntimeError("not every parameter of the model was given")
    if head_of(model_config) != PM:
        return tracer.logits
    ends = torch.tensor([len(row) for row in rows]).cumsum(0) - 1
    return tracer.logits[ends, 0]


def round_to_nearest(weight: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    """float32 [N, K]: every weight as the nearest value of a symmetric grid with the largest of a group at its end, scales in float16.

    Args:
        weight: [N, K]. bits: Of a code. group_size: Inputs that share a scale.
    """
    most = 2**bits - 1
    groups = weight.float().unflatten(1, (-1, group_size))
    scale = (2 * groups.abs().amax(dim=-1, keepdim=True) / most).clamp(min=1e-12).half().float()
    zero = (most + 1) / 2
    codes = ((groups / scale).round() + zero).clamp(0, most)
    return ((codes - zero) * scale).flatten(1)


def difference(source: torch.Tensor, variant: torch.Tensor, is_pm: bool) -> Difference:
    """How two results of `source_values` differ."""
    return _of_rewards(source.double(), variant.double()) if is_pm else _of_logits(source, variant)


def _of_logits(source: torch.Tensor, variant: torch.Tensor) -> Difference:
    total, same = 0.0, 0
    for before, after in zip(source.split(_CHUNK), variant.split(_CHUNK), strict=True):
        expected, found = before.double().log_softmax(-1), after.double().log_softmax(-1)
        total += float((expected.exp() * (expected - found)).sum())
        same += int((before.argmax(-1) == after.argmax(-1)).sum())
    return Difference(total / len(source), same / len(source), len(source))


def _of_rewards(source: torch.Tensor, variant: torch.Tensor) -> Difference:
    expected, found = (rewards[:-1] - rewards[1:] for rewards in (source, variant))
    win = expected.sigmoid()
    divergence = win * (F.logsigmoid(expected) - F.logsigmoid(found)) + (1 - win) * (F.logsigmoid(-expected) - F.logsigmoid(-found))
    same = ((expected > 0) == (found > 0)).double().mean()
    return Difference(float(divergence.mean()), float(same), len(expected))
