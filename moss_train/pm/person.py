"""A person ranks responses in the terminal."""

from __future__ import annotations

import random
import re
import sys
from typing import TextIO

from moss_train.data.terminal import visible
from moss_train.pm.ranking import RANKED, Line, Outcome

HELP = "best to worst, such as `2 1=3` (= is a tie); s skips, q stops and keeps what is ranked"
_RULE = "-" * 72


def rank_line(line: Line, number: int, lines: int, person: str, seed: int, source: TextIO | None = None) -> Outcome | None:
    """Asks for the ranks of a line; None: the person wants to stop, or the input has ended.

    Args:
        number, lines: Which line this is, from 1, and of how many, to be shown.
        person: For the record.
        seed: With the index of the line, it gives the order in which the responses are shown.
        source: Where answers come from; by default stdin.
    """
    order = list(range(len(line.groups)))
    random.Random(f"{seed}:{line.index}").shuffle(order)
    print(visible("\n".join(_screen(line, number, lines, order))), flush=True)
    while True:
        print(f"{HELP}\n> ", end="", flush=True)
        answer = (source or sys.stdin).readline()
        if not answer or answer.strip().lower() == "q":
            return None
        if answer.strip().lower() == "s":
            return Outcome("skipped")
        levels = parse_order(answer, len(order))
        if isinstance(levels, str):
            print(levels, flush=True)
            continue
        ranks: list[int | None] = [None] * len(order)
        for shown, level in enumerate(levels):
            ranks[order[shown]] = level
        heads = line.heads
        provenance = {"by": "person", "person": person, "seed": seed, "shown": [heads[place] for place in order]}
        return Outcome(RANKED, line.spread(ranks), provenance)


def parse_order(answer: str, count: int) -> list[int] | str:
    """The rank of each of `count` responses, from an answer such as `2 1=3`; a text says what is wrong with it."""
    groups = re.split(r"[\s,>]+", re.sub(r"\s*[=＝]\s*", "=", answer.strip()).strip(", >"))
    found: dict[int, int] = {}
    for level, group in enumerate(groups, 1):
        for name in group.split("="):
            if not re.fullmatch(r"[0-9]{1,6}", name) or not 1 <= int(name) <= count:
                return f"{visible(name)!r} is not one of the numbers 1 to {count}"
            if int(name) in found:
                return f"{int(name)} is named twice"
            found[int(name)] = level
    missing = [str(one) for one in range(1, count + 1) if one not in found]
    return f"{', '.join(missing)} is missing" if missing else [found[one] for one in range(1, count + 1)]


def _screen(line: Line, number: int, lines: int, order: list[int]) -> list[str]:
    shown = ["", _RULE, f"{number} of {lines} ({line.origin})", _RULE]
    context = line.parsed.context
    for turn in context.turns:
        shown.append(f"Human: {turn.human.strip()}")
        if turn.moss is not None:
            shown.append(f"MOSS: {turn.moss.strip()}")
    for place, group in enumerate(order, 1):
        turn = line.parsed.responses[line.groups[group][0]]
        shown.append(f"\n[{place}]")
        for name, text in (("Inner Thoughts", turn.thoughts), ("Commands", turn.commands), ("Results", turn.results)):
            if text is not None and text.strip() not in ("", "None"):
                shown.append(f"{name}: {text.strip()}")
        shown.append(str(turn.moss).strip())
    return [*shown, ""]
