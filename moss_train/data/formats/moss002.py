"""MOSS-002: plain turns in one text. Its files are JSON arrays of records.

{"id": 0, "prefix": "MOSS is an AI assistant ...", "num_turns": 1, "plain_text": "[Human]: ...<eoh> [MOSS]: ...<eoa>"}
"""

from __future__ import annotations

import re
from typing import Any

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import fields
from moss_train.data.records import RecordError

_HUMAN, _MOSS, _END_HUMAN, _END_MOSS = "[Human]:", "[MOSS]:", "<eoh>", "<eoa>"
_TURN = re.compile(r"\s*\[Human\]:(.*?)<eoh>\s*\[MOSS\]:(.*?)<eoa>\s*(?=\[Human\]:|\Z)", re.DOTALL)
_OPEN_TURN = re.compile(r"\s*\[Human\]:(.*?)<eoh>\s*(?:\[MOSS\]:\s*)?\Z", re.DOTALL)


def parse_moss002(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    """A record with `plain_text`; see the module."""
    text = fields.require_text(fields.require_key(value, ["plain_text"], "the record", origin), "plain_text", origin)
    turns: list[Turn] = []
    position = 0
    while position < len(text):
        where = f"turn {len(turns) + 1}"
        match = _TURN.match(text, position)
        if match is None:
            last = _OPEN_TURN.match(text, position) if open_end else None
            if last is None:
                raise _problem(text[position:], where, origin)
            turns.append(Turn(fields.require_content(last[1].removeprefix(" "), "human", where, origin)))
            break
        human, moss = (content.removeprefix(" ") for content in match.groups())
        turns.append(fields.plain_turn(human, moss, where, origin))
        position = match.end()
    if not turns:
        raise RecordError(origin, "no_turns", f"plain_text is empty; expected '{_HUMAN} ...{_END_HUMAN} {_MOSS} ...{_END_MOSS}'.")
    declared = value.get("num_turns")
    if declared is not None and (isinstance(declared, bool) or declared != len(turns)):
        problem = f"num_turns is {declared!r}, but plain_text has {len(turns)} turns; a turn was lost or the number is wrong."
        raise RecordError(origin, "num_turns", problem)
    prefix = value.get("prefix")
    if prefix is not None:
        prefix = fields.require_text(prefix, "prefix", origin, code="meta_not_text")
    meta = fields.read_meta(value, prefix, origin, default_meta)
    return Dialogue(fields.read_id(value, origin), meta, tuple(turns), fields.read_category(value), origin)


def write_moss002(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue of plain turns as a record with `plain_text`."""
    fields.require_plain(dialogue, "moss002")
    fields.require_trained(dialogue, "moss002")
    parts = []
    for number, turn in enumerate(dialogue.turns, 1):
        for text in (turn.human, str(turn.moss)):
            mark = next((mark for mark in (_HUMAN, _MOSS, _END_HUMAN, _END_MOSS) if mark in text), None)
            if mark is not None:
                raise fields.cannot_hold(dialogue, "moss002", f"the text {mark!r} within turn {number}; it is a mark there")
        parts.append(f"{_HUMAN}{turn.human}{_END_HUMAN} {_MOSS}{turn.moss}{_END_MOSS}")
    return {**fields.write_head(dialogue, system="prefix"), "num_turns": len(parts), "plain_text": " ".join(parts)}


def _problem(text: str, where: str, origin: str) -> RecordError:
    """What is missing in a text that does not begin with a turn."""
    start = text.lstrip()
    for mark, code in ((_HUMAN, "no_opening"), (_END_HUMAN, "no_terminator"), (_MOSS, "no_reply"), (_END_MOSS, "no_terminator")):
        found = start.find(mark)
        if found < 0 or (mark == _HUMAN and found > 0):
            problem = f"{where} has no {mark!r} where one is expected, in {start[:60]!r}; expected "
            return RecordError(origin, code, f"{problem}'{_HUMAN} ...{_END_HUMAN} {_MOSS} ...{_END_MOSS}'.")
    return RecordError(origin, "no_opening", f"{where}: the marks are not in the order {_HUMAN} {_END_HUMAN} {_MOSS} {_END_MOSS}.")
