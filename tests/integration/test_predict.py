"""The prediction of real runs on this machine, on models small enough for a test; how good it is takes larger ones and a quiet machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from moss_train.benchmark.predict import Case, measure, probe, setup

SMALL = Case(2, 128, 4, 2304, 256, 1, zero="zero1")
OTHER = Case(2, 256, 4, 2304, 256, 2, zero="zero1")


def test_a_case_is_planned_as_its_run_is() -> None:
    planned = setup(OTHER, 2, "fp32")
    assert (planned.num_layers, planned.hidden_size, planned.tokens, planned.accumulation, planned.stage) == (2, 256, 512, 1, 1)
    assert not planned.is_cuda


def test_rates_are_of_this_machine() -> None:
    rates = probe(SMALL, 1)
    assert 1e8 < rates.flops < 1e14
    assert 1e7 < rates.memory < 1e13


def test_one_run_calibrates_and_another_is_predicted(tmp_path: Path) -> None:
    said: list[str] = []
    found = measure([SMALL, OTHER], steps=3, folder=tmp_path, say=said.append)
    first, second = found["cases"]
    assert (first["calibrates"], second["calibrates"]) == (True, False)
    assert first["speed_ratio"] == pytest.approx(1)
    assert 0 < found["efficiency"] < 2
    # Four times the arithmetic a token, on a machine that other tests use too.
    assert 0.2 < second["speed_ratio"] < 5
    for row in found["cases"]:
        assert row["predicted"]["memory_gib"] > 0
        assert row["memory_ratio"] == pytest.approx(row["predicted"]["memory_gib"] / row["measured"]["memory_gib"])
    assert len(said) == 2
    assert "(calibrates)" in said[0]


def test_a_run_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 2[\s\S]*model.num_heads"):
        measure([Case(2, 128, 3, 2304, 256, 1), OTHER], steps=2, folder=tmp_path)
    with pytest.raises(ValueError, match="one that calibrates"):
        measure([SMALL])
