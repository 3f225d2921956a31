"""Write the bundled demonstration dialogues: `python -m moss_train.data.bundled.make_dialogues [--out DIR] [--calculations N]`.

The two files, `dialogues_train.jsonl` and `dialogues_dev.jsonl`, depend on nothing but this file and the `turns*.py` and `words_*.py`
beside it. Records have the layout of the published MOSS-003 data and one more key, `check`: for each turn what a right reply must say,

* `{"kind": "number", "answer": "84"}`: the last number of the reply, citations (`<sup>...</sup>`) left out, is the answer;
* `{"kind": "fact", "answer": "Paris"}`: the reply contains the answer, upper and lower case being the same;
* `{"kind": "none", "answer": ""}`: nothing that a program could check.

No sentence of a human occurs in both files. The dev file asks about other numbers and words, or about a known fact in another of the known
wordings: every fact and every wording occurs in the train file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.data.bundled import words_chat as words
from moss_train.data.bundled.turns import CALCULATOR, IMAGE, NO_TOOLS, SEARCH, SOLVER, Draw, Tools, Turn, thought
from moss_train.data.bundled.turns_arithmetic import arithmetic_follow_up, arithmetic_turn, equation_turn
from moss_train.data.bundled.turns_chat import chat_turn, harmless_turn, instruction_turn, joined, picture_follow_up, picture_turn
from moss_train.data.bundled.turns_facts import fact_follow_up, fact_turn

SEED = 20230421
TURN_WEIGHTS = [40, 30, 18, 12]  # of dialogues with 1, 2, 3 and 4 turns


def follow_up(draw: Draw, tools: Tools, topic: tuple[str, Any] | None) -> Turn | None:
    """A turn that only makes sense after one with this topic; None where there is none."""
    if topic is None:
        return None
    name, value = topic
    language = draw.language
    if name == "number":
        return arithmetic_follow_up(draw, tools, value)
    if name == "fact":
        return fact_follow_up(draw, tools, *value)
    if name == "picture":
        return picture_follow_up(draw, *value)
    if name == "name":
        human, reply = joined(draw, "recall", *words.NAME_RECALLS[language], s=value)
        return Turn(human, reply, "fact", value, thought(draw, "chat"))
    openings, questions = (words.REVERSAL_FOLLOW_UPS if name == "reversal" else words.INSISTING)[language]
    human, _ = joined(draw, name, openings, [(question, "") for question in questions])
    if name == "reversal":
        return Turn(human, value, "fact", value)
    reply = words.STILL_REFUSED[language].format(r=value)
    return Turn(human, reply, "fact", words.REFUSAL_MARK[language], thought(draw, "refuse"), topic=topic)


def mixed_turn(draw: Draw, tools: Tools) -> Turn:
    """Something to search for whose follow-up is a calculation, or a calculation."""
    return fact_turn(draw, tools, "count") if draw.rng.random() < 0.7 else arithmetic_turn(draw, tools)


Maker = Callable[[Draw, Tools], Turn]


@dataclass(frozen=True)
class Category:
    """A kind of dialogue: its main turns, the sets of tools it may be given, and how many there are per language in each file."""

    make: Maker
    tool_sets: tuple[Tools, ...]
    train: int
    dev: int


PLAIN = (NO_TOOLS,)
CATEGORIES = {
    "arithmetic": Category(arithmetic_turn, PLAIN, 100, 11),
    "facts": Category(fact_turn, PLAIN, 175, 17),
    "chat": Category(chat_turn, PLAIN, 40, 4),
    "instruction": Category(instruction_turn, PLAIN, 55, 5),
    "harmless": Category(harmless_turn, PLAIN, 30, 3),
    "calculator": Category(arithmetic_turn, (frozenset([CALCULATOR]), frozenset([CALCULATOR, SOLVER])), 100, 10),
    "solver": Category(equation_turn, (frozenset([SOLVER]), frozenset([CALCULATOR, SOLVER])), 30, 3),
    "search": Category(fact_turn, (frozenset([SEARCH]),), 35, 3),
    "mix": Category(mixed_turn, (frozenset([SEARCH, CALCULATOR]),), 15, 2),
    "text2image": Category(picture_turn, (frozenset([IMAGE]),), 20, 2),
}


def make_turns(draw: Draw, category: Category, tools: Tools) -> list[Turn]:
    """The turns of one dialogue: mostly the category's own, follow-ups, here and there something else, often thanks at the end."""
    count = draw.rng.choices([1, 2, 3, 4], TURN_WEIGHTS)[0]
    if SEARCH in tools:
        count = min(count, 3)  # pages are long, and the longest dialogue should fit a small model's context
    asides: list[Maker] = [chat_turn, harmless_turn] if SEARCH in tools else [chat_turn, fact_turn]
    turns: list[Turn] = []
    for index in range(count):
        chance = draw.rng.random()
        turn = None
        refused = bool(turns) and turns[-1].topic is not None and turns[-1].topic[0] == "refusal"
        if index and index == count - 1 and chance < 0.2 and not refused:
            turn = Turn(*joined(draw, "thanks", *words.THANKS[draw.language]), thoughts=thought(draw, "chat"))
        elif index and chance < 0.75:
            turn = follow_up(draw, tools, turns[-1].topic)
        elif (index and chance < 0.85) or (tools and chance < 0.08):
            turn = draw.pick(asides)(draw, tools)
        turns.append(turn or category.make(draw, tools))
    return turns


