"""Small exports to measure: random weights, few positions, so that documents are longer than the model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CodeGenConfig

from moss_train.artifacts import lineage
from moss_train.artifacts.export import write_export
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM, init_model

TEXTS = [
    "The sum of 4 and 11 is 15. Add 7 and 8.",
    "河流的英文是river。花的英文是什么？",
    "def add(first, second):\n    return first + second\n",
    "Hello! How can I help you today? I would like to know what the capital of Egypt is, and how many legs a spider has.",
    "请问哪位作家写了《浮士德》？歌德写了《浮士德》。",
]


def made_tokenizer(vocab_size: int = 420) -> MossTokenizer:
    """Of a few merges."""
    return MossTokenizer.train(TEXTS * 2, vocab_size, reserved_tags=4)


def export_random(out: Path, positions: int = 48, seed: int = 0, tokenizer: MossTokenizer | None = None, width: int = 32) -> Path:
    """A model that says something of its own about every text: its output is far from uniform.

    Args:
        out: Directory to write. positions: Tokens it covers. seed: Of the weights.
        tokenizer: By default `made_tokenizer`. width: Of the model.
    """
    tokenizer = tokenizer or made_tokenizer()
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=positions, n_ctx=positions, n_embd=width, n_layer=2, n_head=4, rotary_dim=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.endoftext, eos_token_id=tokenizer.endoftext,
        tie_word_embeddings=False,
    )  # fmt: skip
    model: CodeGenLM = init_model(config, seed, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight *= 8
    record = lineage.Lineage(
        "export", "pretrain", metrics={"valid/loss": 3.0 + seed}, details={"tokenizer_fingerprint": tokenizer.fingerprint}
    )
    record.data = [lineage.Source("valid.jsonl", "0" * 64, 3, "valid")]
    write_export(out, model.named_parameters(), model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9)
    return out
