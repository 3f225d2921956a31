"""Losses by source, bits per byte, row weights and the z-loss of a forward equal plain computations from the model's logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moss_train.data.loader import collate
from moss_train.data.packing import Example, Row, build_row
from moss_train.model.codegen import CodeGenLM, LossOutput
from moss_train.model.loss import IGNORE_INDEX

VOCABULARY = 307
GROUPS = {"zh": [0, 1], "zh/wiki": [0], "zh/news": [1], "code": [4], "en": [7]}


def make_documents(lengths: Sequence[int], seed: int = 0) -> list[Example]:
    chance = np.random.default_rng(seed)
    return [Example(chance.integers(0, VOCABULARY, length), chance.random(length) < 0.8) for length in lengths]


def forward(model: CodeGenLM, rows: Sequence[Row | None], **given: torch.Tensor) -> LossOutput:
    out = model(**collate(rows, 64, pad_id=0).inputs, **given)
    assert isinstance(out, LossOutput)
    return out


@pytest.fixture
def rows() -> list[Row | None]:
    """Five rows of several documents each, the fourth of padding only."""
    made: list[Row | None] = [build_row(make_documents([9, 20, 12], seed), 64) for seed in range(4)]
    return [*made[:3], None, made[3]]


SOURCES = torch.tensor([0, 4, 1, 4, 0])
BYTES = torch.tensor([100, 41, 77, 1000, 63])


def test_sums_by_source_are_those_of_the_logits(make_model: Callable[..., CodeGenLM], rows: list[Row | None]) -> None:
    model = make_model()
    model.set_loss_groups(GROUPS)
    out = forward(model, rows, row_sources=SOURCES, row_bytes=BYTES)
    batch = collate(rows, 64, pad_id=0)
    logits = model(batch.input_ids, cu_seqlens=batch.cu_seqlens, position_ids=batch.position_ids).logits
    losses = F.cross_entropy(logits.flatten(0, 1).double(), batch.targets.flatten(), reduction="none").view_as(batch.targets)
    members = {"": [0, 1, 2, 4], "/zh": [0, 2, 4], "/zh/wiki": [0, 4], "/zh/news": [2], "/code": [1], "/en": []}
    assert list(out.metrics) == ["loss", "accuracy", "bits_per_byte", *(f"{m}/{g}" for g in GROUPS for m in ("loss", "bits_per_byte"))]
    for name, chosen in members.items():
        nats, tokens = float(losses[chosen].detach().sum()), int((batch.targets[chosen] != IGNORE_INDEX).sum())
        assert float(out.metrics[f"loss{name}"][0]) == pytest.approx(nats, rel=1e-6)
        assert out.metrics[f"loss{name}"][1] == tokens
        assert out.metrics[f"bits_per_byte{name}"][0] == pytest.approx(nats / math.log(2), rel=1e-6)
        # Neither the padding row, though it names a source and bytes, nor an absent source counts anything.
        assert out.metrics[f"bits_per_byte{name}"][1] == int(BYTES[chosen].sum())


def test_names_of_metrics_do_not_depend_on_what_is_in_the_batch(make_model: Callable[..., CodeGenLM], rows: list[Row | None]) -> None:
    model = make_model()
    model.set_loss_groups(GROUPS)
    model.set_z_loss(1e-4)
    full = forward(model, rows, row_sources=SOURCES, row_bytes=BYTES)
    padding = forward(model, [None, None], row_sources=torch.zeros(2, dtype=torch.int64), row_bytes=torch.zeros(2, dtype=torch.int64))
    assert list(padding.metrics) == list(full.metrics)
    assert all((float(value), weight) == (0.0, 0) for value, weight in padding.metrics.values())
    padding.loss_sum.backward()
    assert list(forward(model, rows).metrics) == ["loss", "accuracy", "z_loss"]
    assert "loss/zh" not in forward(model, rows, row_bytes=BYTES).metrics


def test_row_weights_and_z_loss_change_the_objective_and_no_other_metric(
    make_model: Callable[..., CodeGenLM], rows: list[Row | None]
) -> None:
    model = make_model()
    model.set_loss_groups(GROUPS)
    plain = forward(model, rows, row_sources=SOURCES)
    model.set_z_loss(1e-2)
    weights = torch.tensor([1.0, 0.25, 0.0, 5.0, 2.0])
    out = forward(model, rows, row_sources=SOURCES, row_weights=weights)
    z_loss = out.metrics.pop("z_loss")
    for name, (value, weight) in plain.metrics.items():
        assert (float(out.metrics[name][0]), out.metrics[name][1]) == pytest.approx((float(value), weight), rel=1e-6), name
    batch = collate(rows, 64, pad_id=0)
    logits = model(batch.input_ids, cu_seqlens=batch.cu_seqlens, position_ids=batch.position_ids).logits.double()
    squares = 1e-2 * logits.logsumexp(-1) ** 2
    losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.targets)
    supervised = batch.targets != IGNORE_INDEX
    expected = ((losses + squares) * weights[:, None])[supervised].sum()
    assert float(out.loss_sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(z_loss[0]) == pytest.approx(float(squares[supervised].detach().sum()), rel=1e-6)
    assert z_loss[1] == int(supervised.sum())


def test_a_packed_row_is_the_sum_of_its_documents(make_model: Callable[..., CodeGenLM]) -> None:
    """Objective and gradient, with the z-loss and weights on: how rows are laid out changes nothing."""
    model = make_model()
    model.set_z_loss(1e-2)
    documents = [make_documents([9, 20, 12], 1), make_documents([30, 5], 2)]
    weights = [0.5, 3.0]
    packed = forward(model, [build_row(held, 64) for held in documents], row_weights=torch.tensor(weights))
    packed.loss_sum.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    total = 0.0
    for held, weight in zip(documents, weights):
        for document in held:
            alone = forward(model, [build_row([document], 64)], row_weights=torch.tensor([weight]))
            alone.loss_sum.backward()
            total += float(alone.loss_sum.detach())
    assert float(packed.loss_sum.detach()) == pytest.approx(total, rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        # As in tests/acceptance/test_batch_layout_does_not_matter.py: sums in another order.
        allowed = max(1e-5 * float(gradients[name].abs().max()), 1e-6 * largest)
        assert float((parameter.grad - gradients[name]).abs().max()) <= allowed, name
