"""Makes the bundled tasks of the harness out of the bundled held-out dialogues.

python -m moss_train.evaluate.tasks.make_tasks

moss_choice.jsonl   a question, and four replies that differ in the answer alone: the right one and three of other questions of its kind
moss_text.jsonl     what is said in a dialogue, without markers, as one text
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CHOICES = 4
_KINDS = ("facts", "arithmetic", "calculator")
_LANGUAGES = ("en", "zh")


def make() -> dict[str, str]:
    """The files by name."""
    source = resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"
    records = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    files = {"moss_choice.jsonl": choices(records), "moss_text.jsonl": texts(records)}
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in files.items()}


def choices(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Questions with replies to choose from; each question once."""
    asked: dict[str, list[tuple[str, str, str]]] = {}
    for record in records:
        if record["category"].split("_")[0] in _KINDS:
            for turn, check in zip(record["chat"].values(), record["check"], strict=True):
                question, reply, answer = _plain(turn["Human"]), _plain(turn["MOSS"]), check["answer"]
                # Once, or what is put in its place would leave the right answer elsewhere in the reply.
                if check["kind"] in ("number", "fact") and reply.count(answer) == 1 and answer not in question:
                    asked.setdefault(f"{record['category']}_{check['kind']}", []).append((question, reply, answer))
    generator = random.Random(0)
    seen = set()
    for category, rows in sorted(asked.items()):
        pool = sorted({answer for _, _, answer in rows})
        for question, reply, answer in rows:
            others = [one for one in pool if one != answer and one not in reply and answer not in one]
            if question not in seen and len(others) >= CHOICES - 1:
                seen.add(question)
                # Of numbers the nearest ones, so that size alone tells nothing.
                taken = sorted(others, key=lambda one: abs(float(one) - float(answer)))[: CHOICES - 1] if _is_number(answer) else []
                offered = [answer, *(taken or generator.sample(others, CHOICES - 1))]
                generator.shuffle(offered)
                replies = [reply.replace(answer, one) for one in offered]
                yield {"category": category, "question": question, "choices": replies, "gold": offered.index(answer)}


def texts(records: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What is said in each dialogue."""
    for record in records:
        language = record["category"].rsplit("_", 1)[1]
        said = [_plain(turn[key]) for turn in record["chat"].values() for key in ("Human", "MOSS")]
        if language in _LANGUAGES:
            yield {"text": "\n".join(said), "language": language}


def _plain(field: str) -> str:
    """A field without its opening and its end."""
    return field.split("|>:", 1)[1].rsplit("<eo", 1)[0].split("<sup>")[0].strip()


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).lstrip("-").isdecimal()


if __name__ == "__main__":
    for file, content in make().items():
        (FOLDER / file).write_text(content, encoding="utf-8")
