"""A small corpus of three languages, and the command line of pretraining runs on it."""

from __future__ import annotations

from pathlib import Path

from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from tests.corpora import documents, write_jsonl, write_tokenizer

# 12 rows a step; the smallest source is gone through more than once.
SMALL = (
    "+config=tiny_pretrain",
    "data.bundled=false",
    "data.seq_len=64",
    "data.holdout=0.1",
    "model.hidden_size=60",
    "model.rotary_dim=8",
    "train.global_batch_size=12",
    "train.micro_batch_size=1",
    "train.steps=8",
    "train.save_every=2",
    "train.eval_every=0",
    "train.eval_at_start=false",
    "train.keep=9",
    "export.enabled=false",
)
MIXED = "data.weights={zh: 0.5, en: 0.3, code: 0.2}"


def write_corpus(folder: Path, sizes: dict[str, int] | None = None, name: str = "corpus") -> Path:
    """A corpus of so many documents of each language."""
    if not (folder / "tokenizer").exists():
        write_tokenizer(folder / "tokenizer")
    sources = {
        language: SourceConfig(str(write_jsonl(folder / f"{name}_{language}.jsonl", documents(language, number))), language)
        for language, number in (sizes or {"zh": 40, "en": 30, "code": 12}).items()
    }
    prepare(PrepareConfig(str(folder / "tokenizer"), str(folder / name), sources, shard_mb=0.004, workers=1))
    return folder / name


def arguments(run_dir: Path, corpus: Path, *overrides: str) -> list[str]:
    """The command line of a small run."""
    return [*SMALL, f"run.dir={run_dir}", f"data.train={corpus}", f"data.cache={run_dir.parent / 'cache'}", *overrides]
