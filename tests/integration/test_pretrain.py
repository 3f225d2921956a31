"""Pretraining through the real engine: losses by language, resuming across phases and epochs, changes of the mixture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.forked import forked
from tests.launch import losses, metrics
from tests.small_corpora import MIXED, arguments, write_corpus
from tests.small_runs import checkpoint, status, tensors_digest

PHASES = "data.phases=[{tokens: 2500, weights: {zh: 1, en: 1}}, {tokens: null, weights: {zh: 1, code: 2}}]"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def pretrain(ranks: int, run_dir: Path, corpus: Path, *overrides: str, code: int = 0) -> str:
    """Runs it; what it printed."""
    result = forked(ranks, "scripts/pretrain.py", *arguments(run_dir, corpus, *overrides))
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    return str(result.stdout + result.stderr)


def trained_on(run_dir: Path) -> list[tuple[float, ...]]:
    """Tokens and bits per byte of each step, by language: a fingerprint of which windows it took."""
    names = ("zh", "en", "code")
    return [
        (event["tokens_seen"], *(name in str([key for key in event if key.startswith("train/loss/")]) for name in names))
        for event in metrics(run_dir)
        if "train/loss" in event
    ]


def test_losses_and_bits_per_byte_are_told_by_language(corpus: Path, tmp_path: Path) -> None:
    pretrain(2, tmp_path / "run", corpus, MIXED, "train.steps=4", "train.eval_every=2", "export.enabled=true", "train.z_loss=1e-4")
    events = metrics(tmp_path / "run")
    for event in (event for event in events if "checkpoint/step" not in event):
        kind = "train" if "train/loss" in event else "eval/valid"
        for language in ("zh", "en", "code"):
            nats, bits = event[f"{kind}/loss/{language}"], event[f"{kind}/bits_per_byte/{language}"]
            # Between one and four bytes a token.
            assert 0.1 * nats / math.log(2) < bits < nats / math.log(2)
        assert min(event[f"{kind}/loss/{one}"] for one in ("zh", "en", "code")) <= event[f"{kind}/loss"]
        assert event[f"{kind}/z_loss"] > 0
    record = json.loads((tmp_path / "run" / "export" / "lineage.json").read_text(encoding="utf-8"))
    assert record["stage"] == "pretrain"
    assert record["tokens_seen"] == 4 * 12 * 64
    assert {source["name"] for source in record["data"]} == {"zh", "en", "code"}
    assert record["details"]["mixtures"][0]["phases"][0]["shares"]["zh"] == pytest.approx(0.5, abs=1e-3)
    assert [parent["role"] for parent in record["parents"]] == ["source", "data"]


def test_a_run_goes_on_with_the_next_window_on_any_ranks_through_phases_and_epochs(corpus: Path, tmp_path: Path) -> None:
    whole = [PHASES, "data.max_epochs=null", "train.precision=fp32"]
    pretrain(1, tmp_path / "whole", corpus, *whole)
    log = (tmp_path / "whole" / "train.log").read_text(encoding="utf-8")
    assert "passes" in log
    for ranks, stop, then in ((2, 3, 3), (3, 5, 1)):
        run_dir = tmp_path / f"{ranks}"
        pretrain(ranks, run_dir, corpus, *whole, f"run.stop_after={stop}", code=75)
        pretrain(then, run_dir, corpus, *whole, f"train.micro_batch_size={2 if then != 3 else 1}")
        assert trained_on(run_dir) == trained_on(tmp_path / "whole")
        assert losses(run_dir) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    first, last = trained_on(tmp_path / "whole")[0], trained_on(tmp_path / "whole")[-1]
    assert first[1:] == (True, True, False)
    assert last[1:] == (True, False, True)


def test_resuming_on_the_same_ranks_is_bit_for_bit(corpus: Path, tmp_path: Path) -> None:
    pretrain(2, tmp_path / "whole", corpus, MIXED, "train.steps=6")
    pretrain(2, tmp_path / "cut", corpus, MIXED, "train.steps=6", "run.stop_after=3", code=75)
    pretrain(2, tmp_path / "cut", corpus, MIXED, "train.steps=6")
    assert tensors_digest(tmp_path / "cut", 6) == tensors_digest(tmp_path / "whole", 6)


def test_a_mixture_is_changed_in_the_middle_and_the_change_is_on_record(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pretrain(2, run_dir, corpus, MIXED, "train.steps=4", "train.save_every=2")
    more = write_corpus(tmp_path / "more", {"zh": 20}, name="more")
    # A new source beside the old ones, which keep their names; the wrong tokenizer would have been refused.
    changed = [f"data.train=[{corpus},{more}]", "data.weights={corpus/zh: 0.2, more/zh: 0.5, en: 0.2, code: 0.1}", "train.steps=8"]
    refused = pretrain(1, run_dir, corpus, *changed, code=5)
    assert "run.allow_changes=[data,train.steps]" in refused
    changed[1] = "data.weights={more/zh: 0.5, corpus/zh: 0.2, en: 0.2, code: 0.1}"
    told = pretrain(1, run_dir, corpus, *changed, "run.allow_changes=[data,train.steps]", "export.enabled=true")
    assert "every source goes on where it was" in told
    record = json.loads((run_dir / "export" / "lineage.json").read_text(encoding="utf-8"))
    history = record["details"]["mixtures"]
    assert [entry["from_sample"] for entry in history] == [0, 48]
    before, now = (json.loads((checkpoint(run_dir, step) / "state.json").read_text())["position"] for step in (4, 8))
    for key, taken in before["taken"].items():
        assert now["taken"][key] >= taken
    assert sum(now["taken"].values()) == 96
    assert len(now["taken"]) == 4


def test_a_source_that_changed_under_its_name_is_not_gone_on_with(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    pretrain(1, run_dir, corpus, MIXED, "train.steps=2")
    told = pretrain(1, run_dir, corpus, MIXED, "train.steps=4", "data.seq_len=32", "run.allow_changes=[data,train.steps]", code=5)
    assert "the windows of en, zh, code are not those" in told or "would be trained on again" in told
    assert status(run_dir)["exit_code"] == 5
    told = pretrain(1, run_dir, corpus, MIXED, "train.steps=4", "run.seed=1", "run.allow_changes=[run.seed,train.steps]", code=5)
    assert "run.seed was 42, is now 1" in told


def test_a_phase_whose_losses_are_higher_is_no_spike(corpus: Path, tmp_path: Path) -> None:
    phases = "data.phases=[{tokens: 35840, weights: {en: 1}}, {tokens: 3584, weights: {zh: 1}}]"
    small = [
        "train.steps=null",
        "train.global_batch_size=4",
        "train.micro_batch_size=4",
        "train.save_every=0",
        "optim.warmup=0",
        "optim.schedule=constant",
    ]
    pretrain(1, tmp_path / "run", corpus, phases, *small, "data.max_epochs=null")
    events = [event for event in metrics(tmp_path / "run") if "train/loss" in event]
    assert len(events) == 154
    assert min(event["train/loss"] for event in events[140:144]) > max(event["train/loss"] for event in events[100:140])
    assert not any("train/skipped" in event for event in events)


def test_a_run_of_an_epoch_that_is_made_longer_leaves_no_window_out(corpus: Path, tmp_path: Path) -> None:
    # An epoch ends in the middle of a step.
    whole = ["train.steps=null", "data.holdout=0", "data.weights={en: 1}", "train.save_every=0"]
    pretrain(1, tmp_path / "two", corpus, *whole, "train.epochs=2")
    pretrain(1, tmp_path / "run", corpus, *whole, "train.epochs=1")
    pretrain(1, tmp_path / "run", corpus, *whole, "train.epochs=2", "run.allow_changes=[train.steps]")
    longer, straight = metrics(tmp_path / "run")[-1], metrics(tmp_path / "two")[-1]
    assert longer["tokens_seen"] == straight["tokens_seen"]
    states = [json.loads(path.read_text())["position"]["taken"] for path in sorted(tmp_path.glob("*/checkpoints/*/state.json"))]
    assert states[-1] == states[-2] == {key: 2 * taken for key, taken in states[0].items()}


def test_a_step_in_which_nothing_counts_changes_nothing(corpus: Path, tmp_path: Path) -> None:
    phases = "data.phases=[{tokens: 1536, weights: {en: 1}}, {tokens: 1536, weights: {zh: 1}}]"
    small = ["data.loss_weights={en: 0}", "train.steps=null", "optim.weight_decay=0", "train.save_every=1", "data.max_epochs=null"]
    pretrain(2, tmp_path / "run", corpus, phases, *small)
    digests = [tensors_digest(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    assert digests[0] == digests[1] != digests[2] != digests[3]
    assert [event["train/trained_tokens"] > 0 for event in metrics(tmp_path / "run") if "train/loss" in event] == [False, False, True, True]


def test_passes_are_over_what_is_not_held_out(corpus: Path, tmp_path: Path) -> None:
    weights = ["data.weigh_by=epochs", "data.weights={zh: 1, en: 1, code: 2}", "data.holdout=0.3"]
    told = pretrain(1, tmp_path / "run", corpus, *weights, "train.steps=null", "train.epochs=1", "run.stop_after=1", code=75)
    passes = {line.split()[0]: float(line.split()[-2]) for line in told.splitlines() if line.endswith(" passes")}
    assert passes == pytest.approx({"zh": 1, "en": 1, "code": 2}, abs=0.1)


def test_sources_of_several_texts_have_the_names_of_their_files(corpus: Path, tmp_path: Path) -> None:
    texts = [corpus.parent / f"corpus_{language}.jsonl" for language in ("zh", "en")]
    given = [f"data.train=[{texts[0]},{texts[1]}]", "data.weights={corpus_zh.jsonl/text: 3, corpus_en.jsonl/text: 1}"]
    told = pretrain(1, tmp_path / "run", corpus, *given, "train.steps=1")
    assert "corpus_zh.jsonl/text (und)" in told
    assert "train/loss/und/corpus_en.jsonl/text" in metrics(tmp_path / "run")[0]


def test_validation_data_that_are_trained_on_are_told_of(corpus: Path, tmp_path: Path) -> None:
    told = pretrain(1, tmp_path / "run", corpus, "data.weights={zh: 1, en: 1}", f"data.valid={corpus}", "train.steps=1")
    assert [name for name in ("zh", "en", "code") if f"WARNING: {name} of data.valid is trained on too" in told] == ["zh", "en"]
