"""Arithmetic and equations as people and models write them, read into a program for a stack machine.

The calculator and the equation solver share this grammar. Nothing here computes: a text becomes steps in postfix order, and whoever runs
them (`evaluate`) says what a number, a name and an application are. So one grammar serves exact arithmetic, linear algebra, symbolic
algebra and the check of a solution, and running needs no recursion.

    statement   expression | expression = expression      several, separated by `;` or a line end (for equations by `,` too)
    expression  + - * / // % (remainder) ^ ** ! % (percent) ° √, brackets ( ) and [ ], calls, a product without a sign: 2pi, 3(4+5), (2+a)x

What has two readings is refused: `1/2x`, `3!!`, `f(x)`, `3 4`, `007`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from moss_train.inference.tools.failure import ToolFailure

MAX_LENGTH = 1000
MAX_DEPTH = 40
_MAX_EXPONENT = 400

# Full-width forms of ASCII, as Chinese input methods give them, and signs that have one meaning. NFKC is not used: it makes 3² into 32.
_SPELLINGS: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_SPELLINGS |= {ord(one): "*" for one in "×∙⋅·∗✕✖"} | {ord(one): "-" for one in "−–—"} | {ord("÷"): "/", ord("∕"): "/"}
_SPELLINGS |= {ord("π"): " pi ", ord("²"): "^2", ord("³"): "^3", 0x3000: " ", 0xA0: " ", ord("【"): "[", ord("】"): "]", ord("、"): ","}

_TOKEN = re.compile(
    r"(?P<number>0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)|(?P<sign>\*\*|//|[-+*/^%!,;=()\[\]√°\n])|(?P<blank>[ \t\r]+)"
)
_CLOSING = {"(": ")", "[": "]"}
_SUM, _PRODUCT, _SIGN, _POWER = 10, 20, 25, 30
_BINARY = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT}
# Letters that before a bracket are more likely functions than factors.
_LIKE_FUNCTIONS = frozenset("fgh")

Number = int | Fraction


class Step(NamedTuple):
    """One step of a program.

    Attributes:
        kind: `number` and `name` put a value on the stack; `apply` takes `arity` values and puts one.
        value: An integer, or a Fraction for a numeral with a point or an exponent; the name; or the function or operator.
    """

    kind: Literal["number", "name", "apply"]
    value: Any
    arity: int = 0


Program = tuple[Step, ...]


class Statement(NamedTuple):
    """An expression, or the two sides of an equation."""

    left: Program
    right: Program | None

    @property
    def name(self) -> str | None:
        """The name that the left side consists of, if it does."""
        return self.left[0].value if len(self.left) == 1 and self.left[0].kind == "name" else None


Value = TypeVar("Value")


class Algebra(Protocol[Value]):
    """What the steps of a program mean."""

    def number(self, value: Number) -> Value: ...

    def name(self, name: str) -> Value: ...

    def apply(self, function: str, arguments: Sequence[Value]) -> Value: ...


def evaluate(program: Program, algebra: Algebra[Value]) -> Value:
    """Runs a program; what it means, and what can go wrong, is the algebra's."""
    stack: list[Value] = []
    for step in program:
        if step.kind == "number":
            stack.append(algebra.number(step.value))
        elif step.kind == "name":
            stack.append(algebra.name(step.value))
        else:
            arguments = stack[-step.arity :]
            del stack[-step.arity :]
            stack.append(algebra.apply(step.value, arguments))
    return stack[0]


class _Token(NamedTuple):
    kind: str
    text: str


def parse_statements(
    text: str, functions: Mapping[str, tuple[int, int]], *, separators: str = ";\n", split_products: bool = False
) -> list[Statement]:
    """The statements of a text; at least one.

    Args:
        functions: Fewest and most arguments by name, in lower case.
        separators: Signs that end a statement outside brackets.
        split_products: Read `xy` as `x*y` where both letters stand alone elsewhere in the text.

    Raises:
        ToolFailure: It is not in the grammar, is too long or nested too deeply.
    """
    if len(text) > MAX_LENGTH:
        raise ToolFailure(f"longer than {MAX_LENGTH} characters")
    tokens = _tokenize(text.translate(_SPELLINGS))
    if split_products:
        tokens = _split_products(tokens, functions)
    return _Parser(tokens, functions, separators).statements()


def _tokenize(text: str) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise ToolFailure(f"cannot read {text[position]!r}")
        kind = str(found.lastgroup)
        if kind == "name" and "__" in found[0]:
            raise ToolFailure(f"cannot read {found[0][:20]!r}")
        if kind != "blank":
            tokens.append(_Token(kind, found[0]))
        position = found.end()
    return tokens


def _split_products(tokens: list[_Token], functions: Mapping[str, tuple[int, int]]) -> list[_Token]:
    alone = {token.text for token in tokens if token.kind == "name" and len(token.text) == 1}
    split: list[_Token] = []
    for token, after in zip(tokens, [*tokens[1:], _Token("end", "")]):
        is_call = after.text in _CLOSING and token.text.lower() in functions
        if token.kind == "name" and token.text != "pi" and not is_call and set(token.text) <= alone:
            split += [_Token("name", letter) for letter in token.text]
        else:
            split.append(token)
    return split


