"""Tool calls as MOSS writes them, and their results.

Commands:        ` Search("capital of France"), Calculate("2+3")`    a call with one text; what the text is called follows from the tool
                 ` book({"from": "Paris", "seats": 2})`              any other arguments, as JSON
Tool Responses:  a newline, then for each call its text, ` => ` (and a newline, except for Calculate), the result, and a newline
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from moss_train.data.strict_json import JsonProblem, check_text, decode_value

ARGUMENT_OF: Mapping[str, str] = {"Search": "query", "Calculate": "expression", "Solve": "equation", "Text2Image": "description"}
OTHER_ARGUMENT = "input"
# Tools whose result follows the call on its line.
_INLINE = frozenset({"Calculate"})
_NAME = re.compile(r"[\w.\-]+")
_TEXT_CALL = re.compile(r'([\w.\-]+)\("([^"]*)"\)')
_JSON_CALL = re.compile(r"([\w.\-]+)\((?=\{)")
_BLANKS = re.compile(r"\s*")
_COMMA = re.compile(r"\s*,\s*")


class Call(NamedTuple):
    """One call: the tool and its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


def is_name(name: str) -> bool:
    """Whether a tool's name can stand in Commands."""
    return _NAME.fullmatch(name) is not None


def call_text(call: Call) -> str:
    """A call as it stands in Commands.

    Raises:
        TypeError, ValueError: The arguments are not what JSON can hold.
    """
    argument = ARGUMENT_OF.get(call.name, OTHER_ARGUMENT)
    text = call.arguments.get(argument)
    if len(call.arguments) == 1 and isinstance(text, str) and '"' not in text:
        return f'{call.name}("{text}")'
    return f"{call.name}({json.dumps(call.arguments, ensure_ascii=False, allow_nan=False)})"


def write_commands(calls: Sequence[Call]) -> str:
    """The content of Commands."""
    return " " + ", ".join(map(call_text, calls))


def read_commands(content: str) -> list[Call] | None:
    """The calls in the content of Commands; None: it is not exactly what `write_commands` gives for any."""
    calls = scan_commands(content)
    return calls if calls and write_commands(calls) == content else None


def scan_commands(content: str) -> list[Call] | None:
    """The calls in Commands, blanks and line ends around them and a comma at the end left out; None: it is not a list of calls."""
    calls: list[Call] = []
    position = _skip(_BLANKS, content, 0)
    while position < len(content):
        if match := _TEXT_CALL.match(content, position):
            calls.append(Call(match[1], {ARGUMENT_OF.get(match[1], OTHER_ARGUMENT): match[2]}))
            position = match.end()
        elif match := _JSON_CALL.match(content, position):
            try:
                arguments, end = decode_value(content, match.end())
                check_text(arguments, content[match.end() : end])
            except JsonProblem:
                return None
            if not content.startswith(")", end):
                return None
            calls.append(Call(match[1], arguments))
            position = end + 1
        else:
            return None
        after = _skip(_COMMA, content, position)
        if after == position and content[position:].strip():
            return None
        position = _skip(_BLANKS, content, after)
    return calls or None


def _skip(pattern: re.Pattern[str], content: str, position: int) -> int:
    found = pattern.match(content, position)
    return position if found is None else found.end()


def write_results(calls: Sequence[Call], results: Sequence[str]) -> str:
    """The content of Tool Responses; `results` in the order of the calls."""
    return "\n" + "".join(f"{_header(call)}{result}\n" for call, result in zip(calls, results, strict=True))


def read_results(content: str, calls: Sequence[Call]) -> list[str] | None:
    """The result of each call; None: the content is not what `write_results` gives for these calls."""
    results: list[str] = []
    end_mark = "\n"
    position = 0
    for number, call in enumerate(calls):
        header = end_mark + _header(call)
        if not content.startswith(header, position):
            return None
        position += len(header)
        end = content.find(end_mark + _header(calls[number + 1]), position) if number + 1 < len(calls) else len(content) - 1
        if end < position:
            return None
        results.append(content[position:end])
        position = end
    return results if content.endswith("\n") else None


def _header(call: Call) -> str:
    return call_text(call) + (" => " if call.name in _INLINE else " =>\n")
