"""`data convert`: the same dialogues in another format and container, or nothing at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moss_train import files
from moss_train.artifacts.lineage import load, record_path
from moss_train.data.convert import OUTPUTS
from moss_train.data.dialogue import Dialogue
from moss_train.data.new_file import NewFile
from moss_train.data.selection import Selection
from moss_train.data.tool import main
from moss_train.errors import DiskFullError, UsageError

PLAIN = {"id": "p", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
CALL = {"id": "1", "type": "function", "function": {"name": "Search", "arguments": '{"query": "x"}'}}
TOOL = {
    "id": "t",
    "category": "tool",
    "messages": [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "x?"},
        {"role": "assistant", "content": None, "reasoning_content": "look", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "<|1|>: 'y'"},
        {"role": "assistant", "content": "y", "weight": 0},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "so"},
    ],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def dialogues(path: Path) -> list[Dialogue]:
    """Those of a file, their places left out."""
    return [replace(example.dialogue, origin="") for example in Selection([str(path)]).examples()]


@pytest.mark.parametrize("ending", OUTPUTS)
@pytest.mark.parametrize("name", ["moss003", "messages", "sharegpt"])
def test_the_same_dialogues_come_back(tmp_path: Path, name: str, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "a.jsonl", PLAIN, TOOL), tmp_path / f"out{ending}"
    assert main(["convert", str(path), str(out), "--to", name, "--default-meta", "none"]) == 0
    assert dialogues(out) == dialogues(path)
    assert capsys.readouterr().out == f"{out}: 2 dialogues written as {name} (read as messages 2)\n"
    assert sorted(tmp_path.iterdir()) == sorted([path, out, record_path(out)])
    assert main(["convert", str(out), str(tmp_path / "back.jsonl"), "--to", "messages"]) == 0
    assert dialogues(tmp_path / "back.jsonl") == dialogues(path)


def test_packed_files_do_not_depend_on_the_hour(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", PLAIN)
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        assert main(["convert", str(path), str(tmp_path / folder / "a.jsonl.gz"), "--to", "messages"]) == 0
        contents.append((tmp_path / folder / "a.jsonl.gz").read_bytes())
    assert contents[0] == contents[1]


def test_what_the_format_cannot_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path / "a.jsonl", PLAIN, TOOL, "{", PLAIN), tmp_path / "out.jsonl"
    common = ["convert", str(path), str(out), "--to", "alpaca"]
    assert main(common) == 3
    said = capsys.readouterr()
    assert f"{path}:2: cannot_hold: the format alpaca cannot hold the Inner Thoughts of turn 1 (' look')" in said.out
    assert f"{path}:3: bad_json: " in said.out
    assert "2 of 4 records cannot be written as alpaca" in said.err
    assert list(tmp_path.iterdir()) == [path]
    assert main([*common, "--skip"]) == 0
    said = capsys.readouterr()
    assert f"{out}: 2 dialogues written as alpaca (read as messages 2)" in said.out
    assert "left out with --skip: 2" in said.out
    assert len(dialogues(out)) == 2
    # All of it left out is no file either.
    assert main(["convert", str(write(tmp_path / "b.jsonl", TOOL)), str(tmp_path / "none.jsonl"), "--to", "alpaca", "--skip"]) == 3
    assert "no dialogue is left to write" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


def test_what_was_added_and_what_is_lost_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", {**PLAIN, "source": "web", "tools": []}, TOOL, {**PLAIN, "source": "book"})
    assert main(["convert", str(path), str(tmp_path / "out.jsonl"), "--to", "moss003", "--plugins", "calculator"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("2 records without a meta instruction: the default one now stands there")
    assert said[2:] == ["not carried over: the key 'source' of 2 records (no part of a dialogue)"]
    assert "Calculator: enabled" in dialogues(tmp_path / "out.jsonl")[0].meta_instruction


def test_records_that_fit_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL's prompts are texts or lists; a column is one of them."""
    several = {"prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "a"}], "completion": TOOL["messages"][2:5]}
    path, out = write(tmp_path / "a.jsonl", PLAIN, several), tmp_path / "out.parquet"
    assert main(["convert", str(path), str(out), "--to", "prompt_completion"]) == 3
    said = capsys.readouterr()
    assert "do not fit one table" in said.err
    assert "write them as .jsonl" in said.err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a.jsonl", "a.jsonl exists already; choose another name"),
        ("a.csv", "expected a name that ends in one of .jsonl, .jsonl.gz, .jsonl.zst, .parquet"),
        ("absent/a.jsonl", "absent does not exist; make it first"),
    ],
)
def test_a_wrong_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, message: str) -> None:
    path = write(tmp_path / "a.jsonl", PLAIN)
    before = path.read_bytes()
    assert main(["convert", str(path), str(tmp_path / out), "--to", "moss003"]) == 2
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


