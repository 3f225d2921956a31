from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import Dataset

from moss_train.data.paths import find_files
from moss_train.data.prepare import reading
from moss_train.data.prepare.reading import PieceReader
from moss_train.data.records import Piece, RecordError
from tests.corpora import documents

BAD_LINES = {
    "bad_json": (b"{'text': 1}", "line 1|column 2"),
    "no_text": (b'{"content": "x", "id": 1}', r"no field 'text'; fields found: 'content', 'id'. .*sources.zh.text=NAME"),
    "text_not_string": (b'{"text": null}', "field 'text' is NoneType None; expected a text"),
    "not_an_object": (b"[1]", r"the record is list \[1\]; expected an object"),
    "lone_surrogate": (rb'{"text": "a\ud83d"}', "half of a surrogate pair"),
    "not_utf8": (b'{"text": "\xff"}', "byte 0xff is not UTF-8"),
    "duplicate_key": (b'{"text": "a", "text": "b"}', "key 'text' occurs twice"),
    "not_a_number": (b'{"text": "a", "score": NaN}', "NaN is not JSON"),
}


def read(path: Path, form: str = "records", field: str = "text") -> tuple[list[str], list[RecordError], str]:
    errors: list[RecordError] = []
    reader = PieceReader(form, field, "zh", errors.append)
    texts = [text for text, _ in reader.read(Piece(path))]
    return texts, errors, reader.digest.hexdigest()


def test_the_same_documents_from_every_container(tmp_path: Path) -> None:
    texts = [*documents("zh", 5), "", "a\u2028b\x85c", "\\ud83d is text", '"text"', "🙂\x00"]
    lines = "".join(
        json.dumps({"text": text, "n": 1}, ensure_ascii=number % 2 == 0) + "\r\n\n" for number, text in enumerate(texts)
    ).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    found = {path.name: read(path) for path in (*tmp_path.glob("a.*"), *find_files(str(tmp_path / "saved")))}
    assert len(found) == 5
    for name, (got, errors, _) in found.items():
        assert (got, errors) == (texts, []), name
    assert found["a.jsonl"][2] == found["a.jsonl.gz"][2]


@pytest.mark.parametrize("code", BAD_LINES)
def test_bad_lines_are_told_with_their_place(tmp_path: Path, code: str) -> None:
    line, message = BAD_LINES[code]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}')
    texts, errors, _ = read(path)
    assert texts == ["one", "two"]
    (error,) = errors
    assert (error.code, error.origin) == (code, f"{path}:3")
    assert error.match(message) if hasattr(error, "match") else True
    with pytest.raises(RecordError, match=message):
        raise error


def test_lines_are_numbered_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' * 3 + b"{}\n")
    errors: list[RecordError] = []
    assert [text for text, _ in PieceReader("records", "text", "zh", errors.append).read(Piece(path, 32, None))] == ["one"]
    assert errors[0].origin == f"{path}:4"


def test_rows_are_numbered_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", "c", None, "e"]}), path, row_group_size=2)
    errors: list[RecordError] = []
    assert [text for text, _ in PieceReader("records", "text", "zh", errors.append).read(Piece(path, 1, 3))] == ["c", "e"]
    assert [error.origin for error in errors] == [f"{path}:4"]


def test_lines_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents("zh", 30)
    path = tmp_path / "a.jsonl"
    for end in ("\n", ""):
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + end)
        for size in (1, 7, 100, 10_000):
            monkeypatch.setattr(reading, "_BLOCK", size)
            assert read(path)[0] == texts


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 100)
    monkeypatch.setattr(reading, "_BLOCK", 64)
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "x"})
    path.write_text("\n".join([good, json.dumps({"text": "y" * 500}), good, good, json.dumps({"text": "z" * 500})]))
    texts, errors, _ = read(path)
    assert texts == ["x"] * 3
    assert [(error.code, error.origin) for error in errors] == [("line_too_long", f"{path}:2"), ("line_too_long", f"{path}:5")]


def test_a_cut_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"text": "x"}).encode() + b"\n")[:-4])
    assert [error.code for error in read(path)[1]] == ["truncated_archive"]


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = 1\r\n\x0c\n")
    (tmp_path / "b.py").write_bytes(b"x = 1\n'\xe9'\n")
    assert read(tmp_path / "a.py", "texts")[0] == ["x = 1\r\n\x0c\n"]
    assert [(error.code, error.origin) for error in read(tmp_path / "b.py", "texts")[1]] == [("not_utf8", f"{tmp_path / 'b.py'}:2")]
    assert next(PieceReader("texts", "", "zh", print).read(Piece(tmp_path / "a.py")))[1] == "python"
