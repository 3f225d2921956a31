"""The report on a preference model's scores as a text for the terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH = 100
_BASELINES = {"random": "random", "longer": "longer wins", "shorter": "shorter wins", "bag_of_words": "bag of words"}


def describe(report: Mapping[str, Any]) -> str:
    """The tables of `preference_report.report`: every accuracy in % beside its interval."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False, color_system=None, markup=False)
    counts = ("comparisons", "contexts", "responses", "pairs", "ties")
    console.print(", ".join(f"{report[name]:,} {name}" for name in counts) + f"; {report['only_ties']:,} comparisons are ties only")
    console.print(_accuracies(report))
    console.print(_baselines(report["baselines"]))
    console.print(_calibration(report["calibration"]))
    margin, ties, length = report["margin"], report["tie_margin"], report["reward_length"]
    console.print(
        f"margin: mean {_number(margin['mean'])}, absolute {_number(margin['mean_absolute'])}; "
        f"below zero {_percent(margin['share_negative'])} %, zero {_percent(margin['share_zero'])} %; "
        f"of ties, absolute {_number(ties['mean_absolute'])}",
        soft_wrap=True,
    )
    console.print(
        f"reward and length: Pearson {_number(length['pearson'])}, Spearman {_number(length['spearman'])}; within contexts "
        f"{_number(length['pearson_within'])}, {_number(length['spearman_within'])}",
        soft_wrap=True,
    )
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def _table(title: str, headings: Sequence[str]) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _accuracies(report: Mapping[str, Any]) -> Any:
    from rich.text import Text

    table = _table("accuracy, in %, each comparison weighing 1", ("", "comparisons", "pairs", "right", "95 %", "interval by"))
    parts = [("all pairs", report["accuracy"])]
    parts += [(f"better is {name}", part) for name, part in report["by_length"].items()]
    parts += [(f"language {name}", part) for name, part in report["by_language"].items()]
    parts += [(f"category {name}", part) for name, part in report["by_category"].items()]
    parts += [(f"K = {name}", part) for name, part in report["by_k"].items()]
    for name, part in parts:
        # Names come from the data: one line, and not too long a one.
        label = Text(" ".join(name.split())[:40])
        table.add_row(label, f"{part['comparisons']:,}", f"{part['pairs']:,}", *_share(part), part["interval_by"] or "-")
    best = report["best_of_k"]
    table.add_row(
        f"best of K ({_percent(best['random'])} at random)", f"{best['comparisons']:,}", "", *_share(best), best["interval_by"] or "-"
    )
    return table


def _baselines(baselines: Mapping[str, Any]) -> Any:
    table = _table("baselines on the same pairs, in %", ("", "right", "95 %", "model minus it", "95 %"))
    for name, shown in _BASELINES.items():
        part = baselines[name]
        if part is None:
            table.add_row(shown, *["-"] * 4)
            continue
        if name == "bag_of_words":
            shown += ", cross-validated" if part["fitted_on"] == "folds" else f", fitted on {part['trained_on']:,}"
        table.add_row(shown, *_share(part), f"{100 * part['difference']:+.1f}", _interval(part["difference_interval"], "+.1f"))
    return table


def _calibration(calibration: Mapping[str, Any]) -> Any:
    table = _table("calibration of sigmoid(margin / T)", ("", "T", "ECE", "ECE, equal mass", "Brier", "log loss"))
    for name, part in calibration.items():
        # Twice the same row says nothing.
        if part is None or (name == "given" and part["temperature"] == calibration["unscaled"]["temperature"]):
            continue
        bound = part.get("bound")
        shown = {"low": "fitted (lower is better still)", "high": "fitted (higher is better still)", "flat": "fitted (all are equal)"}
        figures = (_number(part[key]) for key in ("ece", "ece_equal_mass", "brier", "log_loss"))
        table.add_row(shown.get(bound, name), f"{part['temperature']:.4g}", *figures)
    return table


def _share(part: Mapping[str, Any]) -> tuple[str, str]:
    return _percent(part["accuracy"]), _interval(part["interval"], ".1f")


def _interval(bounds: Sequence[float] | None, form: str) -> str:
    return "-" if bounds is None else "..".join(format(100 * bound, form) for bound in bounds)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
