"""From a model's own answers to answers under the best level, without a comparison that anybody made: the demo, over three seeds.

A small model is fine-tuned and answers questions (facts and sums from memory, products through the calculator); a checker says which of its
own answers are right, a preference model learns that, its rewards become levels, and the model goes on learning from its answers, each
tagged with its level. All is tested on questions that nothing was trained on (`make_prompts.py` says how they differ).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import campaigns
from tests.launch import python, succeeded

SEEDS = (0, 1, 2)
ALTERNATIVES = ("sft", "untagged", "best_only", "best of 8", "level 5, guidance 1.5")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.xdist_group("demo")]


@pytest.fixture(scope="module", params=SEEDS)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The directory of a run, and what it found."""
    directory = tmp_path_factory.mktemp(f"demo-{request.param}") / "demo"
    succeeded(python("scripts/demo.py", f"{directory}", "--levels", "--seed", f"{request.param}", timeout=3000))
    found: dict[str, Any] = json.loads((directory / "demo.json").read_text(encoding="utf-8"))
    campaigns.record(f"the demo, seed {request.param}", {name: value for name, value in found.items() if name != "stages"})
    return directory, found


def test_a_preference_model_learns_from_a_models_own_answers(demo: tuple[Path, dict[str, Any]]) -> None:
    """It is right on four pairs of five, and more often than the trivial baselines on the same pairs."""
    directory, found = demo
    report = found["preference_model"]
    accuracy = report["accuracy"]["accuracy"]
    # Neither right nor wrong all the time, or there would be little to prefer.
    assert all(0.2 < share < 0.9 for share in found["responses_correct"].values())
    assert report["comparisons"] >= 50
    assert accuracy >= 0.8
    assert accuracy > max(one["accuracy"] for one in report["baselines"].values())
    scored = (directory / "scored_train.jsonl").read_text(encoding="utf-8").splitlines()
    responses = [one for line in scored for one in json.loads(line)["responses"]]
    assert sum(one["reward"] is not None for one in responses) > 0.95 * len(responses)


def test_levels_steer_what_the_model_answers(demo: tuple[Path, dict[str, Any]]) -> None:
    """More is right under the best level than without one, and least under the worst; a second preference model sees it too."""
    _, found = demo
    control = found["control"]
    correct = {name: one["correct"]["share"] for name, one in control["conditions"].items()}
    assert correct["level 5"] > correct["none"] > correct["level 1"]
    assert control["spearman"]["reward"]["value"] >= 0.5
    assert set(ALTERNATIVES) <= set(correct)
    assert control["conclusion"]
