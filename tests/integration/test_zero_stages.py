"""Every DeepSpeed section that ships trains the same model: the same losses, whatever is divided over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forked import forked
from tests.launch import losses, succeeded

QUICK = ("+config=tiny_sft", "train.steps=4", "train.eval_every=0", "train.eval_at_start=false", "data.seq_len=512", "export.enabled=false")


def check_same_losses(folder: Path, sections: tuple[str, ...]) -> None:
    """Two ranks under each section, side by side."""
    curves = {}
    for section in sections:
        succeeded(forked(2, "scripts/sft.py", *QUICK, f"deepspeed={section}", f"run.dir={folder}/{section}"))
        curves[section] = losses(folder / section)
    for section, curve in curves.items():
        assert curve == pytest.approx(curves["zero3"], abs=1e-3), section


@pytest.mark.slow
def test_zero1_and_zero2_train_as_zero3_does(tmp_path: Path) -> None:
    check_same_losses(tmp_path, ("zero1", "zero2", "zero3"))


@pytest.mark.slow
def test_offloaded_optimizer_state_trains_as_zero3_does(tmp_path: Path) -> None:
    """Slow for compiling DeepSpeed's CPU optimizer, once a machine."""
    check_same_losses(tmp_path, ("zero3_offload", "zero3"))
