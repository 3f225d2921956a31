"""Records to dialogues and back, in every format of `FORMATS`.

`parse` tells the format of a record by its keys. All formats give the same dialogue for the same conversation, in the canonical form (see
`fields`), so that it has the same ids and the same loss whatever it came from; MOSS-003 alone is taken as it stands, blank by blank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from moss_train.data.dialogue import Dialogue
from moss_train.data.formats.alpaca import parse_alpaca, write_alpaca
from moss_train.data.formats.fields import did_you_mean, keys_found, require_object
from moss_train.data.formats.messages import parse_messages, write_messages
from moss_train.data.formats.moss002 import parse_moss002, write_moss002
from moss_train.data.formats.moss003 import parse_moss003, write_moss003
from moss_train.data.formats.prompt_completion import parse_prompt_completion, write_prompt_completion
from moss_train.data.formats.sharegpt import parse_sharegpt, write_sharegpt
from moss_train.data.records import RecordError
from moss_train.errors import DataError, UsageError

__all__ = ["AUTO", "FORMATS", "Format", "detect", "parse", "parse_moss003", "write", "write_moss003"]

AUTO = "auto"


class Format(NamedTuple):
    """One format.

    Attributes:
        needs: Its keys: one of each group must be in a record.
        parse: (record, origin, default meta instruction, whether the last turn may lack a reply) -> dialogue; raises RecordError.
        write: Dialogue -> record; raises DataError.
    """

    needs: tuple[tuple[str, ...], ...]
    parse: Callable[[dict[str, Any], str, str | None, bool], Dialogue]
    write: Callable[[Dialogue], dict[str, Any]]


def _moss003(value: dict[str, Any], origin: str, default_meta: str | None, open_end: bool) -> Dialogue:
    return parse_moss003(value, origin, default_meta=default_meta, open_end=open_end)


FORMATS: Mapping[str, Format] = {
    "moss003": Format((("chat",),), _moss003, write_moss003),
    "moss002": Format((("plain_text",),), parse_moss002, write_moss002),
    "messages": Format((("messages",),), parse_messages, write_messages),
    "sharegpt": Format((("conversations", "conversation"),), parse_sharegpt, write_sharegpt),
    "alpaca": Format((("instruction",), ("output",)), parse_alpaca, write_alpaca),
    "prompt_completion": Format((("prompt",), ("completion", "response")), parse_prompt_completion, write_prompt_completion),
}


def detect(value: Any, origin: str) -> str:
    """The name of the format a record is in, by its keys.

    Args:
        value: The record.
        origin: `file:line`.

    Raises:
        RecordError: `not_an_object`, or `unknown_format` where it has the keys of no format or of several.
    """
    value = require_object(value, origin, "a dialogue in one of the formats " + ", ".join(FORMATS))
    fitting = [name for name, format in FORMATS.items() if all(any(value.get(key) is not None for key in group) for group in format.needs)]
    if len(fitting) == 1:
        return fitting[0]
    found = keys_found(value)
    if fitting:
        problem = f"the record has the keys of {' and of '.join(fitting)} (found: {found}); say which is meant with data.format."
        raise RecordError(origin, "unknown_format", problem)
    needs = "; ".join(f"{name}: {' and '.join(' or '.join(group) for group in format.needs)}" for name, format in FORMATS.items())
    hint = did_you_mean([key for format in FORMATS.values() for group in format.needs for key in group], value)
    raise RecordError(origin, "unknown_format", f"the record is in no known format (keys found: {found}){hint}. Expected {needs}.")


def parse(value: Any, origin: str, format: str = AUTO, default_meta: str | None = None, *, open_end: bool = False) -> Dialogue:
    """A dialogue from a record.

    Args:
        value: The parsed JSON.
        origin: `file:line`.
        format: A name of `FORMATS`, or `auto` to tell it by the keys.
        default_meta: Meta instruction of records that have none; by default `meta_instruction()` with everything off.
        open_end: Let the last turn end before MOSS's reply, for prompts. (What lacks its reply's key needs `format`.)

    Raises:
        RecordError: The record is not in the format; the message says what and where.
        UsageError: There is no such format.
    """
    if format == AUTO:
        format = detect(value, origin)
    return _format(format).parse(require_object(value, origin, f"a dialogue in the format {format}"), origin, default_meta, open_end)


def write(dialogue: Dialogue, format: str) -> dict[str, Any]:
    """A dialogue as a record that `parse` makes the same dialogue of (its origin apart).

    Args:
        dialogue: Any dialogue.
        format: A name of `FORMATS`.

    Raises:
        DataError: The format cannot hold something in it; the message names it.
        UsageError: There is no such format.
    """
    record = _format(format).write(dialogue)
    try:
        back = parse(record, dialogue.origin, format, open_end=dialogue.turns[-1].moss is None)
    except RecordError as error:
        raise DataError(f"{dialogue.origin}: the format {format} cannot hold this dialogue: {error}") from None
    if replace(back, origin=dialogue.origin) != dialogue:
        raise DataError(f"{dialogue.origin}: the format {format} cannot hold this dialogue: it would be read as another one.")
    return record


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UsageError(f"format={name!r}: expected {AUTO} or one of {', '.join(FORMATS)}.")
    return FORMATS[name]
