"""The reliability diagram: how often a preference model is right, by how sure it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_BAR, _GAP = "#2a6f97", "#c8553d"


def reliability_diagram(report: Mapping[str, Any], out: Path | IO[bytes]) -> None:
    """Draws accuracy by confidence, and pairs by bin, before and after the temperature, as PNG.

    After: at the given temperature, where that is not 1, and at the fitted one otherwise.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    calibration = report["calibration"]
    after = ("given", calibration["given"])
    if calibration["given"]["temperature"] == 1 and calibration["fitted"] is not None:
        after = ("fitted on these pairs", calibration["fitted"])
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 6.5), sharex=True, sharey="row", gridspec_kw={"height_ratios": [3, 1]}, layout="constrained"
    )
    for column, (name, drawn) in enumerate((("before", calibration["unscaled"]), after)):
        _draw_accuracy(axes[0, column], name, drawn)
        _draw_counts(axes[1, column], drawn)
    axes[0, 0].set_ylabel("accuracy: the better response has the larger reward")
    tallest = max(one["pairs"] for drawn in (calibration["unscaled"], after[1]) for one in drawn["bins"])
    axes[1, 0].set(ylabel="pairs", ylim=(0, max(1, 1.2 * tallest)))
    # Outside: bars and intervals fill the axes.
    figure.legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    if isinstance(out, Path):
        out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, format="png")
    plt.close(figure)


def _draw_accuracy(axes: Any, name: str, drawn: Mapping[str, Any]) -> None:
    bins = [one for one in drawn["bins"] if one["accuracy"] is not None]
    width = drawn["bins"][0]["high"] - drawn["bins"][0]["low"]
    middles = [(one["low"] + one["high"]) / 2 for one in bins]
    axes.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, linestyle="--", label="calibrated")
    if bins:
        accuracy = [one["accuracy"] for one in bins]
        axes.bar(middles, accuracy, width=0.92 * width, color=_BAR, alpha=0.35, label="accuracy, with its 95 % interval")
        reach = [
            [max(0.0, one["accuracy"] - one["interval"][0]) for one in bins],
            [max(0.0, one["interval"][1] - one["accuracy"]) for one in bins],
        ]
        axes.errorbar(middles, accuracy, yerr=reach, fmt="none", ecolor=_BAR, elinewidth=1.2, capsize=2)
        axes.plot(
            [one["confidence"] for one in bins], accuracy, color=_GAP, marker="o", markersize=4, linewidth=1.2, label="at mean confidence"
        )
    figures = "no pairs" if drawn["ece"] is None else f"ECE {drawn['ece']:.3f}, log loss {drawn['log_loss']:.3f}"
    axes.set(title=f"{name}: temperature {drawn['temperature']:.3g}\n{figures}", xlim=(0.5, 1), ylim=(0, 1.02))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_counts(axes: Any, drawn: Mapping[str, Any]) -> None:
    for one in drawn["bins"]:
        middle, width = (one["low"] + one["high"]) / 2, one["high"] - one["low"]
        axes.bar(middle, one["pairs"], width=0.92 * width, color=_BAR)
        if one["pairs"]:
            label = f"{one['pairs']:,}"
            axes.annotate(label, (middle, one["pairs"]), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("confidence, max(p, 1 - p)")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
