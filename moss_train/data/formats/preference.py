"""Public layouts of preferences to comparisons.

    comparisons      {"context": {...}, "responses": [{"moss": ..., "rank": 1}, ...]}: our own lines, see `data.comparisons`
    hh_rlhf          {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}: two transcripts that differ in the last reply
    model_solutions  {"question": ..., "ground_truth": ..., MODEL: {"is_correct": true, "solution": ...}, ...}, as GSM8K's
    reward_bench     {"prompt": text or [messages], "chosen": text or [texts], "rejected": text or [texts], "subset": ..., "id": ...}
    messages         {"chosen": [messages], "rejected": [messages]}, with or without "prompt", as TRL and UltraFeedback have them

All but our own give the canonical form of `fields`. What a layout does not say stays unknown: two texts under "rejected" are no tie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moss_train.data.comparisons import Comparison, compare, parse_comparison
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats import AUTO, fields
from moss_train.data.formats.conversation import Message, to_turns
from moss_train.data.formats.messages import parse_list
from moss_train.data.records import ProblemList, RecordError, read_records
from moss_train.errors import DataError, UsageError

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_SIDES = ("chosen", "rejected")


def read_comparisons(
    specs: Sequence[str] | str,
    *,
    on_bad: str = "fail",
    max_bad_share: float = 0.01,
    format: str = AUTO,
    default_meta: str | None = None,
    ties: str = "keep",
) -> tuple[list[Comparison], ProblemList]:
    """The comparisons of files, directories or globs, all bad records reported together.

    Args:
        specs: As for `read_records`; `PATH#N` takes the first N records.
        on_bad: `fail`, or `skip` to leave bad records out.
        max_bad_share: With `skip`, the share of bad records above which reading ends with an error nevertheless.
        format: A name of `PREFERENCES`, or `auto`.
        default_meta: Meta instruction of records that have none, of all layouts but our own.
        ties: `keep`, or `drop` to leave tied pairs out; a record with no other pairs is then a bad one, of code `no_preference`.

    Returns:
        The comparisons, and the problems by code.

    Raises:
        DataError: Records are bad, or a path is missing.
        UsageError: There is no such format.
    """
    if ties not in ("keep", "drop"):
        raise UsageError(f"ties={ties!r}: expected keep or drop")
    _check_name(format)
    problems = ProblemList(on_bad, max_bad_share)
    found: list[Comparison] = []
    for spec in [specs] if isinstance(specs, str | Path) else specs:
        before = len(found) + problems.counts.total()
        for record in read_records(spec, problems.add):
            try:
                comparison = parse_preference(record.value, record.origin, format, default_meta)
                found.append(comparison if ties == "keep" else without_ties(comparison))
            except RecordError as error:
                problems.add(error)
        if len(found) + problems.counts.total() == before:
            raise DataError(f"{spec}: no records: the file is empty or holds only blank lines.")
    problems.finish(len(found))
    return found, problems


def without_ties(comparison: Comparison) -> Comparison:
    """The comparison with the pairs alone of which one is better; responses that are in none of them are left out.

    Raises:
        RecordError: `no_preference`: all pairs are ties.
    """
    pairs = [pair for pair in comparison.pairs if not pair.tied]
    if not pairs:
        problem = "no response is better than another; leave the record out, or keep ties."
        raise RecordError(comparison.context.origin, "no_preference", problem)
    used = sorted({number for pair in pairs for number in (pair.better, pair.worse)})
    numbered = tuple(pair._replace(better=used.index(pair.better), worse=used.index(pair.worse)) for pair in pairs)
    return replace(comparison, responses=tuple(comparison.responses[number] for number in used), pairs=numbered)


def parse_preference(value: Any, origin: str, format: str = AUTO, default_meta: str | None = None) -> Comparison:
    """A comparison from a record of any of the layouts.

    Args:
        value: The parsed JSON.
        origin: `file:line`.
        format: A name of `PREFERENCES`, or `auto` to tell it by the keys.
        default_meta: Meta instruction of records that have none, of all layouts but our own; by default that of MOSS with everything off.

    Returns:
        The comparison. Where the record does not say its language, that is guessed by the script of what is said.

    Raises:
        RecordError: `unknown_format`, `missing_side` (a side, or its last reply, is not there), `empty_response`, `contexts_differ`,
            `identical_responses`, `no_preference`, `not_a_transcript`, or what is wrong with a message.
        UsageError: There is no such format.
    """
    # numpy comes with it.
    from moss_train.data.survey import language_of

    _check_name(format)
    if format == AUTO:
        format = detect_preference(value, origin)
    comparison = PREFERENCES[format](fields.require_object(value, origin, f"a comparison in the layout {format}"), origin, default_meta)
    if comparison.language is not None:
        return comparison
    return replace(comparison, language=language_of(comparison.dialogue(0)))


def detect_preference(value: Any, origin: str) -> str:
    """The name of the layout of a record, by its keys.

    Raises:
        RecordError: `not_an_object`, `missing_side`, or `unknown_format`.
    """
    value = fields.require_object(value, origin, "a comparison in one of the layouts " + ", ".join(PREFERENCES))
    if "context" in value and "responses" in value:
        return "comparisons"
    if any(side in value for side in _SIDES):
        given = [_side(value, side, origin) for side in _SIDES]
        if any(isinstance(side, list) and side and isinstance(side[0], dict) for side in given):
            return "messages"
        return "hh_rlhf" if value.get("prompt") is None else "reward_bench"
    if "question" in value and _solutions(value):
        return "model_solutions"
    hint = fields.did_you_mean(["context", "responses", *_SIDES, "question"], value)
    problem = (
        f"the record is in no known layout of comparisons (keys found: {fields.keys_found(value)}){hint}. Expected context and responses; "
        "chosen and rejected; or question and, for each model, an object with solution and is_correct."
    )
    raise RecordError(origin, "unknown_format", problem)


def _check_name(format: str) -> None:
    if format != AUTO and format not in PREFERENCES:
        raise UsageError(f"format={format!r}: expected {AUTO} or one of {', '.join(PREFERENCES)}.")


def _comparisons(value: dict[str, Any], origin: str, default_meta: str | None) -> Comparison:
    return parse_comparison(value, origin)


def _hh_rlhf(value: dict[str, Any], origin: str, default_meta: str | None) -> Comparison:
    sides = [_transcript(_side(value, side, origin), f'"{side}"', origin) for side in _SIDES]
    return _two_conversations(value, sides, origin, default_meta, "hh_rlhf")


def _messages(value: dict[str, Any], origin: str, default_meta: str | None) -> Comparison:
    prompt = value.get("prompt")
    sides = []
    for side in _SIDES:
        items = _side(value, side, origin)
        messages = parse_list(fields.require_list(items, f'"{side}"', origin, "messages"), side, origin)
        # UltraFeedback repeats the prompt in both sides.
        if prompt is not None and messages[0].role in ("assistant", "tool"):
            messages = [*_prompt(prompt, origin), *messages]
        sides.append(messages)
    return _two_conversations(value, sides, origin, default_meta, "messages")


def _reward_bench(value: dict[str, Any], origin: str, default_meta: str | None) -> Comparison:
    prompt = _prompt(fields.require_key(value, ["prompt"], "the record", origin), origin)
    texts, standings = [], []
    for standing, side in ((1.0, "chosen"), (0.0, "rejected")):
        given = _side(value, side, origin)
        for number, text in enumerate(given if isinstance(given, list) else [given]):
            where = f'"{side}[{number}]"' if isinstance(given, list) else f'"{side}"'
            texts.append(_reply(fields.require_text(text, where, origin), where))
            standings.append(standing)
    comparison = _answers(value, prompt, texts, standings, origin, default_meta, "reward_bench")
    # Of two on one side nothing is known.
    return replace(comparison, pairs=tuple(pair for pair in comparison.pairs if not pair.tied))


def _model_solutions(value: dict[str, Any], origin: str, default_meta: str | None) -> Comparison:
    question = fields.require_text(value.get("question"), '"question"', origin)
    solutions = _solutions(value)
    texts, standings = [], []
    for name, solution in solutions.items():
        correct = solution.get("is_correct")
        if not isinstance(correct, bool):
            raise RecordError(origin, "bad_rank", f'"{name}.is_correct" is {fields.kind_of(correct)}; expected true or false.')
        where = f'"{name}.solution"'
        texts.append(_reply(fields.require_text(solution.get("solution"), where, origin), where))
        standings.append(float(correct))
    if len(solutions) < 2:
        raise RecordError(origin, "one_response", f"{len(solutions)} solutions; a comparison needs two or more.")
    if len(set(standings)) == 1:
        problem = f"all {len(texts)} solutions are {'correct' if standings[0] else 'wrong'}: none is better than another; leave it out."
        raise RecordError(origin, "no_preference", problem)
    return _answers(value, _prompt(question, origin, "question"), texts, standings, origin, default_meta, "model_solutions")


PREFERENCES: Mapping[str, Callable[[dict[str, Any], str, str | None], Comparison]] = {
    "comparisons": _comparisons,
    "hh_rlhf": _hh_rlhf,
    "model_solutions": _model_solutions,
    "reward_bench": _reward_bench,
    "messages": _messages,
}
"""(record, origin, default meta instruction) -> comparison, by the name of the layout; raises RecordError."""


def _solutions(value: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Solutions by model."""
    return {name: one for name, one in value.items() if isinstance(one, dict) and {"solution", "is_correct"} <= one.keys()}


