"""Lines to be scored, and how they are written with their rewards.

    responses     the line as it was, each response with `reward`
    comparisons   one of our own lines as it was, else a line made of the record: context, responses with `rank` and `reward`
    dialogues     {"id", "origin", "dialogue": the record as it was, "rewards": [one for each turn]}

A reward is null where there is no reply, or where its turn alone does not fit. `score_notes` counts such replies by name, and those whose
context was shortened; it is left out where there is nothing to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from moss_train.data.comparisons import Comparison, context_to_json, parse_responses, response_to_json
from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue
from moss_train.data.formats import parse
from moss_train.data.formats.preference import detect_preference, parse_preference
from moss_train.data.records import OnError, ProblemList, RecordError, read_records
from moss_train.errors import DataError
from moss_train.pm.score import Scored
from moss_train.pm.score_config import ScoreConfig

SHORTENED = "context_shortened"
NO_FAULT = frozenset({"no_preference", "identical_responses"})
"""Codes of comparisons in which there is nothing to compare: they are left out and counted, and are no bad records."""


@dataclass(frozen=True)
class Line:
    """A record to be scored.

    Attributes:
        output: What is written, but for the rewards.
        dialogues: Of responses one each; of a dialogue itself.
        characters: Of all that is read.
    """

    output: dict[str, Any]
    dialogues: tuple[Dialogue, ...]

    @property
    def characters(self) -> int:
        """Of all that is read."""
        return sum(_characters(one) for one in self.dialogues)


def read_line(kind: str, value: Any, origin: str, default_meta: str | None) -> Line:
    """A record as a line.

    Args:
        kind: `responses`, `comparisons` or `dialogues`.
        value, origin: As `read_records` gives them.
        default_meta: Meta instruction of records that have none; None: MOSS's, with everything off.

    Raises:
        RecordError: It is none.
    """
    if kind == "dialogues":
        dialogue = parse(value, origin, default_meta=default_meta, open_end=True)
        return Line({"id": dialogue.id, "origin": origin, "dialogue": value}, (dialogue,))
    if kind == "comparisons":
        comparison = parse_preference(value, origin, default_meta=default_meta)
        if detect_preference(value, origin) != "comparisons":
            return Line(_written(comparison), tuple(comparison.dialogue(number) for number in range(len(comparison.responses))))
    # Of our own lines every response is kept, those that were not ranked too.
    parsed = parse_responses(value, origin)
    context = parsed.context
    dialogues = tuple(
        Dialogue(context.id, context.meta_instruction, (*context.turns[:-1], turn), context.category, origin) for turn in parsed.responses
    )
    return Line(parsed.record, dialogues)


def scored_line(kind: str, line: Line, scored: Sequence[Scored]) -> dict[str, Any]:
    """What is written of a line; `scored` are its responses, or the turns of its dialogue."""
    rewards = [one.reward for one in scored]
    notes = Counter(one.problem for one in scored if one.problem)
    if shortened := sum(one.dropped_turns > 0 for one in scored):
        notes[SHORTENED] = shortened
    output = {name: value for name, value in line.output.items() if name != "score_notes"}
    if kind == "dialogues":
        output["rewards"] = rewards
    else:
        output["responses"] = [{**one, "reward": reward} for one, reward in zip(output["responses"], rewards, strict=True)]
    return output | ({"score_notes": dict(sorted(notes.items()))} if notes else {})


def count(lines: Iterable[dict[str, Any]]) -> dict[str, int]:
    """What came of written lines: replies `scored`, and those of `score_notes` by name."""
    totals: Counter[str] = Counter({"scored": 0})
    for line in lines:
        rewards = line["rewards"] if "rewards" in line else [one["reward"] for one in line["responses"]]
        totals["scored"] += sum(reward is not None for reward in rewards)
        totals.update(line.get("score_notes", {}))
    return dict(totals)


class Plan(NamedTuple):
    """The lines of a file, in pieces that are scored at once and that follow from the file alone.

    Attributes:
        lines: How many.
        pieces: First line of each, and the line behind its last.
        left_out: Records without a line, by name.
    """

    lines: int
    pieces: list[tuple[int, int]]
    left_out: dict[str, int]


def good_lines(kind: str, spec: str, default_meta: str | None, on_error: OnError) -> Iterator[Line]:
    """The lines of a file; bad records are told to `on_error`.

    Raises:
        DataError: The path is missing or cannot be read.
    """
    for record in read_records(spec, on_error):
        try:
            yield read_line(kind, record.value, record.origin, default_meta)
        except RecordError as error:
            on_error(error)


def plan_pieces(config: ScoreConfig, default_meta: str | None, characters: int) -> Plan:
    """Reads all lines, and divides them: a piece ends with the line in which it has so many characters.

    Raises:
        DataError: There are none, or some are bad: all of them are told.
    """
    problems, pieces = ProblemList(config.on_bad.value, config.max_bad_share, "on_bad"), list[tuple[int, int]]()
    left_out: Counter[str] = Counter()

    def add(error: RecordError) -> None:
        left_out[error.code] += 1
        if error.code not in NO_FAULT:
            problems.add(error)

    number = start = held = 0
    for number, line in enumerate(good_lines(config.kind, config.data, default_meta, add), 1):
        held += line.characters
        if held >= characters:
            pieces.append((start, number))
            start, held = number, 0
    problems.finish(number)
    if not number:
        told = f" ({', '.join(f'{name} {count}' for name, count in left_out.items())})" if left_out else ""
        raise DataError(f"{config.kind}={config.data} holds nothing to score{told}; expected one JSON object or more")
    if start < number:
        pieces.append((start, number))
    return Plan(number, pieces, dict(sorted(left_out.items())))


def _characters(dialogue: Dialogue) -> int:
    texts = (getattr(turn, kind.name) for turn in dialogue.turns for kind in SEGMENT_KINDS)
    return len(dialogue.meta_instruction) + sum(len(text) for text in texts if text)


def _written(comparison: Comparison) -> dict[str, Any]:
    """A comparison as one of our lines. Where no ranks say the same as its pairs, it has the pairs and no ranks."""
    context = comparison.context
    responses: list[dict[str, Any]] = [dict(response_to_json(turn)) for turn in comparison.responses]
    output: dict[str, Any] = {"id": context.id, "origin": context.origin, "context": context_to_json(context), "responses": responses}
    better_than = Counter(pair.worse for pair in comparison.pairs if not pair.tied)
    ranks = [1 + better_than[number] for number in range(len(responses))]
    known = {(*sorted((pair.better, pair.worse)), 0 if pair.tied else pair.better + 1) for pair in comparison.pairs}
    pairs = combinations(range(len(ranks)), 2)
    if known == {(i, j, 0 if ranks[i] == ranks[j] else (i if ranks[i] < ranks[j] else j) + 1) for i, j in pairs}:
        for response, rank in zip(responses, ranks):
            response["rank"] = rank
        strengths = [[pair.better, pair.worse, pair.strength] for pair in comparison.pairs if pair.strength != 1 and not pair.tied]
        if strengths:
            output["strengths"] = strengths
    else:
        output["pairs"] = [list(pair) for pair in comparison.pairs]
    named = {"language": comparison.language, "category": comparison.category, "provenance": comparison.provenance or None}
    return output | {name: value for name, value in named.items() if value is not None}
