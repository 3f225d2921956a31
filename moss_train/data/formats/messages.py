"""Messages as OpenAI's interface and most of today's data sets have them.

    {"messages": [{"role": "system", "content": "..."},
                  {"role": "user", "content": "..."},
                  {"role": "assistant", "content": null, "reasoning_content": "...",
                   "tool_calls": [{"id": "a", "type": "function",
                                   "function": {"name": "Search", "arguments": "{\\"query\\": \\"...\\"}"}}]},
                  {"role": "tool", "tool_call_id": "a", "content": "..."},
                  {"role": "assistant", "content": "...", "weight": 1}]}

`weight` 0 on a message of the assistant takes it out of the loss. `meta_instruction` beside `messages` replaces a system message.
"""

from __future__ import annotations

import json
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
from moss_train.data.records import RecordError

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    # What OpenAI's interface had before tools.
    "function": "tool",
}


def parse_messages(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    """A record with `messages`; see the module."""
    items = fields.require_list(fields.require_key(value, ["messages"], "the record", origin), "messages", origin, "messages")
    system, turns = to_turns(parse_list(items, "messages", origin), origin, open_end)
    meta = fields.read_meta(value, system, origin, default_meta)
    return Dialogue(fields.read_id(value, origin), meta, turns, fields.read_category(value), origin)


def write_messages(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a record with `messages`."""
    fields.require_replies(dialogue, "messages")
    system = fields.write_meta(dialogue.meta_instruction)
    messages = [] if system is None else [Message("system", system)]
    for number, turn in enumerate(dialogue.turns, 1):
        messages += to_messages(turn, number)
    return {**fields.write_head(dialogue, system=None), "messages": write_list(messages)}


def parse_list(items: list[Any], name: str, origin: str) -> list[Message]:
    """Messages from their JSON; `name` is that of the list."""
    return [_parse_message(item, f"{name}[{number}]", origin) for number, item in enumerate(items)]


def write_list(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as JSON."""
    return [_write_message(message) for message in messages]


def _parse_message(item: Any, where: str, origin: str) -> Message:
    if not isinstance(item, dict):
        raise RecordError(origin, "message_not_an_object", f"{where} is {fields.kind_of(item)}; expected an object with role and content.")
    spelled = fields.require_key(item, ["role"], where, origin)
    role = _ROLES.get(spelled) if isinstance(spelled, str) else None
    if role is None:
        problem = f"{where} has the role {fields.kind_of(spelled)}; expected one of {', '.join(_ROLES)}."
        raise RecordError(origin, "unknown_role", problem)
    calls, names = _parse_calls(item, where, origin) if role == "assistant" else ((), ())
    answers = item.get("tool_call_id") if role == "tool" else None
    if answers is not None:
        answers = fields.require_text(answers, f"{where}, tool_call_id", origin)
    thoughts = item.get("reasoning_content") if role == "assistant" else None
    if thoughts is not None:
        thoughts = fields.require_text(thoughts, f"{where}, reasoning_content", origin) or None
    text = _parse_content(item, where, origin, may_lack=bool(calls))
    trained = parse_trained(item, where, origin)
    return Message(role, text, thoughts, calls, names, answers, trained, parse_exact(item, where, origin), where)


def _parse_content(item: dict[str, Any], where: str, origin: str, may_lack: bool) -> str:
    """The text of a message: a text, or a list of text parts."""
    content = item.get("content")
    if content is None and may_lack:
        return ""
    if content is None:
        content = fields.require_key(item, ["content"], where, origin)
    if not isinstance(content, list):
        return fields.require_text(content, f"{where}, content", origin)
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            problem = f"{where}, content has a part of type {kind!r}: {fields.kind_of(part)}; expected parts of type 'text' only."
            raise RecordError(origin, "field_not_text", problem)
        parts.append(part["text"])
    return "".join(parts)


def _parse_calls(item: dict[str, Any], where: str, origin: str) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The calls of a message of the assistant, and their names where all have one."""
    found = item.get("tool_calls")
    if found is None and item.get("function_call") is not None:
        found = [item["function_call"]]
    if found is None:
        return (), ()
    if not isinstance(found, list):
        raise RecordError(origin, "bad_tool_call", f"{where}, tool_calls is {fields.kind_of(found)}; expected an array.")
    calls = []
    names = []
    for number, entry in enumerate(found):
        inner = entry.get("function", entry) if isinstance(entry, dict) else entry
        calls.append(parse_call(inner, f"{where}, tool_calls[{number}]", origin))
        if isinstance(entry.get("id"), str):
            names.append(entry["id"])
    return tuple(calls), tuple(names) if len(set(names)) == len(calls) else ()


def _write_message(message: Message) -> dict[str, Any]:
    item: dict[str, Any] = {"role": message.role, "content": None if message.calls and not message.text else message.text}
    if message.thoughts is not None:
        item["reasoning_content"] = message.thoughts
    if message.calls:
        item["tool_calls"] = [
            {"id": name, "type": "function", "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}}
            for name, call in zip(message.call_ids, message.calls, strict=True)
        ]
    if message.answers is not None:
        item["tool_call_id"] = message.answers
    if not message.trained:
        item["weight"] = 0
    if message.exact is not None:
        item[EXACT_KEY] = dict(message.exact)
    return item
