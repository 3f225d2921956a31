"""What goes wrong while training ends all ranks, within a minute, with one message and its exit code; what was saved stays."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Ranks
from tests.launch import losses, metrics
from tests.small_runs import BUNDLED, arguments, status, steps

# Of a whole run, start included; what is promised is a minute from the fault.
MOST_SECONDS = 60.0


def strike(tmp_path: Path, fault: dict[str, Any] | list[dict[str, Any]], *overrides: str, ranks: int = 2) -> tuple[list[int], str]:
    """A run with faults, in which step 2 is saved before they strike; exit codes and all output."""
    faults = fault if isinstance(fault, list) else [fault]
    run = Ranks(ranks, "tests/programs/faulty.py", *arguments(tmp_path / "run", "train.steps=6", *overrides), FAULTS=json.dumps(faults))
    started = time.monotonic()
    codes = run.wait(timeout=90)
    assert time.monotonic() - started < MOST_SECONDS
    return codes, run.output


@pytest.mark.parametrize("kind", ["nan_loss", "nan_gradient"])
@pytest.mark.parametrize("section", ["zero3", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero1", marks=pytest.mark.slow)])
def test_nan_on_one_rank_stops_all_before_the_update(tmp_path: Path, kind: str, section: str) -> None:
    """What is not finite is never saved: the newest checkpoint is that of the step before."""
    fault = {"kind": kind, "step": 4, "rank": 1}
    codes, output = strike(tmp_path, fault, "train.save_every=1", "train.micro_batch_size=3", f"deepspeed={section}")
    assert codes == [6, 6]
    assert steps(tmp_path / "run") == [1, 2, 3]
    assert output.count("step 4: the loss is") == 1
    assert "dialogues_train.jsonl:" in output
    assert "Traceback" not in output
    assert status(tmp_path / "run")["exit_code"] == 6
    assert len(losses(tmp_path / "run")) == 3


def test_the_records_of_a_nan_are_those_of_its_micro_batch(tmp_path: Path) -> None:
    """Six rows a rank in two micro-batches of three: the loss that is not finite names the rows of one, not the step's twelve."""
    codes, output = strike(tmp_path, {"kind": "nan_loss", "step": 3, "rank": 1}, "train.micro_batch_size=3")
    named = output.split("micro-batches concerned: ")[1].split(". Look")[0]
    assert codes == [6, 6]
    assert 3 <= len(named.split(", ")) <= 9


def test_a_loss_spike_is_left_out_and_counted(tmp_path: Path) -> None:
    """The guard judges once its window is full; it is filled here by a checkpoint's, so that the test need not train for 128 steps."""
    from moss_train.train.guard import WINDOW

    fault = {"kind": "spike", "step": WINDOW + 2, "factor": 1e4}
    small = ("model.hidden_size=16", "model.rotary_dim=4", "model.num_layers=1", "train.global_batch_size=2", "optim.lr=1e-3")
    codes, output = strike(tmp_path, fault, *small, f"train.steps={WINDOW + 4}", "train.save_every=0", "train.log_every=50")
    assert codes == [0, 0]
    events = [event for event in metrics(tmp_path / "run") if "train/loss" in event]
    assert [event["step"] for event in events if event.get("train/skipped")] == [WINDOW + 2]
    # The step after it is as good as the step before: the spike did not touch the weights.
    assert events[WINDOW + 2]["train/loss"] == pytest.approx(events[WINDOW]["train/loss"], abs=1.0)
    saved = json.loads((tmp_path / "run" / "checkpoints" / f"step-{WINDOW + 4:08d}" / "state.json").read_text())
    assert saved["skipped_steps"] == [WINDOW + 2]
    assert saved["adam_step"] == WINDOW + 3
    assert "the update is left out" in output


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_all_with_its_message(tmp_path: Path, rank: int) -> None:
    codes, output = strike(tmp_path, {"kind": "raise", "step": 4, "rank": rank})
    assert codes == [1, 1]
    assert output.count("Traceback") == 1, "the rank that met it shows where, the others do not"
    assert "ValueError: an injected error at step 4" in status(tmp_path / "run")["message"]
    assert steps(tmp_path / "run") == [2]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_memory_names_the_shape_and_what_to_lower(tmp_path: Path, rank: int) -> None:
    codes, output = strike(tmp_path, {"kind": "memory", "step": 4, "rank": rank}, "train.micro_batch_size=3")
    assert codes == [8, 8]
    assert status(tmp_path / "run")["exit_code"] == 8
    assert re.search(rf"rank {rank} has no memory left after: step 4, micro-batch 1 of 2: \[3, \d+\] tokens", output)
    for setting in ("train.micro_batch_size", "data.seq_len", "model.recompute=true", "deepspeed=zero3_offload"):
        assert setting in output
    assert "Traceback" not in output
    assert steps(tmp_path / "run") == [2]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_is_named_and_the_others_end(tmp_path: Path, rank: int) -> None:
    codes, output = strike(tmp_path, {"kind": "die", "step": 4, "rank": rank})
    assert codes[rank] == -9
    assert codes[1 - rank] == 9
    assert f"error: rank {rank} on " in output
    assert "is gone" in output
    assert "Traceback" not in output
    assert status(tmp_path / "run")["exit_code"] == 9
    assert steps(tmp_path / "run") == [2]


def test_a_rank_asleep_ends_all_with_the_stacks_of_all(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, {"kind": "sleep", "step": 4, "rank": 1}, "train.hang_seconds=6")
    assert codes == [9, 9]
    assert "has made no progress for" in output
    stacks = {path.name: path.read_text() for path in (tmp_path / "run" / "stacks").iterdir()}
    assert set(stacks) == {"rank-0.txt", "rank-1.txt"}
    assert "in strike" in stacks["rank-1.txt"], "where it sleeps"
    assert "all_reduce" in stacks["rank-0.txt"] or "engine.py" in stacks["rank-0.txt"]
    assert status(tmp_path / "run")["exit_code"] == 9


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, rank: int) -> None:
    """The second save fails on one rank, after some of it is written."""
    from moss_train.train import manifest

    codes, _ = strike(tmp_path, {"kind": "nothing"}, "train.steps=2")
    assert codes == [0, 0]
    (saved,) = manifest.committed(tmp_path / "run" / "checkpoints")
    one = manifest.verify(saved[1]).total_bytes
    fault = {"kind": "full_disk", "byte": one // 4, "rank": rank}
    changed = ("train.steps=6", "run.allow_changes=[train.steps]")
    codes, output = strike(tmp_path, fault, *changed)
    assert codes == [7, 7]
    assert "no space is left at" in output
    assert "step-00000004" in output
    assert "Traceback" not in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    manifest.verify(saved[1])
    assert status(tmp_path / "run")["exit_code"] == 7


def test_a_place_that_became_read_only_is_exit_4(tmp_path: Path) -> None:
    codes, output = strike(tmp_path, {"kind": "full_disk", "byte": 0, "rank": 1, "errno": "EROFS"})
    assert codes == [4, 4]
    assert f"step-00000002 cannot be written to {tmp_path}/run/checkpoints: Read-only file system" in output
    assert "Traceback" not in output


def test_data_that_are_gone_are_exit_3_and_cost_no_checkpoint(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(BUNDLED.read_bytes())
    codes, _ = strike(tmp_path, [], f"data.train={data}#20", "run.stop_after=2")
    assert codes == [75, 75]
    data.unlink()
    codes, output = strike(tmp_path, [], f"data.train={data}#20")
    assert codes == [3, 3]
    assert str(data) in output
    assert steps(tmp_path / "run") == [2]
