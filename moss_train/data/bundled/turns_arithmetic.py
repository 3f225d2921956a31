"""Turns about arithmetic and equations."""

from __future__ import annotations

from dataclasses import replace

from moss_train.data.bundled import words_arithmetic as words
from moss_train.data.bundled.turns import CALCULATOR, Draw, Tools, Turn, call, thought

LARGEST_RESULT = 999  # with the calculator; larger products would only lengthen the rows
LARGEST_BY_HEAD = 50  # of follow-ups that MOSS answers by itself


def evaluate(operator: str, a: int, b: int) -> int:
    """The exact result; divisions are only ever made of products."""
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]


def calculated(draw: Draw, turn: Turn, expression: str, result: int, division: bool = False) -> Turn:
    """The same turn answered with the calculator, which like the published one gives a quotient as a float."""
    command = call("Calculate", expression)
    value = f"{result}.0" if division else f"{result}"
    return replace(turn, thoughts=thought(draw, "calculate", e=expression), commands=(command,), results=(f"{command} => '{value}'",))


def simple(draw: Draw, turn: Turn) -> Turn:
    """The same turn answered without a tool."""
    return replace(turn, thoughts=thought(draw, "sum"))


def arithmetic_turn(draw: Draw, tools: Tools) -> Turn:
    """One operation: small numbers when MOSS answers by itself, one or two digits with the calculator."""
    with_calculator = CALCULATOR in tools
    if with_calculator and draw.rng.random() < 0.2:
        return expression_turn(draw) if draw.rng.random() < 0.7 else comparison_turn(draw)
    largest = 99 if with_calculator else 12

    def make() -> tuple[str, int, int]:
        operator = draw.pick(["+", "-", "*", "/"])
        a, b = draw.rng.randint(2, largest), draw.rng.randint(2, largest)
        if operator == "-":
            a, b = max(a, b) + 1, min(a, b)
        elif operator != "+":
            a, b = draw.rng.randint(2, largest if with_calculator else 9), draw.rng.randint(2, 9)
            if operator == "/":
                a = a * b
        return operator, a, b

    operator, a, b = draw.until(make, lambda problem: max(problem[1:]) <= 99 and draw.owns_sum(*problem))
    result = evaluate(operator, a, b)
    question, reply = draw.pick(words.ARITHMETIC[operator][draw.language])
    turn = Turn(question.format(a=a, b=b), reply.format(a=a, b=b, r=result), "number", f"{result}", topic=("number", result))
    return calculated(draw, turn, f"{a}{operator}{b}", result, operator == "/") if with_calculator else simple(draw, turn)


def arithmetic_follow_up(draw: Draw, tools: Tools, value: int) -> Turn | None:
    """The result of the turn before, changed once more; None where no problem of this file starts from it."""
    with_calculator = CALCULATOR in tools
    limit = LARGEST_RESULT if with_calculator else LARGEST_BY_HEAD
    choices = [
        (operator, number, wording)
        for operator in words.ARITHMETIC_FOLLOW_UPS
        for number in range(2, 21 if with_calculator else 10)
        for wording in range(3)
        if ((number + wording) % 3 == 0) == draw.dev
        and draw.owns_sum(operator, value, number)
        and 1 < evaluate(operator, value, number) <= limit
    ]
    if not choices:
        return None
    operator, number, wording = draw.pick(choices)
    result = evaluate(operator, value, number)
    questions, reply = words.ARITHMETIC_FOLLOW_UPS[operator][draw.language]
    turn = Turn(
        questions[wording].format(b=number), reply.format(a=value, b=number, r=result), "number", f"{result}", topic=("number", result)
    )
    return calculated(draw, turn, f"{value}{operator}{number}", result) if with_calculator else simple(draw, turn)


def expression_turn(draw: Draw) -> Turn:
    """Three operands, always through the calculator."""

    def make() -> tuple[str, int]:
        a, b, c = draw.rng.randint(2, 30), draw.rng.randint(2, 9), draw.rng.randint(2, 30)
        return draw.pick(
            [(f"({a}+{c})*{b}", (a + c) * b), (f"{a}*{b}-{c}", a * b - c), (f"{a}*{b}+{c}", a * b + c), (f"{a}+{b}*{c}", a + b * c)]
        )

    expression, result = draw.until(make, lambda made: made[1] > 0 and draw.owns(made[0]))
    question, reply = draw.pick(words.EXPRESSIONS[draw.language])
    turn = Turn(question.format(e=expression), reply.format(e=expression, r=result), "number", f"{result}", topic=("number", result))
    return calculated(draw, turn, expression, result)


def comparison_turn(draw: Draw) -> Turn:
    """Two calls of the calculator in one turn."""

    def make() -> list[tuple[str, int]]:
        problems = [(draw.pick(["+", "*"]), draw.rng.randint(2, 40), draw.rng.randint(2, 9)) for _ in range(2)]
        return [(f"{a}{operator}{b}", evaluate(operator, a, b)) for operator, a, b in problems]

    (a, p), (b, q) = draw.until(make, lambda made: made[0][1] != made[1][1] and draw.owns(made))
    fields = {"a": a, "b": b, "p": p, "q": q, "r": max(p, q)}
    question, reply = draw.pick(words.COMPARISONS[draw.language])
    commands = (call("Calculate", a), call("Calculate", b))
    results = (f"{commands[0]} => '{p}'", f"{commands[1]} => '{q}'")
    return Turn(
        question.format(**fields), reply.format(**fields), "number", f"{max(p, q)}", thought(draw, "compare", a=a, b=b), commands, results
    )


def equation_turn(draw: Draw, tools: Tools) -> Turn:
    """A linear equation, or two numbers of known sum and difference."""
    if draw.rng.random() < 0.25:
        y, difference = draw.until(lambda: (draw.rng.randint(1, 40), draw.rng.randint(2, 20)), lambda made: draw.owns("pair", *made))
        x, which = y + difference, draw.pick(["larger", "smaller"])
        total, result = x + y, x if which == "larger" else y
        question, reply = draw.pick(words.PAIRS[which][draw.language])
        equation, solution = f"x+y={total};x-y={difference}", f"x = {x}\ny = {y}"
        human, text = question.format(a=total, b=difference), reply.format(r=result)
    else:

        def make() -> tuple[str, int]:
            x, m, b = draw.rng.randint(2, 30), draw.rng.randint(2, 9), draw.rng.randint(2, 30)
            return draw.pick([(f"x+{b}={x + b}", x), (f"x-{b}={x}", x + b), (f"{m}*x={m * x}", x), (f"{m}*x+{b}={m * x + b}", x)])

        equation, result = draw.until(make, lambda made: draw.owns(made[0]))
        question, reply = draw.pick(words.EQUATIONS[draw.language])
        solution, human, text = f"x = {result}", question.format(e=equation), reply.format(e=equation, r=result)
    command = call("Solve", equation)
    return Turn(human, text, "number", f"{result}", thought(draw, "solve", e=equation), (command,), (f"{command} =>\n{solution}",))
