"""The bundled demonstration dialogues: reproducible, well formed, right, and fairly split."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import moss_train.data.bundled
from moss_train.data.bundled import words_arithmetic, words_chat, words_facts
from moss_train.data.bundled.make_dialogues import write_files
from moss_train.data.bundled.turns_facts import fact_rows

FOLDER = Path(moss_train.data.bundled.__file__).parent
KEYS = ["conversation_id", "meta_instruction", "num_turns", "chat", "category", "check"]
FIELDS = {
    "Human": ("<|Human|>: ", "<eoh>\n"),
    "Inner Thoughts": ("<|Inner Thoughts|>: ", "<eot>\n"),
    "Commands": ("<|Commands|>: ", "<eoc>\n"),
    "Tool Responses": ("<|Results|>:", "<eor>\n"),
    "MOSS": ("<|MOSS|>: ", "<eom>\n"),
}
API = {"Search": "Web search", "Calculate": "Calculator", "Solve": "Equation solver", "Text2Image": "Text-to-image"}
SWITCH_LINES = [
    ("Inner thoughts", "enabled."),
    ("Web search", "enabled. API: Search(query)"),
    ("Calculator", "enabled. API: Calculate(expression)"),
    ("Equation solver", "enabled. API: Solve(equation)"),
    ("Text-to-image", "enabled. API: Text2Image(description)"),
    ("Image edition", ""),
    ("Text-to-speech", ""),
]
SPECIAL = re.compile(r"<eo[hmtcr]>|<\|(?:Human|Inner Thoughts|Commands|Results|MOSS)\|>|<\|endoftext\|>")
Record = dict[str, Any]


def load(name: str) -> list[Record]:
    return [json.loads(line) for line in (FOLDER / f"dialogues_{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def train() -> list[Record]:
    return load("train")


@pytest.fixture(scope="module")
def dev() -> list[Record]:
    return load("dev")


@pytest.fixture(scope="module")
def both(train: list[Record], dev: list[Record]) -> list[Record]:
    return train + dev


def content(turn: dict[str, str], field: str) -> str:
    """What stands between the opening and the terminator of a field."""
    opening, end = FIELDS[field]
    return turn[field].removeprefix(opening).removesuffix(end)


def turns(records: list[Record]) -> list[tuple[Record, dict[str, str], dict[str, str]]]:
    return [(record, turn, check) for record in records for turn, check in zip(record["chat"].values(), record["check"], strict=True)]


def commands(turn: dict[str, str]) -> list[tuple[str, str]]:
    """(name, argument) of every call of a turn; the whole field must be calls."""
    text = content(turn, "Commands")
    if text == "None":
        return []
    calls = re.findall(r'(\w+)\("([^"]*)"\)', text)
    assert ", ".join(f'{name}("{argument}")' for name, argument in calls) == text
    return calls


def enabled(record: Record) -> set[str]:
    """The switches that are on."""
    return set(re.findall(r"^- ([\w -]+): enabled\.", record["meta_instruction"], re.MULTILINE))


def exact(expression: str) -> Fraction:
    """The exact value of an arithmetic expression, computed apart from the generator."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp), expression
        a, b = value(node.left), value(node.right)
        match node.op:
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.Mult():
                return a * b
            case ast.Div():
                return a / b
        raise AssertionError(expression)

    return value(ast.parse(expression, mode="eval").body)


def read_question(text: str, template: str) -> dict[str, str] | None:
    """The numbers for which the template gives this text."""
    pattern = re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template))
    match = re.fullmatch(pattern, text)
    return match.groupdict() if match else None


def test_the_generator_writes_exactly_the_bundled_files(tmp_path: Path) -> None:
    assert [path.name for path in write_files(tmp_path)] == ["dialogues_train.jsonl", "dialogues_dev.jsonl"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), "stale: run python -m moss_train.data.bundled.make_dialogues"