def fill(path: Path, error: Exception | None = None, replace: bool = False) -> None:
    """Writes a file; an error comes in between."""
    with NewFile(path, replace) as made:
        made.open().write(b"y")
        if error is not None:
            raise error


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with NewFile(path) as made:
        made.open().write(b"x")
        assert not path.exists()
    assert path.read_bytes() == b"x"
    with pytest.raises(UsageError, match="exists already"):
        NewFile(path)
    with pytest.raises(RuntimeError):
        fill(path, RuntimeError(), replace=True)
    assert path.read_bytes() == b"x"


def test_a_name_taken_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a"
    made = NewFile(path)
    made.open()
    path.write_bytes(b"of another")
    with pytest.raises(UsageError, match="by another program meanwhile"):
        made.__exit__(None, None, None)
    assert path.read_bytes() == b"of another"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="no space is left"):
        fill(tmp_path / "a", OSError(28, "No space left on device"))
    monkeypatch.setattr(files, "sync_file", full)
    with pytest.raises(DiskFullError, match="no space is left"):
        fill(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_published_data_through_a_table_and_back(real_data: Path, tmp_path: Path) -> None:
    dev, table, back = real_data / "moss-003-sft-sample" / "dev.jsonl", tmp_path / "a.parquet", tmp_path / "b.jsonl"
    assert main(["convert", str(dev), str(table), "--to", "messages"]) == 0
    assert main(["convert", str(table), str(back), "--to", "moss003"]) == 0
    assert dialogues(back) == dialogues(dev)


def test_a_record_says_what_a_file_was_made_from(tmp_path: Path) -> None:
    """Each path with its own count and hash; a file that has a record itself is a parent, and its licence is carried on."""
    first, second, out = write(tmp_path / "a.jsonl", PLAIN, TOOL), write(tmp_path / "b.jsonl", PLAIN), tmp_path / "out.jsonl"
    arguments = [str(first), f"{second}#1", str(out), "--to", "moss003", "--licence", "CC-BY-4.0"]
    assert main(["convert", *arguments]) == 0
    record = load(out)
    assert record is not None
    assert [(source.name, source.records, source.licence) for source in record.lineage.data] == [
        ("a.jsonl", 2, "CC-BY-4.0"),
        ("b.jsonl#1", 1, "CC-BY-4.0"),
    ]
    assert record.lineage.data[0].sha256 == files.hash_file(first).sha256
    assert record.lineage.details == {"format": "moss003", "left_out": {}, "records": 3}
    assert record.files == {"out.jsonl": files.hash_file(out)}
    assert main(["convert", str(out), str(tmp_path / "again.jsonl"), "--to", "messages"]) == 0
    again = load(tmp_path / "again.jsonl")
    assert again is not None
    assert [(parent.role, parent.id, parent.path) for parent in again.lineage.parents] == [("source", record.id, "../out.jsonl")]
    assert again.lineage.data[0].licence == "CC-BY-4.0"
    assert again.lineage.licences == {"CC-BY-4.0": ["a.jsonl", "b.jsonl#1", "out.jsonl"]}
