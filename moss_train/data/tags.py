"""Preference tags: a turn's level as a reserved token, and leaving some of them out.

The tag of level n is the n-th reserved tag of the tokenizer, so no text can spell it; where it stands is `dialogue.tagged_segment`. With
`data.tag_dropout` a share of the tagged turns goes without its tag: the model then also learns what it says when it is told nothing, which
is what guidance compares with (as in classifier-free guidance, Ho and Salimans 2022, section 3.2).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from moss_train.data.dialogue import Dialogue


def drop_tags(dialogue: Dialogue, probability: float, seed: int) -> Dialogue:
    """The dialogue with the tag of each turn left out with a probability: the same ones for the same dialogue and seed, wherever it is
    read."""
    if probability <= 0 or all(turn.level is None for turn in dialogue.turns):
        return dialogue
    turns = [
        replace(turn, level=None) if turn.level is not None and _draw(dialogue, number, seed) < probability else turn
        for number, turn in enumerate(dialogue.turns)
    ]
    return replace(dialogue, turns=tuple(turns))


def _draw(dialogue: Dialogue, number: int, seed: int) -> float:
    """A number in [0, 1) that depends on what the dialogue says up to the end of a turn, not on where it stands."""
    # A record without an id has its place for one.
    name = "" if dialogue.id == dialogue.origin else dialogue.id
    said = [text or "" for turn in dialogue.turns[: number + 1] for text in (turn.human, turn.commands, turn.moss)]
    text = "\0".join([str(seed), "tag", name, str(number), *said])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") / 2**64
