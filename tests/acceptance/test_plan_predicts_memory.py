"""The plan's peak of memory against that of real runs. The table of docs/memory.md is made by `python -m tests.acceptance.plan_memory`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.plan_memory import Case, measure, run, summary
from tests.campaigns import record


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 512, 8, 32768, 256, 2, 1, zero=2, ranks=1, recompute=False, precision="bf16"),
        Case(2, 512, 8, 32768, 256, 1, 1, zero=3, ranks=2, recompute=True, precision="fp32"),
        Case(8, 512, 8, 8192, 512, 4, 1, zero=1, ranks=1, recompute=True, precision="bf16", recompute_blocks=4),
    ],
    ids=["zero2", "zero3", "half of the blocks recomputed"],
)
def test_small_runs_take_what_was_predicted(case: Case, tmp_path: Path) -> None:
    row = measure(case, tmp_path)
    assert "ratio" in row, row
    assert row["ratio"] == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_a_fresh_draw_is_predicted() -> None:
    rows = run(seed=5, count=20)
    found = summary(rows)
    record("plan_memory", {**found, "rows": rows})
    assert found["within_15_percent"] >= 0.9
    assert found["worst"] <= 0.3
