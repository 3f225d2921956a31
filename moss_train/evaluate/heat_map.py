"""A matrix of shares as a picture: what was asked for in rows, what came of it in columns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

_DARK = 60
"""Percent; cells above it have light figures."""


def heat_map(matrix: Mapping[str, Any], title: str, out: Path | IO[bytes]) -> None:
    """Draws shares in %, as PNG.

    Args:
        matrix: `rows`, `columns` and [rows, columns] `shares`, each None where there is none, as `control_measures.matrix` gives it.
        title: Above it.
        out: File, or where it is written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shares = np.array([[np.nan if one is None else 100 * one for one in row] for row in matrix["shares"]])
    rows, columns = shares.shape
    figure, axes = plt.subplots(figsize=(2.8 + 0.8 * columns, 1.9 + 0.55 * rows), layout="constrained")
    # One scale for all models: where the tag says nothing, the picture is pale.
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row in range(rows):
        for column in range(columns):
            share = shares[row, column]
            shown, color = ("-", "black") if np.isnan(share) else (f"{share:.0f}", "white" if share > _DARK else "black")
            axes.text(column, row, shown, ha="center", va="center", color=color)
    axes.set_xticks(range(columns), [str(one) for one in matrix["columns"]])
    axes.set_yticks(range(rows), [str(one) for one in matrix["rows"]])
    axes.set(xlabel="measured level", ylabel="asked for", title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="% of the row")
    if isinstance(out, Path):
        out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120, format="png")
    plt.close(figure)
