"""A file of responses is the same, byte for byte, from any ranks, in any batches, and however often it was killed."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.artifacts import lineage
from moss_train.data.comparisons import parse_responses
from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference.speaker import Speaker
from moss_train.model.codegen import init_model
from moss_train.pm.sample import read_prompts, sample
from moss_train.pm.sample_config import SampleConfig
from tests.forked import Ranks, forked
from tests.launch import deepspeed, succeeded
from tests.partial_lines import lines_there

TEXTS = ["What is 3 + 4?", "你好，请介绍一下你自己。", "Write a poem about the sea, in four lines.", "Solve x + 2 = 5", "再见"]
SAMPLES = 3
PLAIN = ("system=''",)
TOOLS = ("thoughts=true", "system=- Calculator: enabled. API: Calculate(expression)")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, whose replies end after about thirty tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = MossTokenizer.train(TEXTS * 3, 400, reserved_tags=8)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=256, n_ctx=256, n_embd=64, n_layer=2, n_head=4, rotary_dim=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    made = init_model(config, 3, torch.float32)
    with torch.no_grad():
        made.lm_head.bias[sorted(tokenizer.control_ids.values())] += 0.3
    made.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    records = [{"id": f"p{n}", "prompt": f"{TEXTS[n % len(TEXTS)]} ({n})", "answer": n, "language": "en"} for n in range(17)]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def arguments(model: Path, prompts: Path, out: Path, batch_size: int = 8, *more: str) -> list[str]:
    line = [f"model={model}", f"prompts={prompts}", f"out={out}", f"samples={SAMPLES}", f"batch_size={batch_size}", "max_new_tokens=24"]
    return [*line, *(more or PLAIN)]


@pytest.fixture(scope="module")
def alone(model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From one rank, a row at a time."""
    out = tmp_path_factory.mktemp("alone") / "out.jsonl"
    succeeded(forked(1, "scripts/sample.py", *arguments(model, prompts, out, 1)))
    return out


