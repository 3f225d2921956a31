"""The equation solver behind `Solve("...")`.

    parse ──> linear? ── yes ──> elimination over fractions, here
                     └── no ───> `solver_child`: sympy, on objects built from the program, in a process of its own with limits
          ──> each solution is put back into the equations it came from, and only those that satisfy them are returned

A system that leaves an unknown free, or has no solution, has no result. Constants are computed by the calculator, within its bounds, before
anything symbolic sees them, and the degree is bounded.

Numbers are written as in the published results: `x = 5`, `x = 160/3`, `x_0 = -sqrt(15)` where all is exact, and with 15 digits
(`x = 86.0869565217391`) where a decimal, a quotient of two numbers or a constant such as pi stands in the equations.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from moss_train.inference.tools.calculator import CONSTANTS, Arithmetic, Value
from moss_train.inference.tools.expression import Number, Program, Statement, evaluate, parse_statements
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.solver_check import holds

MAX_EQUATIONS = 12
MAX_UNKNOWNS = 12
MAX_DEGREE = 24
MAX_COEFFICIENT_BITS = 512
MAX_SOLUTIONS = 24
MAX_EXACT = 60
"""An exact value with more characters is written as a decimal."""
_MAX_OUTPUT = 100_000

# What both symbolic algebra and the check of a solution know.
_ONE_ARGUMENT = (
    "sqrt",
    "exp",
    "ln",
    "lg",
    "log10",
    "log2",
    "abs",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "arcsin",
    "arccos",
    "arctan",
)
FUNCTIONS: Mapping[str, tuple[int, int]] = {**dict.fromkeys(_ONE_ARGUMENT, (1, 1)), "log": (1, 2), "pow": (2, 2)}


class Solution(NamedTuple):
    """Values of all unknowns.

    Attributes:
        text: Each as it is written where all is exact.
        values: Each as a fraction, or as the real and imaginary part in decimal digits.
    """

    text: Mapping[str, str]
    values: Mapping[str, Fraction | tuple[str, str]]


@dataclass(frozen=True)
class System:
    """Equations, ready to be solved.

    Attributes:
        equations: Each with two sides.
        unknowns: Sorted; at least one.
        asked: The unknowns to report: all, or the one that stands alone in a statement of its own.
        decimal: Whether results are written as decimals.
        real: Whether only real solutions are meant: absolute values have no sense among others here.
    """

    equations: tuple[Statement, ...]
    unknowns: tuple[str, ...]
    asked: tuple[str, ...]
    decimal: bool
    real: bool

    @property
    def sides(self) -> list[Program]:
        return [side for equation in self.equations for side in equation if side is not None]


def solve(text: str, seconds: float = 10.0, memory_mib: int = 1024) -> str:
    """The solutions of equations, a line for each unknown: `x = 5`, or `x_0 = ...`, `x_1 = ...` where there are several.

    Args:
        text: Equations separated by `;` or `,`; a name alone among them asks for this unknown only. Other expressions are left out.
        seconds: Time for a system that is not linear.
        memory_mib: Address space for it.

    Raises:
        ToolFailure: It is not a system of equations, has no solution or infinitely many, or is beyond the limits.
    """
    system = read_system(text)
    if len(system.equations) < len(system.unknowns):
        raise ToolFailure(f"{len(system.unknowns)} unknowns, {len(system.equations)} equations")
    try:
        found = [_solve_linear(system)]
    except _NotLinear:
        found = _solve_elsewhere(text, system, seconds, memory_mib)
    # Nothing is returned that was not put back into the equations, whatever found it.
    checked = [solution for solution in found if is_solution(system, solution)]
    if not checked:
        raise ToolFailure("there is no solution")
    return write_solutions(system, checked)


def read_system(text: str) -> System:
    """Reads equations.

    Raises:
        ToolFailure: As `solve`.
    """
    stripped = text.strip(" \t\r\n。.").replace("==", "=")
    if stripped.startswith("{") and stripped.endswith("}"):
        stripped = stripped[1:-1]
    statements = parse_statements(stripped, FUNCTIONS, separators=";,\n", split_products=True)
    equations = tuple(statement for statement in statements if statement.right is not None)
    if not 1 <= len(equations) <= MAX_EQUATIONS:
        raise ToolFailure("no equation" if not equations else f"more than {MAX_EQUATIONS} equations")
    sides = [side for equation in equations for side in equation if side is not None]
    names = {step.value for side in sides for step in side if step.kind == "name"}
    constants = {"pi"} if "e" in names and not _is_base_only(sides, "e") else set(CONSTANTS)
    unknowns = tuple(sorted(names - constants))
    if not 1 <= len(unknowns) <= MAX_UNKNOWNS:
        raise ToolFailure("no unknown" if not unknowns else f"more than {MAX_UNKNOWNS} unknowns")
    forms = [evaluate(side, _Shape(unknowns)) for side in sides]
    asked = tuple(statement.name for statement in statements if statement.right is None and statement.name in unknowns)
    decimal = any(form.decimal for form in forms)
    real = any(step.value == "abs" for side in sides for step in side)
    return System(equations, unknowns, tuple(dict.fromkeys(name for name in asked if name)) or unknowns, decimal, real)


def _is_base_only(sides: Sequence[Program], name: str) -> bool:
    """Whether a name occurs as the base of powers only: then `e` is Euler's number, and an unknown otherwise."""
    return all(
        any(step.value == "^" and step.kind == "apply" and _base_of(side, place) == at for place, step in enumerate(side))
        for side in sides
        for at, found in enumerate(side)
        if found.kind == "name" and found.value == name
    )