def repeats_itself(turns: list[Turn]) -> bool:
    """Whether a dialogue uses a sentence twice or asks for a fact twice."""
    asked = [turn.topic for turn in turns if turn.topic is not None and turn.topic[0] == "fact"]
    return len({turn.human for turn in turns}) < len(turns) or len(set(asked)) < len(asked)


def meta_instruction(tools: Tools) -> str:
    """The preamble and the seven switches; a dialogue with tools has inner thoughts too."""
    lines = []
    for name, api in words.SWITCHES:
        if api is None or (name not in tools and not (tools and name == "Inner thoughts")):
            lines.append(f"- {name}: disabled.\n")
        else:
            lines.append(f"- {name}: enabled. API: {api}\n" if api else f"- {name}: enabled.\n")
    return words.PREAMBLE + "".join(lines)


def turn_record(turn: Turn, tools: Tools) -> dict[str, str]:
    """The five fields of a turn, in the published layouts: plain, without a call, with results, with an image."""
    thoughts = turn.thoughts if tools else "None"
    commands = ", ".join(turn.commands) or "None"
    if not tools:
        results = " None"
    elif turn.results or not turn.commands:
        results = "\n" + ("\n".join(turn.results) or "None") + "\n"
    else:
        results = " Image generated successfully."
    return {
        "Human": f"<|Human|>: {turn.human}<eoh>\n",
        "Inner Thoughts": f"<|Inner Thoughts|>: {thoughts}<eot>\n",
        "Commands": f"<|Commands|>: {commands}<eoc>\n",
        "Tool Responses": f"<|Results|>:{results}<eor>\n",
        "MOSS": f"<|MOSS|>: {turn.reply}<eom>\n",
    }


def make_records(dev: bool) -> list[dict[str, Any]]:
    """All records of one file, in a fixed random order; no two dialogues ask the same, and none asks anything twice."""
    rng = random.Random(SEED + dev)
    made: list[tuple[str, Tools, list[Turn]]] = []
    seen: set[tuple[str, ...]] = set()
    draws = {language: Draw(rng, language, dev) for language in ("en", "zh")}
    for name, category in CATEGORIES.items():
        for language, draw in draws.items():
            wanted = len(made) + (category.dev if dev else category.train)
            while len(made) < wanted:
                tools = category.tool_sets[len(made) % len(category.tool_sets)]
                used = draw.uses.copy()
                turns = make_turns(draw, category, tools)
                asked = (*sorted(tools), *(turn.human for turn in turns))
                if asked not in seen and not repeats_itself(turns):
                    seen.add(asked)
                    made.append((f"{name}_{language}", tools, turns))
                else:
                    draw.uses.clear()
                    draw.uses.update(used)
    rng.shuffle(made)
    return [dialogue_record(number, *dialogue) for number, dialogue in enumerate(made, 5001 if dev else 1)]


def dialogue_record(number: int, category: str, tools: Tools, turns: list[Turn]) -> dict[str, Any]:
    """One dialogue in the published layout, with `check`."""
    return {
        # As published: a string without plugins, a number with them.
        "conversation_id": number if tools else f"{number}",
        "meta_instruction": meta_instruction(tools),
        "num_turns": len(turns),
        "chat": {f"turn_{index}": turn_record(turn, tools) for index, turn in enumerate(turns, 1)},
        "category": category,
        "check": [{"kind": turn.kind, "answer": turn.answer} for turn in turns],
    }


def more_calculations(count: int, seed: int) -> list[dict[str, Any]]:
    """Dialogues of one turn answered with the calculator, over numbers of the train file; no question of the dev file is among them.

    The train file holds 200 dialogues with a calculator, few enough for a small model to learn their numbers by heart instead of where
    they come from.
    """
    rng = random.Random(seed)
    draws = {language: Draw(rng, language, False) for language in ("en", "zh")}
    tool_sets = CATEGORIES["calculator"].tool_sets
    made: list[dict[str, Any]] = []
    asked: set[tuple[str, Tools]] = set()
    while len(made) < count:
        language, tools = ("en", "zh")[len(made) % 2], tool_sets[len(made) // 2 % 2]
        turn = arithmetic_turn(draws[language], tools)
        if (turn.human, tools) not in asked:
            asked.add((turn.human, tools))
            made.append(dialogue_record(100_001 + len(made), f"calculator_{language}", tools, [turn]))
    return made


def write_files(folder: Path) -> list[Path]:
    """Write both files into the folder; the paths written."""
    paths = []
    for name, dev in (("train", False), ("dev", True)):
        path = folder / f"dialogues_{name}.jsonl"
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in make_records(dev)]
        path.write_text("".join(lines), encoding="utf-8", newline="\n")
        paths.append(path)
    return paths


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the bundled demonstration dialogues.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: beside this file)")
    parser.add_argument("--calculations", type=int, metavar="N", help="write calculations.jsonl instead: N dialogues with the calculator")
    parser.add_argument("--seed", type=int, default=SEED, help="of --calculations")
    arguments = parser.parse_args()
    if arguments.calculations is None:
        for path in write_files(arguments.out):
            print(f"wrote {path}")
        return
    path = arguments.out / "calculations.jsonl"
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in more_calculations(arguments.calculations, arguments.seed)]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
