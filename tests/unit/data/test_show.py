"""`data show`: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from moss_train.data import show as module
from moss_train.data.formats import parse_moss003
from moss_train.data.records import read_records
from moss_train.data.render import render
from moss_train.data.show import _as_json, _edges, _paint, _run_lengths
from moss_train.data.terminal import visible
from moss_train.data.tokenizer import MossTokenizer
from moss_train.data.tool import main

TURN = {
    "Human": "<|Human|>: 2+3?<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: easy<eot>\n",
    "Commands": "<|Commands|>: C(2)<eoc>\n",
    "Tool Responses": "<|Results|>:\n5\n<eor>\n",
    "MOSS": "<|MOSS|>: 5<eom>\n",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"conversation_id": n, "meta_instruction": "Be.\n", "chat": {f"turn_{t}": TURN for t in range(1, n + 1)}} for n in (1, 2, 3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(byte_tokenizer: MossTokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_json_is_one_object_a_dialogue(file: Path, folder: Path, byte_tokenizer: MossTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--json", "--tokenizer", str(folder), "--loss-on", "release"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in rows] == ["1", "2", "3"]
    for row, record in zip(rows, read_records(file), strict=True):
        rendered = render(parse_moss003(record.value, record.origin), byte_tokenizer, "release")
        assert row["origin"] == record.origin
        assert row["input_ids"] == rendered.input_ids
        assert row["loss_mask"] == rendered.loss_mask
        assert row["segments"] == [segment._asdict() for segment in rendered.segments]
        assert json.loads(json.dumps(_as_json(parse_moss003(record.value, record.origin), rendered))) == row


def test_index_and_count_and_limit(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--json", "--tokenizer", str(folder), "--index", "1", "--count", "1"]) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == ["2"]
    one_turn = 4 + sum(map(len, TURN.values())) - 5 * len("eoh>")
    assert main(["show", str(file), "--json", "--tokenizer", str(folder), "--max-tokens", str(one_turn)]) == 0
    assert {len(json.loads(line)["input_ids"]) for line in capsys.readouterr().out.splitlines()} == {one_turn}
    assert main(["show", str(file), "--json", "--tokenizer", str(folder), "--max-tokens", "9"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{file}:1: left out: 1 turns dropped too long, 1 dialogues dropped first turn too long" in said.err


def test_the_terminal_view_without_colours_brackets_what_is_trained(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--tokenizer", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{file}:1  id 1"[:40])
    shown = "\n".join(lines)
    assert "<|Human|>:·2+3?<eoh>⏎" in shown
    assert "<|Commands|>:⟦·C(2)⟧⟦<eoc>⏎⟧" in shown
    assert "<|Results|>:⏎5⏎<eor>⏎" in shown
    assert "<|MOSS|>:⟦·5⟧⟦<eom>⏎⟧" in shown
    assert "labels  -40 +7 -13 +7 -26 +4" in shown
    assert lines[-1].split() == ["all", "6", "97", "18", "19%"]


def test_colours_follow_the_mask(byte_tokenizer: MossTokenizer, file: Path) -> None:
    record = next(iter(read_records(file)))
    rendered = render(parse_moss003(record.value, record.origin), byte_tokenizer)
    painted = _paint(rendered.segments[-1], rendered, byte_tokenizer, marks=False)
    styles = {span.style: painted.plain[span.start : span.end] for span in painted.spans}
    assert styles["dim"] == "<|MOSS|>:"
    assert "".join(painted.plain[span.start : span.end] for span in painted.spans if span.style == module.TRAINED) == "·5<eom>⏎"
    output = io.StringIO()
    Console(force_terminal=True, color_system="standard", file=output, width=80).print(painted)
    assert "\x1b[1;32m·5" in output.getvalue()


def test_without_a_tokenizer_one_is_trained_and_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert "no --tokenizer: a small one" in said.err
    assert len(said.out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "absent.jsonl"], 3, "absent.jsonl: no such file or directory"),
        (["show", "FILE", "--tokenizer", "absent"], 3, "no tokenizer found"),
        (["show", "FILE", "--index", "9"], 3, "no dialogue with index 9"),
        (["show", "FILE#2", "--index", "2"], 3, "no dialogue with index 2"),
    ],
)
def test_errors_are_one_message_and_a_code(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert main([argument.replace("FILE", str(file)) for argument in arguments]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


@pytest.mark.parametrize("arguments", [[], ["show"], ["paint", "x"], ["show", "x", "--loss-on", "all"], ["show", "x", "--index", "-1"]])
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_script_and_a_reader_that_leaves(file: Path, folder: Path, repository: Path) -> None:
    rows = file.read_text()
    file.write_text(rows * 400)
    command = [sys.executable, str(repository / "scripts" / "data.py"), "show", str(file), "--json", "--tokenizer", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=file.parent, env=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    json.loads(process.stdout.readline())
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_a_record_cannot_move_the_cursor() -> None:
    assert visible("a\x1b[2Jb\rc\x7f\u202ed\x9b") == "a␛[2Jb␍c<U+007F><U+202E>d<U+009B>"
    assert _edges("  a b \n\n") == "··a b·⏎⏎"
    assert _edges(" \n") == "·⏎"
    assert _edges("") == ""
    assert _run_lengths([False, False, True, False]) == "-2 +1 -1"


ROWS = {
    "messages": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
    "alpaca": {"instruction": "hi", "output": "yes"},
    "prompt_completion": {"prompt": "hi", "completion": " yes"},
    "moss002": {"prefix": "", "plain_text": "[Human]: hi<eoh> [MOSS]: yes<eoa>"},
}


@pytest.mark.parametrize("name", ROWS)
def test_every_format_is_shown(name: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS[name]))
    assert main(["show", str(path), "--tokenizer", str(folder), "--default-meta", "none"]) == 0
    shown = capsys.readouterr().out
    assert "<|Human|>:·hi<eoh>⏎" in shown
    assert "<|MOSS|>:⟦·yes⟧⟦<eom>⏎⟧" in shown


def test_what_a_record_takes_out_of_the_loss_is_said(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "row.json"
    said = [{"role": "assistant", "content": "no", "weight": 0}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "yes"}]
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, *said]}))
    assert main(["show", str(path), "--tokenizer", str(folder), "--default-meta", "none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = {name: next(number for number, line in enumerate(lines) if line.startswith(name)) for name in ("turn 1 moss", "turn 2 moss")}
    assert lines[places["turn 1 moss"]].endswith("without loss: the record says so")
    assert lines[places["turn 1 moss"] + 1] == "<|MOSS|>:·no<eom>⏎"
    assert "record" not in lines[places["turn 2 moss"]]
    assert lines[places["turn 2 moss"] + 1] == "<|MOSS|>:⟦·yes⟧⟦<eom>⏎⟧"


def test_the_default_meta_instruction_and_its_switches(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS["alpaca"]))
    assert main(["show", str(path), "--tokenizer", str(folder), "--plugins", "calculator"]) == 0
    assert "- Calculator: enabled. API: Calculate(expression)" in capsys.readouterr().out
    assert main(["show", str(path), "--plugins", "abacus"]) == 2
    assert "there is no 'abacus'; expected some of inner_thoughts" in capsys.readouterr().err
