"""The plugin switches of a meta instruction, and turning them off at random.

A model that has only seen dialogues in which every enabled tool is there to be used learns to call tools, not to obey the switches. With
`data.switch_off` each enabled tool of a dialogue is switched off with that probability, and its calls go:

- its line in the meta instruction says `disabled.`, as the published data has it;
- its calls are taken out of Commands, and their blocks out of Results; where no call is left, both are None, and so are the Inner Thoughts,
  which had announced it;
- the reply stays for the turns after it, but carries no loss: it tells what the tool found, which is no longer there. What carries loss is
  that no call is made.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from moss_train.data.dialogue import Dialogue, Turn

SWITCH = re.compile(r"^- (?P<name>[^:\n]+): enabled\. API: (?P<api>\w+)\((?P<argument>\w+)\)$", re.MULTILINE)
"""The line of an enabled tool. Inner thoughts have a line too, but no API."""

# Looser than `formats.calls`, which reads exactly what it can write back: published commands have comments and numbers around calls.
_CALL = re.compile(r'(?P<name>[A-Za-z]\w*)\((?:"(?:[^"\\\n]|\\.)*"|\{.*?\})\)')
_RESULT = re.compile(r"^(?P<name>[A-Za-z]\w*)\(.*\) =>", re.MULTILINE)

_NONE = " None"


def switch_off(dialogue: Dialogue, probability: float, seed: int) -> Dialogue:
    """The dialogue with each enabled tool switched off with a probability: the same tools for the same dialogue and seed, wherever it is
    read."""
    switched = {match["api"] for match in SWITCH.finditer(dialogue.meta_instruction) if _draw(dialogue, match["api"], seed) < probability}
    if not switched:
        return dialogue
    meta = SWITCH.sub(lambda match: f"- {match['name']}: disabled." if match["api"] in switched else match[0], dialogue.meta_instruction)
    return replace(dialogue, meta_instruction=meta, turns=tuple(_without_calls(turn, switched) for turn in dialogue.turns))


def _draw(dialogue: Dialogue, api: str, seed: int) -> float:
    """A number in [0, 1) that depends on the dialogue's content, not on where it stands."""
    # A record without an id has its place for one.
    name = "" if dialogue.id == dialogue.origin else dialogue.id
    text = "\0".join([str(seed), api, name, *(turn.human for turn in dialogue.turns)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") / 2**64


def _without_calls(turn: Turn, switched: set[str]) -> Turn:
    """A turn without the calls of some tools."""
    if turn.commands is None:
        return turn
    calls = list(_CALL.finditer(turn.commands))
    kept = [call for call in calls if call["name"] not in switched]
    if len(kept) == len(calls):
        # A call that cannot be read, for want of a quote say, must not be learned either.
        unread = any(f"{name}(" in turn.commands for name in switched)
        return replace(turn, untrained=turn.untrained | {"thoughts", "commands", "moss"}) if unread else turn
    untrained = turn.untrained | {"moss"}
    if not kept:
        thoughts = None if turn.thoughts is None else _NONE
        results = None if turn.results is None else "\nNone\n"
        return replace(turn, thoughts=thoughts, commands=_NONE, results=results, untrained=untrained)
    commands = " " + ", ".join(call[0] for call in kept)
    results = None if turn.results is None else _without_results(turn.results, switched)
    # The thoughts may announce what is not called any more.
    return replace(turn, commands=commands, results=results, untrained=untrained | {"thoughts"})


def _without_results(results: str, switched: set[str]) -> str:
    """Results without the blocks of some tools; what stands before the first block stays."""
    starts = [match.start() for match in _RESULT.finditer(results)]
    blocks = [results[start:end] for start, end in zip(starts, [*starts[1:], len(results)])]
    left = results[: starts[0]] if starts else results
    return left + "".join(block for block in blocks if block[: block.index("(")] not in switched)
