"""Pictures of what a set of dialogues consists of."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train.data.survey import LANGUAGES, Survey

_COLOURS = {"zh": "#c8553d", "en": "#2a6f97", "other": "#8d99ae"}
_WITH_LOSS, _WITHOUT = "#2f9e44", "#ced4da"
_CHINESE_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei")
_BINS = 16
_CATEGORIES_DRAWN = 15


def length_bins(lengths: npt.NDArray[np.integer], seq_len: int) -> list[int]:
    """Edges of bins of equal width that cover all lengths; `seq_len` + 1 is one of them where some are longer.

    A few very long dialogues get one last bin together, so that they do not squeeze the others into the first.
    """
    longest = int(lengths.max(initial=1))
    usual = int(np.percentile(lengths, 99.5)) if len(lengths) else 1
    top = min(longest, max(usual, min(seq_len, longest)))
    width = max(1, -(-top // _BINS))
    step = next(size * 10**power for power in range(9) for size in (1, 2, 5) if size * 10**power >= width)
    edges = list(range(0, top + step + 1, step))
    if longest > seq_len:
        edges = sorted({*(edge for edge in edges if abs(edge - seq_len - 1) > step // 4 or edge == 0), seq_len + 1})
    if edges[-1] <= longest:
        edges.append(longest + 1)
    return edges


def draw_survey(survey: Survey, image: Path) -> None:
    """Draws lengths by language, and tokens with and without loss by category, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import font_manager

    names = _drawn_categories(survey)
    installed = set(font_manager.get_font_names())
    fonts = ["DejaVu Sans", *(name for name in _CHINESE_FONTS if name in installed)]
    with warnings.catch_warnings(), matplotlib.rc_context({"font.family": fonts}):
        # Where no font has a character, a box stands for it.
        warnings.filterwarnings("ignore", message="Glyph")
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, max(4.5, 1.6 + 0.3 * len(names))), layout="constrained")
        _draw_lengths(left, survey)
        _draw_categories(right, survey, names)
        figure.savefig(image, dpi=120, format="png")
        plt.close(figure)


def _draw_lengths(axes: Any, survey: Survey) -> None:
    columns, seq_len = survey.columns(), survey.seq_len
    top = max(2, int(np.percentile(columns.lengths, 99.5)) if len(columns.lengths) else 2)
    edges = np.linspace(0, top, 41)
    # What is longer still stands in the last bar.
    shown = np.minimum(columns.lengths, top)
    parts = {name: shown[columns.language == number] for number, name in enumerate(LANGUAGES)}
    parts = {name: values for name, values in parts.items() if len(values)}
    labels = [f"{name} ({len(values):,})" for name, values in parts.items()]
    if parts:
        axes.hist(list(parts.values()), bins=edges, stacked=True, color=[_COLOURS[name] for name in parts], label=labels)
    if seq_len <= top * 1.5:
        over = float(np.mean(columns.lengths > seq_len))
        axes.axvline(seq_len, color="black", linewidth=1, linestyle="--", label=f"seq_len {seq_len:,} ({over:.1%} longer)")
    longest = int(columns.lengths.max(initial=0))
    rest = f" (the longest has {longest:,}; longer ones than shown are in the last bar)" if longest > top else ""
    axes.set(xlabel=f"tokens of a dialogue{rest}", ylabel="dialogues", title="Length")
    axes.set_xlim(0, max(top, seq_len * 1.02) if seq_len <= top * 1.5 else top)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if parts:
        axes.legend(frameon=False)


def _draw_categories(axes: Any, survey: Survey, names: list[str]) -> None:
    columns = survey.columns()
    tokens, supervised = (
        np.array([values[columns.category == survey.categories.index(name)].sum(dtype=np.int64) for name in names])
        for values in (columns.lengths, columns.supervised)
    )
    places = np.arange(len(names))
    axes.barh(places, supervised, color=_WITH_LOSS, label="with loss")
    axes.barh(places, tokens - supervised, left=supervised, color=_WITHOUT, label="without")
    for place, whole, part in zip(places, tokens, supervised):
        axes.annotate(f"{part / max(1, whole):.0%}", (whole, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    # Text of the data is not markup: a dollar sign would begin a formula.
    axes.set_yticks(places, [name[:30].replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="tokens (and the share with loss)", title="Tokens by category")
    axes.set_xlim(0, 1.12 * max(1, tokens.max(initial=1)))
    axes.tick_params(axis="x", labelrotation=20)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right")


def _drawn_categories(survey: Survey) -> list[str]:
    """Names of the categories with the most tokens, largest first."""
    columns = survey.columns()
    tokens = np.bincount(columns.category, weights=columns.lengths, minlength=len(survey.categories))
    return [survey.categories[number] for number in np.argsort(-tokens, kind="stable")[:_CATEGORIES_DRAWN] if tokens[number]]
