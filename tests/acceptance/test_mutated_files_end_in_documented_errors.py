"""Files of every format and container, damaged at random, are read or end in a documented error, within a second and without much memory.

Bytes are flipped, cut, inserted, spliced and doubled; and in records values are exchanged for others, of other kinds, which changed bytes
hardly ever do. The damage is a function of a seed and a number: a failure names both.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moss_train.data.dialogue import BY_MOSS, Dialogue, Turn
from moss_train.data.formats import FORMATS, parse, write
from moss_train.data.records import RecordError, read_piece, read_records, split_file
from moss_train.errors import MossTrainError

SEED = 20
SECONDS = 1.0
MEMORY_MIB = 300

PLAIN = Turn(" How many people live in Paris? 巴黎", " None", " None", " None", " Two million, <|MOSS|>: I think.")
TOOL = Turn(
    " 2+3?", " Two tools.", ' Calculate("2+3"), book({"to": "Köln"})', '\nCalculate("2+3") => 5\nbook({"to": "Köln"}) =>\nok\n', " 5."
)
ODD = Turn("x", None, " 1. Search(x", "\nNone\n", "y\n", frozenset({"moss"}))


def dialogues_for(name: str) -> list[Dialogue]:
    """Some dialogues that a format can hold."""
    if name in ("alpaca", "moss002"):
        turns: list[tuple[Turn, ...]] = [(PLAIN,), (PLAIN, PLAIN), (PLAIN,) * 3]
    elif name == "prompt_completion":
        turns = [(PLAIN,), (replace(PLAIN, untrained=BY_MOSS), TOOL), (ODD,)]
    else:
        turns = [(PLAIN,), (TOOL, PLAIN), (ODD, TOOL)]
    return [Dialogue(f"n{number}", "Be MOSS.\n", some, "tool", "somewhere:1") for number, some in enumerate(turns)]


RECORDS = {name: [write(dialogue, name) for dialogue in dialogues_for(name)] for name in FORMATS}
LINES = {name: b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records) for name, records in RECORDS.items()}


def parquet(records: list[dict[str, Any]], compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_struct_array(pa.array(records)), sink, row_group_size=2, compression=compression)
    return bytes(sink.getvalue().to_pybytes())


def arrow(records: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_struct_array(pa.array(records))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


FILES: dict[str, bytes] = {
    **{f"{name}.jsonl": lines for name, lines in LINES.items()},
    "moss002.json": json.dumps(RECORDS["moss002"], ensure_ascii=False).encode(),
    "moss003.json": "\n".join(json.dumps(record, indent=1, ensure_ascii=False) for record in RECORDS["moss003"]).encode(),
    "moss003.jsonl.gz": gzip.compress(LINES["moss003"], mtime=0),
    "moss003.jsonl.zst": zstandard.ZstdCompressor(write_checksum=True).compress(LINES["moss003"]),
    "messages.jsonl.zst": zstandard.ZstdCompressor().compress(LINES["messages"]),
    "moss002.json.gz": gzip.compress(json.dumps(RECORDS["moss002"]).encode(), mtime=0),
    "moss003.parquet": parquet(RECORDS["moss003"], "snappy"),
    "messages.parquet": parquet(RECORDS["messages"], "zstd"),
    "alpaca.parquet": parquet(RECORDS["alpaca"], "none"),
    "sharegpt.arrow": arrow(RECORDS["sharegpt"]),
}
ODD_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    10**30,
    "",
    " ",
    "None",
    "<eom>",
    "{}",
    "[",
    [],
    {},
    [None],
    [[]],
    [{}],
    {"role": "user"},
]
WHOLE = list(FILES.values())


def flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\\ud8", b'"\n{"'])


def cut(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice([1, 8, 100, len(data)])]


def insert(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = chance.randbytes(chance.choice([1, 4, 40]))


def splice(data: bytearray, chance: random.Random) -> None:
    other = chance.choice(WHOLE)
    start, at = chance.randrange(len(other)), chance.randrange(len(data) + 1)
    data[at : at + chance.choice([0, 20])] = other[start : start + chance.choice([4, 40, 400])]


def duplicate(data: bytearray, chance: random.Random) -> None:
    start, at = chance.randrange(len(data)), chance.randrange(len(data) + 1)
    data[at:at] = data[start : start + chance.choice([1, 10, 200])]


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [flip, overwrite, cut, insert, splice, duplicate]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value that can be given another value: its container, and its key or index."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield value, key
        yield from places(item)


def exchange_values(records: list[dict[str, Any]], chance: random.Random) -> bytes:
    """The records as lines, with values exchanged, removed, or moved from elsewhere."""
    changed = copy.deepcopy(records)
    for _ in range(chance.randint(1, 3)):
        record = chance.choice(changed)
        found = list(places(record))
        if not found:
            continue
        container, key = chance.choice(found)
        action = chance.randrange(4)
        if action == 0:
            container[key] = copy.deepcopy(chance.choice(ODD_VALUES))
        elif action == 1:
            del container[key]
        elif action == 2 and isinstance(container, dict):
            container[chance.choice(["", "Role", "turn_9", str(key)[:-1], str(key) + "s"])] = container.pop(key)
        else:
            other, place = chance.choice(list(places(chance.choice(RECORDS[chance.choice(list(RECORDS))]))))
            container[key] = copy.deepcopy(other[place])
    return b"".join(json.dumps(record).encode() + b"\n" for record in changed)


def damaged(number: int) -> tuple[str, bytes]:
    """The file of a number: its name and content."""
    chance = random.Random(SEED * 1_000_003 + number)
    if number % 4 == 0:
        name = chance.choice(list(RECORDS))
        return f"{name}.jsonl", exchange_values(RECORDS[name], chance)
    name = chance.choice(list(FILES))
    data = bytearray(FILES[name])
    for _ in range(chance.choice([1, 1, 2, 4])):
        if data:
            chance.choice(DAMAGES)(data, chance)
    return name, bytes(data)


@dataclass
class Outcomes:
    """What became of the files."""

    by_code: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    dialogues: int = 0


def read_all(path: Path, outcomes: Outcomes) -> str:
    """Reads and parses everything in a file, whole and in pieces; returns the code of the first problem, or `read`."""
    first: list[str] = []

    def note(error: RecordError) -> None:
        assert str(error).startswith(f"{path}:"), "every problem has a place"
        first.append(error.code)

    try:
        records = list(read_records(path, on_error=note))
        # What `file:line` says, and what each is, does not depend on how the file is divided.
        pieces = [record for piece in split_file(path, 200) for record in read_piece(piece, note)]
    except RecordError as error:
        return error.code
    except MossTrainError as error:
        return type(error).__name__
    if path.suffix == ".jsonl":
        assert pieces == records
    for record in records:
        try:
            dialogue = parse(record.value, record.origin)
        except RecordError as error:
            note(error)
            continue
        outcomes.dialogues += 1
        assert parse(write(dialogue, "messages"), record.origin) == dialogue
    return first[0] if first else "read"


def campaign(folder: Path, numbers: range) -> Outcomes:
    """Reads the files of these numbers."""
    outcomes = Outcomes()
    for number in numbers:
        name, data = damaged(number)
        path = folder / name
        path.write_bytes(data)
        started = time.process_time()
        try:
            outcome = read_all(path, outcomes)
        except Exception as error:
            raise AssertionError(f"file {number} of seed {SEED} ({name}) is not read and ends in no documented error") from error
        seconds = time.process_time() - started
        assert seconds < SECONDS, f"file {number} of seed {SEED} ({name}, {outcome}) takes {seconds:.2f} s"
        outcomes.slowest = max(outcomes.slowest, (seconds, f"file {number}, {name}, {outcome}"))
        outcomes.by_code[outcome] += 1
    return outcomes


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Fails a test that takes much more memory than there was before it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEMORY_MIB, f"{grown:.0f} MiB more at the peak"


def test_files_that_are_whole_are_read(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
        outcomes = Outcomes()
        assert read_all(tmp_path / name, outcomes) == "read"
        assert outcomes.dialogues == 3, name


@pytest.mark.usefixtures("little_memory")
def test_2000_damaged_files(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, range(2000))
    reached = {"read", "bad_json", "not_utf8", "bad_archive", "truncated_archive", "unknown_format", "unknown_role", "no_terminator"}
    assert reached <= set(outcomes.by_code), "the damage is of all kinds"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("little_memory")
def test_100000_damaged_files(tmp_path: Path) -> None:
    outcomes = campaign(tmp_path, range(2000, 102_000))
    print(f"\n{outcomes.dialogues} dialogues; slowest {outcomes.slowest[0] * 1000:.0f} ms ({outcomes.slowest[1]})")
    print(", ".join(f"{code} {count}" for code, count in outcomes.by_code.most_common()))