def _base_of(program: Program, power: int) -> int:
    """Where the base of a power ends in a program: before all steps of its exponent."""
    needed, place = 1, power
    while needed:
        place -= 1
        needed += (program[place].arity if program[place].kind == "apply" else 0) - 1
    return place - 1


class _Form(NamedTuple):
    """What a part of an equation is: its value, if it has no unknown; how high its degree can be; whether decimals come of it."""

    value: Value | None
    degree: int
    decimal: bool


class _Shape:
    """The algebra that computes constants within the calculator's bounds, and bounds the degree."""

    def __init__(self, unknowns: Sequence[str]):
        self._unknowns = unknowns
        self._arithmetic = Arithmetic(dict(CONSTANTS))

    def number(self, value: Number) -> _Form:
        return _Form(self._arithmetic.number(value), 0, isinstance(value, Fraction))

    def name(self, name: str) -> _Form:
        return _Form(None, 1, False) if name in self._unknowns else _Form(self._arithmetic.name(name), 0, True)

    def apply(self, function: str, arguments: Sequence[_Form]) -> _Form:
        decimal = any(argument.decimal for argument in arguments)
        constants: list[Value] = [argument.value for argument in arguments if argument.value is not None]
        if len(constants) == len(arguments):
            return _Form(self._arithmetic.apply(function, constants), 0, decimal or function in {"/", "percent", *FUNCTIONS})
        degrees = [argument.degree for argument in arguments]
        degree = sum(degrees) if function in ("*", "/") else max(degrees)
        if function == "^":
            exponent = arguments[1].value
            if exponent is not None:
                size = exponent if exponent >= 0 else -exponent
                if size > MAX_DEGREE or (isinstance(exponent, Fraction) and exponent.denominator > MAX_DEGREE):
                    raise ToolFailure(f"a power beyond {MAX_DEGREE}")
                degree = max(1, int(degrees[0] * size))
        elif function in ("//", "%", "factorial"):
            raise ToolFailure(f"{function} of an unknown")
        if degree > MAX_DEGREE:
            raise ToolFailure(f"the degree is above {MAX_DEGREE}")
        return _Form(None, degree, decimal or function == "percent")


class _NotLinear(Exception):
    """A system has another part than sums and constant multiples of unknowns."""


@dataclass(frozen=True)
class _Line:
    """A sum of unknowns, each with its coefficient, and a constant."""

    factors: Mapping[str, Fraction]
    constant: int | Fraction

    def __post_init__(self) -> None:
        # At every step: products of long numbers take long themselves.
        for value in (*self.factors.values(), self.constant):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_COEFFICIENT_BITS:
                raise ToolFailure("a coefficient has too many digits")


class _Linear:
    """The algebra of sums of unknowns."""

    def __init__(self, unknowns: Sequence[str]):
        self._unknowns = unknowns
        self._arithmetic = Arithmetic(dict(CONSTANTS))

    def number(self, value: Number) -> _Line:
        return _Line({}, value)

    def name(self, name: str) -> _Line:
        if name not in self._unknowns:
            raise _NotLinear
        return _Line({name: Fraction(1)}, 0)

    def apply(self, function: str, arguments: Sequence[_Line]) -> _Line:
        if not any(argument.factors for argument in arguments):
            value = self._arithmetic.apply(function, [argument.constant for argument in arguments])
            if isinstance(value, float):
                raise _NotLinear
            return _Line({}, value)
        first, second = arguments[0], arguments[-1]
        if function == "negate":
            return _scale(first, Fraction(-1))
        if function == "percent":
            return _scale(first, Fraction(1, 100))
        if function in ("+", "-"):
            other = second if function == "+" else _scale(second, Fraction(-1))
            names = {**first.factors, **other.factors}
            factors = {name: first.factors.get(name, Fraction(0)) + other.factors.get(name, Fraction(0)) for name in names}
            return _Line(factors, first.constant + other.constant)
        if function == "*" and not (first.factors and second.factors):
            return _scale(first, Fraction(second.constant)) if first.factors else _scale(second, Fraction(first.constant))
        if function == "/" and not second.factors:
            if second.constant == 0:
                raise ToolFailure("division by zero")
            return _scale(first, 1 / Fraction(second.constant))
        raise _NotLinear


