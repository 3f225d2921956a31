"""Tools on the real held-out dialogues, of a model that was trained on the real ones for ten minutes of two cores, beside the majority.

Whatever the numbers are, they are reported: such a model is far too small to answer well. What has to hold is that the figures are complete
and agree with what stands in the data.

    python -m pytest -m slow tests/acceptance/test_plugins_are_measured_on_real_dialogues.py -s
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moss_train.data.dialogue import read_dialogues
from moss_train.evaluate.plugin_suite import find_questions
from tests import campaigns
from tests.forked import forked
from tests.launch import succeeded

STEPS = 400


def train(data: Path, folder: Path) -> Path:
    """Trains the model and returns its export."""
    overrides = [
        f"run.dir={folder / 'run'}",
        f"data.train={data / 'train.jsonl'}",
        f"data.valid={data / 'dev.jsonl'}",
        "data.seq_len=2048",
        "model.num_layers=4",
        "model.hidden_size=192",
        "model.num_heads=4",
        "train.precision=fp32",
        f"train.steps={STEPS}",
        "train.global_batch_size=4",
        "train.micro_batch_size=2",
        "train.eval_every=200",
        "train.eval_at_start=false",
        "train.save_every=200",
        "optim.lr=2e-3",
        "optim.beta2=0.98",
    ]
    succeeded(forked(2, "scripts/sft.py", "+config=tiny_sft", *overrides, timeout=5000))
    return folder / "run" / "export"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_small_model_beside_the_majority(real_data: Path, tmp_path: Path) -> None:
    data = real_data / "moss-003-sft-sample"
    export = train(data, tmp_path)
    out = tmp_path / "evaluation"
    ended = succeeded(
        forked(1, "scripts/evaluate.py", "suite=plugins", f"model={export}", f"data={data / 'dev.jsonl'}", f"out={out}", timeout=1500)
    )
    print(ended.stdout)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    questions, _ = find_questions(read_dialogues(str(data / "dev.jsonl"))[0])
    assert report["counts"]["turns"] + report["left_out"].get("turns_too_long", 0) == len(questions)
    assert report["counts"]["called_in_data"] > 80
    figures = {name: one["value"] for name, one in report["figures"].items()}
    for name in ("accuracy", "recall", "f1", "tool", "arguments"):
        low, high = report["figures"][f"plugins/{name}"]["interval"]
        assert 0 <= low <= figures[f"plugins/{name}"] <= high <= 1, name
        assert report["baseline"][f"plugins/{name}"]["value"] is not None
    assert figures["plugins/arguments"] <= figures["plugins/tool"]
    campaigns.record("plugins_on_real_dialogues", {"figures": figures, "counts": report["counts"], "baseline": report["baseline"]})
