"""`data show`: how a dialogue becomes tokens, and which of them carry loss, in the terminal or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice, pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from moss_train.data.dialogue import Dialogue
from moss_train.data.formats import parse
from moss_train.data.records import read_records
from moss_train.data.render import LOSS_POLICIES, MARKER_POLICIES, Rendered, Segment, fit_turns
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, MossTrainError

SMALL_VOCABULARY = 4096
# Characters of the file that the small tokenizer is trained on: a second's work.
SMALL_TRAINING_TEXT = 1_000_000
TRAINED, UNTRAINED, LABEL = "bold green", "dim", "cyan"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return show(arguments)
    except MossTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader (`head`, `less`) has seen enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="data", description="Look at training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "show",
        help="render dialogues: which tokens carry loss",
        description="Render dialogues as training does and show which tokens carry loss, with counts by segment.",
    )
    command.add_argument("file", help="MOSS-003 dialogues: JSONL, a JSON per dialogue, a directory, a glob, PATH#N")
    command.add_argument("--tokenizer", metavar="DIR", help="tokenizer or model directory (default: a small one trained on FILE itself)")
    command.add_argument("--loss-on", choices=sorted(LOSS_POLICIES), default="generated", help="loss policy (default: generated)")
    command.add_argument("--on-marker", choices=MARKER_POLICIES, default="keep", help="role markers inside texts (default: keep)")
    command.add_argument("--index", type=_count, default=0, metavar="N", help="first dialogue to show, from 0 (default: 0)")
    command.add_argument("--count", type=_count, metavar="N", help="how many dialogues (default: 1, with --json all)")
    command.add_argument("--max-tokens", type=_count, metavar="N", help="drop whole turns from the end beyond this")
    command.add_argument("--json", action="store_true", help="one JSON object a dialogue: input_ids, loss_mask (1 = loss), segments")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def show(arguments: argparse.Namespace) -> int:
    """The `show` subcommand."""
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal without UTF-8 shows escapes instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    count = arguments.count if arguments.count is not None else None if arguments.json else 1
    end = None if count is None else arguments.index + count
    console = Console(highlight=False)
    tokenizer = _tokenizer(arguments)
    seen = 0
    for dialogue in islice(_dialogues(arguments.file), arguments.index, end):
        seen += 1
        rendered, counts = fit_turns(dialogue, tokenizer, arguments.loss_on, arguments.max_tokens, arguments.on_marker)
        if arguments.json:
            if rendered is None:
                print(f"{dialogue.origin}: left out: {_describe_dropped(counts)}", file=sys.stderr)
            else:
                print(json.dumps(_as_json(dialogue, rendered), ensure_ascii=False))
        else:
            _print_dialogue(console, dialogue, rendered, counts, tokenizer, arguments.loss_on)
    sys.stdout.flush()
    if seen == 0 and count != 0:
        raise DataError(f"{arguments.file}: no dialogue with index {arguments.index}; it holds fewer.")
    return 0


def _dialogues(spec: str) -> Iterator[Dialogue]:
    for record in read_records(spec):
        yield parse(record.value, record.origin)


def _tokenizer(arguments: argparse.Namespace) -> MossTokenizer:
    """The one asked for, or a small one trained on the file; what the user should know about it goes to stderr."""
    if arguments.tokenizer is not None:
        tokenizer = MossTokenizer.load(arguments.tokenizer)
        for note in tokenizer.notes:
            print(f"note: {note}", file=sys.stderr)
        return tokenizer

    def texts() -> Iterator[str]:
        left = SMALL_TRAINING_TEXT
        for dialogue in _dialogues(arguments.file):
            for turn in dialogue.turns:
                for text in (turn.human, turn.thoughts, turn.commands, turn.results, turn.moss):
                    if text is not None:
                        yield text
                        left -= len(text)
            if left < 0:
                return

    tokenizer = MossTokenizer.train(texts(), SMALL_VOCABULARY)
    what = f"a small one ({tokenizer.size} ids) was trained on {arguments.file}"
    print(f"note: no --tokenizer: {what}; your model's gives other ids and lengths", file=sys.stderr)
    return tokenizer


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
    console.rule(Text(_visible(title), style=LABEL), style=LABEL, align="left")
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
        console.print(_label(segment), style=LABEL, markup=False)
        console.print(_paint(segment, rendered, tokenizer, marks=console.color_system is None), soft_wrap=False)
    console.print(Text.assemble(("labels  ", LABEL), _run_lengths(rendered.loss_mask)))
    console.print(_counts_table(rendered))


def _label(segment: Segment) -> str:
    name = "meta instruction" if segment.turn < 0 else f"turn {segment.turn + 1} {segment.kind}"
    return f"{name}  [{segment.start}:{segment.end}]"


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
            text = _edges(_visible(tokenizer.decode(rendered.input_ids[position:stop])))
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


def _visible(text: str) -> str:
    """Control characters and direction overrides as symbols: a record must not move the cursor or turn lines around."""
    shown = []
    for character in text:
        code = ord(character)
        if code < 32 and character not in "\n\t":
            shown.append(chr(0x2400 + code))
        elif 0x7F <= code < 0xA0 or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
            shown.append(f"<U+{code:04X}>")
        else:
            shown.append(character)
    return "".join(shown)


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
