"""Checkpoints written beside training are those that are written in step; what goes wrong there ends all ranks as it does in step."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from moss_train.train import manifest
from tests.forked import Ranks, forked
from tests.launch import deepspeed, losses, metrics, succeeded
from tests.small_runs import arguments, checkpoint, status, steps, tensors_digest

BESIDE = "train.async_save=true"


@pytest.fixture(scope="module")
def in_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-rank ZeRO-3 run that saves in step."""
    run_dir = tmp_path_factory.mktemp("in_step") / "run"
    succeeded(forked(2, "scripts/sft.py", *arguments(run_dir)))
    return run_dir


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same through the real launcher, saved beside training."""
    run_dir = tmp_path_factory.mktemp("beside") / "run"
    succeeded(deepspeed(2, "scripts/sft.py", *arguments(run_dir, BESIDE)))
    return run_dir


def contents(run_dir: Path, step: int) -> dict[str, Any]:
    """Every file of a checkpoint, without what no two runs have in common: run id, time, place, the setting itself and hashes of these."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in checkpoint(run_dir, step).iterdir()}
    state, record, manifest_ = (json.loads(found[name]) for name in ("state.json", "lineage.json", "MANIFEST.json"))
    del state["run_id"]
    for name in ("id", "created"):
        del record[name]
    del record["config"]["run"]["dir"], record["config"]["train"]["async_save"]
    del manifest_["run_id"], manifest_["sha256"]
    for files in (record["files"], manifest_["files"]):
        for name in ("state.json", "lineage.json"):
            files.pop(name, None)
    return found | {"state.json": state, "lineage.json": record, "MANIFEST.json": manifest_}


def test_they_are_byte_for_byte_those_written_in_step(in_step: Path, beside: Path) -> None:
    assert steps(beside) == steps(in_step) == [2, 4, 6, 8]
    for step in steps(beside):
        manifest.verify(checkpoint(beside, step))
        expected, found = contents(in_step, step), contents(beside, step)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == expected[name], f"step {step}, {name}"
    assert losses(beside) == losses(in_step)


def test_what_a_save_cost_is_in_the_metrics(in_step: Path, beside: Path) -> None:
    for run_dir in (in_step, beside):
        events = [event for event in metrics(run_dir) if "checkpoint/bytes" in event]
        assert [event["checkpoint/step"] for event in events] == [2, 4, 6, 8]
        for event in events:
            folder = checkpoint(run_dir, int(event["checkpoint/step"]))
            assert event["step"] >= event["checkpoint/step"]
            assert event["checkpoint/bytes"] == sum(path.stat().st_size for path in folder.iterdir() if path.name != manifest.FILE_NAME)
            assert 0 < event["checkpoint/pause_seconds"] < 30
            assert 0 < event["checkpoint/write_seconds"] < 30
    assert [event["step"] for event in metrics(in_step) if "checkpoint/bytes" in event] == [2, 4, 6, 8]


def test_a_run_goes_on_from_one_bit_for_bit(in_step: Path, beside: Path, tmp_path: Path) -> None:
    shutil.copytree(beside, tmp_path / "run")
    for step in (6, 8):
        shutil.rmtree(checkpoint(tmp_path / "run", step))
    shown = succeeded(forked(2, "scripts/sft.py", *arguments(tmp_path / "run", BESIDE))).stdout
    assert "step-00000004: step 4 of 8, sample 48" in shown
    assert "not bit for bit" not in shown
    assert losses(tmp_path / "run") == losses(in_step)
    assert tensors_digest(tmp_path / "run", 8) == tensors_digest(in_step, 8)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (3, ("deepspeed=zero1", "train.micro_batch_size=2")),
        pytest.param(3, ("deepspeed=zero2", "optim.freeze=[transformer.wte.*]"), marks=pytest.mark.slow),
        pytest.param(1, ("deepspeed=zero3",), marks=pytest.mark.slow),
        pytest.param(2, ("deepspeed=zero3_offload",), marks=pytest.mark.slow),
    ],
    ids=["zero1", "zero2-frozen", "one-rank", "offload"],
)
def test_every_zero_stage(tmp_path: Path, ranks: int, overrides: tuple[str, ...]) -> None:
    for name, way in (("in_step", "train.async_save=false"), ("beside", BESIDE)):
        succeeded(forked(ranks, "scripts/sft.py", *arguments(tmp_path / name, "train.steps=2", "train.save_every=1", way, *overrides)))
    for step in (1, 2):
        expected, found = contents(tmp_path / "in_step", step), contents(tmp_path / "beside", step)
        assert {name for name in expected if found.get(name) != expected[name]} == set()


