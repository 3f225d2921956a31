"""Small real runs that tests interrupt: their command line, and what they left."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from moss_train.train import manifest
from tests.launch import REPOSITORY

BUNDLED = REPOSITORY / "moss_train" / "data" / "bundled" / "dialogues_train.jsonl"
# 20 rows, 12 a step: an epoch ends in the middle of step 2, and every other step after that.
SMALL = (
    "+config=tiny_sft",
    f"data.train={BUNDLED}#20",
    "data.holdout=0",
    "data.seq_len=256",
    "tokenizer.train_vocab_size=1024",
    "model.vocab_size=1033",
    "model.hidden_size=60",
    "model.rotary_dim=8",
    "train.global_batch_size=12",
    "train.steps=8",
    "train.save_every=2",
    "train.eval_every=0",
    "train.eval_at_start=false",
    "train.keep=9",
    "export.enabled=false",
)
"""A vocabulary and a width that 2, 3 and 4 ranks do not divide."""


def arguments(run_dir: Path, *overrides: str) -> list[str]:
    """The command line of a small run."""
    return [*SMALL, f"run.dir={run_dir}", *overrides]


def steps(run_dir: Path) -> list[int]:
    """The steps of the committed checkpoints, oldest first."""
    return sorted(step for step, _ in manifest.committed(run_dir / "checkpoints"))


def checkpoint(run_dir: Path, step: int) -> Path:
    """The directory of one step."""
    return run_dir / "checkpoints" / manifest.step_name(step)


def tensors_digest(run_dir: Path, step: int) -> str:
    """Hash over the weights and moments of a checkpoint, by name, however they are divided over files."""
    from moss_train.train.tensors import iterate_tensors

    digest = hashlib.sha256()
    for name, tensor in iterate_tensors(checkpoint(run_dir, step)):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def status(run_dir: Path) -> dict[str, Any]:
    """status.json."""
    found: dict[str, Any] = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    return found


def supervised(run_dir: Path) -> list[float]:
    """Supervised tokens of each step: a fingerprint of which samples it took."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [event["train/supervised_tokens"] for event in map(json.loads, lines) if "train/loss" in event]
