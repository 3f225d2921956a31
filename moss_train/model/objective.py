"""What a forward with targets gives: the loss, and the figures reported of it, by the source of each row.

Shape legend: B batch (rows), T tokens of a row, M supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from moss_train.model.loss import IGNORE_INDEX, HeadLoss

Metrics = dict[str, tuple[torch.Tensor | float, float]]
"""name -> (sum, weight)."""


class LossOutput(NamedTuple):
    """Loss of a batch, as sums over its supervised tokens. A tuple, because DeepSpeed's hooks look for tensors in tuples and dicts only.

    Attributes:
        loss_sum: Scalar float32 with gradient: summed cross-entropy in nats, weighted by row and with the z-loss where these are set; 0
            where nothing is supervised.
        token_loss: float32 [M], cross-entropy, without gradient.
        token_correct: bool [M], whether the most probable token is the target.
        token_index: int64 [M], position of each supervised token in the flattened B*T batch.
        metrics: name -> (sum, weight). "loss" and "accuracy" always; "z_loss" where its coefficient is above zero; "loss/<group>" where
            rows have sources; "bits_per_byte" and "bits_per_byte/<group>" where rows have a number of bytes.
    """

    loss_sum: torch.Tensor
    token_loss: torch.Tensor
    token_correct: torch.Tensor
    token_index: torch.Tensor
    metrics: Metrics


class Rows(NamedTuple):
    """What is known of the rows of a batch besides their tokens.

    Attributes:
        sources: int64 [B], or None.
        weights: float32 [B], weight in the objective, or None.
        byte_counts: int64 [B], bytes of the text whose tokens are supervised, or None.
    """

    sources: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    byte_counts: torch.Tensor | None = None


def loss_metrics(
    losses: HeadLoss,
    token_index: torch.Tensor,
    targets: torch.Tensor,
    rows: Rows,
    z_loss: float,
    groups: Mapping[str, Sequence[int]],
) -> Metrics:
    """The metrics of `LossOutput`. Their names depend on what is given, never on what is in the batch: they are equal on every rank.

    Args:
        losses: Of the batch.
        token_index: int64 [M], positions in the flattened B*T batch.
        targets: int64 [B, T].
        rows: Of the batch.
        z_loss: Coefficient.
        groups: Suffix of a metric's name -> numbers of the sources it sums over.
    """
    weight = token_index.numel()
    plain = losses.loss_sum.detach() if rows.weights is None and not z_loss else losses.token_loss.sum()
    metrics: Metrics = {"loss": (plain, weight), "accuracy": (losses.token_correct.sum().float(), weight)}
    if z_loss:
        metrics["z_loss"] = (z_loss * losses.token_log_z.square().sum(), weight)
    if rows.byte_counts is None and (rows.sources is None or not groups):
        return metrics
    found = _by_row(losses.token_loss, token_index, targets, rows)
    if rows.byte_counts is not None:
        metrics["bits_per_byte"] = _bits_per_byte(found)
    for name, sources in groups.items() if rows.sources is not None else ():
        chosen = [row for row in found if row.source in sources]
        metrics[f"loss/{name}"] = (sum(row.loss for row in chosen), sum(row.tokens for row in chosen))
        if rows.byte_counts is not None:
            metrics[f"bits_per_byte/{name}"] = _bits_per_byte(chosen)
    return metrics


class _RowLoss(NamedTuple):
    """Of one row: cross-entropy in nats, supervised tokens, source, bytes."""

    loss: float
    tokens: float
    source: float
    bytes: float


def _by_row(token_loss: torch.Tensor, token_index: torch.Tensor, targets: torch.Tensor, rows: Rows) -> list[_RowLoss]:
    """Every row that has a supervised token; one transfer to the host."""
    # Each token has a place of its own, so that the sums are taken in one order: adding by row number is not repeatable on CUDA.
    dense = token_loss.new_zeros(targets.numel())
    dense[token_index] = token_loss
    # float64 holds numbers of tokens and bytes exactly.
    columns = [dense.view_as(targets).sum(dim=1, dtype=torch.float64), (targets != IGNORE_INDEX).sum(dim=1)]
    columns += [torch.zeros_like(columns[1]) if given is None else given for given in (rows.sources, rows.byte_counts)]
    table = torch.stack([column.to(dense.device, torch.float64) for column in columns], dim=1)
    return [_RowLoss(*row) for row in table.tolist() if row[1]]


def _bits_per_byte(rows: Iterable[_RowLoss]) -> tuple[float, float]:
    """(cross-entropy in bits, bytes)."""
    chosen = list(rows)
    return sum(row.loss for row in chosen) / math.log(2), sum(row.bytes for row in chosen)
