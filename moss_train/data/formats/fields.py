"""What the formats share: reading fields with errors that say what was found, and the canonical form of a dialogue.

Formats other than MOSS-003 hold bare texts. In the canonical form a content begins with one blank, a meta instruction ends with a newline
(unless it is empty), and all five segments are there, those without content as ` None`: so the same dialogue gives the same ids whatever
format it came in.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import Any

from moss_train.data.dialogue import BY_MOSS, KIND_BY_NAME, SEGMENT_KINDS, Dialogue, Turn, meta_instruction
from moss_train.data.records import RecordError
from moss_train.errors import DataError

NONE = " None"
"""Content of a segment in which nothing is thought, called or returned, as in the published data."""
META_KEY = "meta_instruction"
# How much of a foreign object messages show; more would hide what they say.
_KEYS_SHOWN = 20
_LONGEST_KEY = 40
_MIDDLE = ("thoughts", "commands", "results")
_NAMES = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "an array"}


def kind_of(value: Any) -> str:
    """A JSON value's kind in words, with the beginning of the value."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    return f"{_NAMES.get(type(value), type(value).__name__)} ({' '.join(repr(value)[:200].split())[:40]})"


def require_object(value: Any, origin: str, expected: str) -> dict[str, Any]:
    """The record, which must be a JSON object; `expected` says what should be in it."""
    if not isinstance(value, dict):
        raise RecordError(origin, "not_an_object", f"the record is {kind_of(value)}; expected a JSON object with {expected}.")
    return value


def require_key(value: Mapping[str, Any], keys: Collection[str], where: str, origin: str) -> Any:
    """The value of the first of `keys` that is there; None is not there."""
    for key in keys:
        if value.get(key) is not None:
            return value[key]
    wanted = " or ".join(map(repr, keys))
    problem = f"{where} has no {wanted}; keys found: {keys_found(value)}{did_you_mean(keys, value)}."
    raise RecordError(origin, "missing_key", problem)


def did_you_mean(wanted: Iterable[str], found: Iterable[Any]) -> str:
    """`; did you mean 'x' for 'y'?` for a misspelt key, or nothing."""
    unknown = [str(key)[:_LONGEST_KEY] for key in islice(found, _KEYS_SHOWN)]
    missing = {name.lower(): name for name in wanted if name not in unknown}
    for key in unknown:
        near = difflib.get_close_matches(key.lower(), missing, 1, cutoff=0.75)
        if near:
            return f"; did you mean {missing[near[0]]!r} where {key!r} stands"
    return ""


def keys_found(value: Mapping[str, Any]) -> str:
    """The keys of an object, for messages; not all of them where there are many."""
    shown = ", ".join(str(key)[:_LONGEST_KEY] for key in islice(value, _KEYS_SHOWN))
    return (shown or "none") + (", ..." if len(value) > _KEYS_SHOWN else "")


def require_text(value: Any, where: str, origin: str, *, code: str = "field_not_text") -> str:
    """A text."""
    if not isinstance(value, str):
        raise RecordError(origin, code, f"{where} is {kind_of(value)}; expected text.")
    return value


def require_list(value: Any, where: str, origin: str, of: str) -> list[Any]:
    """An array with something in it."""
    if not isinstance(value, list) or not value:
        found = "an empty array" if isinstance(value, list) else kind_of(value)
        raise RecordError(origin, "no_turns", f"{where} is {found}; expected an array of {of}.")
    return value


def require_content(text: str, kind: str, where: str, origin: str) -> str:
    """The content of a segment that must not be empty, in the canonical form."""
    if not text.strip():
        raise RecordError(origin, f"empty_{kind}", f"{where} has no text; expected what {KIND_BY_NAME[kind].key} wrote.")
    return f" {text}"


def bare(content: str) -> str:
    """The text of a content in the canonical form."""
    return content.removeprefix(" ")


