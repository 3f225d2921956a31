"""What a suite has found, and how it is written: a table, JSON that names the machine, a bar chart."""

from __future__ import annotations

import io
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from moss_train.cores import cores

_PACKAGES = ("torch", "deepspeed", "transformers", "flash-attn", "liger-kernel", "triton", "trl", "datatrove", "gigatoken")
_OURS, _OTHERS = "#2a6f97", "#9aa5b1"


@dataclass(frozen=True)
class Row:
    """One side in one case.

    Attributes:
        case: What was done, such as `packed, head size 64`. side: Who did it.
        value: In the unit of the table; None where it could not be run, which `note` explains.
        ratio: `median`, `min` and `max` of how it stands to the side that ratios are over, in which more is better. None for that one.
        peak: Bytes by which memory grew, where that was measured.
        ours: Whether it is this project.
    """

    case: str
    side: str
    value: float | None
    ratio: dict[str, float] | None = None
    peak: int | None = None
    ours: bool = False
    note: str = ""


@dataclass
class Outcome:
    """What a suite has found.

    Attributes:
        suite: Its name. unit: Of the values. rows: In the order of the table. over: The side that ratios are over; empty
            where there is none.
        figures: Single numbers that claims are held against, by name.
        not_run: What was asked for and could not be run, with the reason.
        settings: What the figures depend on, besides the machine.
    """

    suite: str
    unit: str
    over: str
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything, and the machine."""
        return {**asdict(self), "machine": machine()}


def machine() -> dict[str, Any]:
    """The hardware, the versions, the commit, and what else ran."""
    import torch

    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found: dict[str, Any] = {
        "cpu": named[0] if named else platform.machine(),
        "cores": cores(),
        "matrix_instructions": sorted(flag for flag in flags if flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: one for name in _PACKAGES if (one := _version(name))},
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the source tree, and whether it was changed since; None where there is none."""
    tree = Path(__file__).parents[2]
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (subprocess.run(one, cwd=tree, capture_output=True, text=True, check=True).stdout.strip() for one in commands)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changes else "")


def describe(outcome: Outcome) -> str:
    """The table as Markdown that can be read in a terminal too."""
    has_peak = any(row.peak is not None for row in outcome.rows)
    has_ratio = bool(outcome.over)
    headings = ["case", "side", outcome.unit, *[f"times {outcome.over}"] * has_ratio, *["peak memory, MiB"] * has_peak]
    lines = [
        [row.case, row.side, number(row.value), *[_ratio(row)] * has_ratio, *[_mebibytes(row.peak)] * has_peak] for row in outcome.rows
    ]
    widths = [max(len(line[place]) for line in (headings, *lines)) for place in range(len(headings))]

    def show(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(zip(cells, widths))]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if place < 2 else f"{'-' * (width - 1)}:" for place, width in enumerate(widths)]
    told = [f"## {outcome.suite}", "", show(headings), show(rule), *map(show, lines)]
    told += ["", *(f"- {name}: {number(value)}" for name, value in outcome.figures.items())] if outcome.figures else []
    told += ["", *(f"- not run: {name}: {why}" for name, why in outcome.not_run.items())] if outcome.not_run else []
    return "\n".join(told) + "\n"


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "1" if row.value is not None else row.note or "-"
    return f"{row.ratio['median']:.2f} ({row.ratio['min']:.2f} to {row.ratio['max']:.2f})"


def _mebibytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 2**20:,.0f}"


def draw(outcome: Outcome) -> bytes:
    """Bars of the values, this project's in another colour, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in outcome.rows if row.value is not None]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.32 * max(1, len(rows))), layout="constrained")
    for place, row in enumerate(rows):
        axes.barh(place, row.value or 0, color=_OURS if row.ours else _OTHERS, height=0.7)
        beside = "" if row.ratio is None else f"  x {row.ratio['median']:.2f}"
        axes.annotate(f" {number(row.value)}{beside}", (row.value or 0, place), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row.case}: {row.side}" if row.case else row.side for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(f"{outcome.unit}; x: times {outcome.over}" if outcome.over else outcome.unit, fontsize=9)
    axes.set_title(outcome.suite, fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    plt.close(figure)
    return picture.getvalue()