def _scale(line: _Line, factor: Fraction) -> _Line:
    return _Line({name: value * factor for name, value in line.factors.items()}, line.constant * factor)


def _solve_linear(system: System) -> Solution:
    """The one solution of a linear system, by elimination.

    Raises:
        _NotLinear: It is not linear.
        ToolFailure: There is none, or more than one.
    """
    algebra = _Linear(system.unknowns)
    sides = [evaluate(side, algebra) for side in system.sides]
    rows = []
    for left, right in zip(sides[::2], sides[1::2]):
        row = [left.factors.get(name, Fraction(0)) - right.factors.get(name, Fraction(0)) for name in system.unknowns]
        rows.append([*row, Fraction(right.constant) - Fraction(left.constant)])
    for column in range(len(system.unknowns)):
        pivot = next((number for number in range(column, len(rows)) if rows[number][column]), None)
        if pivot is None:
            raise ToolFailure(f"{system.unknowns[column]} is not determined")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for number, row in enumerate(rows):
            if number != column and row[column]:
                rows[number] = [value - row[column] * base for value, base in zip(row, rows[column])]
    values = {name: rows[number][-1] for number, name in enumerate(system.unknowns)}
    return Solution({name: str(value) for name, value in values.items()}, values)


def _solve_elsewhere(text: str, system: System, seconds: float, memory_mib: int) -> list[Solution]:
    """What sympy finds, in a process that is killed when its time is over."""
    command = [sys.executable, "-P", "-m", "moss_train.inference.tools.solver_child", str(memory_mib), str(int(seconds) + 1)]
    # The child runs this very code, wherever the program was started.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, timeout=seconds, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise ToolFailure(f"no solution within {seconds:g} seconds") from None
    if done.returncode != 0 or len(done.stdout) > _MAX_OUTPUT:
        raise ToolFailure("no solution within the limits")
    found: list[dict[str, dict[str, Any]]] = json.loads(done.stdout)
    return [
        Solution(
            {name: one["text"] for name, one in solution.items()},
            {
                name: (one["real"], one["imaginary"]) if one["fraction"] is None else Fraction(one["fraction"])
                for name, one in solution.items()
            },
        )
        for solution in found
        if set(solution) == set(system.unknowns)
    ]


def is_solution(system: System, solution: Solution) -> bool:
    """Whether values satisfy the equations as they were read: exactly where all are fractions, else to 25 digits."""
    return all(holds(equation, solution.values) for equation in system.equations)


def write_solutions(system: System, solutions: Sequence[Solution]) -> str:
    """Solutions as text; real ones first, in rising order."""
    ordered = sorted(solutions, key=lambda solution: [_order(solution.values[name]) for name in system.asked])[:MAX_SOLUTIONS]
    lines: list[str] = []
    for number, solution in enumerate(ordered):
        for name in system.asked:
            label = name if len(ordered) == 1 else f"{name}_{number}"
            lines.append(f"{label} = {_write_value(solution.text[name], solution.values[name], system.decimal)}")
    return "\n".join(lines)


def _order(value: Fraction | tuple[str, str]) -> tuple[bool, float, float]:
    real, imaginary = _parts(value)
    return imaginary != 0, real, imaginary


def _parts(value: Fraction | tuple[str, str]) -> tuple[float, float]:
    try:
        return (float(value), 0.0) if isinstance(value, Fraction) else (float(value[0]), float(value[1]))
    except OverflowError:
        raise ToolFailure("a solution is too large") from None


def _write_value(text: str, value: Fraction | tuple[str, str], decimal: bool) -> str:
    if text and len(text) <= MAX_EXACT and not decimal:
        return text
    real, imaginary = _parts(value)
    if imaginary == 0:
        return write_decimal(real)
    size = f"{write_decimal(abs(imaginary))}*I"
    sign = "-" if imaginary < 0 else "+"
    return f"{write_decimal(real)} {sign} {size}" if real else size if imaginary > 0 else f"-{size}"


def write_decimal(value: float) -> str:
    """15 digits, as the published results have them: `5.00000000000000`, and `0`."""
    return "0" if value == 0 else re.sub(r"e([+-])0", r"e\1", f"{value:#.15g}")
