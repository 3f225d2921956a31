"""Every DeepSpeed section that ships trains the same model: the same losses, whatever is divided over ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import deepspeed, losses, succeeded

QUICK = ("+config=tiny_sft", "train.steps=4", "train.eval_every=0", "train.eval_at_start=false", "data.seq_len=512", "export.enabled=false")


def test_zero_stages_and_offload_train_the_same(tmp_path: Path) -> None:
    curves = {}
    for section in ("zero1", "zero2", "zero3", "zero3_offload"):
        succeeded(deepspeed(2, "scripts/sft.py", *QUICK, f"deepspeed={section}", f"run.dir={tmp_path}/{section}"))
        curves[section] = losses(tmp_path / section)
    for section, curve in curves.items():
        assert curve == pytest.approx(curves["zero3"], abs=1e-3), section
