"""Scored files are the same, byte for byte, from any ranks and however often they were killed; and what evaluation makes of them."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.artifacts import lineage
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import init_model
from moss_train.pm.score import load_scorer, score_turns
from moss_train.pm.score_lines import read_line
from tests.forked import Ranks, forked
from tests.launch import deepspeed, succeeded
from tests.partial_lines import lines_there
from tests.preference_models import messages, read_lines, response_lines, save_pm, write_lines

SCRIPT = "scripts/score.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pm(tmp_path_factory.mktemp("pm"), temperature=0.5)


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = response_lines(60)
    # One without an answer, one that does not fit, and one whose context is too long.
    records[3]["responses"][0]["moss"] = ""
    records[5]["responses"][1]["moss"] = " word" * 200
    records[7]["context"]["turns"][0]["moss"] = " word" * 200
    return write_lines(tmp_path_factory.mktemp("responses") / "responses.jsonl", records)


def arguments(model: Path, responses: Path, out: Path, *more: str) -> list[str]:
    return [f"model={model}", f"responses={responses}", f"out={out}", "batch_tokens=100", *more]


@pytest.fixture(scope="module")
def alone(model: Path, responses: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "out.jsonl"
    succeeded(forked(1, SCRIPT, *arguments(model, responses, out)))
    return out


def test_what_is_in_the_file(model: Path, responses: Path, alone: Path) -> None:
    given, found = read_lines(responses), read_lines(alone)
    assert [line.get("score_notes") for line in found[3:8]] == [{"no_reply": 1}, None, {"too_long": 1}, None, {"context_shortened": 2}]
    rewards = [response.pop("reward") for line in found for response in line["responses"]]
    assert sum(reward is None for reward in rewards) == 2
    assert len(set(rewards)) > 60
    assert all(float(torch.tensor(reward)) == reward for reward in rewards if reward is not None)
    assert [{key: value for key, value in line.items() if key != "score_notes"} for line in found] == given
    record = lineage.load(alone)
    assert record is not None
    assert (record.lineage.kind, record.lineage.stage) == ("data", "score")
    assert [(parent.role, parent.id) for parent in record.lineage.parents] == [("tagger", lineage.foreign_id(model))]
    assert record.lineage.details["counts"] == {"scored": 118, "no_reply": 1, "too_long": 1, "context_shortened": 2}
    assert sorted(path.name for path in alone.parent.iterdir()) == ["out.jsonl", "out.jsonl.lineage.json"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_do_not_change_a_byte(model: Path, responses: Path, alone: Path, tmp_path: Path, ranks: int) -> None:
    succeeded(forked(ranks, SCRIPT, *arguments(model, responses, tmp_path / "out.jsonl")))
    assert (tmp_path / "out.jsonl").read_bytes() == alone.read_bytes()


def test_a_launcher(model: Path, responses: Path, alone: Path, tmp_path: Path) -> None:
    succeeded(deepspeed(2, SCRIPT, *arguments(model, responses, tmp_path / "out.jsonl")))
    assert (tmp_path / "out.jsonl").read_bytes() == alone.read_bytes()


def test_killed_at_any_time_and_started_again(model: Path, responses: Path, alone: Path, tmp_path: Path) -> None:
    """With one rank, two and three by turns; what was cut off in the middle of a piece is made anew."""
    random_ = random.Random(5)
    out = tmp_path / "out.jsonl"
    kept, kills = 0, 0
    for start in range(8):
        ranks = Ranks(1 + start % 3, SCRIPT, *arguments(model, responses, out))
        wanted, until = kept + random_.choice([0, 1, 4, 8]), time.monotonic() + 60
        while lines_there(out) < wanted and not out.exists() and time.monotonic() < until:
            time.sleep(0.0005)
        ranks.kill(signal.SIGKILL)
        if set(ranks.wait()) == {0}:
            break
        kills += 1
        assert lines_there(out) >= kept or out.exists()
        parts = sorted(tmp_path.glob("out.jsonl.partial/part-*"))
        if parts and start % 2:
            whole = parts[0].read_bytes()
            parts[0].write_bytes(whole[: -random_.randrange(1, min(900, len(whole)))])
        kept = lines_there(out)
    assert kills > 2
    if not out.exists():
        ended = succeeded(forked(1, SCRIPT, *arguments(model, responses, out)))
        assert not kept or " of 60 lines are scored already" in ended.stderr
    assert out.read_bytes() == alone.read_bytes()
    assert lineage.load(out) is not None


def test_dialogues_in_any_layout(model: Path, tmp_path: Path) -> None:
    records = [messages(1 + number % 4, number) for number in range(11)]
    records[2]["messages"].pop()
    records.append({"instruction": "a", "output": "b"})
    path = write_lines(tmp_path / "dialogues.jsonl", records)
    for ranks in (1, 2):
        succeeded(forked(ranks, SCRIPT, f"model={model}", f"dialogues={path}", f"out={tmp_path}/{ranks}.jsonl", "batch_tokens=100"))
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    found = read_lines(tmp_path / "1.jsonl")
    assert [line["dialogue"] for line in found] == records
    assert [line["origin"] for line in found] == [f"{path}:{number}" for number in range(1, 13)]
    assert found[2]["rewards"][-1] is None
    assert found[2]["score_notes"]["no_reply"] == 1
    scorer = load_scorer(model)
    expected = score_turns(*scorer, [read_line("dialogues", record, "x", None).dialogues[0] for record in records], batch_tokens=9999)
    for line, turns in zip(found, expected, strict=True):
        assert [reward is None for reward in line["rewards"]] == [one.reward is None for one in turns]
        found_, expected_ = (
            [reward for reward in rewards if reward is not None] for rewards in (line["rewards"], [t.reward for t in turns])
        )
        assert found_ == pytest.approx(expected_, rel=1e-5)


def test_what_is_wrong_is_told(model: Path, responses: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    lm = tmp_path / "lm"
    tokenizer = MossTokenizer.load(model)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=64, n_ctx=64, n_embd=16, n_layer=1, n_head=4, rotary_dim=4, tie_word_embeddings=False
    )
    init_model(config, 0, torch.float32).save_pretrained(lm)
    tokenizer.save(lm)
    for count in (1, 2):
        refused = forked(count, SCRIPT, *arguments(lm, responses, out))
        assert refused.returncode == 4
        assert "is a language model: it has no reward head" in refused.stderr
    headless = tmp_path / "headless"
    shutil.copytree(lm, headless)
    raw = json.loads((lm / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**raw, "moss_head": "pm"}))
    refused = forked(1, SCRIPT, *arguments(headless, responses, out))
    assert refused.returncode == 4
    assert "score.weight is missing; expected [1, 16]" in refused.stderr
    bad = write_lines(tmp_path / "bad.jsonl", [*response_lines(2), {"context": 3}])
    refused = forked(2, SCRIPT, *arguments(model, bad, out))
    assert refused.returncode == 3
    assert "bad.jsonl:3" in refused.stderr
    assert "set on_bad=skip" in refused.stderr
    succeeded(forked(1, SCRIPT, *arguments(model, bad, tmp_path / "skipped.jsonl", "on_bad=skip", "max_bad_share=0.5")))
    assert len(read_lines(tmp_path / "skipped.jsonl")) == 2
    assert forked(1, SCRIPT, *arguments(model, bad, tmp_path / "skipped.jsonl")).returncode == 2
    refused = forked(1, SCRIPT, *arguments(model, responses, out, f"dialogues={bad}", "batch_tokens=0"))
    assert refused.returncode == 2
    assert "exactly one of responses=FILE, comparisons=FILE, dialogues=FILE must be given; found responses and dialogues" in refused.stderr
    assert "batch_tokens is 0" in refused.stderr


def test_the_suite_of_a_preference_model(model: Path, tmp_path: Path) -> None:
    records = [line for line in response_lines(60) if len(line["responses"]) > 1]
    for number, line in enumerate(records):
        for rank, response in enumerate(line["responses"]):
            response["rank"] = 1 + (rank + number) % len(line["responses"])
    data = write_lines(tmp_path / "comparisons.jsonl", records)
    out = tmp_path / "evaluation"
    line = [f"model={model}", f"data=[{data},{data}#5]", f"train={data}#9", f"out={out}"]
    ended = succeeded(forked(1, "scripts/evaluate.py", "suite=pm", *line))
    assert f"{len(records) + 5} comparisons" in ended.stdout
    assert "bag of words, fitted on 9" in ended.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["calibration"]["given"]["temperature"] == 0.5
    assert report["baselines"]["bag_of_words"]["trained_on"] == 9
    assert (out / "reliability.png").read_bytes().startswith(b"\x89PNG")
    judged = read_lines(out / "rewards.jsonl")
    assert [one["origin"] for one in judged[:2]] == [f"{data}:1", f"{data}:2"]
    succeeded(forked(1, SCRIPT, f"model={model}", f"comparisons={data}", f"out={tmp_path}/scored.jsonl"))
    scored = read_lines(tmp_path / "scored.jsonl")
    for one, line_ in zip(judged, scored):
        assert one["rewards"] == pytest.approx([response["reward"] for response in line_["responses"]], rel=1e-5)
    record = lineage.load(out)
    assert record is not None
    assert (record.lineage.kind, record.lineage.parents[0].role) == ("evaluation", "model")
    assert record.lineage.parents[0].id == lineage.foreign_id(model)
    assert record.lineage.metrics["pm/accuracy"] == report["accuracy"]["accuracy"]
    assert [source.role for source in record.lineage.data] == ["evaluation", "evaluation", "baseline"]
    assert forked(1, "scripts/evaluate.py", "task=pm", *line).returncode == 2
