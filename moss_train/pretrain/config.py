"""Settings of continued pretraining on corpora."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from moss_train.config import StageConfig, TrainConfig, VerifyConfig
from moss_train.train.config import PlanOptions


class WeighBy(StrEnum):
    """What the weights of a mixture count."""

    tokens = "tokens"
    """Shares of the tokens that are trained on."""
    documents = "documents"
    """Shares of the documents: a source of long documents gets more tokens than one of short ones of the same weight."""
    epochs = "epochs"
    """Passes over each source, relative to one another; with `train.epochs=1` exactly so many."""


@dataclass
class PhaseConfig:
    """A stretch of a run with weights of its own."""

    tokens: float | None = None
    """Its length; null in the last phase: to the end of the run."""
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class CorpusDataConfig:
    """Which corpora, and how they are mixed.

    Where weights are asked for, a key is the name of a source, or a language (all of its sources, in proportion to their tokens, or to
    what `weigh_by` says); in `train` it is a path. What is not named is left out.
    """

    train: Any = None
    """A directory that scripts/prepare.py wrote, a list of them, or `{path: weight}`. Text (JSONL, Parquet, a tree of files) is taken too:
    it is prepared first, and kept in the cache."""
    valid: Any = None
    """The same for validation. Without it, `holdout` of each source is kept apart."""
    holdout: float = 0.0
    """Share of the windows of each source, at its end, kept for validation when `valid` is not given."""
    valid_tokens: int = 1_000_000
    """Tokens of each source that an evaluation looks at, at most: windows evenly spread over it."""
    bundled: bool = False
    """Train on the small texts that come with the package where `train` names nothing."""
    seq_len: int = 2048
    """Tokens of a window."""
    weights: dict[str, float] = field(default_factory=dict)
    """Of the mixture; by default each source in proportion to its tokens. `{zh: 0.7, en: 0.1, code: 0.2}`."""
    weigh_by: WeighBy = WeighBy.tokens
    phases: list[PhaseConfig] = field(default_factory=list)
    """Weights that change with the tokens seen, instead of `weights`: `[{tokens: 1e11, weights: {zh: 1}}, {weights: {zh: 3, en: 1}}]`."""
    max_epochs: float | None = 4.0
    """Passes over any source that a run may ask for; more is an error. Up to four cost little against new data (Muennighoff et al. 2023,
    arXiv 2305.16264). null: no limit."""
    loss_weights: dict[str, float] = field(default_factory=dict)
    """What a token of a source counts in the loss, apart from how often it is sampled; 1 by default."""
    cache: str | None = None
    """Directory that keeps what is prepared from text; by default MOSS_TRAIN_CACHE, or moss_train in the user's cache directory."""

    def problems(self) -> list[str]:
        found = []
        for key, value, mixes in (("train", self.train, True), ("valid", self.valid, False)):
            if value is not None and not is_paths(value) and not (mixes and isinstance(value, dict) and _are_weights(value)):
                expected = "a path, a list of paths, or {path: weight}" if mixes else "a path or a list of paths"
                found.append(f"data.{key} is {value!r}; expected {expected}")
        if self.train is None and not self.bundled:
            found.append("data.train is not set: name a corpus that scripts/prepare.py wrote, for example data.train=corpora/mix")
        if self.seq_len < 8:
            found.append(f"data.seq_len is {self.seq_len}; expected 8 tokens or more")
        if not 0 <= self.holdout < 1:
            found.append(f"data.holdout is {self.holdout}; expected a share from 0 up to, but not including, 1")
        if self.valid_tokens < 1:
            found.append(f"data.valid_tokens is {self.valid_tokens}; expected a number above zero")
        if self.max_epochs is not None and self.max_epochs <= 0:
            found.append(f"data.max_epochs is {self.max_epochs}; expected a number above zero, or null for no limit")
        given = {
            "data.weights": self.weights,
            "data.train": self.train if isinstance(self.train, dict) else {},
            **{f"data.phases[{number}].weights": phase.weights for number, phase in enumerate(self.phases)},
        }
        for key, weights in given.items():
            if key.startswith("data.phases") and not weights:
                found.append(f"{key} is empty; expected a weight for every source or language of that phase")
            elif weights and not _are_weights(weights):
                found.append(f"{key} is {weights}; expected numbers of zero or more")
            elif weights and not any(weights.values()):
                found.append(f"{key} sums to nothing ({weights}); give at least one source a weight above zero")
        if not _are_weights(self.loss_weights):
            found.append(f"data.loss_weights is {self.loss_weights}; expected numbers of zero or more")
        used = [key for key in ("data.weights", "data.train") if given[key]] + (["data.phases"] if self.phases else [])
        if len(used) > 1:
            found.append(f"{' and '.join(used)} both give weights; expected one of them")
        for number, phase in enumerate(self.phases):
            last = number == len(self.phases) - 1
            if phase.tokens is None and not last:
                found.append(f"data.phases[{number}].tokens is null; only the last phase goes on to the end")
            elif phase.tokens is not None and not 0 < phase.tokens < math.inf:
                found.append(f"data.phases[{number}].tokens is {phase.tokens}; expected a number above zero")
        return found

    @property
    def phase_tokens(self) -> float | None:
        """Length of all phases together; None where there are none, or the last has no end."""
        lengths = [phase.tokens for phase in self.phases]
        return sum(one for one in lengths if one is not None) if lengths and lengths[-1] is not None else None


def is_paths(value: Any) -> bool:
    """Whether a value is a path or a list of paths."""
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value)


def _are_weights(value: dict[Any, Any]) -> bool:
    return all(isinstance(key, str) and key for key in value) and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf for weight in value.values()
    )


@dataclass
class PretrainTrainConfig(TrainConfig):
    """Length, batch sizes and rhythm of a pretraining run."""

    tokens: float | None = None
    """Tokens of the run, rounded up to whole steps; exclusive with `steps` and `epochs`."""

    def lengths(self) -> dict[str, float | None]:
        return {**super().lengths(), "tokens": self.tokens}


@dataclass
class PretrainConfig(StageConfig):
    """Everything that `scripts/pretrain.py` takes."""

    data: CorpusDataConfig = field(default_factory=CorpusDataConfig)
    train: PretrainTrainConfig = field(default_factory=PretrainTrainConfig)

    def __post_init__(self) -> None:
        # Phases that all have a length say how long the run is.
        if self.data.phase_tokens is not None and not any(self.train.lengths().values()):
            self.train.tokens = self.data.phase_tokens

    def problems(self) -> list[str]:
        found = super().problems() + self.data.problems()
        if self.init_from is None and self.data.seq_len > self.model.max_positions:
            found.append(
                f"data.seq_len ({self.data.seq_len}) is longer than model.max_positions ({self.model.max_positions}), "
                "which the rotary table covers"
            )
        return found


@dataclass
class VerifyPretrainConfig(PretrainConfig):
    """Everything that `scripts/verify_resume.py stage=pretrain` takes."""

    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def problems(self) -> list[str]:
        return super().problems() + self.verify.problems()


@dataclass
class PlanPretrainConfig(PretrainConfig, PlanOptions):
    """Everything that `scripts/plan.py` takes for this stage."""

    def problems(self) -> list[str]:
        # No data is read, so none need be named.
        unnamed = replace(self, data=replace(self.data, bundled=True))
        return PretrainConfig.problems(unnamed) + self.plan_problems()