def test_sizes_and_shares(train: list[Record], dev: list[Record]) -> None:
    assert (len(train), len(dev)) == (1200, 120)
    assert (FOLDER / "dialogues_train.jsonl").stat().st_size < 2_500_000
    for records in (train, dev):
        assert Counter(record["category"][-2:] for record in records) == {"en": len(records) // 2, "zh": len(records) // 2}
        assert sum(bool(enabled(record)) for record in records) == len(records) // 3
        assert {record["num_turns"] for record in records} == {1, 2, 3, 4}
    names = Counter(name for _, turn, _ in turns(train) for name, _ in commands(turn))
    assert set(names) == set(API)
    assert names["Calculate"] > sum(names.values()) / 2
    assert {record["category"] for record in train} == {record["category"] for record in dev}


def test_layout(both: list[Record]) -> None:
    assert len({str(record["conversation_id"]) for record in both}) == len(both)
    for record in both:
        assert list(record) == KEYS
        # As published: text without plugins, a number with them.
        assert isinstance(record["conversation_id"], int if enabled(record) else str)
        assert list(record["chat"]) == [f"turn_{number}" for number in range(1, record["num_turns"] + 1)]
        assert len(record["check"]) == record["num_turns"]
        for turn in record["chat"].values():
            assert list(turn) == list(FIELDS)
            for field, (opening, end) in FIELDS.items():
                assert turn[field].startswith(opening)
                assert turn[field].endswith(end)
                assert not SPECIAL.search(content(turn, field))
                assert content(turn, field).strip()
                assert "{" not in turn[field]


def test_results_take_the_published_layouts(both: list[Record]) -> None:
    seen = Counter[str]()
    for record, turn, _ in turns(both):
        results = content(turn, "Tool Responses")
        if not enabled(record):
            assert (content(turn, "Inner Thoughts"), content(turn, "Commands"), results) == ("None", "None", " None")
            seen["plain"] += 1
            continue
        assert content(turn, "Inner Thoughts") != "None"
        calls = commands(turn)
        if not calls:
            assert results == "\nNone\n"
            seen["no call"] += 1
        elif calls[0][0] == "Text2Image":
            assert results == " Image generated successfully."
            seen["image"] += 1
        else:
            assert results.startswith("\n")
            assert results.endswith("\n")
            assert len(re.findall(r"^\w+\(", results, re.MULTILINE)) == len(calls)
            seen["results"] += 1
    assert set(seen) == {"plain", "no call", "image", "results"}


def test_switches_agree_with_the_commands(both: list[Record]) -> None:
    for record in both:
        on = enabled(record)
        lines = [f"- {name}: {text if name in on else 'disabled.'}" for name, text in SWITCH_LINES]
        assert record["meta_instruction"] == words_chat.PREAMBLE + "\n".join(lines) + "\n"
        assert ("Inner thoughts" in on) == (len(on) > 1) == bool(on)
        used = {API[name] for turn in record["chat"].values() for name, _ in commands(turn)}
        assert used <= on


def test_tool_results_are_right(both: list[Record]) -> None:
    for _, turn, check in turns(both):
        lines = content(turn, "Tool Responses").strip("\n").split("\n")
        values = []
        for name, argument in commands(turn):
            head = f'{name}("{argument}")'
            if name == "Calculate":
                value = exact(argument)
                assert value.denominator == 1
                assert lines.pop(0) == f"{head} => '{value}{'.0' if '/' in argument else ''}'"
                values.append(value)
            elif name == "Solve":
                assert lines.pop(0) == f"{head} =>"
                solution = dict(line.split(" = ") for line in lines)
                for equation in argument.split(";"):
                    for unknown, value in solution.items():
                        equation = equation.replace(unknown, value)
                    left, right = equation.split("=")
                    assert exact(left) == exact(right)
                values += [Fraction(found) for found in solution.values()]
            elif name == "Search":
                assert lines.pop(0) == f"{head} =>"
                for number, line in enumerate(lines, 1):
                    assert line.startswith(f"<|{number}|>: ")
                    assert check["answer"] in ast.literal_eval(line.split(": ", 1)[1])
                assert content(turn, "MOSS").endswith("<sup><|1|></sup>")
        if values:
            assert Fraction(check["answer"]) in values
        if len(commands(turn)) == 2:
            assert Fraction(check["answer"]) == max(values)


def test_every_reply_passes_its_own_check(both: list[Record]) -> None:
    for _, turn, check in turns(both):
        reply = re.sub(r"<sup>.*?</sup>", "", content(turn, "MOSS"))
        assert check["kind"] in ("number", "fact", "none")
        if check["kind"] == "number":
            assert re.findall(r"\d+(?:\.\d+)?", reply)[-1] == check["answer"]
        elif check["kind"] == "fact":
            assert check["answer"].lower() in reply.lower()
        else:
            assert check["answer"] == ""


def test_arithmetic_is_right_with_and_without_tools(both: list[Record]) -> None:
    seen = Counter[tuple[str, bool, bool]]()  # language, with the calculator, follow-up
    for record in both:
        language = record["category"][-2:]
        previous = ""
        for turn, check in zip(record["chat"].values(), record["check"], strict=True):
            human = content(turn, "Human")
            for operator, wordings in words_arithmetic.ARITHMETIC.items():
                questions = [(question, "{a}") for question, _ in wordings[language]]
                if operator in words_arithmetic.ARITHMETIC_FOLLOW_UPS:
                    questions += [(question, previous) for question in words_arithmetic.ARITHMETIC_FOLLOW_UPS[operator][language][0]]
                for question, left in questions:
                    fields = read_question(human, question)
                    if fields:
                        expression = left.format(**fields) + operator + fields["b"]
                        assert check["kind"] == "number"
                        assert exact(expression) == int(check["answer"])
                        assert not commands(turn) or commands(turn) == [("Calculate", expression)]
                        seen[language, bool(commands(turn)), left == previous] += 1
            previous = check["answer"]
    assert len(seen) == 8
    assert min(seen.values()) > 50


def test_train_and_dev_share_no_sentence(train: list[Record], dev: list[Record]) -> None:
    train_says, dev_says = ({content(turn, "Human") for _, turn, _ in turns(records)} for records in (train, dev))
    assert len(dev_says) > 150
    assert not train_says & dev_says


def test_no_dialogue_is_repeated(train: list[Record], dev: list[Record]) -> None:
    for records in (train, dev):
        asked = [(record["meta_instruction"], *(content(turn, "Human") for turn in record["chat"].values())) for record in records]
        assert len(set(asked)) == len(records)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_fact_and_every_wording_is_in_the_train_file(train: list[Record], language: str) -> None:
    says = {content(turn, "Human").lower() for _, turn, _ in turns(train)}
    for kind, wordings in words_facts.FACT_WORDINGS.items():
        rows = fact_rows(kind, language)
        asked = [[question.format(**row).lower() in says for question, _ in wordings[language]] for row in rows]
        assert all(any(of_fact) for of_fact in asked), (kind, asked)
        assert all(any(of_wording) for of_wording in zip(*asked, strict=True)), (kind, asked)
