"""Which texts came before, in 16 bytes a text: hashes and places, not the texts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from moss_train.data.dialogue import Dialogue
from moss_train.data.outcomes import is_none

_LINE_BITS = 40


def conversation_of(dialogue: Dialogue) -> str:
    """All that is said in a dialogue, blanks at the edges and the meta instruction left out: equal for the same one in two formats."""
    said = []
    for turn in dialogue.turns:
        middle = ("" if is_none(text) else str(text).strip() for text in (turn.thoughts, turn.commands, turn.results))
        said += [turn.human.strip(), *middle, (turn.moss or "").strip()]
    return "\0".join(said)


def opening_of(dialogue: Dialogue) -> str:
    """The first message of the human."""
    return dialogue.turns[0].human.strip()


class Repeats:
    """Texts by hash, each with its place.

    A hash has 64 bits: among a million texts, two different ones are taken for the same about once in 40 million such sets.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._places = array("Q")
        self._files: dict[str, int] = {}

    def add(self, text: str, origin: str) -> None:
        """Notes a text that stands at `file:line`."""
        file, _, line = origin.rpartition(":")
        number = self._files.setdefault(file, len(self._files))
        self._hashes.append(int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"))
        self._places.append(number << _LINE_BITS | int(line))

    def __len__(self) -> int:
        return len(self._hashes)

    def repeated(self, examples: int) -> tuple[int, list[list[str]]]:
        """How many texts came before, and the places of the first of them, three places each at most.

        Args:
            examples: How many groups of equal texts to name.
        """
        hashes = self._array(self._hashes)
        distinct, first, inverse, counts = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        groups = np.flatnonzero(counts > 1)
        named = groups[np.argsort(first[groups], kind="stable")][:examples]
        places = [np.flatnonzero(inverse == group)[:3] for group in named]
        return len(hashes) - len(distinct), [self._origins(found) for found in places]

    def shared_with(self, other: Repeats, examples: int) -> tuple[int, list[list[str]]]:
        """How many of these texts are among those of `other`, and pairs of places of the first of them: here, there."""
        mine, theirs = self._array(self._hashes), other._array(other._hashes)
        shared = np.flatnonzero(np.isin(mine, theirs))
        pairs = [self._origins([place]) + other._origins(np.flatnonzero(theirs == mine[place])[:1]) for place in shared[:examples]]
        return len(shared), pairs

    @staticmethod
    def _array(values: array[int]) -> npt.NDArray[np.uint64]:
        return np.array(memoryview(values), dtype=np.uint64)

    def _origins(self, numbers: Iterable[int]) -> list[str]:
        names = list(self._files)
        places = (self._places[int(number)] for number in numbers)
        return [f"{names[place >> _LINE_BITS]}:{place & ((1 << _LINE_BITS) - 1)}" for place in places]
