"""`data show`: how a dialogue becomes tokens, and which of them carry loss, in the terminal or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, islice, pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moss_train.data.dialogue import Dialogue
from moss_train.data.render import Rendered, Segment, fit_turns
from moss_train.data.selection import add_reading, add_rendering, open_tokenizer, select
from moss_train.data.terminal import Screen, visible
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

TRAINED, UNTRAINED, LABEL = "bold green", "dim", "cyan"


HELP = "render dialogues: which tokens carry loss"
DESCRIPTION = "Renders dialogues as training does and shows which tokens carry loss, with counts by segment."


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `show`."""
    add_reading(command)
    add_rendering(command, "a small one trained on the data itself")
    command.add_argument("--index", type=_count, default=0, metavar="N", help="first dialogue to show, from 0 (default: 0)")
    command.add_argument("--count", type=_count, metavar="N", help="how many dialogues (default: 1, with --json all)")
    command.add_argument("--max-tokens", type=_count, metavar="N", help="drop whole turns from the end beyond this")
    command.add_argument("--json", action="store_true", help="one JSON object a dialogue: input_ids, loss_mask (1 = loss), segments")


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def show(arguments: argparse.Namespace) -> int:
    """The `show` subcommand; returns the exit code."""
    count = arguments.count if arguments.count is not None else None if arguments.json else 1
    end = None if count is None else arguments.index + count
    console = Screen(highlight=False)
    selection = select(arguments)
    tokenizer = open_tokenizer(arguments.tokenizer, selection)
    seen = 0
    for example in islice(selection.examples(), arguments.index, end):
        dialogue = example.dialogue
        seen += 1
        rendered, counts = fit_turns(dialogue, tokenizer, arguments.loss_on, arguments.max_tokens, arguments.on_marker)
        if arguments.json:
            if rendered is None:
                print(f"{dialogue.origin}: left out: {_describe_dropped(counts)}", file=sys.stderr)
            else:
                print(json.dumps(_as_json(dialogue, rendered), ensure_ascii=False))
        else:
            _print_dialogue(console, dialogue, rendered, counts, tokenizer, arguments.loss_on)
    if seen == 0 and count != 0:
        raise DataError(f"{', '.join(selection.specs)}: no dialogue with index {arguments.index}; there are fewer.")
    return 0


def _as_json(dialogue: Dialogue, rendered: Rendered) -> dict[str, object]:
    return {
        "id": dialogue.id,
        "origin": dialogue.origin,
        "input_ids": rendered.input_ids,
        "loss_mask": [int(mark) for mark in rendered.loss_mask],
        "segments": [segment._asdict() for segment in rendered.segments],
    }


def _describe_dropped(counts: Counter[str]) -> str:
    reasons = [f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if "dropped" in reason and "tokens" not in reason]
    return ", ".join(reasons)


def _print_dialogue(
    console: Console, dialogue: Dialogue, rendered: Rendered | None, counts: Counter[str], tokenizer: MossTokenizer, loss_on: str
) -> None:
    title = f"{dialogue.origin}  id {dialogue.id}" + (f"  category {dialogue.category}" if dialogue.category else "")
    console.rule(Text(visible(title), style=LABEL), style=LABEL, align="left")
    if rendered is None:
        console.print(f"left out: {_describe_dropped(counts)}", markup=False)
        return
    summary = f"{len(rendered.input_ids)} tokens, {rendered.supervised_tokens} with loss (loss_on={loss_on})"
    if counts["turns_dropped_too_long"]:
        summary += f"; {counts['turns_dropped_too_long']} of {len(dialogue.turns)} turns ({counts['tokens_dropped']} tokens) dropped"
    console.print(summary, markup=False)
    legend = Text.assemble(("with loss", TRAINED), " / ", ("without", UNTRAINED))
    if console.color_system is None:
        legend = Text("⟦with loss⟧ / without")
    console.print(legend)
    for segment in rendered.segments:
        console.print(_label(segment, dialogue), style=LABEL, markup=False)
        console.print(_paint(segment, rendered, tokenizer, marks=console.color_system is None), soft_wrap=False)
    console.print(Text.assemble(("labels  ", LABEL), _run_lengths(rendered.loss_mask)))
    console.print(_counts_table(rendered))


def _label(segment: Segment, dialogue: Dialogue) -> str:
    name = "meta instruction" if segment.turn < 0 else f"turn {segment.turn + 1} {segment.kind}"
    by_record = segment.turn >= 0 and segment.kind in dialogue.turns[segment.turn].untrained
    return f"{name}  [{segment.start}:{segment.end}]" + ("  without loss: the record says so" if by_record else "")


def _paint(segment: Segment, rendered: Rendered, tokenizer: MossTokenizer, marks: bool) -> Text:
    """The text of a segment: coloured where tokens carry loss, blanks at the edges of parts visible.

    Args:
        segment: Which one.
        rendered: The dialogue.
        tokenizer: To turn ids back into text.
        marks: Bracket tokens with loss instead, for output without colours.
    """
    line = Text()
    for low, high in pairwise((segment.start, segment.content_start, segment.content_end, segment.end)):
        position = low
        # Within a part all tokens have the same mark; runs are drawn as they are, so that the picture cannot hide it if they had not.
        for trained, run in groupby(rendered.loss_mask[low:high]):
            stop = position + len(list(run))
            text = _edges(visible(tokenizer.decode(rendered.input_ids[position:stop])))
            line.append(f"⟦{text}⟧" if marks and trained else text, style="" if marks else TRAINED if trained else UNTRAINED)
            position = stop
    return line


def _edges(text: str) -> str:
    """Blanks and line ends at both edges as · and ⏎."""
    core = text.strip(" \n")
    start = text.index(core) if core else len(text)
    shown = {" ": "·", "\n": "⏎"}
    before = "".join(shown[character] for character in text[:start])
    after = "".join(shown[character] for character in text[start + len(core) :])
    return before + core + after


def _run_lengths(mask: Sequence[bool]) -> str:
    """Labels as lengths of runs: `-527 +41 -3` is 527 tokens without loss, 41 with, 3 without."""
    return " ".join(f"{'+' if trained else '-'}{len(list(run))}" for trained, run in groupby(mask))


def _counts_table(rendered: Rendered) -> Table:
    table = Table("segment", box=None, pad_edge=False, header_style=LABEL)
    for column in ("segments", "tokens", "with loss", "share"):
        table.add_column(column, justify="right")
    rows: dict[str, list[int]] = {}
    for segment in rendered.segments:
        row = rows.setdefault(segment.kind, [0, 0, 0])
        row[0] += 1
        row[1] += segment.end - segment.start
        row[2] += sum(rendered.loss_mask[segment.start : segment.end])
    rows["all"] = [sum(row[column] for row in rows.values()) for column in range(3)]
    for name, (segments, tokens, trained) in rows.items():
        table.add_row(name, str(segments), str(tokens), str(trained), f"{trained / tokens:.0%}" if tokens else "")
    return table
