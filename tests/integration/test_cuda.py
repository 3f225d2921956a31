"""The same program on a CUDA device, held against the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import deepspeed, losses, python, succeeded

QUICK = ("+config=tiny_sft", "train.steps=8", "train.eval_every=0", "train.eval_at_start=false", "export.enabled=false")
CUDA = {"DS_ACCELERATOR": "cuda", "CUDA_VISIBLE_DEVICES": "0"}


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["auto", "sdpa", "eager"])
@pytest.mark.parametrize("section", ["zero1", "zero3"])
def test_losses_on_cuda_follow_those_on_the_cpu(tmp_path: Path, attention: str, section: str) -> None:
    arguments = (*QUICK, f"model.attention={attention}", f"deepspeed={section}")
    succeeded(python("scripts/sft.py", *arguments, f"run.dir={tmp_path}/cpu"))
    shown = succeeded(deepspeed(1, "scripts/sft.py", *arguments, f"run.dir={tmp_path}/cuda", **CUDA)).stdout
    assert "1 ranks on cuda" in shown
    # bf16 products are rounded in another order; the losses themselves move by more than one over these steps.
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), abs=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("section", ["zero1", "zero2", "zero3", "zero3_offload"])
def test_a_run_on_cuda_is_resumed(tmp_path: Path, section: str) -> None:
    """Deterministic kernels are not asked for, so equal to rounding; on the CPU it is equal to the bit."""
    arguments = (*QUICK, f"deepspeed={section}", "train.save_every=3")
    succeeded(deepspeed(1, "scripts/sft.py", *arguments, f"run.dir={tmp_path}/straight", **CUDA))
    stopped = deepspeed(1, "scripts/sft.py", *arguments, f"run.dir={tmp_path}/run", "run.stop_after=4", **CUDA)
    assert stopped.returncode == 75, stopped.stderr[-2000:]
    shown = succeeded(deepspeed(1, "scripts/sft.py", *arguments, f"run.dir={tmp_path}/run", **CUDA)).stdout
    assert "step-00000004: step 4 of 8" in shown
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "straight"), abs=2e-2)
