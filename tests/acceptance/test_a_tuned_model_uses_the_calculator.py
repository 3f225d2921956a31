"""A small model, fine-tuned on the bundled dialogues, calls the calculator for questions that it has not seen and says what it found.

The 200 bundled dialogues with a calculator are few enough to be learned by heart, and a result that is known by heart need not be read: so
20,000 more of the same generator are added, none of which asks what the held-out ones ask. Numbers are cut into digits, by a tokenizer that
was trained on the bundled dialogues without their numbers: a number is then not a token that was hardly ever seen.

Beside it stands the same model without its tools, whose results are then None: what it knows by heart.

    python -m tests.acceptance.test_a_tuned_model_uses_the_calculator --out DIR     # trains it there and keeps it
"""

from __future__ import annotations

import argparse
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.bundled.make_dialogues import more_calculations
from moss_train.data.tokenizer import MossTokenizer
from tests import campaigns
from tests.forked import forked
from tests.launch import succeeded

STEPS = 3000
CALCULATIONS = 20_000


def train(folder: Path) -> Path:
    """Trains the model (under an hour on a core) and returns its export."""
    bundled = Path(str(resources.files("moss_train.data.bundled")))
    records = [json.loads(line) for line in (bundled / "dialogues_train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = []
    for record in records:
        fields = [field for turn in record["chat"].values() for field in turn.values()]
        texts += [record["meta_instruction"], *(re.sub(r"\d+", " ", re.sub(r"<[^>]*>(: )?", "", field)) for field in fields)]
    folder.mkdir(parents=True, exist_ok=True)
    MossTokenizer.train(texts, 2048).save(folder / "tokenizer")
    more = folder / "calculations.jsonl"
    more.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in more_calculations(CALCULATIONS, 7)), encoding="utf-8"
    )
    overrides = [
        f"run.dir={folder / 'run'}",
        f"data.train=[{bundled}/dialogues_train.jsonl,{more}]",
        f"data.valid={bundled}/dialogues_dev.jsonl",
        f"tokenizer.path={folder / 'tokenizer'}",
        "model.num_layers=4",
        "data.seq_len=1024",
        "train.precision=fp32",
        f"train.steps={STEPS}",
        "train.global_batch_size=8",
        "train.micro_batch_size=4",
        "optim.lr=2e-3",
        "optim.beta2=0.98",
        "train.eval_every=500",
        "train.eval_at_start=false",
        "train.save_every=500",
    ]
    succeeded(forked(1, "scripts/sft.py", "+config=tiny_sft", *overrides, timeout=7000))
    return folder / "run" / "export"


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
@pytest.mark.timeout(7200)
def test_it_calls_the_calculator_and_uses_its_result(tmp_path: Path) -> None:
    export = train(tmp_path)
    asked = tmp_path / "questions.jsonl"
    answers = questions(asked)
    assert len(answers) >= 20
    with_tools = replies(export, asked, tmp_path / "tools.jsonl")
    without = replies(export, asked, tmp_path / "none.jsonl", "tools.run=false")
    found = [re.search(r" => '(.*)'", record["results"]) for record in with_tools]
    # A quotient comes as 25.0 and is said as 25.
    uses = [says(record["reply"], result[1].removesuffix(".0")) for record, result in zip(with_tools, found) if result is not None]
    right = [says(record["reply"], answer) for record, answer in zip(with_tools, answers)]
    by_heart = [says(record["reply"], answer) for record, answer in zip(without, answers)]
    figures = {"questions": len(answers), "called": len(uses), "uses": sum(uses), "right": sum(right), "without_tools": sum(by_heart)}
    campaigns.record("calculator", figures)
    assert len(uses) >= 0.9 * len(answers)
    assert sum(uses) >= 0.9 * len(answers)
    assert sum(right) >= 0.9 * len(answers)
    assert sum(by_heart) <= 0.2 * len(answers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    print(train(parser.parse_args().out))
