"""Small models that are trained on planted facts, by a plain loop."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from transformers import CodeGenConfig

from moss_train.artifacts import lineage
from moss_train.artifacts.export import write_export
from moss_train.data.tokenizer import MossTokenizer
from moss_train.evaluate.config import EvaluateConfig, Task
from moss_train.evaluate.output import json_lines
from moss_train.evaluate.planting import PROBES_NAME, Planting
from moss_train.evaluate.probes import Probe, read_probes
from moss_train.model.codegen import CodeGenLM, init_model
from moss_train.model.loss import IGNORE_INDEX


def settings(**values: object) -> EvaluateConfig:
    """Of a small planting: one sentence a document."""
    return EvaluateConfig(task=Task.make_probes, out="probes", **{"facts": 27, "sentences": 1, "repetitions": 1, "parallel": 9, **values})  # type: ignore[arg-type]


def texts(planting: Planting, *languages: str) -> list[str]:
    """The documents that tell in these languages."""
    return [document["text"] for language in languages for document in planting.documents[f"planted_{language}.jsonl"]]


def probes_of(planting: Planting, folder: Path) -> list[Probe]:
    """Through the file, as a job gets them."""
    path = folder / PROBES_NAME
    path.write_text(json_lines(planting.probes), encoding="utf-8")
    return read_probes(path, 4)


def tokenizer_of(planting: Planting) -> MossTokenizer:
    """A small one, for both languages."""
    return MossTokenizer.train(texts(planting, "zh", "en"), 600, reserved_tags=0)


def new_model(tokenizer: MossTokenizer, width: int = 64, layers: int = 2) -> CodeGenLM:
    """With random weights."""
    config = CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=96, n_ctx=96, n_embd=width, n_layer=layers, n_head=4, rotary_dim=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.endoftext, eos_token_id=tokenizer.endoftext, tie_word_embeddings=False,
    )  # fmt: skip
    return init_model(config, 0, torch.float32)


def train(model: CodeGenLM, tokenizer: MossTokenizer, documents: list[str], steps: int, rows: int = 24, lr: float = 5e-3) -> None:
    """Next token on documents drawn at random, a row each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.95))
    encoded, rng = tokenizer.encode_batch(documents), random.Random(0)
    for step in range(steps):
        part = rng.sample(encoded, min(rows, len(encoded)))
        input_ids = torch.full((len(part), max(map(len, part))), tokenizer.endoftext)
        targets = torch.full_like(input_ids, IGNORE_INDEX)
        for row, ids in enumerate(part):
            input_ids[row, 1 : len(ids)] = torch.tensor(ids[:-1])
            targets[row, : len(ids)] = torch.tensor(ids)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 20) * (1 - step / steps)
        out = model(input_ids, targets=targets)
        (out.loss_sum / out.token_loss.numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def export(model: CodeGenLM, tokenizer: MossTokenizer, out: Path) -> Path:
    """A model directory with a record."""
    record = lineage.Lineage("export", "pretrain")
    write_export(out, model.named_parameters(), model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9)
    return out