def _read_number(text: str) -> Number:
    if text[:2].lower() in ("0x", "0b", "0o"):
        return int(text, 0)
    whole, _, exponent = text.lower().partition("e")
    if re.match(r"0[0-9]", whole):
        # A date or a number plate, rather than a number.
        raise ToolFailure(f"cannot read {text[:20]!r}: it begins with a zero")
    if abs(int(exponent or 0)) > _MAX_EXPONENT:
        raise ToolFailure(f"cannot read {text[:20]!r}: the exponent is too large")
    return int(text) if text.isdigit() else Fraction(text)


class _Parser:
    """Precedence climbing; emits steps in postfix order."""

    def __init__(self, tokens: list[_Token], functions: Mapping[str, tuple[int, int]], separators: str):
        self._tokens = [*tokens, _Token("end", "")]
        self._functions, self._separators = functions, separators
        self._position = self._depth = 0
        self._steps: list[Step] = []

    def statements(self) -> list[Statement]:
        found: list[Statement] = []
        while True:
            while self._is_separator():
                self._position += 1
            if self._next.kind == "end":
                break
            left, right = self._side(), None
            if self._next.text == "=":
                self._position += 1
                right = self._side()
            if self._next.kind != "end" and not self._is_separator():
                raise ToolFailure(f"cannot read {self._next.text!r} here")
            found.append(Statement(left, right))
        if not found:
            raise ToolFailure("empty")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._position]

    def _take(self) -> _Token:
        token = self._next
        self._position += 1
        return token

    def _is_separator(self) -> bool:
        return self._next.kind == "sign" and self._next.text in self._separators

    def _begins_operand(self) -> bool:
        return self._next.kind in ("number", "name") or self._next.text in ("(", "[", "√")

    def _apply(self, function: str, arity: int) -> None:
        self._steps.append(Step("apply", function, arity))

    def _side(self) -> Program:
        self._steps = []
        self._expression(0)
        return tuple(self._steps)

    def _expression(self, least: int) -> None:
        """Reads operators that bind at least as tightly as `least`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ToolFailure(f"nested more than {MAX_DEPTH} levels")
        self._operand()
        while self._postfix(least) or self._infix(least):
            pass
        self._depth -= 1

    def _operand(self) -> None:
        token = self._take()
        if token.kind == "number":
            self._steps.append(Step("number", _read_number(token.text)))
        elif token.kind == "name":
            self._name(token.text)
        elif token.text in _CLOSING:
            self._expression(0)
            self._close(token.text)
        elif token.text in ("-", "+"):
            self._expression(_SIGN)
            if token.text == "-":
                self._apply("negate", 1)
        elif token.text == "√":
            self._expression(_POWER + 1)
            self._apply("sqrt", 1)
        else:
            raise ToolFailure(f"cannot read {token.text!r} here" if token.text else "ends too early")

    def _close(self, opening: str) -> None:
        if self._take().text != _CLOSING[opening]:
            raise ToolFailure(f"a bracket {opening!r} is not closed")

    def _name(self, name: str) -> None:
        bounds = self._functions.get(name.lower())
        if self._next.text not in _CLOSING or (bounds is None and (name == "pi" or (len(name) == 1 and name not in _LIKE_FUNCTIONS))):
            self._steps.append(Step("name", name))
            return
        if bounds is None:
            raise ToolFailure(f"there is no function {name[:20]!r}")
        opening = self._take().text
        self._expression(0)
        count = 1
        while self._next.text == ",":
            self._position += 1
            self._expression(0)
            count += 1
        self._close(opening)
        if not bounds[0] <= count <= bounds[1]:
            raise ToolFailure(f"{name} takes {bounds[0]} to {bounds[1]} values, found {count}")
        self._apply("^" if name.lower() == "pow" else name.lower(), count)

    def _postfix(self, least: int) -> bool:
        sign = self._next.text
        if sign == "!":
            self._position += 1
            if self._next.text in ("!", "="):
                raise ToolFailure(f"cannot read '!{self._next.text}'")
            self._apply("factorial", 1)
        elif sign == "°":
            self._position += 1
            self._apply("radians", 1)
        elif sign == "%":
            self._position += 1
            # Before a number, a name or a bracket it is the remainder.
            if self._begins_operand():
                self._position -= 1
                return False
            if least >= _POWER:
                raise ToolFailure("'%' after an exponent or a root has two readings; write brackets")
            self._apply("percent", 1)
        else:
            return False
        return True

    def _infix(self, least: int) -> bool:
        sign = self._next.text if self._next.kind == "sign" else ""
        if sign in ("^", "**"):
            if least > _POWER:
                return False
            self._position += 1
            self._expression(_POWER)
            self._apply("^", 2)
            return True
        # A factor without a sign; never a number, which `3 4` would have to be.
        implicit = self._begins_operand() and self._next.kind != "number"
        binding = _PRODUCT if implicit else _BINARY.get(sign, -1)
        if binding < max(least, 0):
            return False
        if not implicit:
            self._position += 1
        self._expression(binding + 1)
        if sign in ("/", "//", "%") and self._begins_operand():
            raise ToolFailure("a division by a product without a sign has two readings; write brackets")
        self._apply("*" if implicit else sign, 2)
        return True
