"""Turns of chat, small instructions, refusals and pictures."""

from __future__ import annotations

from dataclasses import replace

from moss_train.data.bundled import words_chat as words
from moss_train.data.bundled.turns import Draw, Tools, Turn, call, sentence, thought
from moss_train.data.bundled.turns_facts import fact_rows


def joined(draw: Draw, grid: str, openings: list[str], wordings: list[tuple[str, str]], **fields: str) -> tuple[str, str]:
    """A question made of an opening and a wording, and its reply."""
    row, column = draw.cell(grid, len(openings), len(wordings))
    question, reply = wordings[column]
    return sentence(question.format(o=openings[row], **fields)), sentence(reply.format(o=openings[row], **fields))


def chat_turn(draw: Draw, tools: Tools) -> Turn:
    """A greeting, a question about MOSS, or the name of the human."""
    thoughts = thought(draw, "chat")
    form = draw.pick(["greeting", "identity", "name"])
    if form == "greeting":
        return Turn(*joined(draw, form, *words.GREETINGS[draw.language]), thoughts=thoughts)
    if form == "identity":
        return Turn(*joined(draw, form, *words.IDENTITY[draw.language]), "fact", "MOSS", thoughts)
    names, wordings = words.NAMES[draw.language], words.NAME_WORDINGS[draw.language]
    row, column = draw.cell(form, len(names), len(wordings))
    question, reply = (text.format(s=names[row]) for text in wordings[column])
    return Turn(question, reply, "fact", names[row], thoughts, topic=("name", names[row]))


def instruction_turn(draw: Draw, tools: Tools) -> Turn:
    """A small instruction with one right result."""
    form = draw.pick([repeat_words, reverse_words, number_words, count_numbers, list_months, larger_number, odd_word])
    return form(draw)


def all_words(draw: Draw) -> list[str]:
    """The words that instructions are about."""
    return [word for group in words.WORDS.values() for word in group[draw.language]]


def repeat_words(draw: Draw) -> Turn:
    """A word said once or several times."""
    choices, wordings = all_words(draw), words.REPEATS[draw.language]
    row, column = draw.cell("repeat", len(choices), len(wordings))
    question, reply = (text.format(s=choices[row]) for text in wordings[column])
    return Turn(question, reply, "fact", reply)


def reverse_words(draw: Draw) -> Turn:
    """Two words in the other order."""
    a, b = draw.until(lambda: draw.rng.sample(all_words(draw), 2), lambda pair: draw.owns(sorted(pair)))
    question, reply = (text.format(a=a, b=b) for text in draw.pick(words.REVERSALS[draw.language]))
    return Turn(question, reply, "fact", reply, topic=("reversal", f"{a} {b}"))


def number_words(draw: Draw) -> Turn:
    """Three words as a numbered list."""
    a, b, c = draw.until(lambda: draw.rng.sample(all_words(draw), 3), draw.owns)
    question, reply = (text.format(a=a, b=b, c=c) for text in draw.pick(words.NUMBERED_LISTS[draw.language]))
    return Turn(question, reply, "fact", reply)


def count_numbers(draw: Draw) -> Turn:
    """A few consecutive numbers."""
    a, length = draw.until(lambda: (draw.rng.randint(1, 30), draw.rng.randint(3, 5)), lambda made: draw.owns("count", *made))
    reply = words.SEPARATOR[draw.language].join(f"{number}" for number in range(a, a + length))
    question, _ = draw.pick(words.COUNTING[draw.language])
    return Turn(question.format(a=a, b=a + length - 1), reply, "fact", reply)


def list_months(draw: Draw) -> Turn:
    """A few consecutive months."""
    months = [row["s"] for row in fact_rows("month", draw.language)]
    first, length = draw.until(lambda: (draw.rng.randint(0, 8), draw.rng.randint(2, 4)), lambda made: draw.owns("months", *made))
    chosen = months[first : first + length]
    reply = words.SEPARATOR[draw.language].join(chosen)
    question, _ = draw.pick(words.MONTH_LISTS[draw.language])
    return Turn(question.format(a=chosen[0], b=chosen[-1]), reply, "fact", reply)


def larger_number(draw: Draw) -> Turn:
    """The larger of two numbers."""
    a, b = draw.until(lambda: draw.rng.sample(range(1, 100), 2), lambda pair: draw.owns("larger", sorted(pair)))
    question, reply = (text.format(a=a, b=b, r=max(a, b)) for text in draw.pick(words.LARGER_NUMBER[draw.language]))
    return Turn(question, reply, "number", f"{max(a, b)}")


def odd_word(draw: Draw) -> Turn:
    """The one word of three that is a color or an animal."""
    kind = draw.pick(list(words.ODD_WORDS))
    right = draw.pick(words.WORDS[kind][draw.language])
    others = [word for name, group in words.WORDS.items() if name != kind for word in group[draw.language]]
    three = draw.until(lambda: [right, *draw.rng.sample(others, 2)], lambda made: draw.owns(kind, sorted(made)))
    draw.rng.shuffle(three)
    question, reply = draw.pick(words.ODD_WORDS[kind][draw.language])
    return Turn(question.format(a=three[0], b=three[1], c=three[2]), reply.format(r=right), "fact", right)


def harmless_turn(draw: Draw, tools: Tools) -> Turn:
    """A harmful request, refused with a reason."""
    ways, requests = words.HARMFUL[draw.language]
    row, column = draw.cell("harmful", len(requests), len(ways))
    request, reason = requests[row]
    reply = words.REFUSAL[draw.language].format(r=reason)
    mark = words.REFUSAL_MARK[draw.language]
    return Turn(ways[column].format(s=request), reply, "fact", mark, thought(draw, "refuse"), topic=("refusal", reason))


def picture_turn(draw: Draw, tools: Tools) -> Turn:
    """A request for a picture of an animal of some color somewhere."""
    sizes = (len(words.PICTURE_COLORS), len(words.PICTURE_ANIMALS), len(words.PICTURE_PLACES))
    color, animal, place = draw.until(lambda: tuple(draw.rng.randrange(size) for size in sizes), lambda made: draw.owns("picture", made))
    question, reply = draw.pick(words.PICTURES[draw.language])
    return drawn(draw, question, reply, color, animal, place)


def drawn(draw: Draw, question: str, reply: str, color: int, animal: int, place: int) -> Turn:
    """The picture in words: English for the tool, the language of the dialogue for the human."""
    (article_color, zh_color), (noun, measure, zh_noun) = words.PICTURE_COLORS[color], words.PICTURE_ANIMALS[animal]
    english = f"{article_color} {noun}{words.PICTURE_PLACES[place][0]}"
    picture = english if draw.language == "en" else f"{words.PICTURE_PLACES[place][1]}{measure}{zh_color}的{zh_noun}"
    human, text = question.format(s=picture), reply.format(s=picture)
    commands = (call("Text2Image", english),)
    return Turn(human, text, "fact", picture, thought(draw, "picture", e=english), commands, topic=("picture", (color, animal, place)))


def picture_follow_up(draw: Draw, color: int, animal: int, place: int) -> Turn:
    """The same picture in another color."""
    questions = words.PICTURE_FOLLOW_UPS[draw.language]
    colors = len(words.PICTURE_COLORS)
    other, column = draw.until(lambda: draw.cell("picture", colors, len(questions)), lambda cell: cell[0] != color)
    name = words.PICTURE_COLORS[other][0].split()[1] if draw.language == "en" else words.PICTURE_COLORS[other][1]
    turn = drawn(draw, "", words.PICTURES[draw.language][0][1], other, animal, place)
    return replace(turn, human=questions[column].format(s=name))
