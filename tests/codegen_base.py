"""A small model directory as CodeGen publishes them: GPT-2's kind of vocabulary, 38 runs of blanks after `<|endoftext|>`, spare rows."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CodeGenConfig

from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM

BLANKS = [" " * count for count in range(31, 1, -1)] + ["\t" * count for count in range(9, 1, -1)]


def write_vocabulary(out: Path, texts: Sequence[str], merges: int) -> int:
    """vocab.json, merges.txt and added_tokens.json; the ids in use."""
    out.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
    backend.train_from_iterator(texts, trainer)
    model = json.loads(backend.to_str())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": len(model["vocab"])}
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "added_tokens.json").write_text(json.dumps({run: len(vocabulary) + place for place, run in enumerate(BLANKS)}), encoding="utf-8")
    return len(vocabulary) + len(BLANKS)


def write_model(
    out: Path,
    used: int,
    *,
    hidden_size: int = 32,
    layers: int = 2,
    heads: int = 4,
    positions: int = 256,
    texts: Sequence[str] = (),
    steps: int = 0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    rows: int | None = None,
) -> None:
    """config.json and weights beside the vocabulary: random, or trained on texts for some steps with a plain loop."""
    torch.manual_seed(seed)
    rows = rows or -(-(used + 40) // 64) * 64
    config = CodeGenConfig(
        vocab_size=rows, n_positions=positions, n_ctx=positions, n_embd=hidden_size, n_layer=layers, n_head=heads,
        rotary_dim=hidden_size // heads // 2, bos_token_id=1, eos_token_id=used - len(BLANKS) - 1, tie_word_embeddings=False,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = CodeGenLM(config)
    if steps:
        _train(model, MossTokenizer.load(out, vocab_size=rows), texts, steps, seed)
    config.architectures = ["CodeGenForCausalLM"]
    model.to(dtype).save_pretrained(out)


def _train(model: CodeGenLM, tokenizer: MossTokenizer, texts: Sequence[str], steps: int, seed: int) -> None:
    order = random.Random(seed)
    span = model.config.n_positions
    stream = torch.tensor(
        [token for text in order.sample(list(texts), len(texts)) for token in [tokenizer.endoftext, *tokenizer.encode(text)]]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for _ in range(steps):
        begins = [order.randrange(len(stream) - span - 1) for _ in range(8)]
        rows = torch.stack([stream[begin : begin + span + 1] for begin in begins])
        out = model(rows[:, :-1], targets=rows[:, 1:].clone())
        optimizer.zero_grad()
        (out.loss_sum / rows[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
