"""Conversations as ShareGPT's exports and what followed them have them.

    {"system": "...", "conversations": [{"from": "human", "value": "..."},
                                        {"from": "function_call", "value": "{\\"name\\": \\"Search\\", \\"arguments\\": {...}}"},
                                        {"from": "observation", "value": "..."},
                                        {"from": "gpt", "value": "...", "weight": 1}]}
    {"conversation": [{"human": "...", "assistant": "..."}]}

A function_call may hold an array of calls; an observation follows for each. `weight` (0 or 1) or `train` (false or true) says whether a
message carries loss. Inner thoughts stand in `reasoning_content` of a message, or in a message of gpt before the function_call.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from moss_train.data.dialogue import Dialogue
from moss_train.data.formats import fields
from moss_train.data.formats.conversation import (
    EXACT_KEY,
    Message,
    parse_call,
    parse_exact,
    parse_trained,
    to_messages,
    to_turns,
)
from moss_train.data.formats.messages import parse_list
from moss_train.data.records import RecordError
from moss_train.data.strict_json import JsonProblem, parse_json

_CALL = "function_call"
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    _CALL: _CALL,
    "observation": "tool",
    "tool": "tool",
}
_WRITTEN = {"user": "human", "assistant": "gpt", "tool": "observation"}


def parse_sharegpt(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    """A record with `conversations`, or with `conversation`; see the module."""
    found = fields.require_key(value, ["conversations", "conversation"], "the record", origin)
    name = "conversations" if value.get("conversations") is not None else "conversation"
    items = fields.require_list(found, name, origin, "messages")
    first = items[0]
    if isinstance(first, dict) and "human" in first and "from" not in first:
        messages = [message for number, item in enumerate(items) for message in _parse_pair(item, f"{name}[{number}]", origin, open_end)]
    elif isinstance(first, dict) and "role" in first and "from" not in first:
        # Messages as elsewhere, under this name.
        messages = parse_list(items, name, origin)
    else:
        messages = _join_calls([_parse_message(item, f"{name}[{number}]", origin) for number, item in enumerate(items)], origin)
    system, turns = to_turns(messages, origin, open_end)
    beside = value.get("system")
    if beside is not None:
        beside = fields.require_text(beside, "system", origin, code="meta_not_text")
        if system is not None:
            raise RecordError(
                origin, "two_meta_instructions", f"the record has 'system' and a message of the system in {name}; remove one."
            )
        system = beside
    meta = fields.read_meta(value, system, origin, default_meta)
    return Dialogue(fields.read_id(value, origin), meta, turns, fields.read_category(value), origin)


def write_sharegpt(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a record with `conversations`."""
    fields.require_replies(dialogue, "sharegpt")
    messages = [message for number, turn in enumerate(dialogue.turns, 1) for message in to_messages(turn, number)]
    return {**fields.write_head(dialogue, system="system"), "conversations": [_write_message(message) for message in messages]}


def _parse_pair(item: Any, where: str, origin: str, open_end: bool) -> list[Message]:
    if not isinstance(item, dict):
        raise RecordError(origin, "message_not_an_object", f"{where} is {fields.kind_of(item)}; expected an object: human, assistant.")
    messages = [Message("user", fields.require_text(fields.require_key(item, ["human"], where, origin), f"{where}, human", origin))]
    if item.get("assistant") is not None or not open_end:
        reply = fields.require_text(fields.require_key(item, ["assistant"], where, origin), f"{where}, assistant", origin)
        trained = parse_trained(item, where, origin)
        messages.append(Message("assistant", reply, trained=trained, exact=parse_exact(item, where, origin)))
    return [replace(message, where=f"{where}, {key}") for message, key in zip(messages, ("human", "assistant"), strict=False)]


def _parse_message(item: Any, where: str, origin: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(origin, "message_not_an_object", f"{where} is {fields.kind_of(item)}; expected an object with from and value.")
    spelled = fields.require_key(item, ["from"], where, origin)
    role = _ROLES.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        problem = f"{where} is from {fields.kind_of(spelled)}; expected one of {', '.join(_ROLES)}."
        raise RecordError(origin, "unknown_role", problem)
    text = fields.require_text(fields.require_key(item, ["value"], where, origin), f"{where}, value", origin)
    thoughts = item.get("reasoning_content") if role in ("assistant", _CALL) else None
    if thoughts is not None:
        thoughts = fields.require_text(thoughts, f"{where}, reasoning_content", origin) or None
    trained, exact = parse_trained(item, where, origin), parse_exact(item, where, origin)
    if role != _CALL:
        return Message(role, text, thoughts, trained=trained, exact=exact, where=where)
    try:
        value = parse_json(text)
    except JsonProblem as problem:
        raise RecordError(origin, "bad_tool_call", f"{where}, value of a function_call: {problem}") from None
    calls = [parse_call(call, where, origin) for call in (value if isinstance(value, list) and value else [value])]
    return Message("assistant", "", thoughts, tuple(calls), trained=trained, exact=exact, where=where)


def _join_calls(messages: list[Message], origin: str) -> list[Message]:
    """What gpt said right before calling is said with the call, and calls that follow one another are one round."""
    joined: list[Message] = []
    for message in messages:
        before = joined[-1] if joined else None
        if message.calls and before is not None and before.role == "assistant":
            texts = [text for text in (before.thoughts, before.text, message.thoughts) if text]
            if before.trained != message.trained:
                problem = f"{before.where} and {message.where} are one step of the assistant, but only one of them carries loss."
                raise RecordError(origin, "bad_weight", problem)
            joined[-1] = replace(message, thoughts="\n".join(texts) or None, calls=before.calls + message.calls)
        else:
            joined.append(message)
    return joined


def _write_message(message: Message) -> dict[str, Any]:
    item: dict[str, Any] = {"from": _WRITTEN[message.role], "value": message.text}
    if message.calls:
        calls = [{"name": call.name, "arguments": call.arguments} for call in message.calls]
        item = {"from": _CALL, "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}
    if message.thoughts is not None:
        item["reasoning_content"] = message.thoughts
    if not message.trained:
        item["weight"] = 0
    if message.exact is not None:
        item[EXACT_KEY] = dict(message.exact)
    return item
