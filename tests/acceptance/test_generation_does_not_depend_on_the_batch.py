"""A file of questions gets the same replies from one rank and from two, in batches of any size: with plain replies, and with tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.cores import cores
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import init_model
from tests.forked import forked
from tests.launch import deepspeed, succeeded

QUESTIONS = [
    "What is 3 + 4?",
    "你好，请介绍一下你自己。",
    "Write a poem about the sea, in four lines, and then translate it into Chinese for me, please.",
    "法国的首都是哪里？",
    "def f(x):",
    "Solve x + 2 = 5",
    "再见",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, wide enough for replies of all lengths."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = MossTokenizer.train(QUESTIONS * 3, 400, reserved_tags=8)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=512, n_ctx=512, n_embd=64, n_layer=3, n_head=4, rotary_dim=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    made = init_model(config, 3, torch.float32)
    with torch.no_grad():
        # Replies that end, after about thirty tokens.
        made.lm_head.bias[sorted(tokenizer.control_ids.values())] += 0.3
    made.save_pretrained(folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    lines = [json.dumps({"prompt": f"{question} ({number})"}, ensure_ascii=False) for number in range(4) for question in QUESTIONS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# As a rank has that shares this machine: with more, a test beside this one makes each wait for the other at every small product.
ONE_THREAD = {"LOCAL_WORLD_SIZE": str(cores())}
PLAIN, TOOLS = ("system=''",), ("thoughts=true", "system=- Calculator: enabled. API: Calculate(expression)")


@pytest.mark.parametrize("more", [PLAIN, TOOLS], ids=["plain", "tools"])
def test_any_batch_and_any_number_of_ranks(model: Path, questions: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    def replies(name: str, ranks: int, batch_size: int) -> str:
        out = tmp_path / f"{name}.jsonl"
        line = [f"model={model}", f"prompts={questions}", f"out={out}", f"batch_size={batch_size}", "max_new_tokens=32", "temperature=1"]
        if ranks == 1:
            succeeded(forked(1, "scripts/generate.py", *line, *more, **ONE_THREAD))
        elif more == PLAIN:
            succeeded(forked(ranks, "scripts/generate.py", *line, *more))
        else:
            succeeded(deepspeed(ranks, "scripts/generate.py", *line, *more))
        return out.read_text(encoding="utf-8")

    alone = replies("alone", 1, 1)
    records = [json.loads(line) for line in alone.splitlines()]
    assert [record["index"] for record in records] == list(range(28))
    assert len({record["reply"] for record in records}) > 20
    assert len({record["tokens"] for record in records}) > 10
    assert more == TOOLS or {record["finish"] for record in records} == {"stop", "length"}
    for name, ranks, batch_size in (("few", 1, 5), ("many", 1, 64), ("ranks", 2, 8)):
        assert replies(name, ranks, batch_size) == alone, name


def test_a_text_file_and_bad_lines(model: Path, tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("one\n\ntwo\n")
    shown = succeeded(
        forked(1, "scripts/generate.py", f"model={model}", f"prompts={tmp_path / 'questions.txt'}", "max_new_tokens=4", *PLAIN)
    )
    assert "questions.txt:1] one" in shown.stdout
    assert "questions.txt:3] two" in shown.stdout
    assert "memory: about" in shown.stderr
    (tmp_path / "bad.jsonl").write_text('{"prompt": "one"}\n{"question": "two"}\n')
    refused = forked(1, "scripts/generate.py", f"model={model}", f"prompts={tmp_path / 'bad.jsonl'}", *PLAIN)
    assert refused.returncode == 3
    assert "bad.jsonl:2: expected an object with a text under" in refused.stderr
    (tmp_path / "long.txt").write_text("short\n" + "long " * 2000 + "\n")
    refused = forked(1, "scripts/generate.py", f"model={model}", f"prompts={tmp_path / 'long.txt'}", "system=''")
    assert refused.returncode == 3
    assert "long.txt:2: " in refused.stderr
    assert "the model covers 512" in refused.stderr
    (tmp_path / "out.jsonl").write_text("precious")
    refused = forked(1, "scripts/generate.py", f"model={model}", f"prompts={tmp_path / 'questions.txt'}", f"out={tmp_path / 'out.jsonl'}")
    assert refused.returncode == 2
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_a_chat_in_a_pipe(model: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.launch import REPOSITORY, environment

    command = [sys.executable, str(REPOSITORY / "scripts" / "generate.py"), f"model={model}", "chat=true", *TOOLS]
    typed = "hello\n/thoughts\nagain\n/new\n/tools\n/help\nhello\n"
    result = subprocess.run(
        [*command, "max_new_tokens=16"], input=typed, capture_output=True, text=True, env=environment(), cwd=tmp_path, timeout=300
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "thinks" in result.stdout
    assert "inner thoughts are hidden" in result.stdout
    assert "a new dialogue" in result.stdout
    assert "tools are off" in result.stdout
    assert result.stdout.count("   MOSS ") >= 3
    assert "Traceback" not in result.stderr
