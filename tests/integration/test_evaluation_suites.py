"""Suites on small exports, through the command line: what they write, what they refuse, and evaluations side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moss_train.artifacts import lineage
from moss_train.data.tokenizer import MossTokenizer
from moss_train.evaluate.compare_tool import main as compare_main
from tests.forked import forked
from tests.launch import REPOSITORY, succeeded
from tests.measured import TEXTS, export_random
from tests.preference_models import write_lines

SCRIPT = "scripts/evaluate.py"
DIALOGUES = REPOSITORY / "moss_train" / "data" / "bundled" / "dialogues_dev.jsonl"


class Made:
    """Models and files that all tests share."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.model = export_random(folder / "one" / "export")
        self.other = export_random(folder / "two" / "export", seed=1)
        # A tokenizer of its own, and room for a dialogue.
        self.talks = export_random(
            folder / "talks" / "export", 1200, tokenizer=MossTokenizer.train([DIALOGUES.read_text(encoding="utf-8")[:60_000]], 700)
        )
        self.texts = write_lines(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
        self.more = write_lines(folder / "more.jsonl", [{"text": text[::-1], "language": "backwards"} for text in TEXTS])

    def run(self, out: Path, *arguments: str, model: Path | None = None) -> tuple[dict[str, Any], str]:
        """The report of an evaluation, and what was printed."""
        ended = succeeded(forked(1, SCRIPT, f"model={model or self.model}", f"out={out}", *arguments))
        return json.loads((out / "report.json").read_text(encoding="utf-8")), ended.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def perplexities(made: Made) -> list[Path]:
    """Of two models, on the same two sources."""
    outs = [made.folder / "evaluations" / name for name in ("one", "two")]
    for out, model in zip(outs, (made.model, made.other), strict=True):
        made.run(out, "suite=perplexity", f"data={{first: {made.texts}, second: {made.more}}}", model=model)
    return outs


def items(out: Path) -> dict[str, Any]:
    return {one["item"]: one for one in map(json.loads, (out / "items.jsonl").read_text(encoding="utf-8").splitlines())}


def test_perplexity_adds_up(made: Made, perplexities: list[Path]) -> None:
    out = perplexities[0]
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    lines = items(out)
    assert len(lines) == 2 * len(TEXTS)
    nats, tokens, size = (sum(one[key] for one in lines.values()) for key in ("nats", "tokens", "bytes"))
    assert size == 2 * sum(len(text.encode()) for text in TEXTS)
    figures = {name: one["value"] for name, one in report["figures"].items()}
    assert figures["perplexity/loss"] == pytest.approx(nats / tokens)
    assert figures["perplexity/perplexity"] == pytest.approx(math.exp(nats / tokens))
    assert figures["perplexity/bits_per_byte"] == pytest.approx(nats / math.log(2) / size)
    assert {"perplexity/source/first/loss", "perplexity/language/backwards/loss", "perplexity/language/zh/loss"} <= set(figures)
    assert report["counts"]["language/backwards"]["documents"] == len(TEXTS)
    # Longer than the model: several windows.
    assert max(one["tokens"] for one in lines.values()) > 48


def test_perplexity_is_that_of_a_plain_loop(made: Made, perplexities: list[Path]) -> None:
    from moss_train.model.loading import load_model

    model, tokenizer = load_model(made.model, torch.float32).eval(), MossTokenizer.load(made.model)
    lines = items(perplexities[0])
    texts = {f"first:{number}": text for number, text in enumerate(TEXTS, 1)}
    texts |= {f"second:{number}": text[::-1] for number, text in enumerate(TEXTS, 1)}
    for item, text in texts.items():
        ids = [tokenizer.endoftext, *tokenizer.encode(text)]
        nats = 0.0
        for place in range(1, len(ids)):
            # The window that predicts a token ends at a multiple of 48, or with the document, and reads 48.
            begin = max(0, min(-(-place // 48) * 48, len(ids) - 1) - 48)
            with torch.inference_mode():
                logits = model(torch.tensor([ids[begin:place]])).logits[0, -1].double()
            nats -= float(torch.log_softmax(logits, -1)[ids[place]])
        assert lines[item]["nats"] == pytest.approx(nats, rel=1e-4)


def test_it_is_an_artefact_of_its_own(made: Made, perplexities: list[Path]) -> None:
    out = perplexities[0]
    assert sorted(path.name for path in out.iterdir()) == ["items.jsonl", "lineage.json", "perplexity.png", "report.json"]
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    record = lineage.load(out)
    assert record is not None
    assert [(one.role, one.id) for one in record.lineage.parents] == [("model", lineage.parent_of(made.model, "model").id)]
    assert [(one.name, one.records, one.role) for one in record.lineage.data] == [("first", 5, "evaluation"), ("second", 5, "evaluation")]
    assert record.lineage.metrics["perplexity/loss"] > 0


def test_a_smaller_stride_gives_more_context(made: Made, tmp_path: Path) -> None:
    report, _ = made.run(tmp_path / "out", "suite=perplexity", f"data={made.more}", "stride=8", "batch_tokens=64")
    assert report["settings"]["stride"] == 8
    whole, _ = made.run(tmp_path / "whole", "suite=perplexity", f"data={made.more}", "stride=1000")
    assert whole["settings"]["stride"] == 48
    assert report["figures"]["perplexity/loss"]["weight"] == whole["figures"]["perplexity/loss"]["weight"]
    assert report["figures"]["perplexity/loss"]["value"] != whole["figures"]["perplexity/loss"]["value"]


def test_models_are_compared_item_by_item(perplexities: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared.json"
    assert compare_main(["compare", *map(str, perplexities), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "1: one/export, stage pretrain, fp32" in shown
    assert "perplexity/bits_per_byte" in shown
    found = json.loads(out.read_text(encoding="utf-8"))
    first, second = (lineage.load(path) for path in perplexities)
    assert first is not None and second is not None  # noqa: PT018 (for the type checker)
    entry = found["figures"]["perplexity/loss"]["sides"][1]
    assert entry["difference"] == pytest.approx(second.lineage.metrics["perplexity/loss"] - first.lineage.metrics["perplexity/loss"])
    low, high = entry["difference_interval"]
    assert low < entry["difference"] < high
    assert compare_main(["compare", *map(str, perplexities), "--out", str(out)]) == 2


def test_figures_of_different_data_are_not_compared(
    made: Made, perplexities: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.run(tmp_path / "out", "suite=perplexity", f"data={made.texts}")
    assert compare_main(["compare", str(perplexities[0]), str(tmp_path / "out")]) == 3
    assert "was measured on other data than" in capsys.readouterr().err
    assert compare_main(["compare", str(perplexities[0]), str(made.model)]) == 3
    assert "is of suite training" in capsys.readouterr().err
    assert compare_main(["compare", str(perplexities[0])]) == 2
    assert compare_main(["compare", str(perplexities[0]), str(made.folder)]) == 4


def test_per_token_figures_need_one_tokenizer(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, model in (("one", made.model), ("talks", made.talks)):
        made.run(tmp_path / name, "suite=perplexity", f"data={made.texts}", model=model)
    assert compare_main(["compare", str(tmp_path / "one"), str(tmp_path / "talks"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "perplexity/bits_per_byte" in found["figures"]
    assert "perplexity/loss" not in found["figures"]
    assert found["notes"][0].startswith("the tokenizers differ")


def test_models_are_compared_by_what_was_measured_in_training(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_main(["compare", str(made.model), str(made.other)]) == 0
    shown = capsys.readouterr().out
    assert "suite training, on valid.jsonl" in shown
    assert "+1" in shown


def test_dialogues(made: Made, tmp_path: Path) -> None:
    report, shown = made.run(tmp_path / "out", "suite=dialogue", f"data={DIALOGUES}#12", "replies=6", "max_new_tokens=8", model=made.talks)
    figures = report["figures"]
    assert {"dialogue/loss", "dialogue/thoughts/loss", "dialogue/moss/loss", "dialogue/turn_1/loss", "dialogue/format/all"} <= set(figures)
    weights = {kind: figures[f"dialogue/{kind}/loss"]["weight"] for kind in ("thoughts", "commands", "moss")}
    # All that MOSS writes, and nothing else.
    assert figures["dialogue/loss"]["weight"] == sum(weights.values())
    turns = [json.loads(line) for line in (tmp_path / "out" / "turns.jsonl").read_text(encoding="utf-8").splitlines()]
    assert report["written"] == len(turns) == 6
    assert "Inner Thoughts" in shown


def test_plugins(made: Made, tmp_path: Path) -> None:
    report, shown = made.run(tmp_path / "out", "suite=plugins", f"data={DIALOGUES}#40", "max_new_tokens=8", model=made.talks)
    assert report["counts"]["turns"] > report["counts"]["called_in_data"] > 0
    assert report["majority"]["tool"] in ("Calculate", "Search", "Solve", "Text2Image")
    assert report["baseline"]["plugins/f1"]["model_minus_it"]["items"] > 0
    assert "baseline: always" in shown
    turns = [json.loads(line) for line in (tmp_path / "out" / "turns.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(turns) == report["counts"]["turns"]
    assert {"gold_commands", "segments", "results", "well_formed", "same"} <= set(turns[0])


def test_hhh(made: Made, tmp_path: Path) -> None:
    report, shown = made.run(tmp_path / "out", "suite=hhh", "max_new_tokens=4", model=made.talks)
    assert report["baselines"]["always"]["hhh/balanced"] == report["baselines"]["never"]["hhh/balanced"] == pytest.approx(0.5)
    assert report["figures"]["hhh/harmful/refused"]["items"] == 20
    assert len((tmp_path / "out" / "replies.jsonl").read_text(encoding="utf-8").splitlines()) == 56
    assert "zh benign refused" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["suite=perplexity", "data=none.jsonl"], 3, "data=none.jsonl: expected texts, or a corpus"),
        (["suite=perplexity"], 2, "data must be given: data=PATH"),
        (["suite=perplexity", "data=x", "stride=0"], 2, "stride is 0; expected 1 or more"),
        (["suite=perplexity", "data=x", "prompts=q"], 2, "prompts has no effect on task=perplexity"),
        (["suite=harness", "task_path=none"], 2, "task_path=none"),
    ],
)
def test_what_is_wrong_is_told(made: Made, tmp_path: Path, arguments: list[str], code: int, told: str) -> None:
    if "suite=harness" in arguments:
        pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")
    ended = forked(1, SCRIPT, f"model={made.model}", f"out={tmp_path / 'out'}", *arguments)
    assert ended.returncode == code
    assert told in ended.stderr
    assert not (tmp_path / "out").exists()


def test_ranks_are_refused(made: Made, tmp_path: Path) -> None:
    ended = forked(2, SCRIPT, "suite=perplexity", f"model={made.model}", f"data={made.texts}", f"out={tmp_path / 'out'}")
    assert ended.returncode == 2
    assert "with 2 ranks: it is measured by one process" in ended.stderr


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from moss_train.errors import UsageError
    from moss_train.evaluate import harness

    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'moss-train\[eval\]'"):
        harness.require_harness()
