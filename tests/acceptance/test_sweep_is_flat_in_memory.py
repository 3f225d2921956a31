"""Five jobs of a sweep in one process, two ranks under ZeRO-3: memory does not grow, and each job's validation loss reaches the sweeper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.launch import deepspeed, metrics, succeeded

JOBS = 5


@pytest.mark.slow
def test_sweep_under_two_ranks(tmp_path: Path) -> None:
    rates = ",".join(f"{number}e-4" for number in range(1, JOBS + 1))
    returns = tmp_path / "returns.jsonl"
    callback = ("+hydra.callbacks.returns._target_=tests.programs.sweep_callback.WriteReturns", f"+hydra.callbacks.returns.path={returns}")
    # 10 M parameters: what used to be kept of one job, some 90 MiB, stands out of the noise.
    bundled = Path(__file__).resolve().parents[2] / "moss_train" / "data" / "bundled"
    data = (f"data.train={bundled}/dialogues_train.jsonl#200", f"data.valid={bundled}/dialogues_dev.jsonl#10")
    model = ("model.hidden_size=512", "model.num_layers=3", "data.seq_len=512", *data)
    train = ("train.steps=2", "train.eval_every=0", "train.eval_at_start=false", "export.enabled=false", "train.save_every=0")
    succeeded(
        deepspeed(
            2, "scripts/sft.py", "-m", "+config=tiny_sft", f"optim.lr={rates}", f"run.dir={tmp_path}/sweep", *model, *train, *callback
        )
    )
    outcomes = [json.loads((tmp_path / "sweep" / str(job) / "status.json").read_text()) for job in range(JOBS)]
    assert all(outcome["finished"] for outcome in outcomes)
    resident = [outcome["resident_gib"] * 1024 for outcome in outcomes]
    # The first job loads libraries and fills caches; from the second on, an allocator's slack of 15 MiB a job.
    assert resident[-1] - resident[1] < 15 * (JOBS - 2), f"MiB after each job: {resident}"
    final = [metrics(tmp_path / "sweep" / str(job))[-1]["eval/valid/loss"] for job in range(JOBS)]
    assert [json.loads(line) for line in returns.read_text().splitlines()] == pytest.approx(final)
    assert len(set(final)) == JOBS