def _side(value: Mapping[str, Any], side: str, origin: str) -> Any:
    given = value.get(side)
    if given is None or given == []:
        problem = f'"{side}" is {"missing or null" if given is None else "an empty array"}; expected "chosen" and "rejected".'
        raise RecordError(origin, "missing_side", problem)
    return given


def _prompt(prompt: Any, origin: str, name: str = "prompt") -> list[Message]:
    if isinstance(prompt, list):
        return parse_list(fields.require_list(prompt, f'"{name}"', origin, "messages"), name, origin)
    return [Message("user", fields.require_text(prompt, f'"{name}"', origin).strip(), where=f'"{name}"')]


def _reply(text: str, where: str) -> Message:
    return Message("assistant", text.strip(), where=where)


def _transcript(text: Any, where: str, origin: str) -> list[Message]:
    """The messages of `\\n\\nHuman: ...\\n\\nAssistant: ...`."""
    text = fields.require_text(text, where, origin)
    before, *parts = _SPEAKER.split(text if text.startswith("\n") else f"\n\n{text}")
    if before.strip() or not parts:
        problem = f"{where} begins with {text[:40]!r}; expected a transcript, a blank line and Human: first. Other texts need a prompt."
        raise RecordError(origin, "not_a_transcript", problem)
    places = {"Human": 0, "Assistant": 0}
    messages = []
    for speaker, said in zip(parts[::2], parts[1::2]):
        places[speaker] += 1
        messages.append(Message(_ROLES[speaker], said.strip(), where=f"{where}, {speaker}: number {places[speaker]}"))
    return messages