def test_what_is_in_the_file(model: Path, prompts: Path, alone: Path) -> None:
    lines = [json.loads(line) for line in alone.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == [f"p{n}" for n in range(17)]
    assert [line["answer"] for line in lines] == list(range(17))
    read = [parse_responses(line, f"out:{n}") for n, line in enumerate(lines)]
    assert {len(one.responses) for one in read} == {SAMPLES}
    replies = [turn.moss for one in read for turn in one.responses]
    assert len(set(replies)) > 40
    responses = [response for line in lines for response in line["responses"]]
    assert {response["finish"] for response in responses} == {"stop", "length"}
    assert all(response["log_probability"] < 0 for response in responses)
    record = lineage.load(alone)
    assert record is not None
    assert (record.lineage.kind, record.lineage.stage) == ("data", "sample")
    assert [(parent.role, parent.id) for parent in record.lineage.parents] == [("model", lineage.foreign_id(model))]
    assert [(source.name, source.records) for source in record.lineage.data] == [("prompts.jsonl", 17)]
    assert {"seed": 0, "samples": SAMPLES, "temperature": 1.0, "records": 17}.items() <= record.lineage.details.items()
    assert record.files["out.jsonl"].bytes == alone.stat().st_size
    assert sorted(path.name for path in alone.parent.iterdir()) == ["out.jsonl", "out.jsonl.lineage.json"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_neither_ranks_nor_batches_change_a_byte(model: Path, prompts: Path, alone: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "out.jsonl"
    succeeded(forked(ranks, "scripts/sample.py", *arguments(model, prompts, out)))
    assert out.read_bytes() == alone.read_bytes()


def test_guided_responses_follow_from_their_settings_alone(model: Path, prompts: Path, tmp_path: Path) -> None:
    """The same bytes from any ranks and batches; what they were guided by is recorded."""

    def sampled(name: str, ranks: int, batch_size: int, *more: str) -> bytes:
        few = Path(f"{prompts}#5")
        succeeded(forked(ranks, "scripts/sample.py", *arguments(model, few, tmp_path / name, batch_size, *PLAIN, *more)))
        return (tmp_path / name).read_bytes()

    guided = ("tag=2", "guidance=1.5", "guidance_from=1")
    alone = sampled("alone.jsonl", 1, 1, *guided)
    assert sampled("together.jsonl", 2, 8, *guided) == alone
    asked = sampled("asked.jsonl", 1, 8, "tag=2")
    assert sampled("off.jsonl", 1, 1, "tag=2", "guidance=1", "guidance_from=1") == asked != alone
    recorded = [lineage.load(tmp_path / name) for name in ("alone.jsonl", "off.jsonl", "asked.jsonl")]
    found = [[record.lineage.details[key] for key in ("tag", "guidance", "guidance_from")] for record in recorded if record is not None]
    assert found == [["2", 1.5, "1"], ["2", 1.0, None], ["2", 1.0, None]]
    refused = forked(1, "scripts/sample.py", *arguments(model, prompts, tmp_path / "refused.jsonl", 1, *PLAIN, "guidance=1.5"))
    assert refused.returncode == 2
    assert "guidance=1.5: no tag is asked for" in refused.stderr


def test_a_launcher_and_tools(model: Path, prompts: Path, tmp_path: Path) -> None:
    few = f"{prompts}#5"
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    succeeded(forked(1, "scripts/sample.py", *arguments(model, Path(few), one, 1, *TOOLS)))
    succeeded(deepspeed(2, "scripts/sample.py", *arguments(model, Path(few), two, 8, *TOOLS)))
    assert one.read_bytes() == two.read_bytes()
    responses = [response for line in one.read_text(encoding="utf-8").splitlines() for response in json.loads(line)["responses"]]
    assert len(responses) == 5 * SAMPLES
    assert all({"thoughts", "commands", "results", "moss"} <= response.keys() for response in responses)


def test_killed_at_any_time_and_started_again(model: Path, prompts: Path, alone: Path, tmp_path: Path) -> None:
    """With one rank, two and three by turns; what was cut off in the middle of a line is made anew."""
    random_ = random.Random(5)
    out = tmp_path / "out.jsonl"
    kept, kills = 0, 0
    for start in range(12):
        ranks = Ranks(1 + start % 3, "scripts/sample.py", *arguments(model, prompts, out, 4))
        # Before a line is there, while one is being written, or some time after it.
        wanted, until = kept + random_.choice([0, 1, 1, 2, 3]), time.monotonic() + 60
        while lines_there(out) < wanted and not out.exists() and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(random_.random() * 0.02)
        ranks.kill(signal.SIGKILL)
        if set(ranks.wait()) == {0}:
            break
        kills += 1
        assert lines_there(out) >= kept or out.exists()
        kept = lines_there(out)
        parts = sorted(tmp_path.glob("out.jsonl.partial/part-*"))
        if parts and start % 2:
            whole = parts[0].read_bytes()
            parts[0].write_bytes(whole[: -random_.randrange(1, min(40, len(whole)))])
            kept = lines_there(out)
    assert kills > 3
    if not out.exists():
        ended = succeeded(forked(1, "scripts/sample.py", *arguments(model, prompts, out, 4)))
        assert f"{kept} of 17 prompts have their responses already" in ended.stderr
    assert out.read_bytes() == alone.read_bytes()
    assert lineage.load(out) is not None


def test_other_settings_are_refused(model: Path, prompts: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "out.jsonl", tmp_path / "own.jsonl"
    own.write_bytes(prompts.read_bytes())
    prompts = own
    ranks = Ranks(1, "scripts/sample.py", *arguments(model, prompts, out, 1))
    while not lines_there(out):
        time.sleep(0.001)
    ranks.kill()
    ranks.wait()
    assert not out.exists()
    others = (
        (1, "seed=7", "seed was 0, is 7"),
        (2, "top_p=0.9", "top_p was 1.0, is 0.9"),
        (1, "guidance=2", "guidance was 1.0, is 2.0"),
    )
    for count, changed, told in others:
        refused = forked(count, "scripts/sample.py", *arguments(model, prompts, out, 1, *PLAIN, changed))
        assert refused.returncode == 2
        assert told in refused.stderr
    with prompts.open("a", encoding="utf-8") as file:
        file.write("\n")
    refused = forked(1, "scripts/sample.py", *arguments(model, prompts, out, 1))
    assert refused.returncode == 2
    assert "data was " in refused.stderr


def test_what_is_wrong_is_told_before_anything_is_sampled(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    (tmp_path / "long.txt").write_text("short\n" + "long " * 900 + "\n")
    for count in (1, 2):
        refused = forked(count, "scripts/sample.py", *arguments(model, tmp_path / "long.txt", out))
        assert refused.returncode == 3
        assert "long.txt:2: " in refused.stderr
    assert not list(tmp_path.glob("*.partial/part-*"))
    assert forked(1, "scripts/sample.py", *arguments(tmp_path / "nothing", tmp_path / "long.txt", out)).returncode == 4
    (tmp_path / "empty.txt").write_text("\n")
    assert forked(1, "scripts/sample.py", *arguments(model, tmp_path / "empty.txt", out)).returncode == 3
    out.write_text("precious")
    assert forked(1, "scripts/sample.py", *arguments(model, tmp_path / "long.txt", out)).returncode == 2
    assert out.read_text() == "precious"


def test_a_prompt_is_read_once_for_all_its_samples(model: Path, prompts: Path, alone: Path) -> None:
    config = SampleConfig(model=str(model), prompts=str(prompts), out="-", samples=SAMPLES, max_new_tokens=24, system="")
    asked = read_prompts(config)[:4]
    speaker = Speaker(config, 4, share_prompts=True)
    lines = [json.loads(line) for line in alone.read_text(encoding="utf-8").splitlines()]
    for number, replies in sample(speaker, asked, list(range(4)), SAMPLES):
        responses = lines[number]["responses"]
        assert [(reply.moss, reply.log_probability) for reply in replies] == [(one["moss"], one["log_probability"]) for one in responses]
    lengths = [len(speaker.transcript(one.context).prompt("moss")) for one in asked]
    assert speaker.decoder.prompt_tokens == sum(lengths)
