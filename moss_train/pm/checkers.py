"""Answers that can be verified: a response is correct or wrong, by a checker's name.

    number     the last number of the reply (after `####`, where that stands) equals that of `answer`: 1,234.50, １２, -3, 2e3. Exactly:
               3.33 is not 10/3
    exact      the reply is `answer`, or one of `answers`, but for case, blanks, width of characters, and marks around it
    contains   the reply has one of these in it, in words of its own where they begin or end with a letter or digit
    calls      Commands make the call under `call`, as `Calculate("12*3")`, with an expression of the same value (of other tools: the same
               text), and the reply says the result: `answer` where the line has it, else the value of the call

A response that did not end (`"finish": "length"`) is wrong.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from moss_train.data.dialogue import Turn
from moss_train.data.formats.calls import ARGUMENT_OF, OTHER_ARGUMENT, Call, scan_commands
from moss_train.data.formats.fields import kind_of
from moss_train.data.records import RecordError
from moss_train.inference.tools.calculator import calculate
from moss_train.inference.tools.failure import ToolFailure
from moss_train.pm.rank_config import Checker
from moss_train.pm.ranking import RANKED, Line, Outcome

# Not a part of a name or a version. A minus after a digit, a letter or a bracket subtracts.
_NUMBER = re.compile(
    r"(?<![A-Za-z_\d])(?<!\d\.)((?<![)\]])-[$€£¥]?)?(\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|(?<!\.)\.\d+)(?:[eE]([+-]?\d{1,3})(?!\w))?"
)
_MINUS = str.maketrans("−–", "--")
_POWERS = str.maketrans(dict.fromkeys("⁰¹²³⁴⁵⁶⁷⁸⁹"))
_AROUND = " \t\n\"'`“”‘’「」『』《》()[]{}<>*_.,;:!?。，、；：！？…"
_OPERATOR = re.compile(r"[-+*/^%×÷(（]")


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in order."""
    text = unicodedata.normalize("NFKC", text.translate(_POWERS)).translate(_MINUS)
    found = []
    for match in _NUMBER.finditer(text):
        value = Decimal(match[2].replace(",", "") + (f"e{match[3]}" if match[3] else ""))
        found.append(-value if match[1] else value)
    return found


def last_number(text: str) -> Decimal | None:
    """The number that a text comes to."""
    _, mark, after = text.rpartition("####")
    found = numbers(after)[:1] if mark else []
    found = found or numbers(text)
    return found[-1] if found else None


