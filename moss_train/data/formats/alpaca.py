"""Instructions and answers as Stanford Alpaca's data and what followed it have them.

    {"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["...", "..."]]}

The human says the instruction, and below it the input where there is one. `history` holds earlier turns; they carry loss too.
"""

from __future__ import annotations

from typing import Any

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import fields
from moss_train.data.records import RecordError


def parse_alpaca(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    """A record with `instruction` and `output`; see the module."""
    instruction = fields.require_text(fields.require_key(value, ["instruction"], "the record", origin), "instruction", origin)
    more = value.get("input")
    if more is not None and fields.require_text(more, "input", origin):
        instruction = f"{instruction}\n{more}" if instruction else more
    turns = _parse_history(value.get("history"), origin)
    output = value.get("output")
    if open_end and not output:
        turns.append(Turn(fields.require_content(instruction, "human", "instruction", origin)))
    else:
        output = fields.require_text(fields.require_key(value, ["output"], "the record", origin), "output", origin)
        turns.append(fields.plain_turn(instruction, output, "the record", origin))
    system = value.get("system")
    if system is not None:
        system = fields.require_text(system, "system", origin, code="meta_not_text")
    meta = fields.read_meta(value, system, origin, default_meta)
    return Dialogue(fields.read_id(value, origin), meta, tuple(turns), fields.read_category(value), origin)


def write_alpaca(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue of plain turns as a record with `instruction` and `output`."""
    fields.require_plain(dialogue, "alpaca")
    fields.require_trained(dialogue, "alpaca")
    pairs = [[fields.bare(turn.human), fields.bare(str(turn.moss))] for turn in dialogue.turns]
    record = {**fields.write_head(dialogue, system="system"), "instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    if len(pairs) > 1:
        record["history"] = pairs[:-1]
    return record


def _parse_history(history: Any, origin: str) -> list[Turn]:
    if history is None:
        return []
    if not isinstance(history, list):
        raise RecordError(origin, "no_turns", f"history is {fields.kind_of(history)}; expected an array of [question, answer] pairs.")
    turns = []
    for number, pair in enumerate(history):
        where = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            problem = f"{where} is {fields.kind_of(pair)}; expected an array of two texts, question and answer."
            raise RecordError(origin, "no_turns", problem)
        question, answer = (fields.require_text(text, where, origin) for text in pair)
        turns.append(fields.plain_turn(question, answer, where, origin))
    return turns
