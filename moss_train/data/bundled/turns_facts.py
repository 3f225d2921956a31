"""Turns about facts: from memory, or searched for."""

from __future__ import annotations

from dataclasses import replace

from moss_train.data.bundled import words_facts as words
from moss_train.data.bundled.turns import CALCULATOR, SEARCH, Draw, Tools, Turn, call, sentence, thought
from moss_train.data.bundled.turns_arithmetic import LARGEST_BY_HEAD, LARGEST_RESULT, calculated, simple


def fact_rows(kind: str, language: str) -> list[dict[str, str]]:
    """The facts of a kind as the fields of its wordings."""
    if kind == "count":
        english = [{"f": f"{number}", "u": unit, "s": thing, "p": plural} for number, unit, thing, plural, _, _ in words.COUNTS]
        chinese = [{"f": f"{number}", "u": unit, "s": thing, "p": thing} for number, _, _, _, thing, unit in words.COUNTS]
        return english if language == "en" else chinese
    first = 0 if language == "en" else 2
    return [{"s": row[first], "f": row[first + 1]} for row in words.FACTS[kind]]


def answered(draw: Draw, tools: Tools, kind: str, row: int, question: str, reply: str) -> Turn:
    """A turn about one fact, looked up on the web where MOSS can and knows where to look, else from memory."""
    fields = fact_rows(kind, draw.language)[row]
    check = "number" if kind == "count" else "fact"
    turn = Turn(sentence(question.format(**fields)), sentence(reply.format(**fields)), check, fields["f"], topic=("fact", (kind, row)))
    if SEARCH not in tools or kind not in words.SEARCHES:
        return replace(turn, thoughts=thought(draw, "fact"))
    query, pages = words.SEARCHES[kind][draw.language]
    query = query.format(**fields)
    found = draw.rng.sample(pages, draw.rng.randint(1, 2))
    lines = [f"<|{number}|>: {sentence(page.format(**fields))!r}" for number, page in enumerate(found, 1)]
    command = call("Search", query)
    result = "\n".join([f"{command} =>", *lines])
    cited = turn.reply + "<sup><|1|></sup>"
    return replace(turn, reply=cited, thoughts=thought(draw, "search", e=query), commands=(command,), results=(result,))


def fact_turn(draw: Draw, tools: Tools, kind: str = "") -> Turn:
    """A question about a fact, of some kind: with web search one that needs it, without one that needs no search."""
    kinds = [kind] if kind else list(words.SEARCHES) if SEARCH in tools else [kind for kind in words.FACT_WORDINGS if kind != "author"]
    kind = draw.rng.choices(kinds, [len(fact_rows(kind, "en")) for kind in kinds])[0]
    wordings = words.FACT_WORDINGS[kind][draw.language]
    row, column = draw.cell(kind, len(fact_rows(kind, "en")), len(wordings))
    return answered(draw, tools, kind, row, *wordings[column])


def fact_follow_up(draw: Draw, tools: Tools, kind: str, row: int) -> Turn | None:
    """The same question about something else; for a number of parts, about several things."""
    if kind == "count":
        return count_follow_up(draw, tools, row)
    questions = words.FACT_FOLLOW_UPS[draw.language]
    rows = len(fact_rows(kind, "en"))
    other, column = draw.until(lambda: draw.cell(f"{kind} follow-up", rows, len(questions)), lambda cell: cell[0] != row)
    question = questions[column].replace("{s}", "“{s}”") if kind in words.QUOTED_KINDS and draw.language == "zh" else questions[column]
    return answered(draw, tools, kind, other, question, words.FACT_WORDINGS[kind][draw.language][0][1])


def count_follow_up(draw: Draw, tools: Tools, row: int) -> Turn | None:
    """How many parts several things have: a multiplication with the number of the turn before."""
    fields = fact_rows("count", draw.language)[row]
    number = int(fields["f"])
    with_calculator = CALCULATOR in tools
    limit = LARGEST_RESULT if with_calculator else LARGEST_BY_HEAD
    choices = [n for n in range(2, 21 if with_calculator else 10) if n * number <= limit and draw.owns_sum("*", n, number)]
    if not choices:
        return None
    n = draw.pick(choices)
    question, reply = draw.pick(words.COUNT_FOLLOW_UPS[draw.language])
    turn = Turn(question.format(n=n, **fields), reply.format(n=n, r=n * number, **fields), "number", f"{n * number}")
    return calculated(draw, turn, f"{n}*{number}", n * number) if with_calculator else simple(draw, turn)
