"""A small model, fine-tuned on the bundled dialogues, calls the calculator for questions that it has not seen and says what it found.

Beside it stands the same model without its tools, whose results are then None: what it knows by heart.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked
from tests.launch import deepspeed, succeeded

STEPS = 1200


def questions(path: Path) -> list[str]:
    """First turns of the held-out dialogues that call the calculator, without what follows; their answers."""
    answers = []
    with path.open("w", encoding="utf-8") as out:
        for line in (resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            first = record["chat"]["turn_1"]
            if "Calculate(" in first.get("Commands", ""):
                out.write(json.dumps({**record, "num_turns": 1, "chat": {"turn_1": {"Human": first["Human"]}}}, ensure_ascii=False) + "\n")
                answers.append(record["check"][0]["answer"])
    return answers


def replies(model: Path, asked: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    succeeded(
        forked(1, "scripts/generate.py", f"model={model}", f"dialogue={asked}", "thoughts=true", "temperature=0", f"out={out}", *more)
    )
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def says(reply: str, answer: str) -> bool:
    """Whether a number stands in a reply, and not as a part of another one."""
    return re.search(rf"(?<![\d.]){re.escape(answer)}(?![\d]|\.\d)", reply) is not None


@pytest.mark.slow
def test_it_calls_the_calculator_and_uses_its_result(tmp_path: Path) -> None:
    """Takes about ten minutes on two cores."""
    run = tmp_path / "run"
    overrides = ("data.seq_len=1024", f"train.steps={STEPS}", "train.eval_every=0", "train.eval_at_start=false", "train.save_every=0")
    succeeded(deepspeed(2, "scripts/sft.py", "+config=tiny_sft", f"run.dir={run}", *overrides, timeout=1800))
    asked = tmp_path / "questions.jsonl"
    answers = questions(asked)
    assert len(answers) >= 20
    with_tools = replies(run / "export", asked, tmp_path / "tools.jsonl")
    without = replies(run / "export", asked, tmp_path / "none.jsonl", "tools.run=false")
    called = [" => '" in record["results"] and "No result" not in record["results"] for record in with_tools]
    uses = [says(record["reply"], found[1]) for record in with_tools if (found := re.search(r" => '(.*)'", record["results"])) is not None]
    right = [says(record["reply"], answer) for record, answer in zip(with_tools, answers)]
    by_heart = [says(record["reply"], answer) for record, answer in zip(without, answers)]
    print(f"{len(answers)} questions: called {sum(called)}, says the result {sum(uses)}, right {sum(right)}, without tools {sum(by_heart)}")
    assert sum(called) >= 0.8 * len(answers)
    assert sum(uses) >= 0.6 * len(answers)
    assert sum(right) > 2 * sum(by_heart)
