"""`deepspeed=auto` in real runs of two ranks: the stage that is chosen, said, recorded and kept, and what happens where none fits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from moss_train.errors import OutOfMemoryError
from moss_train.train.auto import SECTIONS
from tests.forked import forked
from tests.launch import deepspeed, losses, succeeded
from tests.small_runs import arguments, checkpoint, status, steps

# 10 M parameters: what the stages differ by is more than a rounding of what they print.
SHORT = (
    "model.hidden_size=256",
    "model.vocab_size=16384",
    "train.global_batch_size=4",
    "train.steps=4",
    "train.precision=bf16",
    "deepspeed=auto",
)


def section(run_dir: Path) -> dict[str, Any]:
    """What config.yaml says was used."""
    found: dict[str, Any] = yaml.safe_load((run_dir / "config.yaml").read_text())["deepspeed"]
    return found


def said(text: str) -> str:
    """The line about the choice, which is said once."""
    (found,) = re.findall(r"deepspeed=auto: (.*)", text)
    return str(found)


def test_a_launched_run_takes_the_lowest_stage_that_fits(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = succeeded(deepspeed(2, "scripts/sft.py", *arguments(run_dir, *SHORT, "run.resume=never")))
    assert said(result.stdout).startswith("zero1 takes")
    assert "it is the lowest stage" in said(result.stdout)
    assert "| ZeRO-1 |" in result.stdout
    assert section(run_dir) == {"zero_optimization": SECTIONS["zero1"]}
    lineage = json.loads((checkpoint(run_dir, 4) / "lineage.json").read_text())
    assert lineage["config"]["deepspeed"] == section(run_dir)


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """GiB that each stage would take, from the refusal of a run that has room for none."""
    run_dir = tmp_path_factory.mktemp("none") / "run"
    result = forked(2, "scripts/sft.py", *arguments(run_dir, *SHORT, "deepspeed.memory_gib=0.001"))
    assert result.returncode == OutOfMemoryError.exit_code
    assert status(run_dir)["exit_code"] == OutOfMemoryError.exit_code
    assert "no ZeRO stage fits" in result.stderr
    assert steps(run_dir) == []
    return {name: float(gib) for name, gib in re.findall(r"- (zero\w+): ([\d.]+) GiB", result.stderr)}


def test_a_run_goes_on_at_its_stage_or_at_another(peaks: dict[str, float], tmp_path: Path) -> None:
    """With room for less than ZeRO-1, then with more, then with less than before: the losses go on as those of a run at one stage."""
    assert list(peaks) == list(SECTIONS)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    succeeded(forked(2, "scripts/sft.py", *arguments(straight, *SHORT[:-1], "deepspeed=zero3")))
    lowest = min(("zero2", "zero3"), key=peaks.__getitem__)
    assert peaks[lowest] < peaks["zero1"] - 0.01
    little, plenty = (peaks[lowest] + 0.005, peaks["zero1"] + 1)

    def go_on(gib: float, stop_after: int) -> str:
        overrides = (*SHORT, f"deepspeed.memory_gib={gib}", f"run.stop_after={stop_after}")
        return forked(2, "scripts/sft.py", *arguments(broken, *overrides)).stdout

    first = said(go_on(little, 1))
    assert first.startswith(f"{lowest} takes")
    assert "zero1 would take" in first or "zero2 would take" in first
    assert section(broken) == {"zero_optimization": SECTIONS[lowest]}
    # More room is no reason to change what is rounded.
    assert said(go_on(plenty, 2)).startswith(f"{lowest}, as before step-")
    assert section(broken) == {"zero_optimization": SECTIONS[lowest]}
    # One rank has a plan of its own.
    alone = (*SHORT, f"deepspeed.memory_gib={peaks['zero1'] + 1}", "train.micro_batch_size=1")
    result = succeeded(forked(1, "scripts/sft.py", *arguments(broken, *alone)))
    assert said(result.stdout).startswith("zero1 takes")
    assert "not bit for bit the run without a break" in result.stdout
    assert section(broken) == {"zero_optimization": SECTIONS["zero1"]}
    assert losses(broken) == pytest.approx(losses(straight), abs=2e-3)


@pytest.mark.parametrize("stage", ["pretrain", "pm"])
def test_other_stages_choose_too(stage: str, tmp_path: Path) -> None:
    run_dir = tmp_path / stage
    quick = (
        "train.steps=1",
        "train.epochs=null",
        "train.eval_every=0",
        "train.keep=0",
        "export.enabled=false",
        "train.eval_at_start=false",
    )
    if stage == "pretrain":
        quick = (*quick, "train.tokens=null")
    result = succeeded(forked(2, f"scripts/{stage}.py", f"+config=tiny_{stage}", *quick, f"run.dir={run_dir}", "deepspeed=auto"))
    assert said(result.stdout).startswith("zero1 takes")
    assert section(run_dir) == {"zero_optimization": SECTIONS["zero1"]}


def test_hpz_trains_as_zero3_does(tmp_path: Path) -> None:
    """The file for several nodes, with groups of two of four ranks: two copies of the parameters. Two jobs of a sweep, in one process."""
    curves = {}
    for name, more in (("zero3", ()), ("zero3_hpz", ("deepspeed.zero_optimization.zero_hpz_partition_size=2",))):
        run_dir = tmp_path / name
        line = arguments(run_dir, *SHORT[:-1], f"deepspeed={name}", "run.seed=1,2", *more)
        succeeded(forked(4, "scripts/sft.py", "-m", *line))
        curves[name] = [losses(run_dir / job) for job in ("0", "1")]
    for with_hpz, without in zip(curves["zero3_hpz"], curves["zero3"], strict=True):
        assert with_hpz == pytest.approx(without, abs=1e-5)