def read_meta(value: Mapping[str, Any], system: str | None, origin: str, default_meta: str | None) -> str:
    """The meta instruction of a record: exactly the one under `meta_instruction`, or that of a system text, or the default.

    Args:
        value: The record.
        system: Its system text, where it has one.
        origin: `file:line`.
        default_meta: Used where it has neither; None: `meta_instruction()` with everything off.
    """
    exact = value.get(META_KEY)
    if exact is not None:
        exact = require_text(exact, META_KEY, origin, code="meta_not_text")
        if system is not None:
            problem = f"the record has a system text and {META_KEY}, both of which stand before the first turn; remove one."
            raise RecordError(origin, "two_meta_instructions", problem)
        return exact
    if system is not None:
        return system if not system or system.endswith("\n") else f"{system}\n"
    return meta_instruction() if default_meta is None else default_meta


def write_meta(meta: str) -> str | None:
    """The system text that `read_meta` makes this meta instruction of; None: there is none."""
    if not meta:
        return meta
    if not meta.endswith("\n"):
        return None
    shorter = meta[:-1]
    return shorter if shorter and not shorter.endswith("\n") else meta


def read_id(value: Mapping[str, Any], origin: str) -> str:
    """The name of a record in a format where ids are optional."""
    for key in ("conversation_id", "id"):
        if isinstance(value.get(key), (str, int)) and not isinstance(value[key], bool):
            return str(value[key])
    return origin


def read_category(value: Mapping[str, Any]) -> str | None:
    """The category in a format that knows none: a key of that name with text."""
    category = value.get("category")
    return category if isinstance(category, str) else None


def write_head(dialogue: Dialogue, *, system: str | None) -> dict[str, Any]:
    """The keys that every format but MOSS-003 may hold beside its own.

    Args:
        dialogue: To be written.
        system: The key under which this format has its system text; None: that is written elsewhere.
    """
    record: dict[str, Any] = {}
    if dialogue.id != dialogue.origin:
        record["id"] = dialogue.id
    if dialogue.category is not None:
        record["category"] = dialogue.category
    text = write_meta(dialogue.meta_instruction)
    if text is None:
        record[META_KEY] = dialogue.meta_instruction
    elif system is not None:
        record[system] = text
    return record


def require_replies(dialogue: Dialogue, name: str) -> None:
    """Refuses a dialogue that a format cannot hold because it ends before MOSS's reply."""
    for number, turn in enumerate(dialogue.turns, 1):
        if turn.moss is None:
            raise cannot_hold(dialogue, name, f"turn {number}, which has no reply")


def require_plain(dialogue: Dialogue, name: str) -> None:
    """Refuses a dialogue that a format of bare questions and answers cannot hold."""
    require_replies(dialogue, name)
    for number, turn in enumerate(dialogue.turns, 1):
        for kind in _MIDDLE:
            content, key = getattr(turn, kind), KIND_BY_NAME[kind].key
            if content is None:
                raise cannot_hold(dialogue, name, f"that turn {number} lacks the segment {key} (it stands for one without content)")
            if content != NONE:
                raise cannot_hold(dialogue, name, f"the {key} of turn {number} ({content[:40]!r})")
        for kind in ("human", "moss"):
            if not getattr(turn, kind).startswith(" "):
                raise cannot_hold(dialogue, name, f"that {KIND_BY_NAME[kind].key} of turn {number} begins without a blank")


def require_trained(dialogue: Dialogue, name: str, turns: Iterable[Turn] | None = None) -> None:
    """Refuses a dialogue with segments that carry no loss, for a format that cannot say so."""
    for number, turn in enumerate(dialogue.turns if turns is None else turns, 1):
        if turn.untrained:
            raise cannot_hold(dialogue, name, f"that turn {number} carries no loss on {', '.join(keys_of(turn.untrained))}")


def cannot_hold(dialogue: Dialogue, name: str, what: str) -> DataError:
    """The error for a dialogue that a format has no place for."""
    return DataError(f"{dialogue.origin}: the format {name} cannot hold {what}; write moss003, messages or sharegpt.")


def keys_of(names: Collection[str]) -> list[str]:
    """Names of segments as keys of a MOSS-003 record, in order."""
    return [kind.key for kind in SEGMENT_KINDS if kind.name in names]


def plain_turn(human: str, moss: str, where: str, origin: str, *, untrained: bool = False) -> Turn:
    """A question and its answer as a turn."""
    return Turn(
        require_content(human, "human", f"{where}, what the human says,", origin),
        NONE,
        NONE,
        NONE,
        require_content(moss, "moss", f"{where}, the reply,", origin),
        BY_MOSS if untrained else frozenset(),
    )
