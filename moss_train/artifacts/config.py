"""Settings of the export job."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
