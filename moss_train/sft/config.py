"""Settings of supervised fine-tuning on dialogues."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from moss_train.config import DefaultMeta, OnBad, OnMarker, Plugin, StageConfig, VerifyConfig
from moss_train.train.config import PlanOptions


class DataFormat(StrEnum):
    """How records hold dialogues; `auto` tells by their keys."""

    auto = "auto"
    moss003 = "moss003"
    moss002 = "moss002"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    prompt_completion = "prompt_completion"


class LossOn(StrEnum):
    """Which tokens of a dialogue carry loss."""

    generated = "generated"
    """All that MOSS writes: inner thoughts, commands and the reply, each with its terminator."""
    reply = "reply"
    """The reply and its terminator only."""
    release = "release"
    """What the published script trained on: all but the meta instruction and the content of the results."""


class OnLong(StrEnum):
    """What to do with a dialogue that is longer than a row."""

    drop_turns = "drop_turns"
    """Drop whole turns from its end."""
    drop = "drop"
    """Drop it."""
    error = "error"
    """Count it as a bad record."""


@dataclass
class DialogueDataConfig:
    """Which dialogues, and how they become rows."""

    train: Any = None
    """A path, a list of paths, or `{path: weight}` for a mixture with these shares of the rows: files, directories or globs; `PATH#N`
    takes the first N records."""
    valid: Any = None
    """A path or a list of paths for validation. Without it, `holdout` of the training dialogues is kept apart."""
    holdout: float = 0.0
    """Share of the training dialogues kept for validation when `valid` is not given."""
    bundled: bool = False
    """Train on the small dialogues that come with the package where `train` names nothing."""
    format: DataFormat = DataFormat.auto
    seq_len: int = 2048
    """Tokens of a row, and of the longest dialogue."""
    on_long: OnLong = OnLong.drop_turns
    loss_on: LossOn = LossOn.generated
    on_marker: OnMarker = OnMarker.keep
    on_bad: OnBad = OnBad.fail
    max_bad_share: float = 0.01
    """Share of the records of a path that may be left out with `on_bad=skip`."""
    default_meta: DefaultMeta = DefaultMeta.moss
    """Meta instruction of records that have none; a record's own is never changed."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in that default."""
    switch_off: float = 0.0
    """Probability with which each enabled tool of a dialogue is switched off and its calls dropped, so that the model obeys switches."""
    tag_dropout: float = 0.0
    """Share of the turns with a level that go without its tag, so that the model also learns what it says when it is told nothing."""
    level_weights: list[float] = field(default_factory=list)
    """How much is learned from the replies of each level, that of level 1 first, 0 to 1: the chance that one carries loss."""
    cache: str | None = None
    """Directory that keeps rendered data for the next start; by default MOSS_TRAIN_CACHE, or moss_train in the user's cache directory."""

    def problems(self) -> list[str]:
        found = []
        if self.train is not None and not _is_paths(self.train) and not _is_mixture(self.train):
            found.append(f"data.train is {self.train!r}; expected a path, a list of paths, or {{path: weight}} with weights above zero")
        if self.valid is not None and not _is_paths(self.valid):
            found.append(f"data.valid is {self.valid!r}; expected a path or a list of paths")
        if self.train is None and not self.bundled:
            found.append("data.train is not set: name a file, directory or glob of dialogues, for example data.train=dialogues.jsonl")
        if self.seq_len < 8:
            found.append(f"data.seq_len is {self.seq_len}; expected 8 tokens or more")
        if not 0 <= self.holdout < 1:
            found.append(f"data.holdout is {self.holdout}; expected a share from 0 up to, but not including, 1")
        if self.plugins and self.default_meta is DefaultMeta.none:
            found.append("data.plugins has no effect with data.default_meta=none, which gives records no meta instruction; leave one out")
        for key in ("max_bad_share", "switch_off", "tag_dropout"):
            if not 0 <= getattr(self, key) <= 1:
                found.append(f"data.{key} is {getattr(self, key)}; expected a number from 0 to 1")
        if not all(0 <= weight <= 1 for weight in self.level_weights) or (self.level_weights and not any(self.level_weights)):
            found.append(
                f"data.level_weights is {list(self.level_weights)}; expected numbers from 0 to 1, that of level 1 first, not all zero"
            )
        return found


def _is_paths(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _is_mixture(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(path, str) and path for path in value)
        and all(isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf for weight in value.values())
    )


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


@dataclass
class PlanSFTConfig(SFTConfig, PlanOptions):
    """Everything that `scripts/plan.py` takes for this stage."""

    def problems(self) -> list[str]:
        # No data is read, so none need be named.
        unnamed = replace(self, data=replace(self.data, bundled=True))
        return SFTConfig.problems(unnamed) + self.plan_problems()
