"""Settings of sampling, the line of a prompt, and what is kept of a run that was killed."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

from moss_train import files
from moss_train.artifacts import lineage
from moss_train.cli import PROGRAMS
from moss_train.data.comparisons import context_to_json, parse_responses, response_to_json
from moss_train.data.dialogue import Turn
from moss_train.errors import DataError, DiskFullError, UsageError
from moss_train.inference.plugins import ToolRun
from moss_train.inference.turns import Reply
from moss_train.pm.partial import Partial
from moss_train.pm.sample import read_prompts, to_line
from moss_train.pm.sample_config import SampleConfig
from tests.launch import python, run, succeeded

SETTINGS = {"seed": 0, "samples": 2, "temperature": 1.0}


def given(**values: object) -> SampleConfig:
    return SampleConfig(**{"model": "m", "out": "o.jsonl", "prompts": "p.jsonl", **values})  # type: ignore[arg-type]


def reply(text: str, **values: object) -> Reply:
    named = {"thoughts": None, "commands": None, "results": None, "finished": True, "repaired": 0, "dropped_turns": 0}
    return Reply(**{"moss": text, **named, "citations_beyond": 0, "tool_run": None, "tokens": 3, "log_probability": -1.5, **values})  # type: ignore[arg-type]


def test_the_job_is_one_of_the_programs() -> None:
    assert PROGRAMS["sample"].is_job
    shown = succeeded(python("scripts/sample.py", "--cfg", "job")).stdout
    assert "samples: 4" in shown
    assert "chat" not in shown


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"prompts": None}, "exactly one of prompts=FILE and dialogue=FILE must be given; found none of them"),
        ({"dialogue": "d.jsonl"}, "exactly one of prompts=FILE and dialogue=FILE must be given; found prompts and dialogue"),
        ({"out": " "}, "out is empty; expected the name of a file, such as out=responses.jsonl"),
        ({"samples": 0}, "samples is 0; expected 1 or more"),
        (
            {"temperature": 0.0},
            "temperature=0 takes the likeliest token each time, so that all samples=4 would be equal; "
            "expected a temperature above zero, or samples=1",
        ),
        ({"batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a number above 0 and up to 1"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], problem: str) -> None:
    assert given(**values).problems() == [problem]


def test_right_values_have_no_problem() -> None:
    assert given().problems() == []
    assert given(temperature=0.0, samples=1).problems() == []


def test_every_problem_is_told_at_once_and_without_torch() -> None:
    result = python("scripts/sample.py", "sampels=3", "temperature=0", "top_k=-1")
    assert result.returncode == 2
    for expected in (
        "sampels: there is no such key; did you mean samples?",
        "model must be given",
        "out must be given",
        "exactly one of prompts=FILE",
        "temperature=0",
        "top_k is -1",
    ):
        assert expected in result.stderr
    code = "import sys, moss_train.pm.config; assert 'torch' not in sys.modules"
    succeeded(run([sys.executable, "-c", code]))


def test_a_line_is_one_of_responses_and_keeps_what_the_prompt_brought_along(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    record = {"id": "a-1", "prompt": "2 + 3?", "answer": 5, "language": "en", "category": "sums", "level": {"digits": 1}}
    path.write_text(json.dumps(record) + "\n" + json.dumps({"prompt": "你好"}) + "\n", encoding="utf-8")
    first, second = read_prompts(given(prompts=str(path), system="Be brief."))
    assert second.context.id == "1"
    problem = "Weather: there is no such tool"
    ran = ToolRun(" None", " None", problems=(problem,))
    with_tools = reply(" 6", thoughts=" hm", commands=" None", results=" None", finished=False, dropped_turns=1, tool_run=ran)
    line = json.loads(json.dumps(to_line(first, [reply(" 5"), reply(""), with_tools])))
    assert {key: line[key] for key in record if key != "prompt"} == {key: record[key] for key in record if key != "prompt"}
    assert line["origin"] == f"{path}:1"
    assert line["context"] == {"meta_instruction": "Be brief.\n", "turns": [{"human": " 2 + 3?"}]}
    assert line["responses"][0] == {"moss": " 5", "finish": "stop", "tokens": 3, "log_probability": -1.5}
    assert (line["responses"][2]["finish"], line["responses"][2]["dropped_turns"]) == ("length", 1)
    assert line["responses"][2]["tool_problems"] == [problem]
    read = parse_responses(line, "out:1")
    assert (read.context.id, read.context.category) == ("a-1", "sums")
    assert context_to_json(read.context) == line["context"]
    assert [response_to_json(turn) for turn in read.responses] == [
        {"moss": " 5"},
        {"moss": ""},
        {"thoughts": " hm", "commands": " None", "results": " None", "moss": " 6"},
    ]
    assert read.record["answer"] == 5


def test_the_last_reply_of_a_dialogue_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "dialogues.jsonl"
    messages = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    lines = [{"messages": messages, "language": "en", "source": "x"}, {"messages": messages[:3], "answer": "d"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole, open_end = read_prompts(given(prompts=None, dialogue=str(path)))
    assert whole.context.turns == open_end.context.turns
    assert whole.context.turns[1] == Turn(human=" c")
    assert (whole.extra, open_end.extra) == ({"language": "en"}, {"answer": "d"})


@pytest.mark.parametrize("content", ["", "\n\n", '{"question": "a"}\n', '{"prompt": " "}\n', '{"prompt": "a", "responses": []}\n'])
def test_wrong_prompts_are_data_errors(content: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"prompts\.jsonl"):
        read_prompts(given(prompts=str(path), system=""))


def test_what_is_complete_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    first = Partial(out)
    first.begin(SETTINGS)
    first.append(1, b'{"one": "\xe4\xbd\xa0"}\n')
    other_rank = Partial(out)
    other_rank.append(0, b'{"zero": 0}\n')
    other_rank.append(2, b'{"two": 2}\n')
    (part,) = [path for path in first.folder.glob("part-*") if b"two" in path.read_bytes()]
    for cut in range(1, len(b'2\t{"two": 2}\n') + 1):
        part.write_bytes(b'0\t{"zero": 0}\n2\t{"two": 2}\n'[:-cut])
        again = Partial(out)
        assert set(again.finished()) == {0, 1}, cut
    with pytest.raises(UsageError, match="lacks 1 of 3 lines, the first is number 2"):
        again.merge(3, lineage.Lineage("data", "sample"))
    again.append(2, b'{"two": 2}\n')
    again.merge(3, lineage.Lineage("data", "sample", details={"records": 3}))
    assert out.read_bytes() == b'{"zero": 0}\n{"one": "\xe4\xbd\xa0"}\n{"two": 2}\n'
    record = lineage.load(out)
    assert record is not None
    assert record.files["out.jsonl"].bytes == out.stat().st_size
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.lineage.json"]
    with pytest.raises(UsageError, match="exists; name another file, or remove it"):
        Partial(out).begin(SETTINGS)


@pytest.mark.parametrize("failing", ["sync", "rename"])
def test_merging_can_be_cut_off(tmp_path: Path, failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is not there before it is complete, and the next start makes it."""
    partial = Partial(tmp_path / "out.jsonl")
    partial.begin(SETTINGS)
    partial.append(0, b"{}\n")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, failing, fail)
        with pytest.raises(DiskFullError, match="is kept, and the same command goes on from there"):
            partial.merge(1, lineage.Lineage("data", "sample"))
    assert not partial.out.exists()
    replaced(partial, SETTINGS).merge(1, lineage.Lineage("data", "sample"))
    assert partial.out.read_bytes() == b"{}\n"
    assert not partial.folder.exists()


