"""`data check`: reads and parses everything as training does, and says what is wrong, by file and line."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from moss_train.data.dialogue import Dialogue
from moss_train.data.lint import EXPLANATIONS, Warnings
from moss_train.data.new_file import NewFile
from moss_train.data.records import ProblemList, RecordError
from moss_train.data.render import LENGTH_POLICIES, render_each
from moss_train.data.selection import add_reading, add_rendering, open_tokenizer, select
from moss_train.data.terminal import Screen, count, visible
from moss_train.errors import DataError, UsageError

HELP = "read everything and say what is wrong, by file and line"
DESCRIPTION = """Reads and parses records as training does. Prints the first 20 problems as `file:line: code: what, found, expected, fix`,
totals, and warnings about what can be trained on but looks wrong. Exit code 0 when every record is good, 3 otherwise; warnings do not
change it. With --tokenizer it also renders, and says what --seq-len would cost."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `check`."""
    add_reading(command)
    command.add_argument("--rejects", type=Path, metavar="FILE", help='write bad records to it, one {"origin", "code", "problem"} a line')
    add_rendering(command, "nothing is rendered")
    command.add_argument("--seq-len", type=int, default=2048, metavar="N", help="tokens of a row (default: 2048)")
    command.add_argument("--on-long", choices=LENGTH_POLICIES, default="drop_turns", help="longer dialogues (default: drop_turns)")
    command.add_argument("--no-warnings", action="store_true", help="leave the warnings out")


def check(arguments: argparse.Namespace) -> int:
    """The `check` subcommand; returns the exit code."""
    if arguments.seq_len < 2:
        raise UsageError(f"--seq-len is {arguments.seq_len}; expected 2 tokens or more.")
    selection = select(arguments)
    tokenizer = open_tokenizer(arguments.tokenizer, selection) if arguments.tokenizer is not None else None
    read: Counter[str] = Counter()
    by_format: Counter[str] = Counter()
    rendered: Counter[str] = Counter()
    problems, warnings = ProblemList(), Warnings()

    with ExitStack() as stack:
        rejects = stack.enter_context(NewFile(arguments.rejects, replace=True)).open() if arguments.rejects is not None else None

        def note(error: RecordError) -> None:
            problems.add(error)
            if rejects is not None:
                _write_reject(rejects, error)

        def dialogues() -> Iterator[Dialogue]:
            for example in selection.examples(note, read):
                by_format[example.format] += 1
                if not arguments.no_warnings:
                    warnings.add(example.dialogue, example.own_meta)
                yield example.dialogue

        if tokenizer is None:
            for _ in dialogues():
                pass
        else:
            policies = (arguments.loss_on, arguments.seq_len, arguments.on_marker, arguments.on_long)
            for _ in render_each(dialogues(), tokenizer, rendered, *policies, on_error=note):
                pass
    warnings.finish()

    bad = problems.counts.total()
    # Whoever has read enough of the report ends it, and the exit code stays what it is.
    with suppress(BrokenPipeError):
        console = Screen(highlight=False, soft_wrap=True)
        if bad:
            console.print(visible(problems.describe()), markup=False)
            console.print()
        _print_warnings(console, warnings)
        if tokenizer is not None:
            _print_rendered(console, rendered, arguments)
        formats = ", ".join(f"{name} {number:,}" for name, number in by_format.most_common()) or "none"
        console.print(f"{count(read['records'], 'record')}, {count(by_format.total(), 'dialogue')} (by format: {formats})", markup=False)
        if arguments.rejects is not None:
            console.print(f"bad records are listed in {arguments.rejects}", markup=False)
        noted = count(warnings.counts.total(), "warning") if warnings.counts else "no warnings"
        if bad:
            console.print(f"NOT OK: {bad:,} bad; repair them, or train with data.on_bad=skip; {noted}", style="bold red", markup=False)
        else:
            console.print(f"OK: nothing is wrong; {noted}", style="bold yellow" if warnings.counts else "bold green", markup=False)
    return DataError.exit_code if bad else 0


def _write_reject(file: IO[bytes], error: RecordError) -> None:
    # The message repeats origin and code; what is left is the problem.
    problem = str(error).removeprefix(f"{error.origin}: {error.code}: ")
    line = json.dumps({"origin": error.origin, "code": error.code, "problem": problem}, ensure_ascii=False)
    file.write(line.encode("utf-8", "backslashreplace") + b"\n")


def _print_warnings(console: Console, warnings: Warnings) -> None:
    if not warnings.counts:
        return
    console.print("warnings (these records can be trained on; look at them)", style="bold yellow")
    for code in (code for code in EXPLANATIONS if warnings.counts[code]):
        total, examples = warnings.counts[code], warnings.examples[code]
        console.print(f"  {code} {total:,}: {EXPLANATIONS[code]}", style="yellow", markup=False)
        for example in examples:
            console.print(f"    {visible(example)}", markup=False)
        if total > len(examples):
            console.print(f"    ... and {total - len(examples):,} more")
    console.print()


def _print_rendered(console: Console, counts: Counter[str], arguments: argparse.Namespace) -> None:
    """What training on these dialogues would keep and lose."""
    console.print(
        f"rendered with --seq-len {arguments.seq_len}, --on-long {arguments.on_long}, --loss-on {arguments.loss_on}", style="bold"
    )
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2))
    table.add_column()
    for _ in range(2):
        table.add_column(justify="right")
    supervised, lost = counts["supervised_tokens"], counts["supervised_tokens_dropped"]
    tokens, tokens_lost = counts["tokens"], counts["tokens_dropped"]
    rows = [
        ("dialogues kept", counts["dialogues_rendered"], counts["dialogues"]),
        ("  of them shortened by whole turns", counts["dialogues_shortened"], counts["dialogues"]),
        ("dropped: the first turn is too long", counts["dialogues_dropped_first_turn_too_long"], counts["dialogues"]),
        ("dropped: too long", counts["dialogues_dropped_too_long"], counts["dialogues"]),
        ("dropped: no token is trained", counts["dialogues_dropped_no_loss"], counts["dialogues"]),
        ("turns lost", counts["turns_dropped_too_long"], counts["turns"]),
        ("tokens lost", tokens_lost, tokens + tokens_lost),
        ("tokens with loss lost", lost, supervised + lost),
    ]
    for name, part, whole in rows:
        if part or "kept" in name or "tokens" in name:
            table.add_row("  " + name, f"{part:,} of {whole:,}", f"{part / whole:.1%}" if whole else "")
    console.print(table)
    console.print()
