"""What the dialogues of the bundled files are made of: a turn, and random choices that respect which file owns a problem."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from moss_train.data.bundled import words_chat as chat

T = TypeVar("T")
Tools = frozenset[str]
NO_TOOLS: Tools = frozenset()
CALCULATOR, SOLVER, SEARCH, IMAGE = "Calculator", "Equation solver", "Web search", "Text-to-image"
# One problem in HELD_OUT_PERIOD is kept for the dev file.
HELD_OUT_PERIOD = 10


@dataclass(frozen=True)
class Turn:
    """One exchange. `topic` is what the next turn can refer to: its name and whatever the follow-up needs."""

    human: str
    reply: str
    kind: str = "none"
    answer: str = ""
    thoughts: str = ""
    commands: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    topic: tuple[str, Any] | None = None


@dataclass(frozen=True)
class Draw:
    """Random choices for one language and one of the two files."""

    rng: random.Random
    language: str
    dev: bool
    uses: Counter[tuple[str, int]] = field(default_factory=Counter)

    def pick(self, items: list[T]) -> T:
        """One of the items."""
        return self.rng.choice(items)

    def cell(self, grid: str, rows: int, columns: int) -> tuple[int, int]:
        """A little-used cell of the grid of this name; the dev file owns one diagonal of every grid, the train file the rest."""
        row = self.least_used(grid, list(range(rows)))
        return row, self.least_used(f"{grid} {row}", [column for column in range(columns) if ((row + column) % columns == 0) == self.dev])

    def least_used(self, name: str, numbers: list[int]) -> int:
        """One of the numbers that were picked least often under this name."""
        fewest = min(self.uses[name, number] for number in numbers)
        number = self.pick([number for number in numbers if self.uses[name, number] == fewest])
        self.uses[name, number] += 1
        return number

    def owns(self, *key: object) -> bool:
        """Whether the problem of this key belongs to this file. CRC-32: the same on every machine, unlike `hash`."""
        return (zlib.crc32(repr(key).encode()) % HELD_OUT_PERIOD == 0) == self.dev

    def owns_sum(self, operator: str, a: int, b: int) -> bool:
        """`owns` for arithmetic: 3+5 and 5+3 are the same problem."""
        return self.owns(operator, *(sorted((a, b)) if operator in "+*" else (a, b)))

    def until(self, make: Callable[[], T], accept: Callable[[T], bool]) -> T:
        """The first of many tries that is acceptable."""
        for _ in range(10_000):
            value = make()
            if accept(value):
                return value
        raise RuntimeError("no acceptable draw in 10000 tries: the words leave one of the two files without material")


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def call(name: str, argument: str) -> str:
    """A command in the syntax of the published data."""
    return f'{name}("{argument}")'


def thought(draw: Draw, kind: str, **fields: object) -> str:
    """An inner thought of a kind."""
    return chat.THOUGHTS[kind][draw.language].format(**fields)
