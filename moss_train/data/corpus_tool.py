"""`prepare show|check|inspect`: looks at a corpus."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moss_train.data.corpus import TOKENIZER_FOLDER, Corpus, Shard, open_corpus
from moss_train.data.corpus_check import check_corpus
from moss_train.data.prepare.summary import print_summary
from moss_train.data.terminal import Screen, count, exit_code_of, visible
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, UsageError

COMMANDS = ("show", "check", "inspect")
DOCUMENT_END = "⟦document {} ends at token {}⟧"
"""What stands for the `<|endoftext|>` between two documents."""
_SAY_SECONDS = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit code."""
    parser = argparse.ArgumentParser(prog="prepare", description="Look at a corpus.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="its summary", description="The summary of a corpus.")
    check = commands.add_parser("check", help="hold every byte against the records", description="Check structure, ids and hashes.")
    inspect = commands.add_parser("inspect", help="decode a window of a shard", description="Decode any window of any shard.")
    for command in (show, check, inspect):
        command.add_argument("directory", metavar="DIR", help="the corpus")
    inspect.add_argument("--source", help="source; by default the first")
    inspect.add_argument("--shard", type=int, help="number of the shard in its name; by default the first there is")
    inspect.add_argument("--at", type=int, default=0, metavar="TOKEN", help="first token of the window (default 0)")
    inspect.add_argument("--length", type=int, default=512, metavar="L", help="tokens of the window (default 512)")
    inspect.add_argument("--ids", action="store_true", help="print the ids, not their text")
    for command, run in ((show, _show), (check, _check), (inspect, _inspect)):
        command.set_defaults(run=run)
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: arguments.run(arguments))


def _show(arguments: argparse.Namespace) -> int:
    print_summary(open_corpus(arguments.directory), Screen())
    return 0


def _check(arguments: argparse.Namespace) -> int:
    corpus = open_corpus(arguments.directory)
    total, done, said = max(1, corpus.tokens), 0, time.monotonic()

    def progress(shard: Shard) -> None:
        nonlocal done, said
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            print(f"{done / total:.0%} checked, now {shard}", file=sys.stderr)
        done += shard.tokens

    problems = list(check_corpus(corpus, progress))
    for problem in problems:
        print(problem)
    if problems:
        raise DataError(f"{count(len(problems), 'problem')} in {corpus.directory}")
    shards = sum(1 for _ in corpus.shards())
    print(
        f"OK: {count(shards, 'shard')}, {count(corpus.documents, 'document')}, {count(corpus.tokens, 'token')}: structure, ids and hashes"
    )
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    corpus = open_corpus(arguments.directory)
    shard = _find_shard(corpus, arguments.source, arguments.shard)
    start = arguments.at
    if not 0 <= start < shard.tokens or arguments.length < 1:
        raise UsageError(f"--at {start} --length {arguments.length}: {shard} has the tokens 0 to {shard.tokens - 1}")
    end = min(start + arguments.length, shard.tokens)
    first = shard.document_of(start)
    print(f"{shard}: tokens {start} to {end} of {shard.tokens:,}, from document {first} of {shard.documents:,}")
    print(render(corpus, shard, start, end, arguments.ids))
    return 0


def _find_shard(corpus: Corpus, name: str | None, number: int | None) -> Shard:
    source = corpus.source(name) if name is not None else next(iter(corpus.sources.values()))
    if number is None:
        return source.shards[0]
    for shard in source.shards:
        if shard.name == f"shard-{number:05d}":
            return shard
    raise UsageError(
        f"--shard {number}: {source.name} has {source.shards[0].name} to {source.shards[-1].name} ({len(source.shards)} of them)"
    )


def render(corpus: Corpus, shard: Shard, start: int, end: int, as_ids: bool = False) -> str:
    """The text of a window, with a line of its own where a document ends.

    Args:
        corpus: The corpus. shard: One of its shards.
        start, end: The window, in tokens from the beginning of the shard.
        as_ids: Numbers instead of text.
    """
    tokenizer = MossTokenizer.load(Path(corpus.directory) / TOKENIZER_FOLDER)
    ids = shard.read(start, end).tolist()
    lines, position, number = [], start, shard.document_of(start)
    for document_end in [*shard.ends_within(start, end).tolist(), None]:
        closed = document_end is not None
        piece = ids[position - start : (document_end - 1 - start) if closed else len(ids)]
        if piece or closed:
            lines.append(" ".join(map(str, piece)) if as_ids else visible(tokenizer.decode(piece)))
        if closed:
            lines.append(DOCUMENT_END.format(number, document_end))
            position, number = document_end, number + 1
    return "\n".join(lines)
