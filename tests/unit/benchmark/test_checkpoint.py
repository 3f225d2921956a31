"""The figures of the checkpoint benchmark: of a real engine, consistent with one another, with nothing left behind."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest

from tests.launch import run, succeeded

PROGRAM = """
import json, sys
from pathlib import Path
from moss_train.benchmark.checkpoint import measure
print("FOUND" + json.dumps(measure(Path(sys.argv[1]), 2_000_000, 3)))
"""


def test_a_small_model_is_measured(tmp_path: Path) -> None:
    shown = succeeded(run([sys.executable, "-c", PROGRAM, str(tmp_path / "disk")], MASTER_PORT="29711")).stdout
    found = json.loads(shown.split("FOUND")[1].splitlines()[0])
    assert 1_500_000 < found["parameters"] < 3_000_000
    assert found["bytes"] == 12 * found["parameters"]
    raw = found["raw_seconds"]
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in raw.values())
    assert found["dd_mb_per_second"] == pytest.approx(found["bytes"] / statistics.median(raw["dd_seconds"]) / 1e6)
    assert found["save_mb_per_second"] == pytest.approx(found["bytes"] / statistics.median(raw["save_seconds"]) / 1e6)
    ratios = [dd / save for dd, save in zip(raw["dd_seconds"], raw["save_seconds"], strict=True)]
    assert found["save_to_dd"] == pytest.approx(statistics.median(ratios))
    assert [path.name for path in (tmp_path / "disk").rglob("*")] == ["checkpoints"]
