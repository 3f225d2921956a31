"""A corpus as a table: what was read, what is kept, and why the rest is not."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from moss_train.data.corpus import Corpus
from moss_train.data.terminal import count


def print_summary(corpus: Corpus, console: Console) -> None:
    """Prints the table of a corpus, a group of lines a source, and what else was counted."""
    table = Table(title=str(corpus.directory), title_justify="left", box=None, pad_edge=False)
    for name in ("source", "language", ""):
        table.add_column(name)
    for name in ("documents", "MB", "tokens", "bytes/token"):
        table.add_column(name, justify="right")
    for source in corpus.sources.values():
        counts = source.counts
        table.add_row(source.name, source.language, "read", *_numbers(counts["read"]))
        for reason, dropped in counts["dropped"].items():
            table.add_row("", "", f"- {reason}", *_numbers(dropped), style="dim")
        table.add_row("", "", "kept", *_numbers(counts["kept"]), style="bold")
    if len(corpus.sources) > 1:
        table.add_section()
        kept = [source.counts["kept"] for source in corpus.sources.values()]
        whole = {what: sum(one[what] for one in kept) for what in ("documents", "bytes", "tokens")}
        table.add_row("all", "", "kept", *_numbers(whole), style="bold")
    console.print(table)
    for source in corpus.sources.values():
        for line in _notes(source.counts):
            console.print(f"{source.name}: {line}", markup=False, highlight=False)
    shards = sum(1 for _ in corpus.shards())
    closing = f"{corpus.tokens:,} ids in {count(shards, 'shard')}, a <|endoftext|> for each document included"
    console.print(closing, markup=False, highlight=False)


def _numbers(counted: dict[str, int]) -> tuple[str, ...]:
    ratio = f"{counted['bytes'] / counted['tokens']:.2f}" if counted["tokens"] else "-"
    return f"{counted['documents']:,}", f"{counted['bytes'] / 1e6:,.1f}", f"{counted['tokens']:,}", ratio


def _notes(counts: dict[str, Any]) -> list[str]:
    """What the table has no place for."""
    lines = []
    if counts["bad"]:
        told = ", ".join(f"{code} {number:,}" for code, number in counts["bad"].items())
        lines.append(f"{sum(counts['bad'].values()):,} bad records left out ({told}); see rejects.jsonl")
    if counts["kinds"]:
        kinds = sorted(counts["kinds"].items(), key=lambda item: -item[1])
        lines.append("files read: " + ", ".join(f"{kind} {number:,}" for kind, number in kinds[:12]))
    if counts["files_left_out"]:
        others = sorted(counts["files_left_out"].items(), key=lambda item: -item[1])
        lines.append("files left out by extension: " + ", ".join(f"{extension} {number:,}" for extension, number in others[:12]))
    if counts["lengths"]:
        lines.append(_quantiles({int(power): number for power, number in counts["lengths"].items()}))
    return lines


def _quantiles(lengths: dict[int, int]) -> str:
    """Within which power of two the lengths of documents lie."""
    total, seen, told = sum(lengths.values()), 0, []
    wanted = [(0.1, "10%"), (0.5, "half"), (0.9, "90%")]
    for power in sorted(lengths):
        seen += lengths[power]
        while wanted and seen >= wanted[0][0] * total:
            told.append(f"{wanted.pop(0)[1]} below {2 ** (power + 1):,}")
    return f"tokens of a document: {', '.join(told)}; longest below {2 ** (max(lengths) + 1):,}"
