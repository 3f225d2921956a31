"""sympy, in a process of its own: reads equations on stdin, writes solutions as JSON on stdout.

    python -m moss_train.inference.tools.solver_child MEMORY_MIB CPU_SECONDS < equations

The process limits itself before it loads sympy: memory, time, nothing written to a file. sympy is never given a text; its
objects are built from the parsed program. Whoever started this process checks the solutions.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from moss_train.inference.tools.expression import MAX_LENGTH, Number, evaluate
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.solver import MAX_EXACT, MAX_SOLUTIONS, System, read_system

_DIGITS = 50
# Fractions and square roots; a cube root or a logarithm says more as a decimal.
_EXACT = re.compile(r"(?:[-+/() 0-9I]|\*(?!\*)|sqrt)+")


def limit_process(memory_mib: int, cpu_seconds: int) -> None:
    """Bounds what this process may use; cannot be undone."""
    size = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Symbolic:
    """The algebra of sympy's objects."""

    def __init__(self, system: System):
        import sympy

        self._sympy: Any = sympy
        # Without an assumption roots are complex.
        self.symbols = {name: sympy.Symbol(name, real=True if system.real else None) for name in system.unknowns}
        self._functions: Mapping[str, Callable[..., Any]] = {
            "+": lambda left, right: left + right,
            "-": lambda left, right: left - right,
            "*": lambda left, right: left * right,
            "/": lambda left, right: left / right,
            "//": lambda left, right: sympy.floor(left / right),
            "%": lambda left, right: sympy.Mod(left, right),
            "^": sympy.Pow,
            "negate": lambda value: -value,
            "percent": lambda value: value / 100,
            "factorial": sympy.factorial,
            "radians": lambda value: value * sympy.pi / 180,
            "ln": sympy.log,
            "lg": lambda value: sympy.log(value, 10),
            "log10": lambda value: sympy.log(value, 10),
            "log2": lambda value: sympy.log(value, 2),
            "abs": sympy.Abs,
            **{name: getattr(sympy, name) for name in ("sqrt", "exp", "log", "sin", "cos", "tan", "asin", "acos", "atan")},
            **{f"arc{name}": getattr(sympy, f"a{name}") for name in ("sin", "cos", "tan")},
        }

    def number(self, value: Number) -> Any:
        return self._sympy.Rational(value.numerator, value.denominator)

    def name(self, name: str) -> Any:
        constants = {"pi": self._sympy.pi, "e": self._sympy.E}
        return self.symbols[name] if name in self.symbols else constants[name]

    def apply(self, function: str, arguments: Sequence[Any]) -> Any:
        return self._functions[function](*arguments)


def find_solutions(system: System) -> list[dict[str, dict[str, Any]]]:
    """Every solution that gives all unknowns a number."""
    import sympy

    algebra = Symbolic(system)
    sides = [evaluate(side, algebra) for side in system.sides]
    differences = [left - right for left, right in zip(sides[::2], sides[1::2])]
    symbols = list(algebra.symbols.values())
    if len(differences) == len(symbols) == 1 and (polynomial := differences[0].as_poly(symbols[0])) is not None:
        return [{symbols[0].name: _describe(root)} for root in _roots(polynomial)[:MAX_SOLUTIONS]]
    found = sympy.solve(differences, symbols, dict=True)
    complete = [one for one in found if len(one) == len(algebra.symbols) and not any(value.free_symbols for value in one.values())]
    return [{symbol.name: _describe(value) for symbol, value in one.items()} for one in complete[:MAX_SOLUTIONS]]


def _roots(polynomial: Any) -> list[Any]:
    """All roots, exact where all of them can be written with radicals, else as numbers: isolating them exactly takes many seconds."""
    import sympy

    if polynomial.degree() < 1:
        return []
    exact = sympy.roots(polynomial)
    return list(exact) if sum(exact.values()) == polynomial.degree() else list(polynomial.nroots(n=_DIGITS, maxsteps=500))


def _describe(value: Any) -> dict[str, Any]:
    if value.is_Rational:
        fraction = Fraction(int(value.p), int(value.q))
        return {"text": str(fraction), "fraction": str(fraction), "real": None, "imaginary": None}
    real, imaginary = value.evalf(_DIGITS, chop=True).as_real_imag()
    text = str(value)
    exact = len(text) <= MAX_EXACT and _EXACT.fullmatch(text) is not None
    return {"text": text if exact else "", "fraction": None, "real": str(real), "imaginary": str(imaginary)}


def main() -> int:
    """Returns the exit code: 1 where sympy found no way, or a limit was met."""
    limit_process(int(sys.argv[1]), int(sys.argv[2]))
    try:
        solutions = find_solutions(read_system(sys.stdin.read(MAX_LENGTH + 1)))
    except (ToolFailure, NotImplementedError, MemoryError, RecursionError, ArithmeticError, ValueError, TypeError, AttributeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    json.dump(solutions, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
