"""From rewards to answers under the best level, without a comparison that anybody made: the demo with --levels, over three seeds.

The answers that a preference model has learned from get levels from its rewards, the model goes on learning from them, each tagged with its
level, and is asked questions that nothing was trained on (`make_prompts.py` says how they differ). A checker and a second preference model
say what came of it, beside what else one could have done with the same answers.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import campaigns
from tests.launch import python, succeeded

SEEDS = (0, 1, 2)
ALTERNATIVES = ("sft", "untagged", "best_only", "best of 8", "level 5, guidance 1.5")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
def test_levels_steer_what_the_model_answers(tmp_path: Path, seed: int) -> None:
    """More is right under the best level than without one, and least under the worst; a second preference model sees it too."""
    succeeded(python("scripts/demo.py", f"{tmp_path / 'demo'}", "--levels", "--seed", f"{seed}", timeout=3000))
    found = json.loads((tmp_path / "demo" / "demo.json").read_text(encoding="utf-8"))
    control = found["control"]
    campaigns.record(f"levels, seed {seed}", {"seconds": found["seconds"], **control})
    correct = {name: one["correct"]["share"] for name, one in control["conditions"].items()}
    assert correct["level 5"] > correct["none"] > correct["level 1"]
    assert control["spearman"]["reward"]["value"] >= 0.5
    assert set(ALTERNATIVES) <= set(correct)
    assert control["conclusion"]
