"""Packed files, Parquet and Arrow tables, saved datasets, and files in pieces."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from moss_train.data.paths import find_files
from moss_train.data.records import MAX_LINE_BYTES, Piece, ProblemList, Record, RecordError, read_piece, read_records, split_file
from moss_train.errors import DataError

ROWS = [{"a": number, "text": f"row {number} é\u2028"} for number in range(5)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
PACK = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


def problems_of(path: Path) -> tuple[list[Any], list[str]]:
    """The values that could be read, and `line: code` of each problem."""
    found: list[RecordError] = []
    values = [record.value for record in read_records(path, on_error=found.append)]
    return values, [f"{error.origin.rsplit(':', 1)[1]}: {error.code}" for error in found]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".GZ"])
@pytest.mark.parametrize("form", [".jsonl", ".ndjson", ".json"])
def test_packed_files_read_as_what_they_hold(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"rows{form}{suffix}"
    content = json.dumps(ROWS, indent=1).encode() if form == ".json" else LINES
    pack = PACK[suffix.lower()]
    path.write_bytes(pack(content[:40]) + pack(content[40:]))
    records = list(read_records(path))
    assert [record.value for record in records] == ROWS
    plain = tmp_path / f"rows{form}"
    plain.write_bytes(content)
    assert [record.origin.replace(str(path), str(plain)) for record in records] == [record.origin for record in read_records(plain)]
    assert find_files(str(tmp_path)) == sorted([path, plain])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_file_that_was_cut_is_told_at_its_line(tmp_path: Path, suffix: str) -> None:
    chance = random.Random(0)
    rows = [{"a": chance.random()} for _ in range(50_000)]
    content = "\n".join(map(json.dumps, rows)).encode()
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACK[suffix](content)[:-300_000])
    values, problems = problems_of(path)
    assert 0 < len(values) < len(rows)
    assert values == rows[: len(values)]
    assert problems == [f"{len(values) + 1}: truncated_archive"]
    with pytest.raises(RecordError, match="cut in copying"):
        list(read_records(path))
    whole = tmp_path / f"rows.json{suffix}"
    whole.write_bytes(PACK[suffix](content)[:-300_000])
    assert problems_of(whole)[0] == []
    assert problems_of(whole)[1][0].endswith(": truncated_archive")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda packed: b"", "truncated_archive"),
        (lambda packed: packed[:-1], "truncated_archive"),
        (lambda packed: LINES, "bad_archive"),
        (lambda packed: packed + b"rest of another file", "bad_archive"),
    ],
    ids=["empty", "one byte short", "not packed", "more after it"],
)
def test_damaged_packed_files(tmp_path: Path, suffix: str, damage: Any, code: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    path.write_bytes(damage(pack(LINES)))
    assert problems_of(path)[1][-1].endswith(code)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_packed_line_without_end_is_not_held_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    path.write_bytes(PACK[suffix](b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}\n{"a": 1}\n'))
    assert problems_of(path) == ([{"a": 1}], ["1: line_too_long"])


def write_table(path: Path, rows: list[dict[str, Any]], group: int = 2) -> None:
    pq.write_table(pa.Table.from_struct_array(pa.array(rows)), path, row_group_size=group)


def test_parquet_rows_have_numbers_and_missing_keys_stay_missing(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"id": 1, "chat": {"turn_1": {"Human": "a"}}}, {"id": 2, "chat": {"turn_1": {"Human": "b"}, "turn_2": {"Human": "c"}}}]
    write_table(path, [*rows, {"id": 3, "tags": ["x", "y"]}])
    records = list(read_records(path))
    assert [record.value for record in records] == [*rows, {"id": 3, "tags": ["x", "y"]}]
    assert [record.origin for record in records] == [f"{path}:{row}" for row in (1, 2, 3)]


def test_an_object_without_any_value_is_missing_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    turn = pa.struct({"Human": pa.string(), "MOSS": pa.string()})
    kind = pa.struct({"chat": pa.struct({"turn_1": turn, "turn_2": turn}), "tags": pa.list_(pa.string())})
    nothing = {"Human": None, "MOSS": None}
    rows = [{"chat": {"turn_1": {"Human": "a", "MOSS": "b"}, "turn_2": nothing}, "tags": []}, {"chat": None, "tags": None}]
    pq.write_table(pa.Table.from_struct_array(pa.array(rows, kind)), path)
    assert [record.value for record in read_records(path)] == [{"chat": {"turn_1": {"Human": "a", "MOSS": "b"}}, "tags": []}, {}]


def test_a_parquet_row_that_is_not_utf8_is_told_and_the_others_are_kept(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": text}), path)
    assert problems_of(path) == ([{"text": "good"}, {"text": "fine"}], ["2: not_utf8"])


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"PAR1", lambda raw: b"x" * len(raw)])
def test_damaged_tables(tmp_path: Path, suffix: str, damage: Any) -> None:
    path = tmp_path / f"rows{suffix}"
    table = pa.Table.from_pylist(ROWS)
    if suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    assert [record.value for record in read_records(path)] == ROWS
    path.write_bytes(damage(path.read_bytes()))
    assert problems_of(path) == ([], ["1: bad_archive"])
    if suffix == ".parquet":
        assert split_file(path, 1) == [Piece(path)]


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(RecordError, match="'a'"):
        list(read_records(path))


def test_datasets_saved_by_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = tmp_path / "sets" / "one"
    datasets.Dataset.from_list(ROWS).save_to_disk(saved, num_shards=2)
    (tmp_path / "sets" / "more.jsonl").write_bytes(LINES)
    records = list(read_records(saved))
    assert [record.value for record in records] == ROWS
    assert records[-1].origin == f"{saved / 'data-00001-of-00002.arrow'}:2"
    assert [record.value for record in read_records(tmp_path / "sets")] == ROWS + ROWS, "state.json and the like are no records"
    both = tmp_path / "both"
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}).save_to_disk(both)
    with pytest.raises(DataError, match=r"DatasetDict with the splits test, train; name one"):
        list(read_records(both))
    assert [record.value for record in read_records(both / "test")] == ROWS[:1]
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: missing"):
        list(read_records(saved))


def read_in_pieces(path: Path, piece_bytes: int) -> tuple[list[Record], list[str]]:
    errors = ProblemList()
    records = [record for piece in split_file(path, piece_bytes) for record in read_piece(piece, errors.add)]
    return records, sorted(errors._shown)


@pytest.mark.parametrize("piece_bytes", [1, 7, 30, 31, 64, 1000, 1 << 20])
def test_pieces_give_the_records_and_origins_of_the_whole(tmp_path: Path, piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moss_train.data.records._COUNTED_AT_ONCE", 50)
    path = tmp_path / "rows.jsonl"
    for content in (LINES, LINES[:-1], b"\n\n" + LINES + b"\r\n{bad\n\xff\n" + LINES, b"", b"\n", b"{}"):
        path.write_bytes(content)
        errors = ProblemList()
        whole = list(read_records(path, on_error=errors.add))
        assert read_in_pieces(path, piece_bytes) == (whole, sorted(errors._shown))
        pieces = split_file(path, piece_bytes)
        assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]
        assert (pieces[0].start, pieces[-1].end) == (0, len(content))
        # Cut where the line ends in which the wanted size is reached.
        assert all(piece.end is not None and content[piece.start : piece.end].count(b"\n") for piece in pieces[:-1])


def test_parquet_pieces_are_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_table(path, ROWS)
    whole = list(read_records(path))
    assert read_in_pieces(path, 1) == (whole, [])
    assert split_file(path, 1) == [Piece(path, 0, 1, 1), Piece(path, 1, 2, 3), Piece(path, 2, 3, 5)]
    assert split_file(path, 1 << 30) == [Piece(path, 0, 3, 1)]
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(LINES))
    assert split_file(packed, 1) == [Piece(packed)]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    for name in ("gone.jsonl", "gone.jsonl.zst"):
        with pytest.raises(DataError, match=r"cannot be read: No such file"):
            list(read_piece(Piece(tmp_path / name)))
    with pytest.raises(DataError, match="cannot be read"):
        split_file(tmp_path / "gone.jsonl", 1)
    with pytest.raises(DataError, match="are not read"):
        list(read_piece(Piece(tmp_path / "x.parquet.gz")))
