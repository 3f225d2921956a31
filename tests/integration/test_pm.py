"""The preference model through the real engine: the same gradients in every layout, resuming, and what is exported."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from moss_train.artifacts import lineage_verify
from moss_train.data.comparison_render import line_of
from moss_train.data.comparisons import explicit_pairs, parse_comparison, response_to_json
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError
from moss_train.model.loading import load_model, load_pm, read_model_config
from tests.forked import forked
from tests.launch import losses, metrics, succeeded
from tests.small_runs import checkpoint, tensors_digest

COMMON = (
    "+config=tiny_pm",
    "data.holdout=0",
    "data.seq_len=128",
    "data.default_meta=none",
    "tokenizer.train_vocab_size=512",
    "model.num_layers=2",
    "model.hidden_size=64",
    "model.num_heads=4",
    "model.rotary_dim=8",
    "train.epochs=null",
    "train.global_batch_size=8",
    "train.precision=fp32",
    "train.eval_at_start=false",
    "train.save_every=0",
    "train.keep=0",
    "export.enabled=false",
)
LAYOUTS = {"1 rank x 8": (1, 8), "1 rank, 8 times 1": (1, 1), "2 ranks x 4": (2, 4), "2 ranks, 2 times 2": (2, 2)}
"""name -> ranks, comparisons per forward; always 8 comparisons an optimizer step, of 2 to 5 responses."""


def write_comparisons(path: Path, count: int, seed: int = 0, most: int = 5) -> Path:
    """Sums, some right and some wrong."""
    generator = random.Random(seed)
    lines = []
    for number in range(count):
        a, b = generator.randint(0, 9), generator.randint(0, 9)
        wrong = generator.sample([n for n in range(19) if n != a + b], generator.randint(1, most - 1))
        answers = [(a + b, 1), *((n, 2 + abs(n - a - b)) for n in wrong)]
        generator.shuffle(answers)
        responses = [{"moss": f" The sum is {answer}.", "rank": rank} for answer, rank in answers]
        context = {"turns": [{"human": f" What is {a} plus {b}?"}]}
        lines.append(json.dumps({"id": str(number), "context": context, "responses": responses}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparisons(tmp_path_factory.mktemp("comparisons") / "train.jsonl", 20)


def train(run_dir: Path, data: Path, layout: str, *overrides: str, steps: int = 1) -> dict[str, Any]:
    """Runs the real program; returns the gradients of its first step."""
    ranks, rows = LAYOUTS[layout]
    gradients = run_dir.with_suffix(".pt")
    arguments = [*COMMON, f"run.dir={run_dir}", f"data.train={data}", f"train.micro_batch_size={rows}", f"train.steps={steps}", *overrides]
    succeeded(forked(ranks, "tests/programs/capture_gradients.py", str(gradients), "stage=pm", *arguments))
    found: dict[str, Any] = torch.load(gradients)
    return found


def assert_close(found: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], what: str, share: float = 2e-5) -> None:
    """Equal but for the order of sums in float32."""
    assert found.keys() == reference.keys()
    scale = max(float(gradient.abs().max()) for gradient in reference.values())
    for name, gradient in reference.items():
        allowed = max(share * float(gradient.abs().max()), 1e-7 * scale)
        assert float((found[name] - gradient).abs().max()) <= allowed, f"{what}: {name}"


OBJECTIVE = ("objective.centring=0.05", "objective.lm_coefficient=0.3", "objective.label_smoothing=0.1")


def test_first_gradients_do_not_depend_on_the_layout(data: Path, tmp_path: Path) -> None:
    found = {name: train(tmp_path / str(number), data, name, *OBJECTIVE) for number, name in enumerate(LAYOUTS)}
    reference = found["1 rank x 8"]
    assert float(reference["score.weight"].abs().max()) > 1e-3
    assert float(reference["lm_head.weight"].abs().max()) > 1e-5
    for name, gradients in found.items():
        assert_close(gradients, reference, name)
    reported = [metrics(tmp_path / str(number))[0] for number in range(len(LAYOUTS))]
    for key in ("train/loss", "train/lm_loss", "train/centring", "train/accuracy", "train/grad_norm"):
        assert [event[key] for event in reported] == pytest.approx([reported[0][key]] * 4, rel=2e-5)
    assert [event["train/comparisons"] for event in reported] == [8.0] * 4


def test_k_responses_train_as_the_mean_over_their_pairs_does(tmp_path: Path) -> None:
    """Eight comparisons of K = 4 against their 48 explicit pairs, all in one step."""
    whole = write_comparisons(tmp_path / "k.jsonl", 40, most=4)
    lines = [json.loads(line) for line in whole.read_text().splitlines()]
    four = [line for line in lines if len(line["responses"]) == 4][:8]
    whole.write_text("".join(json.dumps(line) + "\n" for line in four))
    apart = []
    for line in four:
        comparison = parse_comparison(line, "k.jsonl:1")
        for number, pair in enumerate(explicit_pairs(comparison)):
            assert line_of(pair)["pairs"]
            ranks = (1, 1) if pair.pairs[0].tied else (1, 2)
            responses = [{**response_to_json(turn), "rank": rank} for turn, rank in zip(pair.responses, ranks)]
            apart.append({"id": f"{line['id']}-{number}", "context": line["context"], "responses": responses})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in apart))
    MossTokenizer.train([line["context"]["turns"][0]["human"] + one["moss"] for line in four for one in line["responses"]], 512).save(
        tmp_path / "tokenizer"
    )
    common = ("run.seed=3", f"tokenizer.path={tmp_path / 'tokenizer'}")
    together = train(tmp_path / "together", whole, "1 rank x 8", *common)
    sizes = (f"train.global_batch_size={len(apart)}", "train.micro_batch_size=6")
    each = train(tmp_path / "each", pairs, "1 rank x 8", *common, *sizes)
    assert len(apart) == 48
    # Each response goes through the model three times, and what it adds to the sums largely cancels: 5e-5 was measured.
    assert_close(each, together, "explicit pairs", 1e-4)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    keeps = ("train.keep=9", "train.save_every=2")
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for run_dir, more, code in ((straight, (), 0), (stopped, ("run.stop_after=3",), 75), (stopped, (), 0)):
        arguments = [*COMMON, f"data.train={data}", "train.micro_batch_size=2", "train.steps=6", f"run.dir={run_dir}", *keeps, *more]
        result = forked(2, "scripts/pm.py", *arguments)
        assert result.returncode == code, result.stdout[-2000:] + result.stderr[-2000:]
    assert losses(stopped) == losses(straight)
    assert tensors_digest(stopped, 6) == tensors_digest(straight, 6)
    assert json.loads((checkpoint(straight, 6) / "config.json").read_text())["moss_head"] == "pm"


def test_another_objective_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    arguments = [*COMMON, f"data.train={data}", "train.micro_batch_size=4", f"run.dir={tmp_path / 'run'}", "train.keep=2"]
    assert forked(1, "scripts/pm.py", *arguments, "train.steps=2").returncode == 0
    result = forked(1, "scripts/pm.py", *arguments, "train.steps=4", "objective.centring=0.1", "run.allow_changes=[train.steps]")
    assert result.returncode == 5
    assert "objective" in result.stdout + result.stderr


def test_the_export_holds_the_head_the_report_and_its_origin(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = [
        *COMMON,
        f"data.train={data}",
        "data.holdout=0.3",
        "train.micro_batch_size=2",
        "train.steps=3",
        f"run.dir={run_dir}",
        "export.enabled=true",
        "objective.lm_coefficient=0.1",
        "train.keep=1",
    ]
    succeeded(forked(2, "scripts/pm.py", *arguments))
    out = run_dir / "export"
    lineage_verify.require(out, "model", "", print)
    record = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
    assert (record["kind"], record["stage"], record["supervised_tokens"]) == ("pm", "pm", 24)
    assert {parent["role"] for parent in record["parents"]} == {"source", "data", "tokenizer"}
    report = json.loads((out / "pm_report.json").read_text(encoding="utf-8"))
    assert report["comparisons"] + 13 == 20
    config = read_model_config(out)
    assert config.moss_temperature == report["temperature"] == record["details"]["temperature"]
    assert (run_dir / "plots" / "reliability.png").stat().st_size > 1000
    weights = json.loads((out / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert "score.weight" in weights
    assert not any(name.startswith("lm_head") for name in weights)
    assert load_pm(out, torch.float32).score.weight.shape == (1, 64)
    with pytest.raises(CheckpointError, match="preference model"):
        load_model(out, torch.float32)
    last = [event for event in metrics(run_dir) if "eval/valid/accuracy" in event][-1]
    assert last["eval/valid/accuracy"] == pytest.approx(report["accuracy"]["accuracy"], abs=1e-6)
