"""Whether two calls of a tool ask the same, and whether a reply uses what a tool found.

    Calculate   equal values, where the calculator gives both one (to 1e-9, relatively); else expressions that agree as functions of the
                names in them; else equal texts
    Solve       equations that agree as functions, one by one and up to a factor; else equal solutions, whatever the unknowns are called;
                else equal texts
    others      equal texts, after NFKC, without regard to case, blanks and punctuation

That two expressions agree is tried at four points, exactly, by the calculator's own arithmetic: no text reaches another parser, and an
expression cannot take long. Two different polynomials of low degree agree at four random points with a probability below 1e-9.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from moss_train.data.formats.calls import ARGUMENT_OF, Call
from moss_train.inference.tools.calculator import CONSTANTS, FUNCTIONS, Arithmetic, calculate
from moss_train.inference.tools.expression import Program, Statement, evaluate, parse_statements
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.solver import read_system, solve

KNOWN_TOOLS = frozenset(ARGUMENT_OF)
NO_RESULT = "No result."
_POINTS = 4
_CLOSE = 1e-9
_NUMBER = re.compile(r"(?<![\d.])-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_CITATION = re.compile(r"<\|([0-9]{1,9})\|>")


def well_formed(calls: Sequence[Call] | None) -> bool:
    """Whether Commands could be read as calls of known tools, each with one text."""
    return bool(calls) and all(
        call.name in KNOWN_TOOLS and len(call.arguments) == 1 and isinstance(call.arguments.get(ARGUMENT_OF[call.name]), str)
        for call in calls or ()
    )


def same_calls(first: Sequence[Call], other: Sequence[Call]) -> bool:
    """Whether each call of one list has its equivalent in the other, in any order."""
    left = list(other)
    for call in first:
        found = next((one for one in left if equivalent(call, one)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def equivalent(first: Call, other: Call) -> bool:
    """Whether two calls ask the same of the same tool."""
    if first.name != other.name:
        return False
    argument = ARGUMENT_OF.get(first.name)
    one, two = first.arguments.get(argument or ""), other.arguments.get(argument or "")
    if not isinstance(one, str) or not isinstance(two, str):
        return first.arguments == other.arguments
    if normalize(one) == normalize(two):
        # Signs are what an expression consists of; elsewhere they are punctuation.
        return first.name not in ("Calculate", "Solve") or _signs(one) == _signs(two) or _same_mathematics(first.name, one, two)
    return _same_mathematics(first.name, one, two)


def normalize(text: str) -> str:
    """A text without what does not change what is searched for: case, width, blanks and punctuation."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in plain if unicodedata.category(letter)[0] in "LNM")


def _signs(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _same_mathematics(name: str, one: str, two: str) -> bool:
    if name == "Calculate":
        values = value_of(one), value_of(two)
        if None not in values:
            return math.isclose(float(values[0]), float(values[1]), rel_tol=_CLOSE, abs_tol=0)  # type: ignore[arg-type]
        return _same_statements(_statements(one), _statements(two))
    if name == "Solve":
        return _same_statements(_equations(one), _equations(two)) or (solutions(one) is not None and solutions(one) == solutions(two))
    return False


@lru_cache(maxsize=4096)
def value_of(expression: str) -> float | None:
    """The value of an expression, or None."""
    try:
        return float(calculate(expression))
    except (ToolFailure, ValueError, OverflowError):
        return None


@lru_cache(maxsize=4096)
def solutions(equations: str) -> tuple[str, ...] | None:
    """The values of the unknowns, in order, or None."""
    try:
        return tuple(sorted(line.split(" = ", 1)[-1] for line in solve(equations).splitlines()))
    except ToolFailure:
        return None


def _statements(expression: str) -> list[Statement] | None:
    try:
        return parse_statements(expression, FUNCTIONS)
    except ToolFailure:
        return None


def _equations(text: str) -> list[Statement] | None:
    try:
        return list(read_system(text).equations)
    except ToolFailure:
        return None


def _same_statements(first: list[Statement] | None, other: list[Statement] | None) -> bool:
    """Whether each statement has its equal, in any order."""
    if not first or not other or len(first) != len(other):
        return False
    left = list(other)
    for statement in first:
        found = next((one for one in left if _same_statement(statement, one)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def _same_statement(first: Statement, other: Statement) -> bool:
    names = {step.value for one in (first, other) for side in one for step in side or () if step.kind == "name"}
    generator = random.Random(0)
    ratios: list[Fraction] = []
    for _ in range(_POINTS):
        point: dict[str, Any] = {name: Fraction(generator.randint(10**6, 10**9), 10**6) for name in sorted(names - set(CONSTANTS))}
        values = [_value_at(one, {**CONSTANTS, **point}) for one in (first, other)]
        if None in values or 0 in values:
            return False
        ratios.append(Fraction(values[0]) / Fraction(values[1]))
    equal = all(math.isclose(ratio, ratios[0], rel_tol=_CLOSE) for ratio in ratios)
    # An equation stays what it is when it is multiplied by a number; an expression does not.
    return (
        equal and (first.right is not None or math.isclose(ratios[0], 1, rel_tol=_CLOSE)) and (first.right is None) == (other.right is None)
    )


def _value_at(statement: Statement, names: dict[str, Any]) -> Any:
    """The value of an expression, or by how much the sides of an equation differ; None where there is none."""

    def value(side: Program) -> Any:
        return evaluate(side, Arithmetic(names))

    try:
        return value(statement.left) - (value(statement.right) if statement.right is not None else 0)
    except (ToolFailure, OverflowError, TypeError):
        return None


# ---------------------------------------------------------------------- replies


def uses_result(reply: str, call: Call, result: str) -> bool | None:
    """Whether a reply says what a tool found; None where that cannot be told.

    Calculate, Solve: one of the numbers found stands in the reply, rounded as there, or as a percentage. Search: the reply cites one of the
    passages by its number. Images are not in the reply, so of these nothing can be told.
    """
    if NO_RESULT in result[: len(NO_RESULT) + 2] or call.name not in ("Calculate", "Solve", "Search"):
        return None
    if call.name == "Search":
        cited = set(_CITATION.findall(reply))
        return bool(cited & set(_CITATION.findall(result)))
    found = [value for line in result.splitlines() for value in _numbers(line.split(" = ", 1)[-1])]
    said = [(text, value) for text in _NUMBER.findall(reply) if (value := _number(text)) is not None]
    return any(_rounds_to(text, value, one) for one in found for text, value in said)


def _numbers(text: str) -> list[float]:
    return [value for found in _NUMBER.findall(text) if (value := _number(found)) is not None]


def _number(text: str) -> float | None:
    try:
        return float(Fraction(text.replace(",", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _rounds_to(text: str, said: float, found: float) -> bool:
    """Whether a number as it stands in a reply is the one found, to the digits it has there."""
    decimals = len(text.partition(".")[2]) if "/" not in text else 12
    reach = 0.5 * 10.0**-decimals * (1 + _CLOSE) if decimals else _CLOSE * max(1.0, abs(found))
    # Without decimals a number is the one found, or that one rounded: never another one near it, such as 0 for 0.3.
    near = [found, 100 * found] + ([float(round(found)), float(round(100 * found))] if not decimals and abs(found) >= 10 else [])
    return any(abs(said - one) <= reach for one in near)
