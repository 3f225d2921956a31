"""Conversations as lists of messages, whatever the spelling: messages to turns, and turns to messages.

A turn is one message of the user, at most one round of tool calls with their results, and one reply: what MOSS's five segments hold.

    user                     -> Human
    assistant with calls     -> Inner Thoughts (its text and its reasoning) and Commands
    tool                     -> Tool Responses
    assistant                -> Inner Thoughts (its reasoning, where there was no call) and MOSS

A reply may carry `moss_exact`: contents of segments of its turn that differ from the canonical form, by their MOSS-003 keys; under `absent`
the segments that are not there at all; and under `untrained` those without loss where the weights of messages cannot say it. Writers put it
there when something would be lost otherwise, for example Commands that are not calls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moss_train.data.dialogue import BY_MOSS, SEGMENT_KINDS, Turn
from moss_train.data.formats.calls import Call, is_name, read_commands, read_results, write_commands, write_results
from moss_train.data.formats.fields import NONE, bare, did_you_mean, keys_of, kind_of, require_content, require_text
from moss_train.data.formats.moss003 import parse_names
from moss_train.data.records import RecordError
from moss_train.data.strict_json import JsonProblem, parse_json

EXACT_KEY = "moss_exact"
_WHEN_CALLING = frozenset({"thoughts", "commands"})
_WHEN_REPLYING = frozenset({"moss"})
_MIDDLE = ("thoughts", "commands", "results")


@dataclass(frozen=True)
class Message:
    """One message, in no particular spelling.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        text: What it says; may be empty beside calls.
        thoughts: Reasoning that came with it.
        calls: Tools the assistant calls.
        call_ids: A name for each call, where they have names.
        answers: Name of the call that a tool's message answers.
        trained: Whether it carries loss.
        exact: `moss_exact` of a reply.
        where: Its place in the record, for messages.
    """

    role: str
    text: str
    thoughts: str | None = None
    calls: tuple[Call, ...] = ()
    call_ids: tuple[str, ...] = ()
    answers: str | None = None
    trained: bool = True
    exact: Mapping[str, Any] | None = None
    where: str = "a message"


def to_turns(messages: Sequence[Message], origin: str, open_end: bool) -> tuple[str | None, tuple[Turn, ...]]:
    """The system text, if there is one, and the turns of a conversation.

    Args:
        messages: In order.
        origin: `file:line`.
        open_end: The conversation may end before the reply.

    Raises:
        RecordError: The messages do not alternate as a turn wants them; the message says where.
    """
    rest = list(messages)
    system = rest.pop(0).text if rest and rest[0].role == "system" else None
    turns: list[Turn] = []
    while rest:
        turns.append(_take_turn(rest, origin, open_end))
    if not turns:
        raise RecordError(origin, "no_turns", "the conversation has no message of a user; expected a user's message and a reply.")
    return system, tuple(turns)


def _take_turn(rest: list[Message], origin: str, open_end: bool) -> Turn:
    """The turn with which `rest` begins; its messages are removed."""
    user = rest.pop(0)
    if user.role != "user":
        raise _unexpected(user, origin)
    human = require_content(user.text, "human", f"{user.where}, of the user,", origin)
    caller: Message | None = None
    thoughts, commands, results = None, NONE, NONE
    if rest and rest[0].role == "assistant" and rest[0].calls:
        caller = rest.pop(0)
        thoughts = "\n".join(text for text in (caller.thoughts, caller.text) if text) or None
        commands = write_commands(caller.calls)
        answers: list[Message] = []
        while rest and rest[0].role == "tool":
            answers.append(rest.pop(0))
        results = write_results(caller.calls, _in_order(caller, answers, origin))
    if not rest and open_end:
        return Turn(human) if caller is None else Turn(human, f" {thoughts}" if thoughts else NONE, commands, results)
    if not rest or rest[0].role == "user":
        before = caller or user
        if rest and caller is None:
            raise RecordError(origin, "two_user_messages", f"{rest[0].where} is of the user, and so is the one before it; join them.")
        raise RecordError(origin, "no_reply", f"no reply follows {before.where}; a dialogue for training ends with the assistant's reply.")
    reply = rest.pop(0)
    if reply.role != "assistant":
        raise _unexpected(reply, origin)
    if reply.calls:
        problem = f"{reply.where} calls tools again before the reply; a turn of MOSS has one segment Commands, for one round of calls."
        raise RecordError(origin, "several_tool_rounds", problem)
    if caller is not None and reply.thoughts:
        problem = f"{reply.where} has reasoning after the results of tools; MOSS thinks before it calls them. Remove or move it."
        raise RecordError(origin, "thoughts_after_results", problem)
    if caller is None:
        thoughts = reply.thoughts
    moss = require_content(reply.text, "moss", f"{reply.where}, the reply,", origin)
    untrained = set() if reply.trained else set(_WHEN_REPLYING if caller else BY_MOSS)
    if caller is not None and not caller.trained:
        untrained |= _WHEN_CALLING
    turn = Turn(human, f" {thoughts}" if thoughts else NONE, commands, results, moss, frozenset(untrained))
    return turn if reply.exact is None else _apply_exact(turn, reply.exact, f"{reply.where}, {EXACT_KEY}", origin)


def _unexpected(message: Message, origin: str) -> RecordError:
    if message.role == "system":
        problem = f"{message.where} is of the system; only the first message of a conversation can be."
        return RecordError(origin, "system_not_first", problem)
    if message.role == "tool":
        problem = f"{message.where} is the result of a tool, but no call comes right before it."
        return RecordError(origin, "tool_without_call", problem)
    problem = f"{message.where} is of the assistant, but what it answers is missing; a turn begins with the user."
    return RecordError(origin, "no_human", problem)


def _in_order(caller: Message, answers: list[Message], origin: str) -> list[str]:
    """The results of the calls of a message, in the order of the calls."""
    if len(answers) != len(caller.calls):
        problem = f"{caller.where} makes {len(caller.calls)} calls, and {len(answers)} results follow; expected one for each."
        raise RecordError(origin, "missing_tool_result", problem)
    if len(caller.call_ids) != len(caller.calls) or any(answer.answers is None for answer in answers):
        return [answer.text for answer in answers]
    found: dict[str, str] = {}
    for answer in answers:
        if answer.answers not in caller.call_ids or answer.answers in found:
            problem = f"{answer.where} answers the call {answer.answers!r}; expected one of {', '.join(caller.call_ids)}, each once."
            raise RecordError(origin, "unknown_tool_call", problem)
        found[str(answer.answers)] = answer.text
    return [found[name] for name in caller.call_ids]


def _apply_exact(turn: Turn, exact: Mapping[str, Any], where: str, origin: str) -> Turn:
    """A turn with the contents that `moss_exact` gives; it may say how a text stands there, but not another text than the message."""
    changes: dict[str, Any] = {}
    names = {kind.key: kind.name for kind in SEGMENT_KINDS}
    keys = [*names, "absent", "untrained"]
    for key, content in exact.items():
        if key not in keys:
            problem = f"{where} has the key {key!r}; expected only {', '.join(keys)}{did_you_mean(keys, [key])}."
            raise RecordError(origin, "unknown_role", problem)
        # Tables give every row the keys of the others, as null.
        if content is None:
            continue
        if key == "untrained":
            changes["untrained"] = parse_names(content, BY_MOSS, f"{where}, untrained", origin)
            continue
        if key == "absent":
            changes |= dict.fromkeys(parse_names(content, _MIDDLE, f"{where}, absent", origin))
            continue
        name = names[key]
        content = require_text(content, f"{where}, {key}", origin)
        if name in ("human", "moss") and content.strip() != str(getattr(turn, name)).strip():
            problem = f"{where} has another text for {key} than the message itself; change both, or remove it."
            raise RecordError(origin, "exact_differs", problem)
        changes[name] = content
    return replace(turn, **changes)


def to_messages(turn: Turn, number: int) -> list[Message]:
    """A turn with a reply as messages; what they cannot say is in `exact` of the last one.

    Args:
        turn: The turn.
        number: Of the turn, from 1, for the names of calls.
    """
    assert turn.moss is not None, "callers refuse dialogues that end before a reply"
    messages = [Message("user", bare(turn.human))]
    thoughts = bare(turn.thoughts) if turn.thoughts not in (None, NONE, " ", "") else None
    calls = read_commands(turn.commands) if turn.commands is not None else None
    results = None
    if calls and turn.results is not None:
        results = read_results(turn.results, calls)
        if results is None:
            # As text for other programs; the exact form is kept beside it.
            results = [turn.results.strip(), *[""] * (len(calls) - 1)]
    if calls and results is not None:
        names = tuple(f"call_{number}_{place}" for place in range(1, len(calls) + 1))
        trained = not turn.untrained >= _WHEN_CALLING
        messages.append(Message("assistant", "", thoughts, tuple(calls), names, trained=trained))
        messages += [Message("tool", result, answers=name) for name, result in zip(names, results, strict=True)]
        thoughts = None
    whole = frozenset(BY_MOSS) if len(messages) == 1 else _WHEN_REPLYING
    messages.append(Message("assistant", bare(turn.moss), thoughts, trained=not whole <= turn.untrained))
    _, (canonical,) = to_turns(messages, "", open_end=False)
    exact: dict[str, Any] = {
        kind.key: getattr(turn, kind.name)
        for kind in SEGMENT_KINDS
        if getattr(turn, kind.name) not in (None, getattr(canonical, kind.name))
    }
    absent = keys_of([name for name in _MIDDLE if getattr(turn, name) is None])
    if absent:
        exact["absent"] = absent
    if turn.untrained != canonical.untrained:
        exact["untrained"] = keys_of(turn.untrained)
    if exact:
        messages[-1] = replace(messages[-1], exact=exact)
    return messages


def parse_call(value: Any, where: str, origin: str) -> Call:
    """A call from `{"name": ..., "arguments": ...}`; arguments are an object, or JSON text of one."""
    if not isinstance(value, dict):
        raise RecordError(origin, "bad_tool_call", f"{where} is {kind_of(value)}; expected an object with name and arguments.")
    name = value.get("name")
    if not isinstance(name, str) or not is_name(name):
        problem = f"{where} has the name {kind_of(name)}; expected letters, digits, '_', '-' or '.'{did_you_mean(['name'], value)}."
        raise RecordError(origin, "bad_tool_call", problem)
    arguments = value.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments) if arguments.strip() else {}
        except JsonProblem as error:
            raise RecordError(origin, "bad_tool_arguments", f"{where}, arguments of {name}: {error}") from None
    if not isinstance(arguments, dict):
        problem = f"{where}, arguments of {name} are {kind_of(arguments)}; expected an object, or JSON text of one."
        raise RecordError(origin, "bad_tool_arguments", problem)
    call = Call(name, arguments)
    try:
        write_commands([call])
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(origin, "bad_tool_arguments", f"{where}, arguments of {name} cannot be written as JSON: {error}.") from None
    return call


def parse_trained(value: Mapping[str, Any], where: str, origin: str) -> bool:
    """Whether a message carries loss, from its `weight` (0 or 1) or `train` (true or false)."""
    trained = True
    for key in ("weight", "train"):
        weight = value.get(key)
        if weight is None:
            continue
        if not isinstance(weight, (bool, int, float)) or weight not in (0, 1):
            raise RecordError(origin, "bad_weight", f"{where}, {key} is {kind_of(weight)}; expected 0 or 1, false or true.")
        trained = trained and bool(weight)
    return trained


def parse_exact(value: Mapping[str, Any], where: str, origin: str) -> Mapping[str, Any] | None:
    """`moss_exact` of a message."""
    exact = value.get(EXACT_KEY)
    if exact is not None and not isinstance(exact, dict):
        raise RecordError(origin, "field_not_text", f"{where}, {EXACT_KEY} is {kind_of(exact)}; expected an object.")
    return exact
