"""`data stats`: its numbers against those of training, and how they are shown."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_train.data.charts import length_bins
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.packing import plan_rows
from moss_train.data.render import render_all
from moss_train.data.selection import Selection
from moss_train.data.survey import OTHER_CATEGORIES, Survey, language_of, summarise
from moss_train.data.terminal import bar, count
from moss_train.data.tokenizer import MossTokenizer
from moss_train.data.tool import main


def row(human: str, moss: str, *more: str, **keys: Any) -> dict[str, Any]:
    texts = [human, moss, *more]
    return {"messages": [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)], **keys}


ROWS = [
    row("hello there", "good morning", category="chat"),
    row("你好，今天天气怎么样？", "今天天气很好。", "明天呢？", "明天有雨。", category="chat"),
    row("hello there", "good evening", "x" * 300, "y" * 40),
    row("x" * 700, "too long"),
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]},
    row("hello there", "good morning"),
]
CALL = {"id": "1", "function": {"name": "Calculate", "arguments": '{"expression": "2+3"}'}}
ROWS += [
    {
        "messages": [
            {"role": "user", "content": "2+3?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": result, "tool_call_id": "1"},
            {"role": "assistant", "content": "It is 6."},
        ]
    }
    for result in ("'5'", "No result.")
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", *ROWS)


@pytest.fixture
def folder(byte_tokenizer: MossTokenizer, tmp_path: Path) -> Path:
    byte_tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def summary_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["stats", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("loss_on", ["generated", "reply", "release"])
def test_the_numbers_are_those_of_rendering(
    file: Path, folder: Path, byte_tokenizer: MossTokenizer, loss_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summary_of(capsys, str(file), "--tokenizer", str(folder), "--seq-len", "400", "--default-meta", "none", "--loss-on", loss_on)
    dialogues = [example.dialogue for example in Selection([str(file)]).examples()]
    whole, whole_counts = render_all(dialogues, byte_tokenizer, loss_on)
    kept, counts = render_all(dialogues, byte_tokenizer, loss_on, 400)
    everything = found["all"]
    assert everything["dialogues"] == len(whole) == len(ROWS) - found["no_loss"]
    assert everything["tokens"] == whole_counts["tokens"] == sum(len(one.input_ids) for one in whole)
    assert everything["supervised_tokens"] == whole_counts["supervised_tokens"]
    assert everything["length"]["max"] == max(len(one.input_ids) for one in whole)
    assert everything["length"]["p50"] == sorted(len(one.input_ids) for one in whole)[(len(whole) - 1) // 2]
    lost = found["truncation"]
    assert lost["lost_supervised_tokens"] == counts["supervised_tokens_dropped"]
    assert lost["lost_turns"] == counts["turns_dropped_too_long"]
    assert lost["longer_dialogues"] == counts["dialogues_shortened"] + counts["dialogues_dropped_first_turn_too_long"] == 2
    assert lost["dropped_dialogues"] == 1
    lengths = np.array([len(one.input_ids) for one in kept])
    plan = plan_rows(lengths, 400)
    packing = found["packing"]
    assert packing["rows"] == len(plan.starts) - 1
    assert packing["fill"] == pytest.approx((lengths - 1).sum() / (400 * packing["rows"]), abs=1e-4)
    assert packing["positions"] == 400 * packing["rows"]
    assert packing["padded_batches"] == -(-len(kept) // 4)
    assert (lengths - 1).sum() <= packing["padded_positions"] <= len(kept) * (lengths.max() - 1)


def test_groups_repetition_and_tools(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary_of(capsys, str(file), "--tokenizer", str(folder))
    assert {name: group["dialogues"] for name, group in found["categories"].items()} == {"(none)": 5, "chat": 2}
    assert {name: group["dialogues"] for name, group in found["languages"].items()} == {"en": 6, "zh": 1}
    for kind in ("categories", "languages"):
        for key in ("dialogues", "turns", "tokens", "supervised_tokens"):
            assert sum(group[key] for group in found[kind].values()) == found["all"][key]
    assert found["no_loss"] == 1
    assert found["duplicates"] == {"dialogues": 1, "first_messages": 3}
    assert found["tools"] == {"Calculate": {"turns": 2, "failed": 1, "invented": 1}}
    assert found["formats"] == {"messages": 8}


def test_validation_data_that_is_in_the_training_data(file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = {"conversations": [{"from": "human", "value": "hello there"}, {"from": "gpt", "value": "good morning"}]}
    valid = write(tmp_path / "valid.jsonl", row("new", "new"), same, row("hello there", "new"))
    arguments = [str(file), "--tokenizer", str(folder), "--valid", str(valid)]
    found = summary_of(capsys, *arguments)["valid"]
    assert found == {
        "dialogues": 3,
        "also_in_train": 1,
        "first_message_also_in_train": 2,
        "examples": [[f"{valid}:2", f"{file}:1"]],
    }
    assert main(["stats", *arguments]) == 0
    assert f"  {valid}:2 is {file}:1" in capsys.readouterr().out


def test_the_tables(file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "stats.png"
    write(tmp_path / "more.jsonl", {"messages": []}, row("a", "b", category="$x_1$ 数学"))
    arguments = ["stats", str(file), str(tmp_path / "more.jsonl"), "--tokenizer", str(folder), "--default-meta", "none", "--seq-len", "400"]
    assert main([*arguments, "--plot", str(image)]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "10 records (by format: messages 9)"
    assert lines[1].startswith("left out, bad: no_turns 1; `data check` says where")
    assert lines[2] == "left out, no token with loss: 1 dialogues"
    assert any(line.split()[:3] == ["chat", "2", "3"] for line in lines)
    assert any(line.startswith("2 of 8 dialogues are longer: dropping whole turns loses 2 turns and ") for line in lines)
    assert any(line.endswith("> seq_len") for line in lines)
    assert lines[-1] == f"drawn: {image}"
    assert max(map(len, lines[3:-1])) <= 140
    assert image.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--plot", str(image)]) == 0, "a picture is replaced"


def test_without_a_tokenizer_one_is_trained_and_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert "note: no --tokenizer: a small one (" in said.err
    assert json.loads(said.out)["tokenizer"] == "trained on the data"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["BAD"], 3, "no dialogue can be read; `data check` says"),
        (["BAD", "--tokenizer", "FOLDER"], 3, "no dialogue can be read; `data check` says"),
        (["FILE", "--plot", "a.jpg"], 2, "expected a name that ends in .png"),
        (["FILE", "--seq-len", "0"], 2, "--seq-len is 0"),
        (["FILE", "--valid", "absent.jsonl"], 3, "absent.jsonl: no such file"),
    ],
)
def test_how_it_ends(
    file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    names = {"BAD": str(write(tmp_path / "bad.jsonl", {"messages": []})), "FILE": str(file), "FOLDER": str(folder)}
    assert main(["stats", *(names.get(argument, argument) for argument in arguments)]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err


def test_no_dialogue_with_loss(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[4])
    assert main(["stats", str(path), "--tokenizer", str(folder), "--plot", str(tmp_path / "a.png")]) == 0
    assert "left out, no token with loss: 1 dialogues" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("texts", "language"),
    [
        (("hello", "hi"), "en"),
        (("你好", "你好"), "zh"),
        (("用Python写一个函数", "def add(a, b):\n    return a + b\n这个函数返回两个数的和。"), "zh"),
        (("How do you say hello in Chinese?", "It is 你好, pronounced ni hao."), "en"),
        (("привет", "здравствуйте"), "other"),
        (("1+1", "2"), "other"),
        (("", ""), "other"),
    ],
)
def test_languages(texts: tuple[str, str], language: str) -> None:
    assert (
        language_of(Dialogue("1", "a long English text that does not count", (Turn(texts[0], " None", " None", " None", texts[1]),)))
        == language
    )


def test_memory_does_not_grow_with_the_dialogues(byte_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    """A few integers a dialogue: far below the kilobyte that each of these has."""
    path = write(tmp_path / "a.jsonl", *(row(f"{number} " + "x" * 900, "b") for number in range(1000)))
    Survey(4096).read(Selection([f"{path}#10"]), byte_tokenizer)
    tracemalloc.start()
    survey = Survey(4096)
    survey.read(Selection([str(path)], default_meta="Be."), byte_tokenizer)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(survey.columns().lengths) == 1000
    assert held / 1000 < 400


def test_categories_without_end_are_counted_together(byte_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(row("a", "b", category=f"c{number}") for number in range(250)))
    survey = Survey(512)
    survey.read(Selection([str(path)]), byte_tokenizer)
    groups = summarise(survey)["categories"]
    assert len(groups) == 201
    assert groups[OTHER_CATEGORIES]["dialogues"] == 50


@pytest.mark.parametrize(
    ("lengths", "seq_len"), [([5], 8), ([5, 7, 9], 8), ([1] * 999 + [100_000], 2048), ([3000] * 5, 2048), (range(1, 5000), 2048)]
)
def test_bins_cover_all_lengths(lengths: list[int], seq_len: int) -> None:
    edges = length_bins(np.array(lengths), seq_len)
    counts, _ = np.histogram(lengths, edges)
    assert counts.sum() == len(lengths)
    assert edges == sorted(set(edges))
    assert len(edges) < 40
    assert (seq_len + 1 in edges) == (max(lengths) > seq_len)


def test_words_and_bars() -> None:
    assert [count(1, "row"), count(1000, "row"), count(2, "batch", "batches")] == ["1 row", "1,000 rows", "2 batches"]
    assert [bar(0, 4), bar(0.001, 4), bar(0.5, 4), bar(0.53, 4), bar(1, 4), bar(2, 4)] == ["", "▏", "██", "██▏", "████", "████"]


def test_published_data(real_data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sample = real_data / "moss-003-sft-sample"
    found = summary_of(capsys, str(sample / "train.jsonl"), "--valid", str(sample / "dev.jsonl"), "--plot", str(tmp_path / "stats.png"))
    assert found["records"] == found["all"]["dialogues"] == 896
    assert {name: group["dialogues"] for name, group in found["languages"].items()} == {"zh": 527, "en": 369}
    assert found["categories"]["tool"]["dialogues"] == 320
    assert 0.2 < found["categories"]["tool"]["supervised_share"] < 0.4 < found["categories"]["code"]["supervised_share"]
    assert (found["valid"]["dialogues"], found["valid"]["also_in_train"]) == (112, 0)
    assert found["tools"]["Calculate"] == {"turns": 225, "failed": 50, "invented": 22}
    assert found["tools"]["Search"]["failed"] == found["tools"]["Text2Image"]["failed"] == 0
    assert found["packing"]["fill"] > 0.85 > found["packing"]["padded_fill"]


def test_languages_of_published_data_are_those_of_its_categories(real_data: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    for example in Selection([str(real_data / "moss-003-sft-sample")]).examples():
        name = example.dialogue.category or ""
        if name.endswith(("_zh", "_en")):
            seen[name[-2:], language_of(example.dialogue)] += 1
    right = sum(number for (said, found), number in seen.items() if said == found)
    assert right / seen.total() > 0.97, seen


def test_the_calculators_of_all_published_data(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What README.md says."""
    found = summary_of(capsys, str(real_data / "moss-003-sft-sample"), "--seq-len", "8192")
    assert found["all"]["dialogues"] == 1008
    assert found["tools"]["Calculate"] == {"turns": 251, "failed": 60, "invented": 27}
