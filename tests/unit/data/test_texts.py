"""Texts from files, trees and records."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from moss_train.data.texts import PART_CHARACTERS, find_text_files, read_texts
from moss_train.errors import DataError


def texts(spec: object, **options: str) -> list[str]:
    return [text for _, text in read_texts(str(spec), **options)]


def test_files_trees_and_records_are_read(tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / ".git").mkdir()
    (tmp_path / "tree" / "a.py").write_bytes(b"x = 1\r\n\n")
    (tmp_path / "tree" / "deep" / "b.md").write_text("中文", encoding="utf-8")
    (tmp_path / "tree" / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "tree" / ".git" / "c.txt").write_text("hidden", encoding="utf-8")
    with gzip.open(tmp_path / "tree" / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ("one", "two"))
    assert texts(tmp_path / "tree") == ["x = 1\r\n\n", "one", "two", "中文"]
    assert texts(f"{tmp_path}/tree/**/*.md") == ["中文"]
    assert texts(f"{tmp_path}/tree/d.jsonl.gz#1") == ["one"]


def test_another_field_or_a_dialogue_gives_the_text(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"content": "c"}\n', encoding="utf-8")
    assert texts(rows, text_key="content") == ["c"]
    rows.write_text('{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}\n', encoding="utf-8")
    assert texts(rows) == ["问\n答"]


def test_long_files_come_in_parts_that_join_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    content = "".join(f"第{number}行\r\n" for number in range(PART_CHARACTERS // 4))
    path.write_bytes(content.encode())
    parts = texts(path)
    assert len(parts) > 1
    assert "".join(parts) == content
    assert all(part.endswith("\n") for part in parts)
    path.write_text("汉" * (PART_CHARACTERS + 5), encoding="utf-8")
    assert [len(part) for part in texts(path)] == [PART_CHARACTERS, 5]


def test_settings_beside_code_are_left_out_and_saved_datasets_are_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("pass\n", encoding="utf-8")
    (tree / "package.json").write_text('{"name": "a"}', encoding="utf-8")
    assert texts(tree) == ["pass\n"]
    Dataset.from_dict({"text": ["eins", "zwei"]}).save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved") == ["eins", "zwei"]


def test_one_long_line_comes_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "line.txt"
    path.write_text("first\n" + "a" * (4 * PART_CHARACTERS), encoding="utf-8")
    parts = texts(path)
    assert max(map(len, parts)) <= 2 * PART_CHARACTERS
    assert sum(map(len, parts)) == 6 + 4 * PART_CHARACTERS


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("好".encode("gbk"))
    with pytest.raises(DataError, match="not UTF-8: byte 0xBA at 0"):
        texts(bad)
    with pytest.raises(DataError, match="no such file or directory"):
        find_text_files(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        texts(tmp_path / "empty")
