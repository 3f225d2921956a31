"""Settings of tagging."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

from moss_train.pm.levels import LevelsBy


@dataclass
class TagConfig:
    """What `scripts/tag.py` takes."""

    scored: str = "???"
    """Responses or dialogues with rewards, as `scripts/score.py` writes them; `FILE#N` takes the first N lines."""
    out: str = "???"
    """File of dialogues to write, each reply with its level. OUT.tagging.json says what the levels are."""
    by: LevelsBy = LevelsBy.quantiles
    levels: int = 5
    """How many; the highest is the best."""
    thresholds: list[float] = field(default_factory=list)
    """For by=thresholds: rewards, ascending, one less than there are levels."""
    within: float = 0.5
    """For by=blended: weight of the place among the responses to the same context, the rest being that of the place among all."""
    abstain: float = 0.0
    """Responses nearer to a threshold than this get no level: in standard deviations of the rewards, with by=blended in places (0 to 1)."""
    frozen: str | None = None
    """An earlier OUT.tagging.json, whose levels are taken as they are: what decides about levels is then not set here."""
    previous: str | None = None
    """An earlier OUT.tagging.json to compare with: how many responses have another level than they would have had by that one."""
    unfinished: bool = False
    """Tag responses too that were cut off; by default they are left out, for a reply to train on has an end."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if self.frozen is not None and (self.by, self.levels, self.thresholds, self.within, self.abstain) != (
            LevelsBy.quantiles,
            5,
            [],
            0.5,
            0.0,
        ):
            found.append("frozen brings its own levels: leave out by, levels, thresholds, within and abstain")
        if self.levels < 2:
            found.append(f"levels is {self.levels}; expected 2 or more")
        if self.thresholds and self.by is not LevelsBy.thresholds:
            found.append("thresholds have an effect with by=thresholds only; leave them out")
        if self.by is LevelsBy.thresholds:
            ascending = all(a < b for a, b in pairwise(self.thresholds))
            if len(self.thresholds) != self.levels - 1 or not ascending or not all(map(math.isfinite, self.thresholds)):
                found.append(f"thresholds are {self.thresholds}; expected {self.levels - 1} numbers that ascend, for levels={self.levels}")
        if not 0 <= self.within <= 1:
            found.append(f"within is {self.within}; expected a number from 0 to 1")
        if not (math.isfinite(self.abstain) and self.abstain >= 0):
            found.append(f"abstain is {self.abstain}; expected zero or more")
        return found
