"""A tiny model with random weights that is exported as one trained on levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CodeGenConfig

from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Lineage
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM, init_model

TEXTS = ["What is 3 + 4?", "你好，请介绍一下你自己。", "Write a poem about the sea, in four lines.", "Solve x + 2 = 5", "再见"]
LEVELS = {"1": 10, "2": 10, "5": 4}


def tagged_model(positions: int = 512, tags: int = 8) -> tuple[CodeGenLM, MossTokenizer]:
    """Weights so large that each tag leads to replies of its own, which end after about thirty tokens."""
    tokenizer = MossTokenizer.train(TEXTS * 3, 400, reserved_tags=tags)
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=positions, n_ctx=positions, n_embd=64, n_layer=2, n_head=4, rotary_dim=8,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.15, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model: CodeGenLM = init_model(config, 3, torch.float32)
    with torch.no_grad():
        model.lm_head.bias[sorted(tokenizer.control_ids.values())] += 0.3
    return model.eval(), tokenizer


def export_tagged(out: Path, model: CodeGenLM, tokenizer: MossTokenizer, **details: Any) -> Path:
    """Its export; `details` stand in its record beside the levels, or in their place."""
    record = Lineage("export", "preference", details={"levels": LEVELS, "tag_dropout": 0.1, **details})
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_export(out, parameters, model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9)
    return out
