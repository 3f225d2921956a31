"""What the data tools read, and the options that they share: dialogues in every format, and the tokenizer to render them with."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from moss_train.data import formats
from moss_train.data.dialogue import Dialogue, meta_instruction
from moss_train.data.paths import find_files, split_limit
from moss_train.data.records import OnError, RecordError, read_records
from moss_train.data.render import LOSS_POLICIES, MARKER_POLICIES
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, UsageError

SMALL_VOCABULARY = 4096
# Characters that a small tokenizer is trained on: a second's work.
SMALL_TRAINING_TEXT = 1_000_000
PLUGINS = ("inner_thoughts", "web_search", "calculator", "equation_solver", "text_to_image")
_SAY_SECONDS = 10.0


class Example(NamedTuple):
    """A dialogue with what it was read from.

    Attributes:
        dialogue: The dialogue.
        format: A name of `formats.FORMATS`.
        record: The record as it stood in the file.
        own_meta: Whether the record has a meta instruction of its own.
    """

    dialogue: Dialogue
    format: str
    record: Any
    own_meta: bool


@dataclass(frozen=True)
class Selection:
    """Paths, and how to read the records in them.

    Attributes:
        specs: As `read_records` takes them.
        format: A name of `formats.FORMATS`, or `auto`.
        default_meta: Meta instruction of records that have none.
    """

    specs: Sequence[str]
    format: str = formats.AUTO
    default_meta: str = ""

    def require(self) -> None:
        """Refuses a path that does not exist before any is read.

        Raises:
            DataError: Naming it.
        """
        for spec in self.specs:
            find_files(split_limit(spec)[0])

    def examples(self, on_error: OnError | None = None, counts: Counter[str] | None = None) -> Iterator[Example]:
        """The dialogues in order.

        Args:
            on_error: Called with each bad record; by default the first one is raised.
            counts: Added to: `records`, good or bad.

        Raises:
            RecordError: A record is bad and there is no `on_error`.
            DataError: A file cannot be read.
        """
        refuse = on_error or _raise
        counts = Counter() if counts is None else counts
        said = time.monotonic()

        def note(error: RecordError) -> None:
            counts["records"] += 1
            refuse(error)

        for spec in self.specs:
            before = counts["records"]
            for record in read_records(spec, note):
                counts["records"] += 1
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    print(f"{record.origin}: {counts['records']:,} records read", file=sys.stderr, flush=True)
                try:
                    name = formats.detect(record.value, record.origin) if self.format == formats.AUTO else self.format
                    dialogue = formats.parse(record.value, record.origin, name, self.default_meta)
                except RecordError as error:
                    refuse(error)
                    continue
                # Formats hand on the default itself. (An empty one is no different from a record's own empty one.)
                yield Example(dialogue, name, record.value, dialogue.meta_instruction is not self.default_meta)
            if counts["records"] == before:
                refuse(RecordError(f"{spec}:1", "no_records", "the file is empty or holds only blank lines; expected dialogues."))


def _raise(error: RecordError) -> None:
    raise error


def add_reading(command: argparse.ArgumentParser, paths: str = "+") -> None:
    """The options of every data tool: `paths`, how many of them as argparse's nargs has it, and how their records are read."""
    command.add_argument(
        "paths", nargs=paths, metavar="PATH", help="a file (.jsonl .json .parquet .arrow, .gz .zst), directory, glob, PATH#N"
    )
    command.add_argument("--format", choices=[formats.AUTO, *formats.FORMATS], default=formats.AUTO, help="of the records (default: auto)")
    command.add_argument(
        "--default-meta", choices=["moss", "none"], default="moss", help="meta instruction of records that have none (default: moss)"
    )
    command.add_argument(
        "--plugins", metavar="NAMES", help=f"switches that are on in it, such as web_search,calculator: {', '.join(PLUGINS)}"
    )


def add_rendering(command: argparse.ArgumentParser, tokenizer: str) -> None:
    """The options of tools that render; `tokenizer` says what happens without one."""
    command.add_argument("--tokenizer", metavar="DIR", help=f"tokenizer or model directory (default: {tokenizer})")
    command.add_argument("--loss-on", choices=sorted(LOSS_POLICIES), default="generated", help="loss policy (default: generated)")
    command.add_argument("--on-marker", choices=MARKER_POLICIES, default="keep", help="role markers inside texts (default: keep)")


def select(arguments: argparse.Namespace, specs: Sequence[str] | None = None) -> Selection:
    """What the options of `add_reading` ask for; `specs` are other paths than theirs.

    Raises:
        UsageError: There is no such plugin.
        DataError: A path does not exist.
    """
    names = [name.strip() for name in (arguments.plugins or "").split(",") if name.strip()]
    unknown = [name for name in names if name not in PLUGINS]
    if unknown:
        raise UsageError(f"--plugins: there is no {unknown[0]!r}; expected some of {', '.join(PLUGINS)}, with commas between.")
    meta = meta_instruction(**dict.fromkeys(names, True)) if arguments.default_meta == "moss" else ""
    selection = Selection(arguments.paths if specs is None else specs, arguments.format, meta)
    selection.require()
    return selection


def open_tokenizer(directory: str | None, selection: Selection) -> MossTokenizer:
    """The tokenizer asked for, or a small one trained on the data; what the user should know about it goes to stderr.

    Raises:
        DataError: It cannot be opened, or there are no dialogues to train one on.
    """
    if directory is not None:
        tokenizer = MossTokenizer.load(directory)
        for note in tokenizer.notes:
            print(f"note: {note}", file=sys.stderr)
        return tokenizer
    what = ", ".join(selection.specs)
    texts = _texts(selection)
    first = next(texts, None)
    if first is None:
        raise DataError(f"{what}: no dialogue can be read; `data check` says what is wrong with the records.")
    tokenizer = MossTokenizer.train(chain([first], texts), SMALL_VOCABULARY)
    note = f"a small one ({tokenizer.size} ids) was trained on {what}; your model's gives other ids and lengths"
    print(f"note: no --tokenizer: {note}", file=sys.stderr)
    return tokenizer


def _texts(selection: Selection) -> Iterator[str]:
    """Contents of the dialogues up to a bound; bad records are for whoever reads them to report."""
    left = SMALL_TRAINING_TEXT
    meta = ""
    for example in selection.examples(lambda error: None):
        contents: list[str | None] = []
        # Most dialogues have that of the one before; its words should not outweigh all others.
        if example.dialogue.meta_instruction != meta:
            meta = example.dialogue.meta_instruction
            contents.append(meta)
        for turn in example.dialogue.turns:
            contents += [turn.human, turn.thoughts, turn.commands, turn.results, turn.moss]
        for text in filter(None, contents):
            yield text
            left -= len(text)
        if left < 0:
            return