def normalize(text: str) -> str:
    """A text without what makes no difference: case, width of characters, blanks, and marks around it."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_AROUND)


def check_line(line: Line, checker: Checker | None) -> Checker:
    """The checker of a line, after looking whether the line has what it needs.

    Raises:
        RecordError: `no_checker`, `unknown_checker`, `no_answer` or `bad_call`.
    """
    record = line.parsed.record
    if checker is None:
        name = record.get("checker")
        if name is None:
            raise RecordError(line.origin, "no_checker", f'the line has no "checker"; set checker={" or ".join(Checker)}.')
        if name not in list(Checker):
            raise RecordError(line.origin, "unknown_checker", f'"checker" is {kind_of(name)}; expected one of {", ".join(Checker)}.')
        checker = Checker(name)
    if checker == Checker.calls:
        _wanted_call(line)
        return checker
    found = _answers(line)
    if not found:
        wanted = '"answer", or "answers"' if checker != Checker.number else '"answer"'
        raise RecordError(line.origin, "no_answer", f"the line has no {wanted}, which the checker {checker} compares replies with.")
    if checker == Checker.number and any(last_number(answer) is None for answer in found):
        raise RecordError(line.origin, "no_answer", f"the answer {found[0][:40]!r} has no number; the checker number needs one.")
    return checker


def rank_line(line: Line, checker: Checker | None) -> Outcome:
    """Ranks a line: correct ones 1, wrong ones 2. Where all are correct, or all wrong, it is left out under that name."""
    checker = check_line(line, checker)
    verdicts: list[bool | None] = [None] * len(line.parsed.responses)
    for group in line.groups:
        found = {number: is_correct(line, number, checker) for number in group}
        # Of equal texts one may have ended and another been cut at the same place: that one says nothing.
        for number, correct in found.items():
            verdicts[number] = correct if correct == any(found.values()) else None
    known = {verdict for verdict in verdicts if verdict is not None}
    if len(known) == 1:
        return Outcome("all_correct" if known == {True} else "all_wrong")
    ranks: list[int | None] = [None if verdict is None else 1 if verdict else 2 for verdict in verdicts]
    return Outcome(RANKED, ranks, {"by": "checker", "checker": str(checker)})


def is_correct(line: Line, number: int, checker: Checker) -> bool:
    """Whether a response is correct."""
    return line.raw(number).get("finish") != "length" and _CHECKERS[checker](line, line.parsed.responses[number])


def _answers(line: Line) -> list[str]:
    """What is given under `answer` and `answers`."""
    record = line.parsed.record
    given = [record.get("answer"), *(record["answers"] if isinstance(record.get("answers"), list) else [record.get("answers")])]
    found = [one for one in given if one is not None]
    for one in found:
        if isinstance(one, bool) or not isinstance(one, str | int | float) or not normalize(str(one)):
            raise RecordError(line.origin, "no_answer", f"an answer of the line is {kind_of(one)}; expected a text or a number.")
    return [str(one) for one in found]


def _number(line: Line, turn: Turn) -> bool:
    said = last_number(turn.moss or "")
    return said is not None and said in [last_number(answer) for answer in _answers(line)]


def _exact(line: Line, turn: Turn) -> bool:
    return normalize(turn.moss or "") in map(normalize, _answers(line))


def _contains(line: Line, turn: Turn) -> bool:
    return any(_has(turn.moss or "", answer) for answer in _answers(line))


def _has(text: str, answer: str) -> bool:
    wanted = normalize(answer)
    # Chinese has no blanks between words.
    before = r"(?<![a-z0-9])" if wanted[0].isascii() and wanted[0].isalnum() else ""
    after = r"(?![a-z0-9])" if wanted[-1].isascii() and wanted[-1].isalnum() else ""
    return re.search(before + re.escape(wanted) + after, normalize(text)) is not None


def _calls(line: Line, turn: Turn) -> bool:
    wanted, value = _wanted_call(line)
    if not any(_is_equivalent(call, wanted, value) for call in scan_commands(turn.commands or "") or []):
        return False
    results = _answers(line) or [str(value)]
    said = numbers(turn.moss or "")
    return any(numbers(one)[-1] in said if numbers(one) else _has(turn.moss or "", one) for one in results)


def _wanted_call(line: Line) -> tuple[Call, str | None]:
    """The call a line wants, and its value where it has one."""
    text = line.parsed.record.get("call")
    found = scan_commands(text) if isinstance(text, str) else None
    if found is None or len(found) != 1:
        problem = f'"call" is {kind_of(text)}; expected one call as it stands in Commands, such as Calculate("12*3").'
        raise RecordError(line.origin, "bad_call", problem)
    value = _value(found[0])
    if value is None and not _answers(line):
        raise RecordError(line.origin, "no_answer", f'{text} has no value that can be calculated, and the line no "answer" instead.')
    return found[0], value


def _is_equivalent(call: Call, wanted: Call, value: str | None) -> bool:
    if call.name != wanted.name:
        return False
    if value is None:
        return _argument(call) == _argument(wanted)
    # The result alone is no calculation.
    if _OPERATOR.search(_argument(wanted)) and not _OPERATOR.search(_argument(call)):
        return False
    found = _value(call)
    return found is not None and Decimal(found) == Decimal(value)


def _argument(call: Call) -> str:
    text = call.arguments.get(ARGUMENT_OF.get(call.name, OTHER_ARGUMENT))
    return "".join(normalize(text if isinstance(text, str) else str(sorted(call.arguments.items()))).split())


def _value(call: Call) -> str | None:
    """The value of a calculation, as text."""
    expression: Any = call.arguments.get("expression")
    if call.name != "Calculate" or not isinstance(expression, str):
        return None
    try:
        return calculate(expression)
    except ToolFailure:
        return None


_CHECKERS: Mapping[Checker, Callable[[Line, Turn], bool]] = {
    Checker.number: _number,
    Checker.exact: _exact,
    Checker.contains: _contains,
    Checker.calls: _calls,
}
