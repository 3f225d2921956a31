"""Settings of the export job."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moss_train.config import ExportDtype


class Layout(StrEnum):
    """Names and shapes of the exported weights."""

    codegen = "codegen"
    gptj = "gptj"
    """The same function as GPT-J, which more servers read."""


@dataclass
class ExportJobConfig:
    """What `scripts/export.py` takes: it rewrites any model directory this project reads as a stock Hugging Face one."""

    model: str = "???"
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory."""
    out: str = "???"
    """Directory to write; must not exist."""
    tokenizer: str | None = None
    """Tokenizer directory; by default the one in `model`."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` keeps that of `model`."""
    format: Layout = Layout.codegen
    max_shard_gb: float = 4.0
    """Largest safetensors file, in 10^9 bytes."""
    unverified: bool = False
    """Take `model` although it is not what its lineage.json says."""
    allow_pickle: bool = False
    """Accept pickled `.bin` weights; they are read through torch's restricted loader."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        return [] if self.max_shard_gb > 0 else [f"max_shard_gb is {self.max_shard_gb}; expected a number above zero"]


class Scripts(StrEnum):
    """Which pieces of text merges are learned from."""

    cjk = "cjk"
    """Those with a Chinese, Japanese or Korean character or their punctuation, so that English and code keep their tokens."""
    all = "all"


class Rows(StrEnum):
    """How the rows of new tokens are made; `moss_train.model.vocab.extend_rows` says it exactly."""

    mean_of_pieces = "mean_of_pieces"
    weighted = "weighted"
    random = "random"


@dataclass
class WarmUpConfig:
    """Training of the new rows alone, everything else as it was, on one device and before any run."""

    steps: int = 0
    lr: float = 1e-3
    rows: int = 8
    """Rows of a step."""
    seq_len: int = 512

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [
            f"warmup.{key} is {value}; expected at least 1" for key, value in (("rows", self.rows), ("seq_len", self.seq_len)) if value < 1
        ]
        if self.steps < 0:
            found.append(f"warmup.steps is {self.steps}; expected zero (no warm-up) or more")
        if not 0 < self.lr < math.inf:
            found.append(f"warmup.lr is {self.lr}; expected a number above zero")
        return found


@dataclass
class ExtendVocabConfig:
    """What `scripts/extend_vocab.py` takes: it gives a model a larger vocabulary."""

    model: str = "???"
    """Model directory of the CodeGen family, or a directory with its tokenizer alone."""
    out: str = "???"
    """Directory to write; must not exist."""
    text: Any = "???"
    """What to learn merges from: a path or a list of them (text files, trees, JSONL, Parquet, dialogues; `PATH#N` takes N)."""
    text_key: str = "text"
    """Field of a record that holds its text."""
    licence: str | None = None
    """Of that text, for the lineage."""
    new_tokens: int = 8192
    """How many tokens to append; MOSS has 55772."""
    scripts: Scripts = Scripts.cjk
    min_count: int = 2
    """A pair that occurs less often is not merged."""
    memory_gib: float = 4.0
    """What learning may take in all; where the text is too large, a share of it is used."""
    reserved_tags: int | None = None
    """Ids kept for preference tags; by default those there are, or 16."""
    vocab_size: int | None = None
    """Rows of the embedding; by default the ids in use, rounded up to `pad_multiple`. MOSS has 107008."""
    pad_multiple: int = 128
    strategy: Rows = Rows.mean_of_pieces
    heldout: Any = None
    """Texts to report on that merges are not learned from, by name: `{zh: PATH, en: PATH, code: PATH}`."""
    heldout_bytes: int = 200_000
    """Bits per byte are measured on so much of each."""
    compare: list[Rows] = field(default_factory=list)
    """More strategies to measure bits per byte of, beside `strategy`."""
    warmup: WarmUpConfig = field(default_factory=WarmUpConfig)
    seed: int = 0
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` keeps that of `model`."""
    max_shard_gb: float = 4.0
    """Largest safetensors file, in 10^9 bytes."""
    unverified: bool = False
    """Take `model` although it is not what its lineage.json says."""
    allow_pickle: bool = False
    """Accept pickled `.bin` weights; they are read through torch's restricted loader."""

    def texts(self) -> list[str]:
        """`text` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text)

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = self.warmup.problems()
        for key, least in (("new_tokens", 1), ("min_count", 1), ("pad_multiple", 1), ("heldout_bytes", 1)):
            if getattr(self, key) < least:
                found.append(f"{key} is {getattr(self, key)}; expected at least {least}")
        if not 0 < self.max_shard_gb < math.inf:
            found.append(f"max_shard_gb is {self.max_shard_gb}; expected a number above zero")
        if not 0.5 <= self.memory_gib < math.inf:
            found.append(f"memory_gib is {self.memory_gib}; expected at least 0.5")
        if self.seed < 0:
            found.append(f"seed is {self.seed}; expected zero or more")
        if self.reserved_tags is not None and self.reserved_tags < 0:
            found.append(f"reserved_tags is {self.reserved_tags}; expected zero or more")
        if not isinstance(self.text, str) and not (
            isinstance(self.text, list) and self.text and all(isinstance(p, str) for p in self.text)
        ):
            found.append(f"text is {self.text!r}; expected a path or a list of paths")
        if self.heldout is not None and not (
            isinstance(self.heldout, dict) and all(isinstance(value, str) and value for value in self.heldout.values())
        ):
            found.append(f"heldout is {self.heldout!r}; expected names with a path each, such as {{zh: PATH, en: PATH}}")
        return found
