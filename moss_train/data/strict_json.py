"""JSON, read strictly: what Python's json would change, drop or accept without a word is a problem here.

Python's json keeps the last of two equal keys, accepts NaN, and lets half a surrogate pair through, which then fails hours later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

BLANKS = " \t\r\n"


class JsonProblem(ValueError):
    """What is wrong with a JSON text.

    Args:
        code: Short name of the kind of problem.
        message: The problem in words.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def decode_value(text: str, position: int) -> tuple[Any, int]:
    """One JSON value that begins at a position, and where it ends. Its text is not checked (see `check_text`).

    Raises:
        JsonProblem: For every way in which the json module can fail, and for what it accepts but should not.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        near = text[max(position, error.pos - 20) : error.pos + 20]
        raise JsonProblem("bad_json", f"{error.msg} at column {error.colno}, near {near!r}.") from None
    except JsonProblem:
        raise
    except RecursionError:
        raise JsonProblem("bad_json", "nested too deeply for a record.") from None
    except ValueError as error:
        raise JsonProblem("bad_json", f"{error}.") from None


def parse_json(text: str) -> Any:
    """The one JSON value a text consists of.

    Raises:
        JsonProblem: The text is something else, or holds more.
    """
    value, end = decode_value(text, len(text) - len(text.lstrip(BLANKS)))
    if text[end:].strip(BLANKS):
        after = text[end : end + 40].strip()
        raise JsonProblem("bad_json", f"text after the end of the object: {after!r}; expected one object a line.")
    check_text(value, text)
    return value


def check_text(value: Any, text: str) -> None:
    r"""Refuses half a surrogate pair, which JSON can only hold as an escape such as `\ud83d`.

    Args:
        value: What was decoded.
        text: The JSON it came from, or more.
    """
    if re.search(r"\\u[dD][89abAB-F]", text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        problem = "a text holds half of a surrogate pair (such as \\ud83d alone); repair the program that wrote it."
        raise JsonProblem("lone_surrogate", problem) from None


def _refuse_constant(name: str) -> Any:
    raise JsonProblem("not_a_number", f"{name} is not JSON.")


def _object_without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    value = dict(pairs)
    if len(value) != len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise JsonProblem("duplicate_key", f"key {repeated!r} occurs twice in one object; only one of the two values could be used.")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object_without_duplicates)
