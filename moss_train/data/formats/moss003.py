"""MOSS-003, plain or with plugins: the form of the published data, and the only one that says every blank.

    {"conversation_id": 1, "meta_instruction": "...", "num_turns": 1, "category": "tool",
     "chat": {"turn_1": {"Human": "<|Human|>: ...<eoh>\\n",
                         "Inner Thoughts": "<|Inner Thoughts|>: ...<eot>\\n",
                         "Commands": "<|Commands|>: ...<eoc>\\n",
                         "Tool Responses": "<|Results|>:\\n...\\n<eor>\\n",
                         "MOSS": "<|MOSS|>: ...<eom>\\n"}}}

Two keys of a turn are ours: `"train": false` takes all that MOSS wrote in it out of the loss, `"untrained": ["Inner Thoughts"]` some of it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from moss_train.data.dialogue import BY_MOSS, KIND_BY_NAME, SEGMENT_KINDS, Dialogue, SegmentKind, Turn, meta_instruction
from moss_train.data.formats.fields import did_you_mean, keys_found, keys_of, kind_of, require_object
from moss_train.data.records import RecordError

_KEYS = [kind.key for kind in SEGMENT_KINDS]
_KIND_BY_KEY = {kind.key: kind for kind in SEGMENT_KINDS}
_LOSS_KEYS = ("train", "untrained")
_LEVEL = "level"
_OTHER_KEYS = (*_LOSS_KEYS, _LEVEL)


def parse_moss003(value: Any, origin: str, *, default_meta: str | None = None, open_end: bool = False) -> Dialogue:
    """A MOSS-003 record, plain or with plugins.

    The order of keys does not matter. Inner Thoughts, Commands and Tool Responses may be missing, and so may `num_turns`, `category`,
    `conversation_id` and the newline after a control (it is always rendered); other keys beside `chat` are left alone. Text without its
    marker and control is refused: whether a blank belongs to it would be a guess that changes every id after it.

    Args:
        value: The parsed JSON.
        origin: `file:line`.
        default_meta: Meta instruction of records that have none; by default `meta_instruction()` with everything off.
        open_end: Let the last turn end before MOSS's reply, for prompts.

    Raises:
        RecordError: The record is not in this form; the message says what and where.
    """
    value = require_object(value, origin, "a 'chat' of turns")
    meta = value.get("meta_instruction")
    if meta is None:
        meta = meta_instruction() if default_meta is None else default_meta
    if not isinstance(meta, str):
        raise RecordError(origin, "meta_not_text", f"meta_instruction is {kind_of(meta)}; expected text.")
    chat = value.get("chat")
    if not isinstance(chat, dict) or not chat:
        keys = f"keys: {keys_found(value)}{did_you_mean(['chat'], value)}"
        found = keys if chat is None else kind_of(chat) if chat else "an empty one"
        problem = f"no turns found ({found}); expected 'chat': {{'turn_1': {{'Human': ..., 'MOSS': ...}}, ...}}."
        raise RecordError(origin, "no_chat", problem)

    expected = [f"turn_{number}" for number in range(1, len(chat) + 1)]
    if set(chat) != set(expected):
        unexpected = sorted(set(chat) - set(expected))
        problem = f"unexpected turn {unexpected[0]!r} among {len(chat)} turns; expected turn_1 to turn_{len(chat)} without a gap."
        raise RecordError(origin, "turn_numbers", problem)
    declared = value.get("num_turns")
    if declared is not None and (isinstance(declared, bool) or declared != len(chat)):
        problem = f"num_turns is {declared!r}, but chat has {len(chat)} turns; a turn was lost or the number is wrong."
        raise RecordError(origin, "num_turns", problem)

    turns = [_parse_turn(chat[name], name, origin, open_end and name == expected[-1]) for name in expected]
    category = value.get("category")
    if category is not None and not isinstance(category, str):
        raise RecordError(origin, "category_not_text", f"category is {kind_of(category)}; expected text.")
    return Dialogue(str(value.get("conversation_id", origin)), meta, tuple(turns), category, origin)


def write_moss003(dialogue: Dialogue) -> dict[str, Any]:
    """A dialogue as a MOSS-003 record; every dialogue has one, unless a content ends with the control that follows it anyway."""
    chat = {}
    for number, turn in enumerate(dialogue.turns, 1):
        fields: dict[str, Any] = {}
        for kind in SEGMENT_KINDS:
            content = getattr(turn, kind.name)
            if content is not None:
                fields[kind.key] = f"{kind.opening}{content}{kind.control}\n"
        if turn.untrained == BY_MOSS:
            fields["train"] = False
        elif turn.untrained:
            fields["untrained"] = keys_of(turn.untrained)
        if turn.level is not None:
            fields[_LEVEL] = turn.level
        chat[f"turn_{number}"] = fields
    record: dict[str, Any] = {"conversation_id": dialogue.id} if dialogue.id != dialogue.origin else {}
    record |= {"meta_instruction": dialogue.meta_instruction, "num_turns": len(chat), "chat": chat}
    if dialogue.category is not None:
        record["category"] = dialogue.category
    return record


def _parse_turn(value: Any, name: str, origin: str, open_end: bool) -> Turn:
    if not isinstance(value, dict):
        raise RecordError(origin, "turn_not_an_object", f"{name} is {kind_of(value)}; expected an object with Human and MOSS.")
    unknown = [key for key in value if key not in _KEYS and key not in _OTHER_KEYS]
    if unknown:
        hint = did_you_mean([*_KEYS, *_OTHER_KEYS], unknown)
        raise RecordError(origin, "unknown_role", f"{name} has the key {unknown[0]!r}; expected only {', '.join(_KEYS)}{hint}.")
    contents = {kind.name: _parse_field(value[kind.key], kind, name, origin) for kind in SEGMENT_KINDS if kind.key in value}
    if "human" not in contents:
        raise RecordError(origin, "no_human", f"{name} has no Human text; keys found: {keys_found(value)}.")
    if "moss" not in contents and not open_end:
        problem = f"{name} has no MOSS text; keys found: {keys_found(value)}. A dialogue for training ends with MOSS's reply."
        raise RecordError(origin, "no_reply", problem)
    for required in ("human", "moss"):
        if required in contents and not contents[required].strip():
            raise RecordError(origin, f"empty_{required}", f"{name}, {KIND_BY_NAME[required].key}: no text between marker and control.")
    return Turn(**contents, untrained=_parse_untrained(value, name, origin), level=_parse_level(value.get(_LEVEL), name, origin))


def _parse_level(value: Any, name: str, origin: str) -> int | None:
    """How good the reply of a turn is."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise RecordError(origin, "bad_level", f"{name}, level is {kind_of(value)}; expected 1 for the worst, or a larger whole number.")
    return value


