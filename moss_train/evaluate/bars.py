"""A picture of figures: a bar each, with its 95 % interval, and a mark for a baseline where there is one."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_BAR, _BASELINE = "#2a6f97", "#c8553d"
_MOST = 40
"""Bars that are drawn; a picture of more says nothing."""


class Bar(NamedTuple):
    """A figure, as `Measure.describe` gives it, its name, and what a baseline comes to."""

    name: str
    figure: Mapping[str, Any]
    baseline: float | None = None


def draw_bars(title: str, bars: Sequence[Bar], most: float | None = None) -> bytes:
    """Horizontal bars, the first one at the top, as PNG.

    Args:
        title: Above them. bars: Those without a value are left out. most: Where the axis ends.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = [one for one in bars if one.figure["value"] is not None][:_MOST]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.32 * max(1, len(drawn))), layout="constrained")
    for place, one in enumerate(drawn):
        value, interval = one.figure["value"], one.figure["interval"]
        axes.barh(place, value, color=_BAR, alpha=0.45, height=0.7)
        if interval is not None and None not in interval:
            reach = [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
            axes.errorbar(value, place, xerr=reach, fmt="none", ecolor=_BAR, elinewidth=1.2, capsize=2)
        if one.baseline is not None:
            axes.plot([one.baseline] * 2, [place - 0.38, place + 0.38], color=_BASELINE, linewidth=2)
    # A `$` in a name from data would begin mathematics.
    axes.set_yticks(range(len(drawn)), [one.name.replace("$", r"\$")[:40] for one in drawn])
    axes.invert_yaxis()
    axes.set_title(title + (", baseline in red" if any(one.baseline is not None for one in drawn) else ""), fontsize=10)
    axes.set_xlim(0, most)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    plt.close(figure)
    return picture.getvalue()