def test_other_settings_are_refused_and_told(tmp_path: Path) -> None:
    partial = Partial(tmp_path / "out.jsonl")
    partial.begin(SETTINGS)
    # Nothing is lost with other settings as long as there is no line.
    partial = replaced(partial, {**SETTINGS, "seed": 1})
    partial.append(0, b"{}\n")
    partial = replaced(partial, {**SETTINGS, "seed": 1})
    with pytest.raises(UsageError, match=r"other settings: seed was 1, is 0; temperature was 1\.0, is 0\.5\. Name another out, or remove"):
        replaced(partial, {**SETTINGS, "temperature": 0.5})
    (partial.folder / "settings.json").unlink()
    with pytest.raises(UsageError, match="does not say what the lines"):
        replaced(partial, SETTINGS)


def replaced(before: Partial, settings: dict[str, object]) -> Partial:
    """The same folder in a later program."""
    before.close()
    after = Partial(before.out)
    try:
        after.begin(settings)
    except UsageError:
        after.close()
        raise
    return after


def test_two_programs_do_not_write_the_same_file(tmp_path: Path) -> None:
    first = Partial(tmp_path / "out.jsonl")
    first.begin(SETTINGS)
    with pytest.raises(UsageError, match="another program is writing it now"):
        Partial(tmp_path / "out.jsonl").begin(SETTINGS)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"out=.*file/out\.jsonl cannot be written"):
        Partial(tmp_path / "file" / "out.jsonl").begin(SETTINGS)
