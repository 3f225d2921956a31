"""Settings of the preference model's training."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from moss_train.config import DefaultMeta, OnBad, OnMarker, Plugin, StageConfig, VerifyConfig
from moss_train.train.config import PlanOptions


class PreferenceFormat(StrEnum):
    """How records hold comparisons; `auto` tells by their keys."""

    auto = "auto"
    comparisons = "comparisons"
    hh_rlhf = "hh_rlhf"
    model_solutions = "model_solutions"
    reward_bench = "reward_bench"
    messages = "messages"


class Ties(StrEnum):
    """What to do with pairs of which neither is better."""

    keep = "keep"
    """Each counts as half won by either side: their rewards are drawn together."""
    drop = "drop"
    """They are left out, and comparisons of nothing else too."""


class OnLongResponse(StrEnum):
    """What to do where a response with its context is longer than `seq_len`."""

    drop_turns = "drop_turns"
    """Drop the oldest turns of the context, of all responses alike."""
    truncate = "truncate"
    """As that; where the last turn alone is too long, cut the ends of replies."""
    drop = "drop"
    """Drop the comparison."""


@dataclass
class ComparisonDataConfig:
    """Which comparisons, and how they become samples."""

    train: Any = None
    """A path, a list of paths, or `{path: weight}` for a mixture: files, directories or globs; `PATH#N` takes the first N records."""
    valid: Any = None
    """A path or a list of paths for validation. Without it, `holdout` of the training comparisons is kept apart."""
    holdout: float = 0.0
    """Share of the training comparisons kept for validation when `valid` is not given. Comparisons of one context stay together."""
    bundled: bool = False
    """Train on the small comparisons that come with the package where `train` names nothing."""
    format: PreferenceFormat = PreferenceFormat.auto
    seq_len: int = 2048
    """Most tokens of a response with its context."""
    max_responses: int = 16
    """Most responses of a comparison; more are a bad record. A micro-batch may have to hold this many times `seq_len` tokens a row."""
    on_long: OnLongResponse = OnLongResponse.drop_turns
    on_marker: OnMarker = OnMarker.keep
    ties: Ties = Ties.keep
    on_bad: OnBad = OnBad.fail
    max_bad_share: float = 0.01
    """Share of the records of a path that may be left out with `on_bad=skip`."""
    default_meta: DefaultMeta = DefaultMeta.moss
    """Meta instruction of records that have none; a record's own is never changed."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in that default."""
    cache: str | None = None
    """Directory that keeps rendered data for the next start; by default MOSS_TRAIN_CACHE, or moss_train in the user's cache directory."""

    def problems(self) -> list[str]:
        found = []
        if self.train is None and not self.bundled:
            found.append("data.train is not set: name a file, directory or glob of comparisons, for example data.train=comparisons.jsonl")
        for key in ("train", "valid"):
            value = getattr(self, key)
            paths = [value] if isinstance(value, str) else value
            if key == "train" and isinstance(value, dict):
                paths = list(value)
                if not all(isinstance(weight, int | float) and weight > 0 for weight in value.values()):
                    found.append(f"data.train is {value!r}; expected weights above zero")
            if paths is not None and not (isinstance(paths, list) and paths and all(isinstance(path, str) and path for path in paths)):
                found.append(f"data.{key} is {value!r}; expected a path or a list of paths")
        if self.seq_len < 8:
            found.append(f"data.seq_len is {self.seq_len}; expected 8 tokens or more")
        if self.max_responses < 2:
            found.append(f"data.max_responses is {self.max_responses}; a comparison has two or more")
        if not 0 <= self.holdout < 1:
            found.append(f"data.holdout is {self.holdout}; expected a share from 0 up to, but not including, 1")
        if not 0 <= self.max_bad_share <= 1:
            found.append(f"data.max_bad_share is {self.max_bad_share}; expected a number from 0 to 1")
        if self.plugins and self.default_meta is DefaultMeta.none:
            found.append("data.plugins has no effect with data.default_meta=none, which gives records no meta instruction; leave one out")
        return found


@dataclass
class ObjectiveConfig:
    """Bradley-Terry and its options; formulas in `model/preference.py`."""

    margin: float = 0.0
    """Difference of rewards that a pair of strength 1 should reach."""
    strength_as_weight: bool = False
    """Multiply the loss of a pair by its strength."""
    label_smoothing: float = 0.0
    """Chance that a label is wrong."""
    centring: float = 0.0
    """Coefficient of the squared sum of the two rewards of a pair, which keeps rewards near zero; 0.01 is usual."""
    lm_coefficient: float = 0.0
    """Coefficient of the language model's loss on the best response of each comparison."""

    def problems(self) -> list[str]:
        found = [
            f"objective.{key} is {getattr(self, key)}; expected zero or more"
            for key in ("margin", "centring", "lm_coefficient")
            if getattr(self, key) < 0
        ]
        if not 0 <= self.label_smoothing < 0.5:
            found.append(f"objective.label_smoothing is {self.label_smoothing}; expected a chance from 0 up to, but not including, 0.5")
        return found


@dataclass
class PMConfig(StageConfig):
    """Everything that `scripts/pm.py` takes."""

    data: ComparisonDataConfig = field(default_factory=ComparisonDataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def problems(self) -> list[str]:
        found = super().problems() + self.data.problems() + self.objective.problems()
        if self.train.z_loss:
            found.append("train.z_loss has no effect on a preference model, which has no logits; leave it out")
        if self.init_from is None and self.data.seq_len > self.model.max_positions:
            found.append(
                f"data.seq_len ({self.data.seq_len}) is longer than model.max_positions ({self.model.max_positions}), "
                "which the rotary table covers"
            )
        return found


@dataclass
class VerifyPMConfig(PMConfig):
    """Everything that `scripts/verify_resume.py stage=pm` takes."""

    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def problems(self) -> list[str]:
        return super().problems() + self.verify.problems()


@dataclass
class PlanPMConfig(PMConfig, PlanOptions):
    """Everything that `scripts/plan.py stage=pm` takes."""

    def problems(self) -> list[str]:
        unnamed = replace(self, data=replace(self.data, bundled=True))
        return PMConfig.problems(unnamed) + self.plan_problems()
