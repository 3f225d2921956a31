"""A tiny preference model with random weights, and responses for it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import CodeGenConfig

from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import init_model
from moss_train.model.pm import CodeGenPM, pm_config

TEXTS = ["What is 3 + 4?", "你好，请介绍一下你自己。", "Write a poem about the sea, in four lines.", "Solve x + 2 = 5", "再见"]
POSITIONS = 160


def save_pm(folder: Path, temperature: float | None = None, positions: int = POSITIONS) -> Path:
    """Rewards of the size of one."""
    tokenizer = MossTokenizer.train(TEXTS * 3, 400, reserved_tags=8)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=positions, n_ctx=positions, n_embd=64, n_layer=2, n_head=4, rotary_dim=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    made = pm_config(config)
    if temperature is not None:
        made.moss_temperature = temperature
    init_model(made, 3, torch.float32, CodeGenPM).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def context(turns: int, number: int = 0) -> dict[str, Any]:
    """So many turns, the last without a reply."""
    said = [{"human": f" {TEXTS[n % len(TEXTS)]} ({number})", "moss": f" {TEXTS[(n + 1) % len(TEXTS)]}"} for n in range(turns)]
    del said[-1]["moss"]
    return {"meta_instruction": "Be brief.\n", "turns": said}


def response_lines(count: int) -> list[dict[str, Any]]:
    """Lines as `scripts/sample.py` writes them, of one to three responses to one to three turns."""
    return [
        {
            "id": f"q{number}",
            "origin": f"questions.jsonl:{number}",
            "answer": number,
            "context": context(1 + number % 3, number),
            "responses": [{"moss": f" {TEXTS[(number + one) % 5]}"[: 6 + 4 * one], "finish": "stop"} for one in range(1 + number % 3)],
        }
        for number in range(count)
    ]


def messages(turns: int, number: int = 0) -> dict[str, Any]:
    """A record of a dialogue."""
    said = [text for n in range(turns) for text in (f"{TEXTS[n % 5]} ({number})", TEXTS[(n + 2) % 5])]
    spoken = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    return {"messages": [{"role": "system", "content": "Be brief."}, *spoken], "source": "made"}


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Records as JSONL."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    """JSONL as records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
