"""Figures that suites report alike: each a ratio of two sums over items, with its interval, and comparable with that of another model.

An item is what is drawn together when an interval is made: a document, a dialogue, a prompt. Turns of one dialogue are not independent of
each other, so they are one item. Since every figure is kept as its parts by item, two evaluations of the same items are compared item by
item (`difference`), which is far sharper than holding two intervals side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from moss_train.evaluate.intervals import clustered_share, ratio_of_sums, resample_ratios

Parts = dict[str, tuple[float, float]]
"""Item -> what it adds to the upper and to the lower sum."""


class Form(StrEnum):
    """What a ratio is."""

    share = "share"
    """From 0 to 1."""
    mean = "mean"
    exp = "exp"
    """The exponential of the ratio, such as a perplexity of a mean loss."""


@dataclass
class Measure:
    """A figure by its parts.

    Attributes:
        form: What the ratio is.
        better: `higher`, `lower`, or None where neither is.
        by_token: It depends on how text is cut into tokens, and models with different tokenizers are not comparable by it.
        parts: By item; items without weight are left out.
    """

    form: Form = Form.share
    better: str | None = "higher"
    by_token: bool = False
    parts: Parts = field(default_factory=dict)

    def add(self, item: str, part: float, weight: float) -> None:
        """Adds to an item."""
        if weight > 0:
            before = self.parts.get(item, (0.0, 0.0))
            self.parts[item] = (before[0] + float(part), before[1] + float(weight))

    @property
    def value(self) -> float | None:
        """The figure; None of nothing, and where it is beyond what a float holds."""
        weight = math.fsum(one for _, one in self.parts.values())
        return self._shape(math.fsum(one for one, _ in self.parts.values()) / weight) if weight else None

    def _shape(self, ratio: float) -> float | None:
        if self.form is not Form.exp:
            return ratio
        return math.exp(ratio) if ratio < 700 else None

    def describe(self, seed: int = 0) -> dict[str, Any]:
        """For report.json: `value`, `interval` at 95 %, `interval_by`, `items`, `weight`, and what kind of figure it is."""
        kind = {"form": self.form.value, "better": self.better, "by_token": self.by_token}
        weights = {"items": len(self.parts), "weight": math.fsum(one for _, one in self.parts.values())}
        if self.value is None:
            return {"value": None, "interval": None, "interval_by": None, **weights, **kind}
        part, weight = np.array(list(self.parts.values())).T
        if self.form is Form.share:
            low, high, method = clustered_share(part, weight, seed)
        elif len(self.parts) == 1:
            # Of one item nothing is known of how others differ from it.
            return {"value": self.value, "interval": None, "interval_by": None, **weights, **kind}
        else:
            (low, high), method = ratio_of_sums(part, weight, seed), "bootstrap"
        return {"value": self.value, "interval": [self._shape(low), self._shape(high)], "interval_by": method, **weights, **kind}


def difference(first: Measure, other: Measure, seed: int = 0) -> dict[str, Any] | None:
    """The other figure less the first one, with its 95 % interval: items are drawn together with what both models made of them.

    Args:
        first, other: The same figure of two models. seed: Of the resampling.

    Returns:
        `value`, `interval`, `items`; None where they have no item in common. An item that only one of them has is left out.
    """
    items = [item for item in first.parts if item in other.parts]
    if not items:
        return None
    parts = np.array([(*first.parts[item], *other.parts[item]) for item in items])
    sums = parts.sum(0)
    drawn = resample_ratios(parts, seed)
    ratios = [sums[0] / sums[1], sums[2] / sums[3]]
    columns = [drawn[:, 0] / drawn[:, 1], drawn[:, 2] / drawn[:, 3]]
    if first.form is Form.exp:
        ratios, columns = [math.exp(min(one, 700)) for one in ratios], [np.exp(np.minimum(one, 700)) for one in columns]
    low, high = np.percentile(columns[1] - columns[0], [2.5, 97.5])
    found = {"value": float(ratios[1] - ratios[0]), "items": len(items)}
    return {**found, "interval": [float(low), float(high)] if len(items) > 1 else None}


def by_item(measures: Mapping[str, Measure]) -> dict[str, dict[str, list[float]]]:
    """Item -> figure -> its part and weight: what `items.jsonl` holds."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, measure in measures.items():
        for item, pair in measure.parts.items():
            found.setdefault(item, {})[name] = list(pair)
    return found
