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


class Method(StrEnum):
    """How weights are quantised."""

    gptq = "gptq"
    """Codes chosen one column after another, so that the products of the calibration texts stay what they were; 4 or 8 bits."""
    torchao = "torchao"
    """Each weight rounded to the nearest of 255 values, a scale for each row; 8 bits, no calibration."""


MOST_KL = {4: 0.1, 8: 0.01}
"""Default of `max_kl` by bits, in nats a token: many times what a trained model loses, and far below one that is broken."""


@dataclass
class QuantizeConfig:
    """What `scripts/quantize.py` takes: it writes a model directory's variant of fewer bits."""

    model: str = "???"
    """Model directory: an export of a language model or of a preference model, or a stock CodeGen one."""
    bits: int = 4
    """Of a weight: 4 or 8."""
    method: Method = Method.gptq
    out: str | None = None
    """Directory to write, which must not exist; by default that of `model` with `-int4` or `-int8` after its name."""
    data: Any = None
    """What to calibrate on: a path or a list of them, dialogues, comparisons, texts or prepared corpora; `PATH#N` takes N. By default the
    training data that the lineage of `model` names, where it is still there."""
    heldout: Any = None
    """What the variant is compared with its source on; by default validation data of the lineage, else what calibration leaves."""
    samples: int = 256
    """Documents to calibrate on, evenly taken from all of them, each source the same number."""
    heldout_samples: int = 32
    """Documents to compare on; of a preference model four times as many."""
    seq_len: int = 2048
    """Most tokens of a document, not above the model's positions; the rest is left out."""
    heldout_seq_len: int = 256
    group_size: int = 128
    """Inputs that share a scale (GPTQ)."""
    damp: float = 0.05
    """Added to the diagonal of the calibration's second moments, as a share of its mean (GPTQ)."""
    max_kl: float | None = None
    """Most KL divergence from the source, nats a token (of a preference model a pair), with which the variant is kept; by default 0.1 with
    4 bits, 0.01 with 8."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU where there is one."""
    max_shard_gb: float = 4.0
    """Largest safetensors file, in 10^9 bytes."""
    unverified: bool = False
    """Take `model` although it is not what its lineage.json says."""

    @property
    def most_kl(self) -> float:
        """`max_kl`, or its default."""
        return MOST_KL[self.bits] if self.max_kl is None else self.max_kl

    @property
    def target(self) -> str:
        """`out`, or its default."""
        return f"{self.model.rstrip('/')}-int{self.bits}" if self.out is None else self.out

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if self.bits not in MOST_KL:
            found.append(f"bits is {self.bits}; expected 4 or 8")
        if self.method is Method.torchao and self.bits != 8:
            found.append(f"method=torchao with bits={self.bits}: it has 8 bits only; method=gptq has 4 too")
        for key, least in (("samples", 1), ("heldout_samples", 2), ("seq_len", LEAST_TOKENS), ("heldout_seq_len", LEAST_TOKENS)):
            if getattr(self, key) < least:
                found.append(f"{key} is {getattr(self, key)}; expected at least {least}")
        if self.group_size not in GROUP_SIZES:
            found.append(f"group_size is {self.group_size}; expected one of {', '.join(map(str, GROUP_SIZES))}, which its kernels have")
        if not 0 < self.damp < 1:
            found.append(f"damp is {self.damp}; expected a share above 0, below 1")
        if self.max_kl is not None and not self.max_kl > 0:
            found.append(f"max_kl is {self.max_kl}; expected a number above zero (.inf keeps whatever comes)")
        if self.device not in ("auto", "cpu", "cuda"):
            found.append(f"device is {self.device}; expected auto, cpu or cuda")
        if not 0 < self.max_shard_gb < math.inf:
            found.append(f"max_shard_gb is {self.max_shard_gb}; expected a number above zero")
        for key in ("data", "heldout"):
            value = getattr(self, key)
            if value is not None and not as_paths(value):
                found.append(f"{key} is {value!r}; expected a path or a list of paths")
        return found


LEAST_TOKENS = 16
"""A document with fewer tells nothing, and the library leaves it out without a word."""
GROUP_SIZES = (32, 64, 128)


def as_paths(value: Any) -> list[str]:
    """A path or a list of them as a list; empty where it is neither."""
    if isinstance(value, str):
        return [value] if value else []
    return list(value) if isinstance(value, list) and all(isinstance(path, str) and path for path in value) else []
