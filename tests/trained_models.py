"""Small models that have really learned something, in seconds: what is measured of quantising says nothing on random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Lineage
from moss_train.data.dialogue import read_dialogues
from moss_train.data.render import render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import CodeGenLM, init_model
from moss_train.model.pm import CodeGenPM, pm_config
from tests.launch import REPOSITORY

BUNDLED = REPOSITORY / "moss_train" / "data" / "bundled"
WIDTH = 256
"""With 128, one group of inputs a layer, GPTQ has little to make up for an error with: 2.7 times less divergence than rounding, not 4."""


def need(*libraries: str) -> None:
    """Skips where the extra `quant` is not installed."""
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'moss-train[quant]'")


def write_texts(folder: Path) -> tuple[Path, Path]:
    """The bundled dialogues, to train on and to compare on."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name in ("dialogues_train.jsonl", "dialogues_dev.jsonl"):
        made.append(folder / name)
        shutil.copyfile(BUNDLED / name, made[-1])
    return made[0], made[1]


def train_model(out: Path, texts: Path, steps: int = 400, hidden_size: int = WIDTH) -> Path:
    """The export of a language model trained on the dialogues of a file."""
    dialogues = read_dialogues(str(texts))[0]
    said = [turn.human + (turn.moss or "") for dialogue in dialogues for turn in dialogue.turns]
    tokenizer = MossTokenizer.train([dialogues[0].meta_instruction, *said], 1200, reserved_tags=8)
    rows = torch.cat([torch.tensor(one.input_ids) for one in render_all(dialogues, tokenizer)[0]])
    model: CodeGenLM = init_model(_config(tokenizer, hidden_size), 0, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.05, 1 - step / steps))
    generator = torch.Generator().manual_seed(0)
    # Sums over threads are rounded in another order, and 400 steps make another model of that; which test ran before is not to matter.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(steps):
        starts = torch.randint(len(rows) - 129, (8,), generator=generator)
        batch = torch.stack([rows[start : start + 129] for start in starts])
        made = model(batch[:, :-1], targets=batch[:, 1:].contiguous())
        (made.loss_sum / batch[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return export(out, model, tokenizer)


def make_pm(out: Path, trained: Path) -> Path:
    """A preference model on the trunk of a trained one, with a head of its own."""
    from moss_train.model.loading import load_pm

    model = load_pm(trained, torch.float32, new_head=0)
    return export(out, model, MossTokenizer.load(trained), "pm")


def export(out: Path, model: CodeGenLM | CodeGenPM, tokenizer: MossTokenizer, kind: str = "export") -> Path:
    """Its export in bfloat16."""
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    config = pm_config(model.config) if kind == "pm" else model.config
    record = Lineage(kind, "pm" if kind == "pm" else "sft", details={"meta_instruction": ""})
    write_export(out, parameters, config, "bf16", record, tokenizer=tokenizer, max_shard_bytes=10**9)
    return out


def _config(tokenizer: MossTokenizer, hidden_size: int) -> CodeGenConfig:
    return CodeGenConfig(
        vocab_size=tokenizer.vocab_size, n_positions=512, n_ctx=512, n_embd=hidden_size, n_layer=2, n_head=4, rotary_dim=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.06, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
