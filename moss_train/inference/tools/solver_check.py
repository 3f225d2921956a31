"""Whether values satisfy an equation: the check that every solution has to pass, which shares nothing with what found it.

Fractions are put in by the calculator's arithmetic and compared exactly. Otherwise both sides are computed with 50 digits, and may differ
by 1e-25 of the largest number met on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import mpmath

from moss_train.inference.tools.calculator import Arithmetic
from moss_train.inference.tools.expression import Number, Program, Statement, evaluate
from moss_train.inference.tools.failure import ToolFailure

DIGITS = 50
_TOLERANCE = "1e-25"
_MAX_EXPONENT = 2000


def holds(equation: Statement, values: Mapping[str, Fraction | tuple[str, str]]) -> bool:
    """Whether an equation holds; False where a side has no value."""
    if equation.right is None:
        return False
    try:
        fractions: dict[str, Any] = {name: value for name, value in values.items() if isinstance(value, Fraction)}
        if len(fractions) == len(values):
            try:
                sides = [evaluate(side, _Exact(fractions)) for side in (equation.left, equation.right)]
                return bool(sides[0] == sides[1])
            except (KeyError, _Inexact):
                pass
        return _holds_nearly(equation.left, equation.right, values)
    except ToolFailure:
        return False


class _Inexact(Exception):
    """A value is not a fraction."""


class _Exact(Arithmetic):
    """The calculator's arithmetic, fractions only."""

    def name(self, name: str) -> Any:
        return self.names[name]

    def apply(self, function: str, arguments: Sequence[Any]) -> Any:
        value = super().apply(function, arguments)
        if isinstance(value, float):
            raise _Inexact
        return value


def _holds_nearly(left: Program, right: Program, values: Mapping[str, Fraction | tuple[str, str]]) -> bool:
    with mpmath.workdps(DIGITS):
        algebra = _Complex(values)
        difference = abs(evaluate(left, algebra) - evaluate(right, algebra))
        return bool(difference <= mpmath.mpf(_TOLERANCE) * algebra.largest)


class _Complex:
    """The algebra of complex numbers of `DIGITS` digits.

    Attributes:
        largest: The largest size of a value so far: what rounding errors are to be measured by.
    """

    def __init__(self, values: Mapping[str, Fraction | tuple[str, str]]):
        self.largest = mpmath.mpf(0)
        self._names = {"pi": +mpmath.pi, "e": +mpmath.e} | {name: _complex(value) for name, value in values.items()}

    def number(self, value: Number) -> Any:
        return self._seen(_complex(Fraction(value)))

    def name(self, name: str) -> Any:
        return self._seen(self._names[name])

    def apply(self, function: str, arguments: Sequence[Any]) -> Any:
        if function == "^" and abs(arguments[1]) > _MAX_EXPONENT:
            raise ToolFailure("an exponent is too large")
        try:
            return self._seen(mpmath.mpmathify(_FUNCTIONS[function](*arguments)))
        except (ZeroDivisionError, ValueError, TypeError, KeyError, OverflowError):
            raise ToolFailure(f"{function} has no value here") from None

    def _seen(self, value: Any) -> Any:
        if not mpmath.isfinite(value):
            # Everything would be within the rounding errors of infinity.
            raise ToolFailure("a value is not finite")
        self.largest = max(self.largest, abs(value))
        return value


def _complex(value: Fraction | tuple[str, str]) -> Any:
    if isinstance(value, Fraction):
        return mpmath.mpf(value.numerator) / value.denominator
    return mpmath.mpc(*value) if float(value[1]) else mpmath.mpf(value[0])


def _factorial(value: Any) -> Any:
    if value != int(value.real) or not 0 <= value.real <= _MAX_EXPONENT:
        raise ValueError
    return mpmath.factorial(value)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "//": lambda left, right: mpmath.floor(left / right),
    "%": lambda left, right: left - right * mpmath.floor(left / right),
    "^": mpmath.power,
    "negate": lambda value: -value,
    "percent": lambda value: value / 100,
    "factorial": _factorial,
    "radians": mpmath.radians,
    "sqrt": mpmath.sqrt,
    "exp": mpmath.exp,
    "ln": mpmath.log,
    "log": mpmath.log,
    "lg": mpmath.log10,
    "log10": mpmath.log10,
    "log2": lambda value: mpmath.log(value) / mpmath.log(2),
    "abs": abs,
    **{name: getattr(mpmath, name) for name in ("sin", "cos", "tan", "asin", "acos", "atan")},
    **{f"arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
}
