"""`data check`: what it reports, where, and how it ends."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.render import LENGTH_POLICIES
from moss_train.data.tokenizer import MossTokenizer
from moss_train.data.tool import main


def messages(*texts: str, **last: Any) -> dict[str, Any]:
    """A dialogue in the messages format, of the user and the assistant by turns."""
    items: list[dict[str, Any]] = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    items[-1] |= last
    return {"messages": items}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(byte_tokenizer: MossTokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_good_data_in_many_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    write(data / "a.jsonl", messages("a", "b"), messages("c", "d"))
    write(data / "b.json", {"conversations": [{"from": "human", "value": "e"}, {"from": "gpt", "value": "f"}]})
    (data / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"prompt": "g", "completion": "h"}).encode()))
    assert main(["check", str(data)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "4 records, 4 dialogues (by format: messages 2, sharegpt 1, prompt_completion 1)",
        "OK: nothing is wrong; no warnings",
    ]
    assert said.err == ""
    assert main(["check", f"{data / 'a.jsonl'}#1", str(data / "*.json")]) == 0
    assert capsys.readouterr().out.startswith("2 records, 2 dialogues (by format: messages 1, sharegpt 1)")


def test_bad_records_are_told_by_line_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [messages("a", "b"), "{", messages("a"), [1], messages("a", "b", text="x"), messages("a", "")]
    path = write(tmp_path / "a.jsonl", *rows)
    rejects = write(tmp_path / "rejects.jsonl", "of another time")
    assert main(["check", str(path), "--rejects", str(rejects)]) == 3
    said = capsys.readouterr()
    codes = ["bad_json", "no_reply", "not_an_object", "empty_moss"]
    lines = [2, 3, 4, 6]
    for line, code, printed in zip(lines, codes, said.out.splitlines(), strict=False):
        assert printed.startswith(f"{path}:{line}: {code}: ")
    assert "totals: bad_json 1, no_reply 1, not_an_object 1, empty_moss 1" in said.out
    assert "6 records, 2 dialogues (by format: messages 2)" in said.out
    assert said.out.splitlines()[-1] == "NOT OK: 4 bad; repair them, or train with data.on_bad=skip; 1 warning"
    assert "Traceback" not in said.err
    written = [json.loads(line) for line in rejects.read_text(encoding="utf-8").splitlines()]
    assert [(one["origin"], one["code"]) for one in written] == [(f"{path}:{line}", code) for line, code in zip(lines, codes, strict=True)]
    assert written[2]["problem"] == "the record is an array ([1]); expected a JSON object with a dialogue in one of the formats " + (
        "moss003, moss002, messages, sharegpt, alpaca, prompt_completion."
    )
    assert list(tmp_path.glob(".*")) == []


def test_only_the_first_problems_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", *["{"] * 30)
    assert main(["check", str(path), "--rejects", str(tmp_path / "r.jsonl")]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[19].startswith(f"{path}:20: ")
    assert lines[20:22] == ["... and 10 more", "totals: bad_json 30"]
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 30


def test_warnings_do_not_change_the_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", *[messages("a", "b<sup><|1|></sup>")] * 5)
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "bad_citation 5: the reply cites a result that is not there" in said
    assert f"    {path}:3: turn 1: <sup><|1|></sup> in the reply, with no numbered result\n    ... and 2 more" in said
    assert "duplicate_dialogue 4: " in said
    assert f"    {path}:2: as {path}:1" in said
    assert said.splitlines()[-1] == "OK: nothing is wrong; 9 warnings"
    assert main(["check", str(path), "--no-warnings"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "OK: nothing is wrong; no warnings"


def test_a_text_cannot_move_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = {"name": "Search", "arguments": {"query": "\x1b[2J"}}
    path = write(
        tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    )
    record = {
        "chat": {"turn_1": {"Human": "<|Human|>: a<eoh>\n", "Commands": "<|Commands|>: \x1b[2J<eoc>\n", "MOSS": "<|MOSS|>: b<eom>\n"}}
    }
    write(path, record, {"messages": [{"role": "\x1b[2J", "content": "a"}]})
    assert main(["check", str(path)]) == 3
    assert "\x1b" not in capsys.readouterr().out


def test_an_empty_file_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, empty = write(tmp_path / "a.jsonl", messages("a", "b")), write(tmp_path / "b.jsonl", "", " ")
    assert main(["check", str(good), str(empty)]) == 3
    assert f"{empty}:1: no_records: the file is empty" in capsys.readouterr().out


def test_a_missing_path_is_told_before_any_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(write(tmp_path / "a.jsonl", "{")), str(tmp_path / "absent.jsonl")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "absent.jsonl: no such file or directory" in said.err


def test_rendered_too(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = messages("a", "b", "c" * 500, "d")
    rows = [messages("a", "b"), long, messages("a" * 500, "b"), messages("a", "b", weight=0)]
    path = write(tmp_path / "a.jsonl", *rows)
    common = ["check", str(path), "--tokenizer", str(folder), "--seq-len", "300", "--default-meta", "none"]
    assert main(common) == 0
    said = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    table = {parts[1].strip() or parts[2].strip(): [part.strip() for part in parts if " of " in part] for parts in said}
    assert table["dialogues kept"] == ["2 of 4"]
    assert table["of them shortened by whole turns"] == ["1 of 4"]
    assert table["dropped: the first turn is too long"] == ["1 of 4"]
    assert table["dropped: no token is trained"] == ["1 of 4"]
    assert table["turns lost"] == ["2 of 5"]
    # Each turn has 18 tokens with loss: None<eot>, None<eoc>, one letter and <eom>, with blanks and line ends.
    assert table["tokens with loss lost"] == ["36 of 72"]
    assert main([*common, "--on-long", "error"]) == 3
    said_out = capsys.readouterr().out
    assert f"{path}:2: too_long: " in said_out
    assert f"{path}:3: too_long: " in said_out
    assert main([*common, "--on-long", "drop"]) == 0
    assert "dropped: too long" in capsys.readouterr().out
    assert set(LENGTH_POLICIES) == {"drop_turns", "drop", "error"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tokenizer", "absent"], 3, "absent: no tokenizer found"),
        (["--seq-len", "1"], 2, "--seq-len is 1; expected 2"),
        (["--rejects", "absent/rejects.jsonl"], 2, "the folder absent does not exist"),
        (["--rejects", "."], 2, "exists already"),
        (["--format", "sharegpt"], 3, ""),
    ],
)
def test_how_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str) -> None:
    path = write(tmp_path / "a.jsonl", messages("a", "b"))
    assert main(["check", str(path), *arguments]) == code
    assert message in capsys.readouterr().err


def test_published_data_is_clean(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rejects = tmp_path / "rejects.jsonl"
    assert main(["check", str(real_data / "moss-003-sft-sample"), "--rejects", str(rejects)]) == 0
    said = capsys.readouterr().out
    assert "1,008 records, 1,008 dialogues (by format: moss003 1,008)" in said
    assert "failed_tool 44: " in said
    assert rejects.read_text() == ""


@pytest.mark.parametrize(("row", "code"), [(messages("a", "b"), 0), ("{", 3)])
def test_a_reader_that_leaves_does_not_change_the_code(tmp_path: Path, repository: Path, row: Any, code: int) -> None:
    path = write(tmp_path / "a.jsonl", row)
    command = [sys.executable, str(repository / "scripts" / "data.py"), "check", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(repository)})
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == code
