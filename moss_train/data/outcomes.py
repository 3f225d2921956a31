"""What came of a turn's tool calls, read leniently: published data has comments, numbers and prose around its calls.

`formats.calls` reads exactly what it can write back; this module finds as much as there is, for warnings and counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from moss_train.data.dialogue import Turn

_CALL = re.compile(r'(?P<name>[A-Za-z_][\w.\-]*)\((?:"(?:[^"\\\n]|\\.)*"|\{.*?\})\)', re.DOTALL)
# Published headers do not always close their bracket where the call does: `Solve("x=1"), "x" =>`.
_RESULT = re.compile(r'^(?P<call>(?P<name>[A-Za-z_][\w.\-]*)\(["{].*) =>', re.MULTILINE)
_EMPTY = frozenset({"", "none", "null", "nan", "[]", "{}", "no result", "no results", "no calculation results", "no calculation result"})
_ERROR = re.compile(r"(error|exception|traceback|timed? ?out|failed)\b|\{\"?'?error", re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
# Numbers of list items, of citations, and of what is cited are not values.
_NOT_VALUES = re.compile(r"^\s*\d+[.)、．]\s|<sup>.*?</sup>|<\|\d+\|>", re.MULTILINE)
_ADMITS = re.compile(
    r"抱歉|对不起|遗憾|无法|无解|没有找到|没找到|未找到|未能|不能确定|没有得到|找不到|不存在|没有.{0,6}(?:结果|解|答案)|计算失败|"
    r"\b(?:sorry|apologi[sz]e|unfortunately|unable|cannot|can(?:'|’)t|could ?n(?:o|'|’)t|couldn(?:'|’)t|did ?n(?:'|’)t find|"
    r"not able|not possible|no (?:result|solution|answer|direct)|failed)\b",
    re.IGNORECASE,
)


class Outcome(NamedTuple):
    """One call and what came back.

    Attributes:
        tool: Its name.
        call: Its text, as Tool Responses repeats it.
        result: What follows it there, without blanks at the edges.
        failed: Whether that is nothing, or an error.
    """

    tool: str
    call: str
    result: str
    failed: bool


def is_none(content: str | None) -> bool:
    """Whether a segment is absent or says that there is nothing: ` None`, ` None.`."""
    return content is None or content.strip().rstrip(".。") in ("", "None")


def find_calls(commands: str | None) -> list[tuple[str, str]]:
    """Name and text of each call in Commands."""
    return [] if commands is None else [(found["name"], found[0]) for found in _CALL.finditer(commands)]


def find_outcomes(turn: Turn) -> list[Outcome]:
    """The calls of a turn and what came of each.

    Results that repeat no call (`Image generated successfully.`, `None`) are those of every call in Commands.
    """
    results = turn.results or ""
    found = list(_RESULT.finditer(results))
    if not found:
        return [Outcome(name, call, results.strip(), _is_failure(results)) for name, call in find_calls(turn.commands)]
    ends = [*(one.start() for one in found[1:]), len(results)]
    texts = [results[one.end() : end].strip() for one, end in zip(found, ends)]
    return [Outcome(one["name"], one["call"], text, _is_failure(text)) for one, text in zip(found, texts)]


def _is_failure(result: str) -> bool:
    text = result.strip().strip("'\"").rstrip(".。").strip().lower()
    return text in _EMPTY or _ERROR.match(text) is not None


def invented_value(turns: Iterable[Turn], turn: Turn, outcomes: Iterable[Outcome]) -> str | None:
    """A number that the reply of a turn states although a tool failed; None: there is none, or the reply admits the failure.

    A number counts where it stands in none of what was known: earlier turns, the human's message, the calls, and results that did not fail.

    Args:
        turns: The turns before it.
        turn: A turn in which a call failed.
        outcomes: Its calls.
    """
    reply = turn.moss or ""
    if _ADMITS.search(reply):
        return None
    told = [text for before in turns for text in (before.human, before.results or "", before.moss or "")]
    told += [turn.human, turn.commands or "", *(outcome.result for outcome in outcomes if not outcome.failed)]
    known = {value for text in told for number in _NUMBER.findall(text) for value in _spellings(number)}
    stated = (number for number in _NUMBER.findall(_NOT_VALUES.sub(" ", reply)))
    return next((number for number in stated if not known & _spellings(number)), None)


def _spellings(number: str) -> set[float]:
    """A number, and the same as a percentage or of a percentage."""
    value = float(number.replace(",", ""))
    return {round(value, 6), round(value * 100, 6), round(value / 100, 6)}
