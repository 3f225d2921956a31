"""Settings of supervised fine-tuning on dialogues."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moss_train.config import Plugin, StageConfig, VerifyConfig


class LossOn(StrEnum):
    """Which tokens of a dialogue carry loss."""

    generated = "generated"
    """All that MOSS writes: inner thoughts, commands and the reply, each with its terminator."""
    reply = "reply"
    """The reply and its terminator only."""
    release = "release"
    """What the published script trained on: all but the meta instruction and the content of the results."""


class OnMarker(StrEnum):
    """What to do with a role marker such as `<|Human|>:` that is spelled inside a message."""

    keep = "keep"
    space = "space"
    error = "error"


class OnBad(StrEnum):
    """What to do with a record that is not a dialogue."""

    fail = "fail"
    """End before a model is built, with the first of them and totals by kind."""
    skip = "skip"
    """Leave them out and say so; more than 1 % of them end the run all the same."""


class DefaultMeta(StrEnum):
    """Meta instruction of records that have none."""

    moss = "moss"
    """The published one, with the switches of `plugins` on."""
    none = "none"


@dataclass
class DialogueDataConfig:
    """Which dialogues, and how they become rows."""

    train: Any = None
    """A path or a list of paths: files, directories or globs; `PATH#N` takes the first N records."""
    valid: Any = None
    """The same for validation. Without it, `holdout` of the training dialogues is kept apart."""
    holdout: float = 0.0
    """Share of the training dialogues kept for validation when `valid` is not given."""
    bundled: bool = False
    """Train on the small dialogues that come with the package where `train` names nothing."""
    seq_len: int = 2048
    """Tokens of a row; whole turns that do not fit are dropped from the end of a dialogue."""
    loss_on: LossOn = LossOn.generated
    on_marker: OnMarker = OnMarker.keep
    on_bad: OnBad = OnBad.fail
    default_meta: DefaultMeta = DefaultMeta.moss
    """Meta instruction of records that have none; a record's own is never changed."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in that default."""

    def problems(self) -> list[str]:
        found = []
        for key in ("train", "valid"):
            value = getattr(self, key)
            if value is not None and not _is_paths(value):
                found.append(f"data.{key} is {value!r}; expected a path or a list of paths")
        if self.train is None and not self.bundled:
            found.append("data.train is not set: name a file, directory or glob of dialogues, for example data.train=dialogues.jsonl")
        if self.seq_len < 8:
            found.append(f"data.seq_len is {self.seq_len}; expected 8 tokens or more")
        if not 0 <= self.holdout < 1:
            found.append(f"data.holdout is {self.holdout}; expected a share from 0 up to, but not including, 1")
        return found


def _is_paths(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


@dataclass
class SFTConfig(StageConfig):
    """Everything that `scripts/sft.py` takes."""

    data: DialogueDataConfig = field(default_factory=DialogueDataConfig)

    def problems(self) -> list[str]:
        found = super().problems() + self.data.problems()
        if self.init_from is None and self.data.seq_len > self.model.max_positions:
            found.append(
                f"data.seq_len ({self.data.seq_len}) is longer than model.max_positions ({self.model.max_positions}), "
                "which the rotary table covers"
            )
        return found


@dataclass
class VerifySFTConfig(SFTConfig):
    """Everything that `scripts/verify_resume.py` takes."""

    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def problems(self) -> list[str]:
        return super().problems() + self.verify.problems()
