"""What is suspicious about dialogues that can be trained on all the same: warnings, by code, with the first places of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.calls import read_commands
from moss_train.data.outcomes import find_calls, find_outcomes, invented_value, is_none
from moss_train.data.repeats import Repeats, conversation_of

EXAMPLES_SHOWN = 3
EXPLANATIONS: Mapping[str, str] = {
    "failed_tool": "a tool gave nothing or an error, and the reply states a number that was in nothing known: a lesson in inventing",
    "commands_not_calls": 'Commands are not exactly calls such as Search("..."), Calculate("..."): whoever runs the tools cannot read them',
    "disabled_tool": "a tool is called that the meta instruction says is disabled",
    "unknown_tool": "a tool is called that the meta instruction does not name",
    "bad_citation": "the reply cites a result that is not there",
    "duplicate_id": "an id that came before; ids name nothing in training, but do in reports",
    "duplicate_dialogue": "the same conversation as before: it counts as often as it stands there",
}
# API name -> its line in the published meta instruction.
SWITCH_OF: Mapping[str, str] = {
    "Search": "Web search",
    "Calculate": "Calculator",
    "Solve": "Equation solver",
    "Text2Image": "Text-to-image",
}
_CITED = re.compile(r"<sup>\s*<\|(\d{1,9})\|>\s*</sup>")
_NUMBERED = re.compile(r"<\|(\d{1,9})\|>")
_SHOWN = 70


class Finding(NamedTuple):
    """One warning: its code, and where and what, for a human."""

    code: str
    text: str


def lint(dialogue: Dialogue, own_meta: bool = True) -> Iterator[Finding]:
    """The warnings about one dialogue. Segments without loss (`Turn.untrained`) teach nothing and are left alone.

    Args:
        dialogue: The dialogue.
        own_meta: Whether its record has a meta instruction, and not the default one.
    """
    results = 0
    for number, turn in enumerate(dialogue.turns):
        where = f"turn {number + 1}"
        results = max([results, *(int(found) for found in _NUMBERED.findall(turn.results or ""))])
        if "commands" not in turn.untrained:
            yield from _lint_commands(dialogue.meta_instruction, turn, where, own_meta)
        if "moss" in turn.untrained:
            continue
        outcomes = find_outcomes(turn)
        failed = next((outcome for outcome in outcomes if outcome.failed), None)
        value = invented_value(dialogue.turns[:number], turn, outcomes) if failed is not None else None
        if failed is not None and value is not None:
            yield Finding(
                "failed_tool", f"{where}: {_short(failed.call)} gave {failed.result or 'nothing'!r}, and the reply states {value}"
            )
        beyond = [int(cited) for cited in _CITED.findall(turn.moss or "") if int(cited) > results]
        if beyond:
            there = f"results up to <|{results}|>" if results else "no numbered result"
            yield Finding("bad_citation", f"{where}: <sup><|{beyond[0]}|></sup> in the reply, with {there}")


def _lint_commands(meta: str, turn: Turn, where: str, own_meta: bool) -> Iterator[Finding]:
    if is_none(turn.commands):
        return
    calls = find_calls(turn.commands)
    if read_commands(str(turn.commands)) is None:
        inside = f" ({len(calls)} {'call' if len(calls) == 1 else 'calls'} found within)" if calls else ""
        yield Finding("commands_not_calls", f"{where}: {_short(str(turn.commands).strip())}{inside}")
    for name in dict.fromkeys(name for name, _ in calls):
        switch = SWITCH_OF.get(name)
        if switch is not None and f"- {switch}: disabled" in meta:
            line = f"'{switch}: disabled.'"
            hint = "" if own_meta else "; the record has no meta instruction, and the default has it so: see data.plugins"
            yield Finding("disabled_tool", f"{where}: {name} is called, but the meta instruction has {line}{hint}")
        elif switch is None and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", meta):
            hint = "" if own_meta else " (the default one: give the record a system text that names it)"
            yield Finding("unknown_tool", f"{where}: {name} is called, and the meta instruction does not name it{hint}")


class Warnings:
    """The warnings about many dialogues: how many of each code, and the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}
        self._ids = Repeats()
        self._conversations = Repeats()

    def add(self, dialogue: Dialogue, own_meta: bool = True) -> None:
        """Looks at one more dialogue."""
        for finding in lint(dialogue, own_meta):
            self._note(finding.code, f"{dialogue.origin}: {finding.text}")
        # A record without an id is named by its place.
        if dialogue.id != dialogue.origin:
            self._ids.add(dialogue.id, dialogue.origin)
        self._conversations.add(conversation_of(dialogue), dialogue.origin)

    def finish(self) -> None:
        """Looks for repetition; to be called once, after the last dialogue."""
        for code, repeats in (("duplicate_id", self._ids), ("duplicate_dialogue", self._conversations)):
            count, groups = repeats.repeated(EXAMPLES_SHOWN)
            if count:
                self.counts[code] = count
                self.examples[code] = [f"{others[0]}: as {first}" for first, *others in groups]

    def _note(self, code: str, text: str) -> None:
        self.counts[code] += 1
        examples = self.examples.setdefault(code, [])
        if len(examples) < EXAMPLES_SHOWN:
            examples.append(text)


def _short(text: str) -> str:
    """A text on one line, its end cut off where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
