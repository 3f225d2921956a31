"""`data stats`: what a set of dialogues consists of: tokens, lengths, packing, repetition, failed tools."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from moss_train.data.charts import draw_survey, length_bins
from moss_train.data.new_file import NewFile
from moss_train.data.repeats import Repeats, conversation_of, opening_of
from moss_train.data.selection import add_reading, add_rendering, open_tokenizer, select
from moss_train.data.survey import BATCH, Survey, compare, summarise
from moss_train.data.terminal import Screen, bar, count, visible
from moss_train.errors import DataError, UsageError

HELP = "tokens, lengths, packing, repetition, failed tools"
DESCRIPTION = """Renders the dialogues as training does and counts: by category and language, how long they are, what --seq-len cuts off,
how full rows get, what stands there twice or in --valid too, and how often tools failed. Bad records are left out and counted."""
_HEAD = "bold cyan"
_BAR_WIDTH = 40
_PAIRS_SHOWN = 3
_WIDE = 110
"""Columns of a terminal from which all statistics of length have room."""
_NAME_WIDTH = 24


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `stats`."""
    add_reading(command)
    add_rendering(command, "a small one trained on the data itself")
    command.add_argument("--seq-len", type=int, default=2048, metavar="N", help="tokens of a row (default: 2048)")
    command.add_argument("--valid", action="append", metavar="PATH", help="validation data, to look for in the rest; may be repeated")
    command.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    command.add_argument("--plot", type=Path, metavar="FILE.png", help="draw lengths and tokens by category")


