"""Write the bundled questions with answers that a program can check, and dialogues to learn them from.

    python -m moss_train.data.bundled.make_prompts [--out DIR]            # the files of questions, which are bundled
    python -m moss_train.data.bundled.make_prompts --dialogues --out DIR  # what a small model learns them from

A question is a *cell*: a fact (or a problem) in one of five wordings, in one language, after one of eight openers ("Please answer:").
All files depend on the `words_*.py` alone. With row r and wording w, a cell is

* held out where (r + w) % 5 == 0, as in `dialogues_dev.jsonl`: no file to train on, of dialogues or of questions, asks it after any
  opener (of sums and products, those that `dialogues_train.jsonl` happens to ask are left out);
* only a question, without a dialogue, where that is 1;
* a question and a dialogue otherwise. (`dialogues_train.jsonl` has some of both kinds.)

So every fact, every problem and every wording is in both files of questions, and no combination of them is. Under the meta instruction
`META` the answer is all of a reply. Kinds:

* `facts`: capitals and colours, which the bundled dialogues know too;
* `sums`: a + b, both from 2 to 5;
* `calculator`: a * b, both from 2 to 5, to be answered with the calculator: the call is checked too.

Keys: `prompt`, `checker`, `answer` and `call` (of checkers, see `moss_train.pm.checkers`), `language`, `category`, `id`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moss_train.data.bundled import words_arithmetic, words_facts
from moss_train.data.bundled.make_dialogues import SEED, make_records, turn_record
from moss_train.data.bundled.turns import CALCULATOR, NO_TOOLS, Draw, Turn
from moss_train.data.bundled.turns_arithmetic import calculated
from moss_train.data.bundled.turns_facts import answered, fact_rows

LANGUAGES = ("en", "zh")
KINDS = ("facts", "sums", "calculator")
WORDINGS = 5
META = "- Calculator: enabled. API: Calculate(expression)\n"
OPERANDS = range(2, 6)
FACTS = ("capital", "color")
OPENERS = {
    "en": ("", "Please answer: ", "Hi! ", "Quick question. ", "I forgot: ", "For my homework: ", "One more thing. ", "Let me ask you: "),
    "zh": ("", "请回答：", "你好，", "有个小问题：", "我忘了，", "作业里问：", "再问一个：", "想问一下，"),
}
# Questions of a kind and language in the file to train on; all cells where there are fewer. Held-out cells are asked once each.
TRAIN = {"facts": 250, "sums": 200, "calculator": 80}
DIALOGUES, MOST_TURNS = 3000, 2


@dataclass(frozen=True)
class Cell:
    """One question. `part` is (row + wording) % 5, `turn` its exchange, `check` what its record says of the answer."""

    kind: str
    language: str
    part: int
    turn: Turn
    check: dict[str, Any]

    def asked(self, opener: str) -> Cell:
        """The same after some words."""
        return replace(self, turn=replace(self.turn, human=opener + self.turn.human))


def cells(language: str) -> Iterator[Cell]:
    """All questions in a language without an opener, in order."""
    draw = Draw(random.Random(SEED), language, False)
    for fact in FACTS:
        wordings = words_facts.FACT_WORDINGS[fact][language]
        for row, fields in enumerate(fact_rows(fact, language)):
            reply = _reply(fields["f"], language)
            check = {"checker": "exact", "answer": reply}
            for number, wording in enumerate(wordings):
                turn = answered(draw, NO_TOOLS, fact, row, *wording)
                yield Cell("facts", language, (row + number) % WORDINGS, replace(turn, reply=reply), check)
    for kind, operator in (("sums", "+"), ("calculator", "*")):
        problems = [(a, b) for a in OPERANDS for b in OPERANDS]
        for row, (a, b) in enumerate(problems):
            result = a + b if operator == "+" else a * b
            reply = _reply(f"{result}", language)
            for number, (question, _) in enumerate(words_arithmetic.ARITHMETIC[operator][language]):
                turn = Turn(question.format(a=a, b=b), reply, "number", f"{result}")
                check = {"checker": "exact", "answer": reply}
                if kind == "calculator":
                    turn = calculated(draw, turn, f"{a}*{b}", result)
                    check = {"checker": "calls", "call": f'Calculate("{a}*{b}")', "answer": f"{result}"}
                yield Cell(kind, language, (row + number) % WORDINGS, turn, check)


def _reply(answer: str, language: str) -> str:
    return f"{answer[0].upper()}{answer[1:]}." if language == "en" else f"{answer}。"


def questions(held_out: bool) -> list[dict[str, Any]]:
    """The records of a file of questions, in a fixed random order."""
    rng = random.Random(SEED + held_out)
    asked = {turn["Human"].split(": ", 1)[1].rsplit("<", 1)[0] for record in make_records(dev=False) for turn in record["chat"].values()}
    chosen: list[Cell] = []
    for language in LANGUAGES:
        for kind in KINDS:
            found = [cell for cell in cells(language) if cell.kind == kind and (cell.part == 0) == held_out]
            if held_out:
                chosen += [cell.asked(rng.choice(OPENERS[language])) for cell in found if cell.turn.human not in asked]
            else:
                found = [cell.asked(opener) for cell in found for opener in OPENERS[language]]
                chosen += rng.sample(found, min(len(found), TRAIN[kind]))
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


def dialogues(seed: int = SEED) -> list[dict[str, Any]]:
    """Dialogues of one or two questions, as many of each kind."""
    rng = random.Random(seed)
    by_kind = {
        (language, kind): [cell for cell in cells(language) if cell.part > 1 and cell.kind == kind]
        for language in LANGUAGES
        for kind in KINDS
    }
    made = []
    for number in range(200_001, 200_001 + DIALOGUES):
        language = rng.choice(LANGUAGES)
        drawn = [rng.choice(by_kind[language, rng.choice(KINDS)]) for _ in range(rng.randint(1, MOST_TURNS))]
        turns = [cell.asked(rng.choice(OPENERS[language])) for cell in drawn]
        # A turn that calls no tool is written without thoughts.
        chat = [turn_record(cell.turn, frozenset([CALCULATOR]) if cell.kind == "calculator" else NO_TOOLS) for cell in turns]
        made.append(
            {
                "conversation_id": number,
                "meta_instruction": META,
                "num_turns": len(chat),
                "chat": {f"turn_{index}": turn for index, turn in enumerate(chat, 1)},
                "category": f"checked_{language}",
            }
        )
    return made


QUESTIONS = {"checked_prompts_train.jsonl": False, "checked_prompts_heldout.jsonl": True}
DIALOGUES_FILE = "checked_dialogues.jsonl"


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """Writes JSONL; the path written."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8", newline="\n")
    return path


def write_files(folder: Path) -> list[Path]:
    """Write the files of questions into the folder; the paths written."""
    return [write_records(folder / name, questions(held_out)) for name, held_out in QUESTIONS.items()]


def write_dialogues(folder: Path) -> list[Path]:
    """Write the file of dialogues into the folder; the paths written."""
    return [write_records(folder / DIALOGUES_FILE, dialogues())]


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
