"""The calculator behind `Calculate("...")`: exact where arithmetic is exact, and bounded before it computes.

Values are of three types. An `int` is what comes of whole numbers without a division, and is written as such; a `Fraction` is exact too,
but written as the nearest decimal (`6/2` is `3.0`, as in the published results); a `float` is what functions give. So `90/(1-0.95)` is
1800.0, where binary floating point says 1799.9999999999984. Angles are in radians, as published (`°` is understood), and `log` is natural.

No value has more than `MAX_BITS` bits; what could make a larger one in a single step (powers, factorials) is refused or left to floating
point beforehand. With the bounds on length and nesting, time and memory are bounded too, so nothing needs to be watched or killed.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from moss_train.inference.tools.expression import Number, evaluate, parse_statements
from moss_train.inference.tools.failure import ToolFailure

Value = int | Fraction | float

MAX_BITS = 10_000
MAX_DIGITS = 1000
"""Of a result."""
MAX_FACTORIAL = 1000
CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}

_ASKED = re.compile(r"\s*[=＝]\s*[?？]?\s*$|[\s。]+$")


def calculate(text: str) -> str:
    """The value of an expression, as text.

    Several statements may be separated by `;`, all but the last of the form `name = expression`; a `=` or `=?` at the end is left out.

    Raises:
        ToolFailure: It is not an expression, has no real value, or is beyond the bounds.
    """
    statements = parse_statements(_ASKED.sub("", text), FUNCTIONS)
    arithmetic = Arithmetic(dict(CONSTANTS))
    value: Value = 0
    for number, statement in enumerate(statements, 1):
        if statement.right is None:
            if number < len(statements):
                raise ToolFailure("more than one expression")
            value = evaluate(statement.left, arithmetic)
        elif statement.name is None:
            raise ToolFailure("an equation, not an expression")
        else:
            value = arithmetic.names[statement.name] = evaluate(statement.right, arithmetic)
    return format_value(value)


def format_value(value: Value) -> str:
    """A value as the published results write it.

    Raises:
        ToolFailure: It has too many digits, or is not zero and smaller than any float.
    """
    if isinstance(value, int):
        if value.bit_length() > MAX_DIGITS * 3.32:
            raise ToolFailure(f"the result has more than {MAX_DIGITS} digits")
        return str(value)
    try:
        near = float(value)
    except OverflowError:
        raise ToolFailure("the result is too large") from None
    if near == 0 and value != 0:
        raise ToolFailure("the result is too small")
    return repr(near)


class Arithmetic:
    """The algebra of numbers.

    Args:
        names: Values of the names that may occur.
    """

    def __init__(self, names: dict[str, Value]):
        self.names = names

    def number(self, value: Number) -> Value:
        return _bounded(value)

    def name(self, name: str) -> Value:
        if name not in self.names:
            raise ToolFailure(f"{name[:20]} has no value")
        return self.names[name]

    def apply(self, function: str, arguments: Sequence[Value]) -> Value:
        """Raises ToolFailure where there is no real value within the bounds."""
        try:
            return _bounded(_FUNCTIONS[function](*arguments))
        except ZeroDivisionError:
            raise ToolFailure("division by zero") from None
        except OverflowError:
            raise ToolFailure("a value is too large") from None
        except (ValueError, TypeError):
            # Out of a function's domain, or a decimal where only a whole number will do.
            raise ToolFailure(f"{function} has no value here") from None


def _bounded(value: Value | complex) -> Value:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverflowError
        return value
    if isinstance(value, Fraction):
        return value if _bits(value) <= MAX_BITS else _bounded(float(value))
    if isinstance(value, complex) or not math.isfinite(value):
        raise ValueError
    return value


def _bits(value: int | Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _divide(left: Value, right: Value) -> Value:
    if isinstance(left, float) or isinstance(right, float):
        return float(left) / float(right)
    return Fraction(left) / Fraction(right)


def _divide_whole(left: Value, right: Value) -> Value:
    whole = left // right
    return whole if (isinstance(left, int) and isinstance(right, int)) or isinstance(whole, float) else Fraction(whole)


def _power(base: Value, exponent: Value) -> Value | complex:
    if isinstance(base, float) or isinstance(exponent, float):
        return float(base) ** float(exponent)
    if exponent.denominator == 1:
        times = exponent.numerator
        if _bits(base) * abs(times) <= MAX_BITS or base in (0, 1, -1):
            # A negative power divides.
            power: int | Fraction = Fraction(base) ** times if times < 0 else base**times
            return Fraction(power) if isinstance(exponent, Fraction) else power
        if isinstance(base, int):
            raise OverflowError
        return float(base) ** times
    root = _exact_root(base, exponent.denominator)
    return float(base) ** float(exponent) if root is None else _power(root, Fraction(exponent.numerator))


def _exact_root(value: int | Fraction, degree: int) -> Fraction | None:
    """The root, where it is a fraction and its parts are small enough for floating point to find it."""
    if value < 0 or degree > 64 or _bits(value) > 900:
        return None
    parts = [math.isqrt(part) if degree == 2 else round(part ** (1 / degree)) for part in (value.numerator, value.denominator)]
    root = Fraction(parts[0], max(parts[1], 1))
    return root if root**degree == value else None


def _square_root(value: Value) -> Value:
    exact = _exact_root(value, 2) if isinstance(value, int | Fraction) else None
    return math.sqrt(value) if exact is None else exact


def _cube_root(value: Value) -> Value:
    exact = _exact_root(value if value >= 0 else -value, 3) if isinstance(value, int | Fraction) else None
    return math.cbrt(value) if exact is None else exact if value >= 0 else -exact


def _factorial(value: Value) -> int:
    count = _whole(value)
    if count > MAX_FACTORIAL:
        raise OverflowError
    return math.factorial(count)


def _whole(value: Value) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


def _choose(count: Callable[[int, int], int]) -> Callable[[Value, Value], int]:
    def checked(total: Value, chosen: Value) -> int:
        if max(total, chosen) > MAX_FACTORIAL:
            raise OverflowError
        return count(_whole(total), _whole(chosen))

    return checked


def _round(value: Value, digits: Value = 0) -> Value:
    if not -50 <= digits <= 50:
        raise ValueError
    # Halves away from zero, as people round; on exact values there is no question which are halves.
    scaled = Fraction(value) * Fraction(10) ** _whole(digits)
    whole = math.floor(abs(scaled) + Fraction(1, 2)) * (1 if scaled >= 0 else -1)
    return whole if (digits <= 0 and isinstance(value, int)) or digits == 0 else Fraction(whole) / Fraction(10) ** _whole(digits)


def _mean(*values: Value) -> Value:
    return _divide(sum(values), len(values))


def _logarithm(value: Value, base: Value | None = None) -> float:
    return math.log(value) if base is None else math.log(value) / math.log(base)


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "//": _divide_whole,
    "%": operator.mod,
    "^": _power,
    "negate": operator.neg,
    "factorial": _factorial,
    "percent": lambda value: _divide(value, 100),
}
# Name -> function, fewest and most arguments.
_NAMED: Mapping[str, tuple[Callable[..., Any], int, int]] = {
    "sqrt": (_square_root, 1, 1),
    "cbrt": (_cube_root, 1, 1),
    "cuberoot": (_cube_root, 1, 1),
    "pow": (_power, 2, 2),
    "exp": (math.exp, 1, 1),
    "log": (_logarithm, 1, 2),
    "ln": (_logarithm, 1, 1),
    "lg": (math.log10, 1, 1),
    "log10": (math.log10, 1, 1),
    "log2": (math.log2, 1, 1),
    **{name: (getattr(math, name), 1, 1) for name in ("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh")},
    **{f"arc{name}": (getattr(math, f"a{name}"), 1, 1) for name in ("sin", "cos", "tan")},
    "atan2": (math.atan2, 2, 2),
    "radians": (math.radians, 1, 1),
    "degrees": (math.degrees, 1, 1),
    "abs": (abs, 1, 1),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "round": (_round, 1, 2),
    "factorial": (_factorial, 1, 1),
    "comb": (_choose(math.comb), 2, 2),
    "perm": (_choose(math.perm), 2, 2),
    "gcd": (math.gcd, 1, 20),
    "lcm": (math.lcm, 1, 20),
    "min": (min, 1, 100),
    "max": (max, 1, 100),
    "sum": (lambda *values: sum(values), 1, 100),
    "mean": (_mean, 1, 100),
    "average": (_mean, 1, 100),
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {**_OPERATORS, **{name: entry[0] for name, entry in _NAMED.items()}}
FUNCTIONS: Mapping[str, tuple[int, int]] = {name: (fewest, most) for name, (_, fewest, most) in _NAMED.items()}
"""Fewest and most arguments of each function that has a name."""