def strike(tmp_path: Path, faults: list[dict[str, Any]], *overrides: str) -> tuple[list[int], str]:
    """A run of six steps that saves beside training, with faults; exit codes and all output."""
    line = arguments(tmp_path / "run", "train.steps=6", BESIDE, *overrides)
    run = Ranks(2, "tests/programs/faulty.py", *line, FAULTS=json.dumps(faults))
    started = time.monotonic()
    codes = run.wait(timeout=90)
    assert time.monotonic() - started < 60
    return codes, run.output


def left(tmp_path: Path) -> list[str]:
    """What is in the directory of checkpoints."""
    return sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, rank: int) -> None:
    codes, _ = strike(tmp_path, [], "train.steps=2")
    assert codes == [0, 0]
    one = manifest.verify(checkpoint(tmp_path / "run", 2)).total_bytes
    fault = {"kind": "full_disk", "byte": one // 4, "rank": rank}
    codes, output = strike(tmp_path, [fault], "run.allow_changes=[train.steps]")
    assert codes == [7, 7]
    assert "no space is left at" in output
    assert "step-00000004" in output
    assert "Traceback" not in output
    assert left(tmp_path) == ["step-00000002"]
    manifest.verify(checkpoint(tmp_path / "run", 2))
    assert status(tmp_path / "run")["exit_code"] == 7


def test_a_state_that_is_not_finite_is_not_committed(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, [{"kind": "nan_state", "step": 4, "rank": 1}], "train.steps=4")
    assert codes == [6, 6]
    assert "AdamW's exp_avg of" in output
    assert "has values that are not finite; such a state is not saved" in output
    assert left(tmp_path) == ["step-00000002"]


def test_the_next_save_waits_and_a_stop_waits_for_both(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, [{"kind": "slow_save", "seconds": 1.5}], "train.save_every=1", "run.stop_after=3")
    assert codes == [75, 75]
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert "step-00000003 at step 3 of 6" in output
    events = [event for event in metrics(tmp_path / "run") if "checkpoint/bytes" in event]
    assert [event["checkpoint/step"] for event in events] == [1, 2, 3]
    for event in events:
        assert event["checkpoint/write_seconds"] > 1.5
    # The write began before the wait did.
    assert events[-1]["checkpoint/pause_seconds"] > 1, "the stop waited for the last one"


def test_an_error_of_training_waits_for_what_is_being_written(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, [{"kind": "slow_save", "seconds": 4}, {"kind": "raise", "step": 3, "rank": 1}])
    assert codes == [1, 1]
    assert "an injected error at step 3" in status(tmp_path / "run")["message"]
    assert left(tmp_path) == ["step-00000002"]
    manifest.verify(checkpoint(tmp_path / "run", 2))
    assert output.count("Traceback") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_while_all_write(tmp_path: Path, rank: int) -> None:
    codes, output = strike(tmp_path, [{"kind": "slow_save", "seconds": 30}, {"kind": "die", "step": 4, "rank": rank}])
    assert codes[rank] == -9
    assert codes[1 - rank] == 9
    assert f"error: rank {rank} on " in output
    assert steps(tmp_path / "run") == []


def test_a_write_that_hangs_ends_the_run(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, [{"kind": "slow_save", "seconds": 1000}], "train.hang_seconds=6")
    assert codes == [9, 9]
    assert "of step 2 beside training" in output
    stacks = (tmp_path / "run" / "stacks" / "rank-0.txt").read_text()
    assert "slow_add" in stacks
    assert steps(tmp_path / "run") == []
