"""`data convert`: dialogues of any format and container into a file of one format."""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data import formats
from moss_train.data.fingerprint import combined
from moss_train.data.new_file import NewFile
from moss_train.data.paths import find_files, split_limit
from moss_train.data.records import ProblemList, RecordError
from moss_train.data.selection import Example, add_reading, select
from moss_train.data.terminal import Screen, count, visible
from moss_train.errors import DataError, DiskFullError, UsageError
from moss_train.files import hash_file, is_disk_full

HELP = "write dialogues in another format or container"
DESCRIPTION = """Writes the dialogues of PATH... to OUT in one format, so that reading OUT gives the same dialogues: ids, roles, tools, and
what carries loss. OUT ends in .jsonl, .jsonl.gz, .jsonl.zst or .parquet and must not exist; it appears when it is complete. A dialogue that
the format cannot hold, and a bad record, is told by file and line, and nothing is written (exit code 3), unless --skip leaves it out.
OUT.lineage.json beside it says what it was made from."""
OUTPUTS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_BATCH_ROWS = 1024


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The options of `convert`."""
    add_reading(command)
    command.add_argument("out", type=Path, metavar="OUT", help="the file to make")
    command.add_argument("--to", required=True, choices=list(formats.FORMATS), metavar="FORMAT", help=", ".join(formats.FORMATS))
    command.add_argument("--skip", action="store_true", help="leave out bad records and dialogues that the format cannot hold")
    command.add_argument("--licence", metavar="NAME", help="licence of the dialogues, for the record of what is made from them")


def convert(arguments: argparse.Namespace) -> int:
    """The `convert` subcommand; returns the exit code."""
    out: Path = arguments.out
    kind = next((ending for ending in OUTPUTS if out.name.lower().endswith(ending)), None)
    if kind is None:
        raise UsageError(f"{out}: expected a name that ends in one of {', '.join(OUTPUTS)}.")
    selection = select(arguments)
    problems = ProblemList()
    counts: Counter[str] = Counter()
    by_format: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    read: list[int] = []

    def examples() -> Iterator[Example]:
        for spec in selection.specs:
            before = counts["records"]
            yield from replace(selection, specs=[spec]).examples(problems.add, counts)
            read.append(counts["records"] - before)

    def lines() -> Iterator[bytes]:
        for example in examples():
            try:
                record = formats.write(example.dialogue, arguments.to)
            except DataError as error:
                text = str(error).removeprefix(f"{example.dialogue.origin}: ")
                problems.add(RecordError(example.dialogue.origin, "cannot_hold", text))
                continue
            by_format[example.format] += 1
            counts["default_meta"] += not example.own_meta
            left_out.update(_keys_left_out(example))
            yield json.dumps(record, ensure_ascii=False).encode() + b"\n"

    console = Screen(highlight=False, soft_wrap=True)
    with NewFile(out) as made:
        if kind == ".parquet":
            _write_table(made, lines())
        else:
            with _packed(made.open(), kind) as file:
                # Not `writelines`, which zstandard's writer lacks.
                for line in lines():
                    file.write(line)
        bad = problems.counts.total()
        if bad:
            console.print(visible(problems.describe()), markup=False)
        if bad and not arguments.skip:
            head = f"{bad:,} of {counts['records']:,} records cannot be written as {arguments.to}; {out} was not made."
            raise DataError(f"{head} Choose another --to, repair them, or leave them out with --skip.")
        if not by_format:
            raise DataError(f"{', '.join(selection.specs)}: no dialogue is left to write; {out} was not made.")
    details = {"format": arguments.to, "left_out": dict(problems.counts)}
    write_record(out, selection.specs, read, by_format.total(), details, arguments.licence)
    formats_read = ", ".join(f"{name} {number:,}" for name, number in by_format.most_common())
    console.print(f"{out}: {count(by_format.total(), 'dialogue')} written as {arguments.to} (read as {formats_read})", markup=False)
    if problems.counts:
        console.print(f"left out with --skip: {problems.counts.total():,}", markup=False)
    if counts["default_meta"] and selection.default_meta:
        how = "the default one now stands there (--default-meta none leaves it empty)"
        console.print(f"{count(counts['default_meta'], 'record')} without a meta instruction: {how}", markup=False)
    for key, number in left_out.most_common(10):
        note = f"the key {visible(key)!r} of {count(number, 'record')} (no part of a dialogue)"
        console.print(f"not carried over: {note}", markup=False)
    return 0


def write_record(out: Path, specs: Sequence[str], read: Sequence[int], written: int, details: dict[str, Any], licence: str | None) -> None:
    """Writes OUT.lineage.json: what was read, by hash and number of records, and what that was made from where it has a record."""
    data, parents = [], []
    for spec, records in zip(specs, read, strict=True):
        pattern, limit = split_limit(spec)
        paths = find_files(pattern)
        digest = combined([str(path) for path in paths], [hash_file(path).sha256 for path in paths], limit)
        name = spec.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
        data.append(lineage.Source(name, digest, records, "source", licence or lineage_kinds.licence_of(paths)))
        parents += [parent for path in paths for parent in lineage.recorded_parent(path, "source")]
    try:
        lineage.write(out, lineage_kinds.dialogues("convert", parents, data, written, details))
    except OSError as error:
        kind = DiskFullError if is_disk_full(error) else UsageError
        raise kind(f"{out} was made, but its record {lineage.record_path(out)} cannot be written: {error.strerror or error}") from error


def _keys_left_out(example: Example) -> list[str]:
    """Keys of a record that are not part of the dialogue: those that writing it in its own format does not give back."""
    try:
        own = formats.write(example.dialogue, example.format)
    except DataError:
        return []
    read = {name for group in formats.FORMATS[example.format].needs for name in group} | {"history", "id", "conversation_id"}
    return [key for key, value in example.record.items() if key not in own and key not in read and value not in (None, "", [], {})]


@contextmanager
def _packed(file: IO[bytes], kind: str) -> Iterator[IO[bytes]]:
    """A file that packs what is written to it, as its name says."""
    with ExitStack() as stack:
        if kind == ".jsonl.gz":
            # Without name and time inside, the same dialogues give the same bytes.
            file = cast(IO[bytes], stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0)))
        elif kind == ".jsonl.zst":
            import zstandard

            file = stack.enter_context(zstandard.ZstdCompressor(level=6).stream_writer(file, closefd=False))
        yield file


def _write_table(made: NewFile, lines: Iterator[bytes]) -> None:
    """A Parquet file. Its columns are known only after the last record, so the records wait on disk, not in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    waiting = made.partial.with_name(f"{made.partial.name}.records")
    try:
        with waiting.open("xb") as file:
            for line in lines:
                file.write(line)
        schemas = [pa.schema([])]
        for batch in _batches(waiting):
            # Of a table, pyarrow would look for columns in the first row only.
            found = pa.array(batch).type
            columns = pa.schema([found.field(number) for number in range(found.num_fields)])
            schemas = [pa.unify_schemas([*schemas, columns], promote_options="permissive")]
        with pq.ParquetWriter(made.partial, schemas[0], compression="zstd") as table:
            for batch in _batches(waiting):
                table.write_table(pa.Table.from_pylist(batch, schema=schemas[0]))
    except pa.ArrowException as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{made.path}: these records do not fit one table ({problem}); write them as .jsonl.") from None
    finally:
        waiting.unlink(missing_ok=True)


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with path.open("rb") as lines:
        while batch := [json.loads(line) for line in islice(lines, _BATCH_ROWS)]:
            yield batch
