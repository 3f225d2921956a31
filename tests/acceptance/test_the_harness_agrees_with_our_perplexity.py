"""lm-evaluation-harness on a model and its variants: local tasks, no network, and the perplexity that `suite=perplexity` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import trained_models
from tests.forked import forked
from tests.launch import succeeded
from tests.measured import TEXTS, export_random
from tests.preference_models import write_lines

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")

BITS = {"int8": 8, "int4": 4}
QUESTIONS = [
    {"question": "The sum of 4 and 11 is", "choices": ["15", "14", "16"], "gold": 0},
    {"question": "花的英文是", "choices": ["river", "flower", "moon"], "gold": 1},
    {"question": "The capital of Egypt is", "choices": ["Paris", "Rome", "Cairo"], "gold": 2},
    {"question": "def add(first, second): return", "choices": ["first + second", "None", "x"], "gold": 0},
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}]
"""
PERPLEXITY = """
task: local_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
"""
GENERATE = """
task: local_generate
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents are longer than its 64 positions; wide enough to be quantised in groups."""
    return export_random(tmp_path_factory.mktemp("model") / "export", 64, width=128)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tasks and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    # Both ways round: the second way is not what the tokenizer has learned, so it takes several windows.
    write_lines(folder / "texts.jsonl", [{"text": text} for text in (*TEXTS, *(text[::-1] for text in TEXTS), "".join(TEXTS)[::-1])])
    write_lines(folder / "questions.jsonl", QUESTIONS)
    for name, yaml, data in (("choice", CHOICE, "questions"), ("text", PERPLEXITY, "texts"), ("generate", GENERATE, "questions")):
        (folder / f"{name}.yaml").write_text(yaml.format(path=folder / f"{data}.jsonl"), encoding="utf-8")
    return folder


def variant_of(export: Path, name: str, out: Path, texts: Path) -> Path:
    """The model itself, or a quantised one; what rounding does to random weights is of no interest here."""
    if name == "fp32":
        return export
    trained_models.need("gptqmodel", "optimum")
    data = [f"data={trained_models.BUNDLED / 'dialogues_train.jsonl'}", f"heldout={texts}", "max_kl=100"]
    succeeded(forked(1, "scripts/quantize.py", f"model={export}", f"out={out}", f"bits={BITS[name]}", *data, timeout=400))
    return out


def evaluate(out: Path, model: Path, *arguments: str) -> dict[str, Any]:
    succeeded(forked(1, "scripts/evaluate.py", f"model={model}", f"out={out}", *arguments, timeout=300))
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


@pytest.mark.parametrize("name", ["fp32", "int8", "int4"])
def test_the_harness_agrees(export: Path, tasks: Path, tmp_path: Path, name: str) -> None:
    model = variant_of(export, name, tmp_path / "variant", tasks / "texts.jsonl")
    harness = evaluate(tmp_path / "harness", model, "suite=harness", f"task_path={tasks}", "tasks=[local_choice,local_text,local_generate]")
    ours = evaluate(tmp_path / "perplexity", model, "suite=perplexity", f"data={tasks / 'texts.jsonl'}")
    theirs = {name: one["value"] for name, one in harness["figures"].items()}
    bits = ours["figures"]["perplexity/bits_per_byte"]["value"]
    assert max(one["tokens"] for one in map(json.loads, (tmp_path / "perplexity" / "items.jsonl").read_text().splitlines())) > 2 * 64
    assert theirs["harness/local_text/bits_per_byte"] == pytest.approx(bits, abs=1e-3)
    assert theirs["harness/local_text/byte_perplexity"] == pytest.approx(2**bits, rel=1e-3)
    # What is made of its samples here is what the harness makes of them itself.
    assert harness["results"]["local_text"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-3)
    assert harness["results"]["local_choice"]["acc,none"] == theirs["harness/local_choice/acc"]
    assert harness["chance"]["harness/local_choice/acc"] == pytest.approx(1 / 3)
    assert harness["figures"]["harness/local_choice/acc"]["items"] == len(QUESTIONS)
    assert theirs["harness/local_generate/exact_match"] == 0
    assert "hellaswag" in harness["not_run"]


def test_the_stock_model_under_the_harness_says_the_same(export: Path, tasks: Path, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    harness = evaluate(tmp_path / "harness", export, "suite=harness", f"task_path={tasks}", "tasks=[local_choice,local_text]")
    stock = HFLM(pretrained=str(export), dtype="float32", max_length=64, device="cpu", batch_size=1)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(model=stock, tasks=["local_choice", "local_text"], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    theirs = found["results"]["local_text"]["bits_per_byte,none"]
    assert harness["figures"]["harness/local_text/bits_per_byte"]["value"] == pytest.approx(theirs, abs=1e-3)
    assert harness["figures"]["harness/local_choice/acc"]["value"] == found["results"]["local_choice"]["acc,none"]


def test_tasks_on_a_hub_are_refused(export: Path, tmp_path: Path) -> None:
    ended = forked(
        1, "scripts/evaluate.py", f"model={export}", f"out={tmp_path / 'out'}", "suite=harness", "tasks=[no_such_task]", timeout=300
    )
    assert ended.returncode == 2
    assert "there is no such task" in ended.stderr
    ended = forked(
        1, "scripts/evaluate.py", f"model={export}", f"out={tmp_path / 'out'}", "suite=harness", "tasks=[hellaswag]", timeout=300
    )
    assert ended.returncode == 3
    assert "nothing is fetched" in ended.stderr
