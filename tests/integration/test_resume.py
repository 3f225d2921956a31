"""A run that is interrupted and started again with the same command is the run that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

from tests import small_runs
from tests.forked import forked
from tests.launch import losses, metrics, succeeded
from tests.small_runs import arguments, checkpoint, status, steps, supervised, tensors_digest


def train(ranks: int, run_dir: Path, *overrides: str) -> str:
    """Runs to the end; what was printed."""
    return succeeded(forked(ranks, "scripts/sft.py", *arguments(run_dir, *overrides))).stdout


def interrupt(ranks: int, run_dir: Path, step: int, *overrides: str) -> None:
    """Runs up to a step, where it is stopped with a checkpoint."""
    result = forked(ranks, "scripts/sft.py", *arguments(run_dir, f"run.stop_after={step}", *overrides))
    assert result.returncode == 75, result.stderr[-2000:]
    assert steps(run_dir)[-1] == step


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-rank ZeRO-3 run that nobody interrupted."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    train(2, run_dir)
    return run_dir


def copy_up_to(straight: Path, run_dir: Path, step: int) -> None:
    """The run as it was when it had saved `step`, as a kill would have left it."""
    shutil.copytree(straight, run_dir)
    for later in steps(run_dir):
        if later > step:
            shutil.rmtree(checkpoint(run_dir, later))


@pytest.mark.parametrize("step", [1, 3, pytest.param(6, marks=pytest.mark.slow)])
def test_same_ranks_give_the_same_bits(straight: Path, tmp_path: Path, step: int) -> None:
    """Interrupted in an epoch and across its end, at a step that is saved anyway and at ones that are not."""
    interrupt(2, tmp_path / "run", step)
    shown = train(2, tmp_path / "run")
    assert f"step-0000000{step}: step {step} of 8, sample {12 * step}" in shown
    assert "not bit for bit" not in shown
    assert losses(tmp_path / "run") == losses(straight)
    assert tensors_digest(tmp_path / "run", 8) == tensors_digest(straight, 8)
    assert [event["step"] for event in metrics(tmp_path / "run") if "train/loss" in event] == list(range(1, 9))


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ()),
        (2, ("train.micro_batch_size=3",)),
        (2, ("deepspeed=zero1",)),
        (2, ("deepspeed=zero2",)),
        (3, ()),
        (4, ()),
        pytest.param(2, ("deepspeed=zero3_offload",), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_another_layout_goes_on_at_the_same_sample(straight: Path, tmp_path: Path, ranks: int, overrides: tuple[str, ...]) -> None:
    copy_up_to(straight, tmp_path / "run", 4)
    shown = train(ranks, tmp_path / "run", *overrides)
    assert "going on from" in shown
    assert supervised(tmp_path / "run") == supervised(straight)
    found, expected = losses(tmp_path / "run"), losses(straight)
    # The state is the same to the last bit; what differs is how the next forward rounds in bfloat16.
    assert found[4] == pytest.approx(expected[4], abs=2e-3)
    assert found[5:] == pytest.approx(expected[5:], abs=2e-2)


@pytest.mark.parametrize("section", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("zero1", "zero3_offload")), "zero2"])
def test_every_zero_stage_resumes_bit_for_bit_and_moves_to_zero3(tmp_path: Path, section: str) -> None:
    """Two parameter groups (with and without weight decay) in every stage; three ranks, which divide nothing here."""
    chosen = (f"deepspeed={section}", "train.steps=4")
    train(3, tmp_path / "straight", *chosen)
    interrupt(3, tmp_path / "run", 2, *chosen)
    shutil.copytree(tmp_path / "run", tmp_path / "zero3")
    train(3, tmp_path / "run", *chosen)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert tensors_digest(tmp_path / "run", 4) == tensors_digest(tmp_path / "straight", 4)
    train(2, tmp_path / "zero3", "train.steps=4")
    assert losses(tmp_path / "zero3")[2] == pytest.approx(losses(tmp_path / "straight")[2], abs=2e-3)


@pytest.mark.parametrize("section", [pytest.param("zero2", marks=pytest.mark.slow), "zero3"])
def test_frozen_parameters_are_not_copied(tmp_path: Path, section: str) -> None:
    frozen = ("optim.freeze=[transformer.wte.*,transformer.h.0.*]", f"deepspeed={section}", "train.steps=4")
    train(2, tmp_path / "straight", *frozen)
    interrupt(2, tmp_path / "run", 2, *frozen)
    saved = checkpoint(tmp_path / "run", 2)
    names = set()
    for file in saved.glob("model-*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    assert names
    assert not [name for name in names if name.startswith(("transformer.wte", "transformer.h.0."))]
    state = json.loads((saved / "state.json").read_text())
    assert "transformer.wte.weight" in state["frozen"]
    train(2, tmp_path / "run", *frozen)
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")
    assert tensors_digest(tmp_path / "run", 4) == tensors_digest(tmp_path / "straight", 4)


CHANGES = {
    "optim.lr=1e-3": "optim.lr: was 0.003, now 0.001",
    "train.steps=9": "train.steps: was 8, now 9",
    "train.global_batch_size=24": "train.global_batch_size: was 12, now 24",
    "run.seed=3": "run.seed: was 42, now 3",
    f"data.train={small_runs.BUNDLED}#19": "data: was ",
    "tokenizer.train_vocab_size=900": "tokenizer: was ",
    "model.num_layers=3": "(model cannot change within a run)",
    "optim.freeze=[transformer.wte.*]": "(optim.freeze cannot change within a run)",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_must_not_change_is_refused_with_old_and_new(straight: Path, tmp_path: Path, change: str) -> None:
    copy_up_to(straight, tmp_path / "run", 4)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    result = forked(1, "scripts/sft.py", *arguments(tmp_path / "run", change))
    assert result.returncode == 5, result.stderr[-2000:]
    assert CHANGES[change] in result.stderr
    assert "run.resume=never" in result.stderr
    assert "Traceback" not in result.stderr
    assert steps(tmp_path / "run") == [2, 4]
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_change_can_be_allowed_by_name(straight: Path, tmp_path: Path) -> None:
    """A longer run with another batch: the position in the data is counted in samples."""
    copy_up_to(straight, tmp_path / "run", 4)
    changed = ("train.global_batch_size=24", "train.steps=6", "run.allow_changes=[train.steps,train.global_batch_size]")
    shown = train(2, tmp_path / "run", *changed)
    assert "WARNING: train.steps was 8, is now 6 (run.allow_changes)" in shown
    counts = supervised(straight)
    # Step 5 takes samples 48 to 71: those of steps 5 and 6 before.
    assert supervised(tmp_path / "run")[4:] == [counts[4] + counts[5], counts[6] + counts[7]]


def test_a_damaged_checkpoint_is_skipped_and_both_steps_are_named(straight: Path, tmp_path: Path) -> None:
    copy_up_to(straight, tmp_path / "run", 6)
    victim = sorted(checkpoint(tmp_path / "run", 6).glob("optimizer-*.safetensors"))[-1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    shown = train(2, tmp_path / "run")
    assert f"checkpoint rejected: step-00000006: {victim.name} is damaged" in shown
    assert "going on from step-00000004, not from step-00000006" in shown
    assert losses(tmp_path / "run") == losses(straight)
    # The damaged one is there for its owner to look at; the step has a good one again.
    assert (tmp_path / "run" / "checkpoints" / "step-00000006.damaged-1").is_dir()
    assert tensors_digest(tmp_path / "run", 6) == tensors_digest(straight, 6)


def test_without_any_good_checkpoint_nothing_starts_in_silence(straight: Path, tmp_path: Path) -> None:
    copy_up_to(straight, tmp_path / "run", 4)
    for step in (2, 4):
        (checkpoint(tmp_path / "run", step) / "state.json").unlink()
    result = forked(2, "scripts/sft.py", *arguments(tmp_path / "run"))
    assert result.returncode == 4
    assert result.stderr.count("state.json cannot be read: No such file or directory") == 2
    assert "Traceback" not in result.stderr
    shown = train(1, tmp_path / "run", "run.resume=never", "train.steps=2")
    assert "is now in run.1, beside it" in shown
    assert steps(tmp_path / "run.1") == [2, 4]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    finishing = ("train.steps=2", "export.enabled=true")
    train(1, tmp_path / "run", *finishing)
    before = (tmp_path / "run" / "export" / "lineage.json").read_bytes()
    shown = train(1, tmp_path / "run", *finishing)
    assert "this run is finished" in shown
    assert (tmp_path / "run" / "export" / "lineage.json").read_bytes() == before
    # Killed after the last checkpoint, before the export: the export is made from it.
    shutil.rmtree(tmp_path / "run" / "export")
    assert "exported to" in train(1, tmp_path / "run", *finishing)
    assert status(tmp_path / "run")["state"] == "finished"


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    """Its first export is kept beside the new one, and never taken for it."""
    train(1, tmp_path / "run", "train.steps=2", "export.enabled=true")
    longer = ("train.steps=3", "export.enabled=true", "run.allow_changes=[train.steps]")
    assert "the earlier export, of step 2, is now export.step-2" in train(1, tmp_path / "run", *longer)
    exported = json.loads((tmp_path / "run" / "export" / "lineage.json").read_text())
    newest = json.loads((checkpoint(tmp_path / "run", 3) / "lineage.json").read_text())
    assert exported["details"]["step"] == 3
    assert [parent["id"] for parent in exported["parents"] if parent["role"] == "source"] == [newest["id"]]
    assert [parent["id"] for parent in exported["parents"][1:]] == [parent["id"] for parent in newest["parents"]]
    assert "this run is finished" in train(1, tmp_path / "run", *longer)


def test_an_evaluation_that_a_kill_cost_is_made_up(tmp_path: Path) -> None:
    evaluating = ("train.steps=4", "train.eval_every=2", "data.holdout=0.1")
    train(2, tmp_path / "run", *evaluating)
    expected = metrics(tmp_path / "run")
    shutil.rmtree(checkpoint(tmp_path / "run", 4))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "eval/" not in line]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(kept) + '{"step": 5, "train/lo')
    train(2, tmp_path / "run", *evaluating)
    evaluations = [(event["step"], event["eval/valid/loss"]) for event in metrics(tmp_path / "run") if "eval/valid/loss" in event]
    assert evaluations == [(event["step"], event["eval/valid/loss"]) for event in expected if "eval/valid/loss" in event]


def test_a_checkpoint_opens_as_a_model(straight: Path, tmp_path: Path) -> None:
    saved = checkpoint(straight, 8)
    shown = train(1, tmp_path / "run", f"init_from={saved}", "train.steps=1")
    assert f"weights: {saved}" in shown
    assert losses(tmp_path / "run")[0] < losses(straight)[0] - 0.5
    lineage = json.loads((checkpoint(tmp_path / "run", 1) / "lineage.json").read_text())
    parent = json.loads((saved / "lineage.json").read_text())["id"]
    assert [(found["role"], found["id"]) for found in lineage["parents"] if found["role"] != "data"] == [("init", parent)]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    train(2, tmp_path / "run", "train.steps=7", "train.keep=2")
    assert steps(tmp_path / "run") == [6, 7]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"step-00000006", "step-00000007"}
