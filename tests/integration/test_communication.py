"""Bytes that collectives of real steps move, counted inside DeepSpeed, against those that the plan predicts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moss_train.model.shapes import parameter_shapes
from moss_train.train.communication import traffic
from tests.forked import forked
from tests.launch import succeeded
from tests.programs.count_bytes import SHAPE
from tests.unit.train.test_plan import small

ZERO2: dict[str, Any] = {"stage": 2, "overlap_comm": True, "contiguous_gradients": True}
ZERO3: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 1000}
# Small enough that parameters are released, as those of a large model are.
RELEASING = {**ZERO3, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
AHEAD = {**ZERO3, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 20000, "stage3_max_live_parameters": 60000}


@pytest.mark.parametrize(
    ("ranks", "zero", "accumulation", "precision", "recompute"),
    [
        (2, {"stage": 1}, 2, "bf16", False),
        (2, {"stage": 1}, 2, "fp32", False),
        (2, ZERO2, 2, "bf16", False),
        (2, ZERO3, 2, "bf16", True),
        (2, RELEASING, 2, "bf16", False),
        (2, AHEAD, 2, "bf16", True),
        (4, {**RELEASING, "zero_hpz_partition_size": 2}, 2, "bf16", False),
    ],
    ids=["zero1", "zero1 float32", "zero2", "zero3 all live", "zero3 released", "zero3 prefetched, recompute", "hpZ"],
)
def test_a_step_moves_what_was_predicted(
    ranks: int, zero: dict[str, Any], accumulation: int, precision: str, recompute: bool, tmp_path: Path
) -> None:
    out = tmp_path / "moved.json"
    settings = {"zero": zero, "accumulation": accumulation, "precision": precision, "recompute": recompute}
    succeeded(forked(ranks, "tests/programs/count_bytes.py", str(out), json.dumps(settings)))
    measured: Counter[tuple[str, int]] = Counter()
    # The first step records the order of modules, the second is the first to prefetch.
    for kind, size, among in json.loads(out.read_text())[-1]:
        measured[kind, among] += size
    model = SimpleNamespace(n_layer=SHAPE["n_layer"], n_embd=SHAPE["n_embd"], n_inner=None, vocab_size=SHAPE["vocab_size"])
    shapes = parameter_shapes(model)  # type: ignore[arg-type]
    setup = replace(
        small(),
        shapes=shapes,
        trained=frozenset(shapes),
        decayed=frozenset(name for name, shape in shapes.items() if len(shape) == 2),
        zero=zero,
        accumulation=accumulation,
        precision=precision,
        recompute=recompute,
        world_size=ranks,
    )
    predicted: Counter[tuple[str, int]] = Counter()
    for transfer in traffic(setup):
        predicted[transfer.kind.value, transfer.ranks] += round(transfer.size * transfer.times)
    assert set(measured) == set(predicted)
    for key, size in measured.items():
        assert predicted[key] == pytest.approx(size, rel=0.02), key
