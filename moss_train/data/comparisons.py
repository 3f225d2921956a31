"""Comparisons: one context, K responses to it, and which is better than which. Also the file of responses that comparisons are made of.

A line of either file is an object:

    {"id": "...",
     "context": {"meta_instruction": "...", "turns": [{"human": " Hi", "moss": " Hello"}, {"human": " What is 2+3?"}]},
     "responses": [{"moss": " 5", "rank": 1}, {"thoughts": " ...", "commands": " None", "results": " None", "moss": " 6", "rank": 2}],
     "strengths": [[0, 1, 2.0]], "language": "en", "category": "arithmetic", "provenance": {...}}

Contents are those of `dialogue.Turn`, as they stand between the colon and the control token. `rank` is 1 for the best; equal ranks are a
tie; null is a response that was not ranked. Instead of ranks there may be a `score` each (larger is better), and `strengths` may say by how
much the first named response is better than the second. How other layouts become comparisons is in `formats/preference.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NamedTuple

from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue, Turn
from moss_train.data.formats.fields import keys_found, read_category, read_id, require_list, require_object, require_text
from moss_train.data.records import RecordError

RESPONSE_SEGMENTS = tuple(kind.name for kind in SEGMENT_KINDS if kind.name != "human")
"""What a response may consist of, in the order in which it is written."""


class Pair(NamedTuple):
    """Two responses of a comparison, by number.

    Attributes:
        better, worse: Numbers of the responses; of a tie, the lower number first.
        strength: By how much, above zero; 1 where nothing is known.
        tied: Neither is better.
    """

    better: int
    worse: int
    strength: float = 1.0
    tied: bool = False


@dataclass(frozen=True)
class Comparison:
    """K responses to one context.

    Attributes:
        context: Its last turn holds the human part alone.
        responses: K turns; each has the human part of the context's last turn, and what was answered. The ranked ones only.
        pairs: All pairs of them that are known, in order; at least one.
        language, category: As in the record, or None.
        provenance: How the ranking came about.
    """

    context: Dialogue
    responses: tuple[Turn, ...]
    pairs: tuple[Pair, ...]
    language: str | None = None
    category: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def dialogue(self, number: int) -> Dialogue:
        """The context with one of the responses."""
        return replace(self.context, turns=(*self.context.turns[:-1], self.responses[number]))


@dataclass(frozen=True)
class Responses:
    """K responses to one context, not ranked yet.

    Attributes:
        record: The whole line, for whoever writes it on with more in it.
    """

    context: Dialogue
    responses: tuple[Turn, ...]
    record: dict[str, Any] = field(repr=False)


def response_to_json(turn: Turn) -> dict[str, str]:
    """What was answered, by segment."""
    return {name: text for name in RESPONSE_SEGMENTS if (text := getattr(turn, name)) is not None}


def context_to_json(context: Dialogue) -> dict[str, Any]:
    """A context as it stands in a line; its last turn is written without what was answered."""
    turns = [{"human": turn.human, **response_to_json(turn)} for turn in context.turns[:-1]]
    return {"meta_instruction": context.meta_instruction, "turns": [*turns, {"human": context.turns[-1].human}]}


def context_from_json(value: Any, origin: str, id: str = "", category: str | None = None) -> Dialogue:
    """The context of a line.

    Raises:
        RecordError: It is not one; with where, what was found and what was expected.
    """
    value = require_object(value, origin, '"context" to be an object with "turns"')
    turns = require_list(value.get("turns"), '"context.turns"', origin, "turns")
    meta = require_text(value.get("meta_instruction", ""), '"context.meta_instruction"', origin)
    if not turns:
        raise RecordError(origin, "no_turns", '"context.turns" is empty; expected one turn or more, the last with the question alone.')
    found = []
    for number, turn in enumerate(turns):
        where = f'"context.turns[{number}]"'
        turn = require_object(turn, origin, f"{where} to be an object of contents by segment")
        human = require_text(turn.get("human"), f'{where[:-1]}.human"', origin)
        answered = _answer(turn, where, origin)
        is_last = number + 1 == len(turns)
        if is_last and answered:
            raise RecordError(
                origin, "answered_context", f"{where} is the last turn and holds {keys_found(answered)}; expected human alone."
            )
        if not is_last and "moss" not in answered:
            raise RecordError(origin, "missing_reply", f'{where} has no "moss"; only the last turn of a context may lack a reply.')
        found.append(Turn(human=human, **answered))
    return Dialogue(id, meta, tuple(found), category=category, origin=origin)


def response_from_json(value: Any, human: str, where: str, origin: str) -> Turn:
    """A response of a line: an object of contents by segment, or the text of the reply.

    Raises:
        RecordError: `empty_response` where there is no reply, or another problem.
    """
    if isinstance(value, str):
        # A bare text is a reply as people write it; contents have a leading blank.
        value = {"moss": f" {value.strip()}"}
    value = require_object(value, origin, f"{where} to be a text, or an object of contents by segment")
    answered = _answer(value, where, origin)
    if not str(answered.get("moss", "")).strip():
        raise RecordError(origin, "empty_response", f'{where} has no text in "moss"; leave this response out.')
    return Turn(human=human, **answered)


def _answer(value: dict[str, Any], where: str, origin: str) -> dict[str, Any]:
    return {name: require_text(value[name], f'{where[:-1]}.{name}"', origin) for name in RESPONSE_SEGMENTS if value.get(name) is not None}


def parse_responses(value: Any, origin: str) -> Responses:
    """A line of a file of responses. Responses that are empty stay: a sampled model may answer nothing.

    Raises:
        RecordError: The line is not one.
    """
    value = require_object(value, origin, 'an object with "context" and "responses"')
    context = context_from_json(value.get("context"), origin, read_id(value, origin), read_category(value))
    responses = []
    for number, one in enumerate(require_list(value.get("responses"), '"responses"', origin, "responses")):
        where = f'"responses[{number}]"'
        one = require_object(one, origin, f"{where} to be an object of contents by segment")
        responses.append(Turn(human=context.turns[-1].human, **_answer(one, where, origin)))
    return Responses(context, tuple(responses), value)


def parse_comparison(value: Any, origin: str) -> Comparison:
    """A line of a file of comparisons.

    Raises:
        RecordError: `one_response`, `empty_response`, `identical_responses`, `bad_rank`, `nan_score`, `no_preference`, or what is wrong
            with the layout.
    """
    value = require_object(value, origin, 'an object with "context" and "responses"')
    context = context_from_json(value.get("context"), origin, read_id(value, origin), read_category(value))
    given = require_list(value.get("responses"), '"responses"', origin, "responses")
    turns, standings = [], []
    for number, one in enumerate(given):
        where = f'"responses[{number}]"'
        standing = _standing(one, where, origin)
        if standing is None:
            continue
        turns.append((number, response_from_json(one, context.turns[-1].human, where, origin)))
        standings.append(standing)
    language = value.get("language")
    strengths = _strengths(value.get("strengths"), [number for number, _ in turns], origin)
    return compare(
        context,
        [turn for _, turn in turns],
        standings,
        strengths=strengths,
        language=language if isinstance(language, str) else None,
        provenance=value["provenance"] if isinstance(value.get("provenance"), dict) else {},
    )


def compare(
    context: Dialogue,
    responses: Sequence[Turn],
    standings: Sequence[float],
    *,
    strengths: dict[tuple[int, int], float] | None = None,
    language: str | None = None,
    provenance: dict[str, Any] | None = None,
) -> Comparison:
    """A comparison of ranked responses. Responses that are equal and stand equally high are one.

    Args:
        context: Its last turn holds the human part alone.
        responses: K of them.
        standings: Of each; larger is better, equal is a tie.
        strengths: (better, worse) -> by how much, above zero, where that is known.

    Raises:
        RecordError: `one_response`: fewer than two are left. `identical_responses`: two equal ones stand differently. `no_preference`:
            there is no pair.
    """
    origin = context.origin
    kept: list[int] = []
    for number, turn in enumerate(responses):
        twin = next((other for other in kept if response_to_json(responses[other]) == response_to_json(turn)), None)
        if twin is None:
            kept.append(number)
        elif standings[twin] != standings[number]:
            problem = f"responses {twin} and {number} are equal, and one is ranked above the other; leave the comparison out."
            raise RecordError(origin, "identical_responses", problem)
    if len(kept) < 2:
        if len(responses) > 1:
            raise RecordError(origin, "identical_responses", f"all {len(responses)} responses are equal: there is nothing to compare.")
        raise RecordError(origin, "one_response", f"{len(responses)} ranked responses; a comparison needs two or more.")
    pairs = []
    for i, j in combinations(range(len(kept)), 2):
        a, b = kept[i], kept[j]
        if standings[a] == standings[b]:
            pairs.append(Pair(i, j, tied=True))
            continue
        better, worse = (i, j) if standings[a] > standings[b] else (j, i)
        pairs.append(Pair(better, worse, (strengths or {}).get((kept[better], kept[worse]), 1.0)))
    return Comparison(
        context, tuple(responses[number] for number in kept), tuple(pairs), language, context.category, dict(provenance or {})
    )


def _standing(value: Any, where: str, origin: str) -> float | None:
    """How high a response stands; None where it was not ranked."""
    if not isinstance(value, dict):
        raise RecordError(origin, "bad_rank", f'{where} is {str(value)[:40]!r}; expected an object with "rank" or "score".')
    keys = [key for key in ("rank", "score") if key in value]
    if len(keys) != 1:
        raise RecordError(
            origin, "bad_rank", f'{where} has {" and ".join(keys) or "neither rank nor score"}; expected one of "rank" and "score".'
        )
    number = value[keys[0]]
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise RecordError(origin, "bad_rank", f"{where} has {keys[0]} {number!r}; expected a number, or null where it was not ranked.")
    if not math.isfinite(number):
        raise RecordError(origin, "nan_score", f"{where} has {keys[0]} {number}; expected a finite number, or null where there is none.")
    return -float(number) if keys[0] == "rank" else float(number)


def _strengths(value: Any, ranked: Sequence[int], origin: str) -> dict[tuple[int, int], float]:
    """(better, worse) among the ranked responses -> strength."""
    found = {}
    for entry in [] if value is None else require_list(value, '"strengths"', origin, "[better, worse, strength]"):
        if not (isinstance(entry, list) and len(entry) == 3 and all(isinstance(n, int | float) and not isinstance(n, bool) for n in entry)):
            raise RecordError(origin, "bad_strength", f'"strengths" holds {str(entry)[:60]}; expected [better, worse, strength].')
        if not (math.isfinite(entry[2]) and entry[2] > 0):
            raise RecordError(origin, "bad_strength", f'"strengths" holds {entry}; expected a strength above zero.')
        if entry[0] in ranked and entry[1] in ranked:
            found[ranked.index(entry[0]), ranked.index(entry[1])] = float(entry[2])
    return found


def explicit_pairs(comparison: Comparison) -> Iterator[Comparison]:
    """The comparison as one of two responses for each of its pairs."""
    for pair in comparison.pairs:
        first, second = comparison.responses[pair.better], comparison.responses[pair.worse]
        yield replace(comparison, responses=(first, second), pairs=(Pair(0, 1, pair.strength, pair.tied),))
