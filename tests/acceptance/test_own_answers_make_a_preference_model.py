"""A preference model without a comparison that anybody made: the demo's chain, over three seeds.

A small model is fine-tuned, answers questions (facts and sums from memory, products through the calculator), a checker says which of its
own answers are right, and a preference model learns that; it is tested on questions that nothing was trained on (`make_prompts.py` says
how they differ). It has to be right on four pairs of five, and more often than the trivial baselines on the same pairs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import campaigns
from tests.launch import python, succeeded

SEEDS = (0, 1, 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_preference_model_learns_from_a_models_own_answers(tmp_path: Path, seed: int) -> None:
    succeeded(python("scripts/demo.py", f"{tmp_path / 'demo'}", "--seed", f"{seed}", timeout=3000))
    found = json.loads((tmp_path / "demo" / "demo.json").read_text(encoding="utf-8"))
    campaigns.record(f"own answers, seed {seed}", {name: found[name] for name in ("seconds", "responses_correct", "preference_model")})
    report = found["preference_model"]
    accuracy = report["accuracy"]["accuracy"]
    # Neither right nor wrong all the time, or there would be little to prefer.
    assert all(0.2 < share < 0.9 for share in found["responses_correct"].values())
    assert report["comparisons"] >= 50
    assert accuracy >= 0.8
    assert accuracy > max(one["accuracy"] for one in report["baselines"].values())
    scored = (tmp_path / "demo" / "scored_train.jsonl").read_text(encoding="utf-8").splitlines()
    responses = [one for line in scored for one in json.loads(line)["responses"]]
    assert sum(one["reward"] is not None for one in responses) > 0.95 * len(responses)
