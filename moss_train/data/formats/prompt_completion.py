"""A prompt and its completion, as TRL has them.

    {"prompt": "...", "completion": "..."}                      one turn; `response` may stand for `completion`
    {"prompt": [messages], "completion": [messages]}            only what the assistant says in the completion carries loss

In texts a leading blank separates them from what comes before (`{"prompt": "The sky is", "completion": " blue."}`); it is not doubled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moss_train.data.dialogue import BY_MOSS, Dialogue, Turn
from moss_train.data.formats import fields
from moss_train.data.formats.conversation import Message, to_messages, to_turns
from moss_train.data.formats.messages import parse_list, write_list
from moss_train.data.records import RecordError

_NAME = "prompt_completion"


def parse_prompt_completion(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    """A record with `prompt` and `completion`; see the module."""
    prompt = fields.require_key(value, ["prompt"], "the record", origin)
    name = "response" if value.get("completion") is None and value.get("response") is not None else "completion"
    completion = value.get(name)
    if completion is None and not open_end:
        completion = fields.require_key(value, ["completion", "response"], "the record", origin)
    if isinstance(prompt, list):
        messages = [replace(message, trained=False) for message in parse_list(prompt, "prompt", origin)]
        if completion is not None:
            messages += parse_list(fields.require_list(completion, name, origin, "messages"), name, origin)
        system, turns = to_turns(messages, origin, open_end)
    else:
        system = None
        human = _without_separator(fields.require_text(prompt, "prompt", origin))
        if completion is None:
            turns = (Turn(fields.require_content(human, "human", "prompt", origin)),)
        else:
            moss = _without_separator(fields.require_text(completion, name, origin))
            turns = (fields.plain_turn(human, moss, "the record", origin),)
    beside = value.get("system")
    if beside is not None:
        if system is not None:
            raise RecordError(origin, "two_meta_instructions", "the record has 'system' and a message of the system in prompt; remove one.")
        system = fields.require_text(beside, "system", origin, code="meta_not_text")
    meta = fields.read_meta(value, system, origin, default_meta)
    return Dialogue(fields.read_id(value, origin), meta, turns, fields.read_category(value), origin)


def write_prompt_completion(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as texts where it is one plain turn, else as messages; earlier turns must carry no loss, because TRL gives them none."""
    fields.require_replies(dialogue, _NAME)
    *earlier, last = dialogue.turns
    for number, turn in enumerate(earlier, 1):
        if turn.untrained != BY_MOSS:
            raise fields.cannot_hold(
                dialogue, _NAME, f"loss on turn {number} of {len(dialogue.turns)}; only the last turn carries loss there"
            )
    if not earlier and _is_plain(last):
        texts = {"prompt": _with_separator(last.human), "completion": _with_separator(str(last.moss))}
        return {**fields.write_head(dialogue, system="system"), **texts}
    system = fields.write_meta(dialogue.meta_instruction)
    before = [] if system is None else [Message("system", system)]
    for number, turn in enumerate(earlier, 1):
        before += to_messages(turn, number)
    user, *completion = to_messages(last, len(dialogue.turns))
    # Weights of the prompt say nothing: it has no loss anyway.
    prompt = [replace(message, trained=True) for message in [*before, user]]
    return {**fields.write_head(dialogue, system=None), "prompt": write_list(prompt), "completion": write_list(completion)}


def _is_plain(turn: Turn) -> bool:
    return (
        turn.thoughts == turn.commands == turn.results == fields.NONE
        and not turn.untrained
        and turn.human.startswith(" ")
        and str(turn.moss).startswith(" ")
    )


def _without_separator(text: str) -> str:
    return text.removeprefix(" ")


def _with_separator(content: str) -> str:
    """The shortest text that is read as this content."""
    text = content.removeprefix(" ")
    return content if text.startswith(" ") else text
