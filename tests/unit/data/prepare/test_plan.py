from __future__ import annotations

import json
from pathlib import Path

import pytest

from moss_train.data.prepare.config import Form, PrepareConfig, SourceConfig
from moss_train.data.prepare.plan import Plan, make_plan
from moss_train.errors import DataError
from tests.corpora import documents, write_jsonl

TOKENIZER = {"fingerprint": "f", "size": 1, "vocab_size": 1, "endoftext": 0, "parent": None}


def plan(shard_mb: float = 128, **sources: SourceConfig) -> Plan:
    return make_plan(PrepareConfig("t", "o", sources, shard_mb=shard_mb), TOKENIZER)


@pytest.mark.parametrize("size", [50, 1000, 10**7])
@pytest.mark.parametrize("end", ["\n", ""])
def test_pieces_of_a_file_of_lines_cover_it_and_end_with_lines(tmp_path: Path, size: int, end: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents("en", 40))
    content = path.read_bytes().rstrip(b"\n") + end.encode()
    path.write_bytes(content)
    made = plan(size / 1e6 if size >= 1000 else 0.001, a=SourceConfig(str(path), "en"))
    pieces = [piece for task in made.tasks for piece in made.pieces(task)]
    assert [piece.start for piece in pieces] == [0, *(piece.end for piece in pieces[:-1])]
    assert pieces[-1].end == len(content)
    assert all(content[piece.end - 1 : piece.end] == b"\n" for piece in pieces[:-1] if piece.end is not None)
    assert (len(pieces) > 3) == (size < 10**6)


def test_small_files_share_a_task(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number:02d}.py").write_text("x = 1\n")
    made = plan(0.05, code=SourceConfig(str(tmp_path), "code"))
    assert [len(task.pieces) for task in made.tasks] == [12, 12, 6]
    assert [task.shard for task in made.tasks] == ["shard-00000", "shard-00001", "shard-00002"]


def test_the_form_of_a_source_is_seen_or_asked_for(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "records" / "a.jsonl", ["x"])
    (tmp_path / "tree").mkdir()
    for name in ("a.py", "b.bin", "c.py", "Makefile"):
        (tmp_path / "tree" / name).write_text("x")
    made = plan(a=SourceConfig(str(tmp_path / "records"), "en"), b=SourceConfig(str(tmp_path / "tree"), "code"))
    assert made.forms == {"a": "records", "b": "texts"}
    assert made.left_out == {"a": {}, "b": {"(none)": 1, "bin": 1}}
    with pytest.raises(
        DataError, match=r"sources\.c: .*1 files of records .* and 2 of text or code; say which .* form=records or form=texts"
    ):
        plan(c=SourceConfig(str(tmp_path), "code"))
    assert len(plan(c=SourceConfig(str(tmp_path), "code", form=Form.records)).files) == 1
    assert len(plan(c=SourceConfig(str(tmp_path), "code", extensions=["bin", ".jsonl"])).files) == 2


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.a: .*no such file or directory. The nearest folder that exists is"):
        plan(a=SourceConfig(str(tmp_path / "nowhere"), "en"))
    (tmp_path / "x.bin").write_text("x")
    with pytest.raises(DataError, match=r"sources\.a: .*holds no file"):
        plan(a=SourceConfig(str(tmp_path), "en"))
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    with pytest.raises(DataError, match="is named twice"):
        plan(a=SourceConfig([str(path), str(path)], "en"))


def test_changed_inputs_are_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["x"])
    made = plan(a=SourceConfig(str(path), "en"))
    made.require_unchanged()
    path.write_text(path.read_text() + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl: has changed since the preparation began: 23 bytes then, 24 now"):
        made.require_unchanged(made.tasks[0])
    path.unlink()
    with pytest.raises(DataError, match="has gone since"):
        made.require_unchanged()


def test_a_plan_survives_json(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", documents("zh", 30))
    made = plan(0.001, a=SourceConfig(str(path), "zh"))
    again = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert again.inputs_fingerprint == made.inputs_fingerprint
