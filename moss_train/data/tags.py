"""Preference tags: a turn's level as a reserved token, leaving some of them out, and learning less from the replies of some levels.

The tag of level n is the n-th reserved tag of the tokenizer, so no text can spell it; where it stands is `dialogue.tagged_segment`. With
`data.tag_dropout` a share of the tagged turns goes without its tag: the model then also learns what it says when it is told nothing, which
is what guidance compares with (as in classifier-free guidance, Ho and Salimans 2022, section 3.2).

With `data.level_weights` a reply of a level carries loss with a chance only, which weights its loss by that chance, in the mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from moss_train.data.dialogue import BY_MOSS, Dialogue


def drop_tags(dialogue: Dialogue, probability: float, seed: int) -> Dialogue:
    """The dialogue with the tag of each turn left out with a probability: the same ones for the same dialogue and seed, wherever it is
    read."""
    if probability <= 0 or all(turn.level is None for turn in dialogue.turns):
        return dialogue
    turns = [
        replace(turn, level=None) if turn.level is not None and _draw(dialogue, number, seed, "tag") < probability else turn
        for number, turn in enumerate(dialogue.turns)
    ]
    return replace(dialogue, turns=tuple(turns))


def without_tags(dialogue: Dialogue) -> Dialogue:
    """The dialogue with no level at any turn: what was said, not what was asked for."""
    return replace(dialogue, turns=tuple(replace(turn, level=None) for turn in dialogue.turns))


def weigh_levels(dialogue: Dialogue, weights: Sequence[float], seed: int) -> Dialogue:
    """The dialogue with some replies without loss: one of level n keeps it with a probability of `weights[n - 1]`, 1 where there is none.
    The same ones for the same dialogue and seed, wherever it is read."""
    turns = [
        replace(turn, untrained=BY_MOSS)
        if turn.level is not None and turn.level <= len(weights) and _draw(dialogue, number, seed, "weight") >= weights[turn.level - 1]
        else turn
        for number, turn in enumerate(dialogue.turns)
    ]
    return replace(dialogue, turns=tuple(turns))


def _draw(dialogue: Dialogue, number: int, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends on what the dialogue says up to the end of a turn, not on where it stands."""
    # A record without an id has its place for one.
    name = "" if dialogue.id == dialogue.origin else dialogue.id
    said = [text or "" for turn in dialogue.turns[: number + 1] for text in (turn.human, turn.commands, turn.moss)]
    text = "\0".join([str(seed), purpose, name, str(number), *said])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") / 2**64
