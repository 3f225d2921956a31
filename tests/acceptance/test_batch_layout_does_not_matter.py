"""The same global batch gives the same gradient, however it is divided over ranks, micro-batches and accumulation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.forked import forked
from tests.launch import losses, succeeded

# name -> ranks, rows per forward; always 8 rows an optimizer step.
LAYOUTS = {"1 rank x 8": (1, 8), "1 rank, 8 times 1": (1, 1), "2 ranks x 4": (2, 4), "2 ranks, 2 times 2": (2, 2)}
COMMON = (
    "+config=tiny_sft",
    "data.seq_len=256",
    "train.global_batch_size=8",
    "train.eval_at_start=false",
    "train.eval_every=0",
    "export.enabled=false",
)


def train(folder: Path, layout: str, *overrides: str) -> Path:
    """Runs the real program in one layout; returns its run directory."""
    ranks, rows = LAYOUTS[layout]
    run_dir = folder / layout.replace(" ", "_")
    arguments = [*COMMON, f"run.dir={run_dir}", f"train.micro_batch_size={rows}", *overrides]
    succeeded(forked(ranks, "tests/programs/capture_gradients.py", str(folder / f"{run_dir.name}.pt"), *arguments))
    return run_dir


def test_first_gradients_are_equal_in_float32(tmp_path: Path) -> None:
    gradients = {}
    for layout in LAYOUTS:
        run_dir = train(tmp_path, layout, "train.precision=fp32", "train.steps=1")
        gradients[layout] = torch.load(tmp_path / f"{run_dir.name}.pt")
    reference = gradients.pop("1 rank x 8")
    scale = max(float(gradient.abs().max()) for gradient in reference.values())
    for layout, found in gradients.items():
        assert found.keys() == reference.keys()
        for name, gradient in found.items():
            # Sums of some 10^4 float32 terms in another order: 1e-5 of the largest entry of the tensor, and for tensors whose own
            # gradient nearly cancels (LayerNorms at the start) 1e-7 of the largest of all.
            allowed = max(1e-5 * float(reference[name].abs().max()), 1e-7 * scale)
            assert float((gradient - reference[name]).abs().max()) <= allowed, f"{layout}: {name}"


@pytest.mark.slow
def test_twenty_losses_agree_in_bfloat16(tmp_path: Path) -> None:
    # The preset's rate of 3e-3 multiplies rounding differences by training at the edge; 1e-3 is still far above what the recipe uses.
    curves = {layout: losses(train(tmp_path, layout, "train.steps=20", "optim.lr=1e-3")) for layout in LAYOUTS}
    reference = curves.pop("1 rank x 8")
    assert len(reference) == 20
    # The loss moves in twenty steps by far more than the tolerance: agreement is not for want of training.
    assert reference[0] - reference[-1] > 0.5
    for layout, curve in curves.items():
        assert curve == pytest.approx(reference, abs=1e-3), layout
