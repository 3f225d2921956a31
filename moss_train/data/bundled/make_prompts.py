"""Write the bundled questions with answers that a program can check, and dialogues to learn them from.

    python -m moss_train.data.bundled.make_prompts [--out DIR]            # the files of questions, which are bundled
    python -m moss_train.data.bundled.make_prompts --dialogues --out DIR  # what a small model learns them from

A question is a *cell*: a fact (or a problem) in one of five wordings, in one language. All files depend on the `words_*.py` alone. With
row r and wording w, a cell is

* held out where (r + w) % 5 == 0, as in `dialogues_dev.jsonl`: no file to train on, of dialogues or of questions, asks it
  (of sums and products, those that `dialogues_train.jsonl` happens to ask are left out);
* only a question, without a dialogue, where that is 1;
* a question and a dialogue otherwise. (`dialogues_train.jsonl` has some of both kinds.)

So every fact, every problem and every wording is in both files of questions, and no combination of them is. Kinds:

* `facts`: capitals and colours, which the bundled dialogues know too, asked without a tool;
* `sums`: a + b, both from 2 to 6, asked without a tool;
* `calculator`: a * b, both from 2 to 6, to be answered with the calculator. These stand in files of their own, for they are asked with
  other settings.

Keys: `prompt`, `checker`, `answer` or `answers` (of checkers, see `moss_train.pm.checkers`; of facts, the known wordings of the
reply), `language`, `category`, `id`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.data.bundled import words_arithmetic, words_facts
from moss_train.data.bundled.make_dialogues import SEED, dialogue_record, make_records
from moss_train.data.bundled.turns import CALCULATOR, NO_TOOLS, Draw, Turn, sentence
from moss_train.data.bundled.turns_arithmetic import calculated
from moss_train.data.bundled.turns_facts import answered, fact_rows

LANGUAGES = ("en", "zh")
WORDINGS = 5
CALCULATOR_META = "Calculator: enabled."
OPERANDS = range(2, 7)
FACTS = ("capital", "color")
# Questions of a kind and language in the files; all cells where there are fewer.
TRAIN = {"facts": 200, "sums": 100, "calculator": 50}
HELD_OUT = {"facts": 50, "sums": 25, "calculator": 25}


@dataclass(frozen=True)
class Cell:
    """One question. `part` is (row + wording) % 5, `turn` its exchange, `check` what its record says of the answer."""

    kind: str
    language: str
    part: int
    turn: Turn
    check: dict[str, Any]


def cells(language: str) -> Iterator[Cell]:
    """All questions in a language, in order."""
    draw = Draw(random.Random(SEED), language, False)
    for fact in FACTS:
        wordings = words_facts.FACT_WORDINGS[fact][language]
        for row, fields in enumerate(fact_rows(fact, language)):
            # All of the reply is compared: a right name in a sentence about something else is not an answer.
            replies = [sentence(reply.format(**fields)) for _, reply in wordings]
            check: dict[str, Any] = {"checker": "exact", "answers": list(dict.fromkeys(replies))}
            for number, wording in enumerate(wordings):
                yield Cell("facts", language, (row + number) % WORDINGS, answered(draw, NO_TOOLS, fact, row, *wording), check)
    for kind, operator in (("sums", "+"), ("calculator", "*")):
        problems = [(a, b) for a in OPERANDS for b in OPERANDS]
        for row, (a, b) in enumerate(problems):
            result = a + b if operator == "+" else a * b
            for number, (question, reply) in enumerate(words_arithmetic.ARITHMETIC[operator][language]):
                turn = Turn(question.format(a=a, b=b), reply.format(a=a, b=b, r=result), "number", f"{result}")
                if kind == "calculator":
                    turn = calculated(draw, turn, f"{a}{operator}{b}", result)
                yield Cell(kind, language, (row + number) % WORDINGS, turn, {"checker": "number", "answer": f"{result}"})


def questions(held_out: bool, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """The records of a file of questions, in a fixed random order."""
    rng = random.Random(SEED + held_out)
    asked = {turn["Human"].split(": ", 1)[1].rsplit("<", 1)[0] for record in make_records(dev=False) for turn in record["chat"].values()}
    chosen: list[Cell] = []
    for language in LANGUAGES:
        for kind in kinds:
            found = [cell for cell in cells(language) if cell.kind == kind and (cell.part == 0) == held_out]
            found = [cell for cell in found if not (held_out and cell.turn.human in asked)]
            chosen += rng.sample(found, min(len(found), (HELD_OUT if held_out else TRAIN)[kind]))
    rng.shuffle(chosen)
    name = "heldout" if held_out else "train"
    return [
        {
            "id": f"{name}-{cell.kind}-{number}",
            "prompt": cell.turn.human,
            **cell.check,
            "language": cell.language,
            "category": f"{cell.kind}_{cell.language}",
        }
        for number, cell in enumerate(chosen, 1)
    ]


def dialogues(kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Dialogues of one turn; their meta instructions are short, or none, and so are they."""
    found = [cell for language in LANGUAGES for cell in cells(language) if cell.part > 1 and cell.kind in kinds]
    random.Random(SEED).shuffle(found)
    made = []
    for number, cell in enumerate(found, 200_001):
        tools = frozenset([CALCULATOR]) if cell.kind == "calculator" else NO_TOOLS
        record = dialogue_record(number, f"{cell.kind}_{cell.language}", tools, [cell.turn])
        made.append({**record, "meta_instruction": f"{CALCULATOR_META}\n" if tools else ""})
    return made


PLAIN, WITH_CALCULATOR = ("facts", "sums"), ("calculator",)
DIALOGUES = {"checked_dialogues.jsonl": PLAIN, "checked_dialogues_calculator.jsonl": WITH_CALCULATOR}
QUESTIONS = {
    "checked_prompts_train.jsonl": (False, PLAIN),
    "checked_prompts_heldout.jsonl": (True, PLAIN),
    "checked_prompts_calculator_train.jsonl": (False, WITH_CALCULATOR),
    "checked_prompts_calculator_heldout.jsonl": (True, WITH_CALCULATOR),
}


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Writes JSONL; the path written."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8", newline="\n")
    return path


def write_files(folder: Path) -> list[Path]:
    """Write the files of questions into the folder; the paths written."""
    return [write_records(folder / name, questions(*settings)) for name, settings in QUESTIONS.items()]


def write_dialogues(folder: Path) -> list[Path]:
    """Write the files of dialogues into the folder; the paths written."""
    return [write_records(folder / name, dialogues(kinds)) for name, kinds in DIALOGUES.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the bundled questions with checkable answers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: beside this file)")
    parser.add_argument("--dialogues", action="store_true", help="write the dialogues instead: what a small model learns from")
    arguments = parser.parse_args()
    for path in (write_dialogues if arguments.dialogues else write_files)(arguments.out):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
