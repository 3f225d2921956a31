"""The tables of the task `transfer`: every figure beside chance and its controls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.planting import NOWHERE
from moss_train.evaluate.wordings import SAME, WORD

if TYPE_CHECKING:
    from moss_train.evaluate.transfer import Cell, Share, Transfer

_KINDS = {WORD: "words", SAME: "alike", "all": "all"}


def print_report(cells: list[Cell], transfers: list[Transfer], config: EvaluateConfig) -> None:
    """Prints the tables.

    Args:
        cells, transfers: What was measured. config: How.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    # In a file, and on a narrow terminal, a figure cut short is worse than a long line.
    console.width = max(console.width, 100)
    chance = _percent(1 / config.choices)
    title = f"right answers among {config.choices}, in %; ask={config.ask.value}, normalize={config.normalize.value}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("told > asked", "facts", "right", "95 %", "chance", "control", "gain", "95 %", "words", "alike"):
        table.add_column(heading, justify="left" if heading == "told > asked" else "right", no_wrap=True)
    for cell in cells:
        share = cell.whole.as_json()
        controls = ["-"] * 3
        if cell.planted != NOWHERE and share["gain"] is not None:
            low, high = share["gain_interval"]
            controls = [_percent(share["control_accuracy"]), f"{100 * share['gain']:+.1f}", f"{100 * low:+.0f}..{100 * high:+.0f}"]
        table.add_row(
            f"{cell.planted} > {cell.asked}",
            f"{cell.whole.count:,}",
            _percent(share["accuracy"]),
            "{:.0f}..{:.0f}".format(*(100 * bound for bound in share["interval"])),
            chance,
            *controls,
            *(_part(cell.kinds.get(kind)) for kind in (WORD, SAME)),
        )
    console.print(table)
    console.print(
        "none: told nowhere, the control of what is asked in the same language. words: right where the answer has to be translated; "
        "alike: where it is a name or a year"
    )
    for one in transfers:
        if one.ratio is None or one.interval is None:
            shown = f"not defined, what was told in {one.source} is not surely known in {one.source} itself"
        else:
            shown = f"{one.ratio:.2f} ({one.interval[0]:.2f} to {one.interval[1]:.2f})"
        only = f"{one.source} only {one.source_only}, {one.target} only {one.target_only}"
        console.print(
            f"transfer {one.source} > {one.target}, {_KINDS[one.kind]}: {shown}; right in both {one.both}, {only}, neither {one.neither}"
        )
    console.print("transfer: (cross - control) / (same - control); 0 is none, 1 is as well known as in its own language")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _part(share: Share | None) -> str:
    return "-" if share is None or not share.count else _percent(share.right / share.count)
