"""From no comparison that anybody made to answers under the best level: the thorough demo, over three seeds.

A small model is fine-tuned, answers questions (facts and sums from memory, products through the calculator), a checker says which of its
own answers are right, and a preference model learns that. Its rewards become levels, the model goes on learning from its answers, each
tagged with its level, and is asked questions that nothing was trained on (`make_prompts.py` says how they differ). A checker and a second
preference model say what came of it, beside what else one could have done with the same answers; variants of 8 and 4 bits are measured
alike.
"""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import campaigns
from tests.launch import python, succeeded

SEEDS = (0, 1, 2)
ALTERNATIVES = ("sft", "untagged", "best_only", "best of 6")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200), pytest.mark.parametrize("seed", SEEDS), pytest.mark.xdist_group("demo")]


@functools.cache
def demo(seed: int) -> tuple[Path, dict[str, Any]]:
    """Runs the demo once; where, and what it found."""
    out = Path(tempfile.mkdtemp(prefix=f"demo{seed}-")) / "demo"
    succeeded(python("scripts/demo.py", f"{out}", "--thorough", "--seed", f"{seed}", timeout=7000))
    found = json.loads((out / "demo.json").read_text(encoding="utf-8"))
    campaigns.record(f"demo, seed {seed}", found)
    return out, found


def test_a_preference_model_learns_from_a_models_own_answers(seed: int) -> None:
    """It is right on four held-out pairs of five, and more often than the trivial baselines on the same pairs."""
    out, found = demo(seed)
    report = found["preference_model"]
    accuracy = report["accuracy"]["accuracy"]
    # Neither right nor wrong all the time, or there would be little to prefer.
    assert all(0.2 < share < 0.9 for share in found["responses_correct"].values())
    assert report["comparisons"] >= 50
    assert accuracy >= 0.8
    assert accuracy > max(one["accuracy"] for one in report["baselines"].values())
    scored = (out / "scored_train.jsonl").read_text(encoding="utf-8").splitlines()
    responses = [one for line in scored for one in json.loads(line)["responses"]]
    assert sum(one["reward"] is not None for one in responses) > 0.95 * len(responses)


def test_more_is_right_under_the_best_level_and_least_under_the_worst(seed: int) -> None:
    _, found = demo(seed)
    correct = {name: one["correct"]["share"] for name, one in found["control"]["conditions"].items()}
    assert correct["level 5, guidance 2"] > correct["none"] > correct["level 1, guidance 2"]
    # Without guidance the best level is not surely above none (docs/pm.md); that it is far above the worst is.
    assert min(correct["level 5"], correct["none"]) > correct["level 1"] + 0.2
    assert set(ALTERNATIVES) <= set(correct)
    assert found["control"]["conclusion"]


def test_a_second_preference_model_sees_the_levels(seed: int) -> None:
    _, found = demo(seed)
    (guided,) = found["control"]["guided"]
    assert guided["spearman"]["reward"]["value"] >= 0.5
    assert found["control"]["spearman"]["reward"]["interval"][0] > 0.2


def test_levels_survive_eight_and_four_bits(seed: int) -> None:
    """The order of best and worst does; and every other model has variants that were compared with it."""
    _, found = demo(seed)
    for one in found["variants"]:
        assert one["correct"]["best"] > one["correct"]["1"], one["name"]
    assert set(found["other_variants"]) == {f"{name} {bits}" for name in ("base", "sft", "pm") for bits in ("int8", "int4")}