def _check_reply(messages: Sequence[Message], origin: str) -> None:
    last = messages[-1]
    if last.role != "assistant" or last.calls:
        found = "calls tools" if last.calls else f"is of the {last.role}"
        problem = f"{last.where} is the last message and {found}; expected the assistant's reply, which is compared."
        raise RecordError(origin, "missing_side", problem)
    if not last.text.strip():
        raise RecordError(origin, "empty_response", f"{last.where} is the reply that is compared, and has no text; leave the record out.")


def _two_conversations(
    value: dict[str, Any], sides: Sequence[list[Message]], origin: str, default_meta: str | None, layout: str
) -> Comparison:
    """A comparison of the last replies of two conversations that are otherwise the same."""
    found = []
    for messages in sides:
        _check_reply(messages, origin)
        found.append(to_turns(messages, origin, open_end=False))
    (system, chosen), (other_system, rejected) = found
    if system != other_system:
        raise RecordError(
            origin, "contexts_differ", "the system texts of chosen and rejected differ; expected one context with two replies."
        )
    heads = [[*turns[:-1], Turn(turns[-1].human)] for turns in (chosen, rejected)]
    if heads[0] != heads[1]:
        common = next((number for number, (a, b) in enumerate(zip(*heads)) if a != b), min(map(len, heads)))
        problem = (
            f"chosen and rejected differ before the last reply: {common} turns are the same, of {len(chosen)} and {len(rejected)}; "
            "expected one context with two replies. Leave the record out."
        )
        raise RecordError(origin, "contexts_differ", problem)
    return _compared(value, system, heads[0], [chosen[-1], rejected[-1]], [1.0, 0.0], origin, default_meta, layout)


def _answers(
    value: dict[str, Any],
    prompt: list[Message],
    replies: Sequence[Message],
    standings: Sequence[float],
    origin: str,
    default_meta: str | None,
    layout: str,
) -> Comparison:
    """A comparison of replies to a prompt."""
    system, context = to_turns(prompt, origin, open_end=True)
    if context[-1].moss is not None or context[-1].commands is not None:
        problem = f"the prompt ends with {prompt[-1].where}, which is of the {prompt[-1].role}; expected the user's message last."
        raise RecordError(origin, "answered_context", problem)
    turns = []
    for reply in replies:
        _check_reply([reply], origin)
        turns.append(to_turns([Message("user", fields.bare(context[-1].human)), reply], origin, open_end=False)[1][0])
    return _compared(value, system, context, turns, standings, origin, default_meta, layout)


def _compared(
    value: dict[str, Any],
    system: str | None,
    context: Sequence[Turn],
    responses: Sequence[Turn],
    standings: Sequence[float],
    origin: str,
    default_meta: str | None,
    layout: str,
) -> Comparison:
    id = value["prompt_id"] if isinstance(value.get("prompt_id"), str) and "id" not in value else fields.read_id(value, origin)
    category = next((value[key] for key in ("category", "subset") if isinstance(value.get(key), str)), None)
    language = value.get("language")
    dialogue = Dialogue(id, fields.read_meta(value, system, origin, default_meta), tuple(context), category, origin)
    return compare(
        dialogue,
        responses,
        standings,
        language=language if isinstance(language, str) else None,
        provenance={"by": "data set", "layout": layout},
    )
