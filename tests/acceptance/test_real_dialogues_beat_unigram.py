"""On real dialogues, dev loss per supervised token falls below that of any unigram model of the same tokens."""

from __future__ import annotations

from pathlib import Path

from tests.acceptance.real_dialogues import train


def test_dev_loss_falls_below_every_unigram_model(real_data: Path, tmp_path: Path) -> None:
    outcome = train(real_data / "moss-003-sft-sample", tmp_path / "run", 14, 14)
    (_, before), (_, after) = outcome.curve
    assert before > outcome.train_unigram > outcome.dev_unigram
    assert after < outcome.dev_unigram