def stats(arguments: argparse.Namespace) -> int:
    """The `stats` subcommand; returns the exit code."""
    if arguments.seq_len < 2:
        raise UsageError(f"--seq-len is {arguments.seq_len}; expected 2 tokens or more.")
    if arguments.plot is not None and arguments.plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {arguments.plot}: expected a name that ends in .png.")
    selection = select(arguments)
    valid = select(arguments, arguments.valid) if arguments.valid else None
    tokenizer = open_tokenizer(arguments.tokenizer, selection)
    survey = Survey(arguments.seq_len, arguments.loss_on, arguments.on_marker)
    survey.read(selection, tokenizer)
    if not len(survey.conversations):
        raise DataError(f"{', '.join(selection.specs)}: no dialogue can be read; `data check` says what is wrong with the records.")
    settings = {
        "paths": list(selection.specs),
        "tokenizer": arguments.tokenizer or "trained on the data",
        "vocabulary": tokenizer.size,
        "seq_len": arguments.seq_len,
        "loss_on": arguments.loss_on,
    }
    summary = {**settings, **summarise(survey)}
    if valid is not None:
        conversations, openings = Repeats(), Repeats()
        for example in valid.examples(lambda error: None):
            conversations.add(conversation_of(example.dialogue), example.dialogue.origin)
            openings.add(opening_of(example.dialogue), example.dialogue.origin)
        summary["valid"] = compare(survey, conversations, openings, _PAIRS_SHOWN)
    if arguments.plot is not None:
        with NewFile(arguments.plot, replace=True) as image:
            draw_survey(survey, image.partial)
    if arguments.json:
        print(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        _print(Screen(highlight=False, width=_width()), survey, summary)
        if arguments.plot is not None:
            print(f"drawn: {arguments.plot}")
    return 0


def _width() -> int | None:
    """None for a terminal's own width; files and pipes get a fixed one, so that tables are whole there."""
    return None if Screen().is_terminal else 120


def _print(console: Console, survey: Survey, summary: Mapping[str, Any]) -> None:
    formats = ", ".join(f"{name} {number:,}" for name, number in summary["formats"].items())
    console.print(f"{count(summary['records'], 'record')} (by format: {formats})", markup=False, soft_wrap=True)
    if summary["bad"]:
        bad = ", ".join(f"{code} {number:,}" for code, number in summary["bad"].items())
        console.print(f"left out, bad: {bad}; `data check` says where", style="bold yellow", markup=False)
    if summary["no_loss"]:
        console.print(f"left out, no token with loss: {summary['no_loss']:,} dialogues", style="bold yellow")
    console.print(
        f"vocabulary {summary['vocabulary']:,} ({summary['tokenizer']}), loss_on={summary['loss_on']}, seq_len={summary['seq_len']}",
        markup=False,
        soft_wrap=True,
    )
    console.print()
    _print_groups(console, summary)
    _print_lengths(console, survey, summary)
    _print_rows(console, summary)
    _print_repetition(console, summary)
    _print_tools(console, summary["tools"])


def _print_groups(console: Console, summary: Mapping[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style=_HEAD, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True, max_width=_NAME_WIDTH)
    lengths = {"mean": "mean", "p50": "median", "p90": "90%", "p99": "99%", "max": "longest"}
    if console.width < _WIDE:
        lengths = {key: name for key, name in lengths.items() if key in ("p50", "p90", "max")}
    for name in ("dialogues", "turns", "tokens", "with loss", "share", *lengths.values()):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, group: Mapping[str, Any], style: str | None = None) -> None:
        counts = [f"{group[key]:,}" for key in ("dialogues", "turns", "tokens", "supervised_tokens")]
        shown = [f"{round(group['length'][key]):,}" for key in lengths]
        table.add_row(visible(name), *counts, f"{group['supervised_share']:.1%}", *shown, style=style)

    for kind in ("categories", "languages"):
        if len(summary[kind]) > 1 or kind == "languages":
            for name, group in summary[kind].items():
                add(name, group)
            table.add_section()
            table.add_row("")
    add("all", summary["all"], "bold")
    console.print(table)
    console.print()


def _print_lengths(console: Console, survey: Survey, summary: Mapping[str, Any]) -> None:
    """Dialogues by length, one line a bin."""
    lengths = survey.columns().lengths
    edges = length_bins(lengths, summary["seq_len"])
    counts, _ = np.histogram(lengths, edges)
    console.print("length in tokens", style=_HEAD)
    label = max(len(f"{edge:,}") for edge in edges)
    for low, high, number in list(zip(edges[:-1], edges[1:], counts))[int(np.flatnonzero(counts)[0]) if counts.any() else 0 :]:
        beyond = low >= summary["seq_len"]
        drawn = bar(number / max(1, counts.max()), _BAR_WIDTH)
        line = f"{low:>{label},} to {high - 1:>{label},}  {drawn:<{_BAR_WIDTH}} {number:>7,}"
        console.print(line + ("  > seq_len" if beyond else ""), style="yellow" if beyond and number else None, markup=False)
    console.print()


def _print_rows(console: Console, summary: Mapping[str, Any]) -> None:
    packing, cut, seq_len = summary["packing"], summary["truncation"], summary["seq_len"]
    console.print(f"rows of {seq_len:,} tokens, best fit; against batches of {BATCH} padded to their longest", style=_HEAD)
    longer = f"{cut['longer_dialogues']:,} of {summary['all']['dialogues']:,} dialogues are longer"
    if cut["longer_dialogues"]:
        console.print(
            f"{longer}: dropping whole turns loses {cut['lost_turns']:,} turns and {cut['lost_supervised_tokens']:,} tokens with loss "
            f"({cut['lost_supervised_share']:.2%}); dialogues lost whole: {cut['dropped_dialogues']:,}",
            markup=False,
            soft_wrap=True,
        )
    else:
        console.print(f"{longer}: nothing is cut off")
    if not packing["rows"]:
        console.print()
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for justify in ("left", "right", "left", "right", "left"):
        table.add_column(justify=justify)
    packed, padded = packing["positions"], packing["padded_positions"]
    batches = f"{count(packing['padded_batches'], 'batch', 'batches')}"
    for name, number, fill, positions in (
        ("packed", count(packing["rows"], "row"), packing["fill"], packed),
        ("padded", batches, packing["padded_fill"], padded),
    ):
        table.add_row(name, number, f"{fill:.1%} filled", f"{positions:,} positions", bar(positions / max(packed, padded), 12))
    console.print(table)
    console.print()


def _print_repetition(console: Console, summary: Mapping[str, Any]) -> None:
    repeats, total = summary["duplicates"], summary["all"]["dialogues"]
    console.print("repetition", style=_HEAD)
    console.print(f"the same dialogue as one before: {repeats['dialogues']:,} of {total:,}")
    console.print(f"the same first human message as one before: {repeats['first_messages']:,}")
    valid = summary.get("valid")
    if valid is not None:
        style = "bold red" if valid["also_in_train"] else None
        console.print(
            f"validation dialogues that are in the training data: {valid['also_in_train']:,} of {valid['dialogues']:,}", style=style
        )
        for here, there in valid["examples"]:
            console.print(f"  {visible(here)} is {visible(there)}", markup=False, soft_wrap=True)
        console.print(f"validation dialogues with a first human message of the training data: {valid['first_message_also_in_train']:,}")
    console.print()


def _print_tools(console: Console, tools: Mapping[str, Mapping[str, int]]) -> None:
    if not tools:
        return
    table = Table(box=None, pad_edge=False, header_style=_HEAD, padding=(0, 2, 0, 0))
    table.add_column("tool")
    for name in ("turns", "failed", "share", "reply states a value then"):
        table.add_column(name, justify="right")
    for tool, counts in sorted(tools.items(), key=lambda item: (-item[1]["turns"], item[0])):
        share = f"{counts['failed'] / counts['turns']:.1%}"
        table.add_row(visible(tool), f"{counts['turns']:,}", f"{counts['failed']:,}", share, f"{counts['invented']:,}")
    console.print(table)