def _parse_untrained(value: dict[str, Any], name: str, origin: str) -> frozenset[str]:
    """The segments that carry no loss, from the two keys that say so."""
    train, untrained = value.get("train"), value.get("untrained")
    if train is not None and not isinstance(train, bool):
        raise RecordError(origin, "bad_weight", f"{name}, train is {kind_of(train)}; expected true or false.")
    if train is False:
        return BY_MOSS
    return parse_names(untrained, BY_MOSS, f"{name}, untrained", origin) if untrained is not None else frozenset()


def parse_names(keys: Any, among: Collection[str], where: str, origin: str) -> frozenset[str]:
    """Names of segments, all of them `among` some, from an array of their keys."""
    expected = keys_of(among)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in expected for key in keys):
        raise RecordError(origin, "bad_segments", f"{where} is {kind_of(keys)}; expected an array with some of {', '.join(expected)}.")
    return frozenset(_KIND_BY_KEY[key].name for key in keys)


def _parse_field(text: Any, kind: SegmentKind, turn: str, origin: str) -> str:
    """The content of one field, from after the colon to before the control token."""
    where = f"{turn}, {kind.key}"
    if not isinstance(text, str):
        raise RecordError(origin, "field_not_text", f"{where} is {kind_of(text)}; expected text.")
    if not text.startswith(kind.opening):
        problem = f"{where} begins with {text[:24]!r}; expected {kind.opening!r}, as in {kind.opening + ' ...' + kind.control!r}."
        raise RecordError(origin, "no_opening", problem)
    body = text.removesuffix("\n")
    if not body.endswith(kind.control):
        problem = f"{where} ends with {text[-24:]!r}; expected {kind.control + chr(10)!r}; the text may have been cut."
        raise RecordError(origin, "no_terminator", problem)
    content = body[len(kind.opening) : -len(kind.control)]
    if content.rstrip().endswith(kind.control):
        raise RecordError(origin, "doubled_terminator", f"{where} ends with {kind.control} twice: {text[-24:]!r}; remove one.")
    return content
