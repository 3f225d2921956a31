"""The suite `dialogue`: how likely a model finds held-out dialogues, by segment and turn, and whether what it writes keeps to the format.

Loss is in nats per token of contents and their ends, as in training; openings are not counted, since the program writes them.
`dialogue/loss` is over all that MOSS writes (inner thoughts, commands, reply): the loss of `data.loss_on=generated`. That of Results is
shown too, although no training puts loss on it: it says how surprising tools are. Turns from the end that do not fit are left out.

Format is judged on turns that are written anew, each with the turns before it, and the results of its tools, as they stand in the data:

    ends         every segment ends with its own control token, within the tokens it has
    order        no segment ends with another one's, and none spells a role marker or a control token, as a model does that runs on
    reply        the reply is not empty and ends by itself: nothing comes after it
    commands     of the turns with commands, those that are `None`, or calls of known tools with one text each
    all          all of these
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue
from moss_train.data.render import Rendered, render_each
from moss_train.data.sources import source_of
from moss_train.data.tokenizer import CONTROL_TOKENS
from moss_train.data.windows import spread
from moss_train.errors import DataError
from moss_train.evaluate.asking import AskedTurn, End, ask_turn, has_room, transcript_of
from moss_train.evaluate.bars import Bar, draw_bars
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.dialogue_data import read_parts
from moss_train.evaluate.figures import Form, Measure
from moss_train.evaluate.likelihood import Window, score_windows
from moss_train.evaluate.output import json_lines
from moss_train.evaluate.plugin_suite import calls_in
from moss_train.evaluate.suite import (
    Outcome,
    common_settings,
    describe_counts,
    generation_settings,
    make_table,
    number,
    open_speaker,
    percent,
    run_suite,
)
from moss_train.evaluate.tool_calls import well_formed
from moss_train.inference.speaker import Speaker

_log = logging.getLogger("moss_train")

SUITE = "dialogue"
_LAST_TURN = 6
"""Turns from this one on are counted together."""
_KINDS = ("thoughts", "commands", "results", "moss")
_KIND_WORDS = {kind.name: kind.key for kind in SEGMENT_KINDS}
_FORMAT = {
    "all": "all of these",
    "ends": "every segment ends itself",
    "order": "none runs on into another",
    "reply": "the reply is there, and ends",
    "commands": "commands are calls, or None",
}
_SPELLED = (*(kind.opening[:-1] for kind in SEGMENT_KINDS), *CONTROL_TOKENS)


def evaluate_dialogues(config: EvaluateConfig) -> None:
    """Measures, writes turns anew, reports, and writes the evaluation.

    Raises:
        DataError: The dialogues cannot be read, or none fits the model.
        CheckpointError: The model cannot be loaded.
        NonFiniteError: A loss is not a finite number.
        UsageError: `out` cannot be written.
    """
    dialogues, parts, bad = read_parts(config)

    def measure() -> tuple[Outcome, Sequence[Any]]:
        started = time.perf_counter()
        speaker = open_speaker(config)
        measures, counts = measure_loss(speaker, dialogues, config.batch_tokens)
        _log.info(f"{counts['dialogues_rendered']:,} dialogues in {time.perf_counter() - started:.1f} s")
        places = _places(dialogues, config.replies)
        asked, left_out = write_anew(speaker, dialogues, places)
        for (place, _), turn in asked.items():
            for name, (part, weight) in judge_format(turn).items():
                measures.setdefault(f"{SUITE}/format/{name}", Measure()).add(_item(place, dialogues), part, weight)
        if asked:
            _log.info(f"{len(asked):,} turns written, {time.perf_counter() - started:.1f} s")
        sources = [source_of(spec, records, "evaluation") for spec, records in parts]
        written = json_lines(_line(dialogues[place], turn, asked[place, turn]) for place, turn in asked)
        outcome = Outcome(
            SUITE,
            measures,
            {**common_settings(speaker), **generation_settings(speaker), "replies": config.replies},
            {"counts": dict(counts), "left_out": dict(left_out + bad), "written": len(asked)},
            sources=[source for source, _ in sources],
            parents=[parent for _, parents in sources for parent in parents],
            files={
                "turns.jsonl": written.encode(errors="replace"),
                "dialogue.png": _picture(measures, config.seed),
            },
        )
        dropped = {name: count for name, count in (counts + left_out + bad).items() if "dropped" in name or "shortened" in name}
        lines = [f"{counts['dialogues_rendered']:,} dialogues; left out: {describe_counts(Counter(dropped) + left_out + bad) or 'nothing'}"]
        return outcome, [_losses(measures, config.seed), *([_formats(measures, config.seed)] if asked else []), *lines]

    run_suite(config, measure)


# ---------------------------------------------------------------------- loss


def measure_loss(speaker: Speaker, dialogues: Sequence[Dialogue], batch_tokens: int) -> tuple[dict[str, Measure], Counter[str]]:
    """The losses, and what came of rendering, as `render_each` counts it.

    Args:
        speaker: The model. dialogues: What it reads. batch_tokens: At once.

    Raises:
        DataError: Not one dialogue fits.
        NonFiniteError: The model gives no number.
    """
    counts: Counter[str] = Counter()
    names: list[str] = ["", "perplexity", *_KINDS]
    measures = {f"{SUITE}/loss": _mean(), f"{SUITE}/perplexity": Measure(Form.exp, "lower", True)}
    measures |= {f"{SUITE}/{kind}/loss": _mean() for kind in names[2:]}
    waiting: list[Rendered] = []
    by_origin = {dialogue.origin: _item(place, dialogues) for place, dialogue in enumerate(dialogues)}

    def windows() -> Iterator[Window]:
        # A document of n ids has n - 1 positions.
        for one in render_each(dialogues, speaker.tokenizer, counts, "generated", speaker.model.config.n_positions + 1):
            waiting.append(one)
            yield Window(one.input_ids[:-1], one.input_ids[1:])

    for losses in score_windows(speaker, windows(), batch_tokens):
        one = waiting.pop(0)
        for segment in one.segments:
            if segment.kind not in _KINDS:
                continue
            # The loss of id n is that of target n - 1.
            nats = math.fsum(losses.nats[segment.content_start - 1 : segment.end - 1])
            tokens, item = segment.end - segment.content_start, by_origin[one.origin]
            measures[f"{SUITE}/{segment.kind}/loss"].add(item, nats, tokens)
            if segment.trained:
                for name in ("loss", "perplexity"):
                    measures[f"{SUITE}/{name}"].add(item, nats, tokens)
                turn = min(segment.turn + 1, _LAST_TURN)
                measures.setdefault(f"{SUITE}/turn_{turn}/loss", _mean()).add(item, nats, tokens)
    if not measures[f"{SUITE}/loss"].parts:
        raise DataError(f"none of {len(dialogues):,} dialogues fits into the {speaker.model.config.n_positions} positions of the model")
    return {name: one for name, one in measures.items() if one.parts}, counts


def _mean() -> Measure:
    return Measure(Form.mean, "lower", True)


def _item(place: int, dialogues: Sequence[Dialogue]) -> str:
    return f"{place}:{dialogues[place].id}"


# ---------------------------------------------------------------------- format


def _places(dialogues: Sequence[Dialogue], wanted: int) -> list[tuple[int, int]]:
    """Dialogue and turn of those to write anew, evenly spread."""
    every = [(place, turn) for place, one in enumerate(dialogues) for turn, said in enumerate(one.turns) if said.moss is not None]
    return [every[place] for place in spread(len(every), wanted)]


def write_anew(
    speaker: Speaker, dialogues: Sequence[Dialogue], places: Sequence[tuple[int, int]]
) -> tuple[dict[tuple[int, int], AskedTurn], Counter[str]]:
    """The turns by place, as the model writes them; those without room for a reply are counted as `turns_too_long`."""
    left_out: Counter[str] = Counter()

    def tasks() -> Iterator[tuple[int, Any]]:
        for place_number, (place, turn) in enumerate(places):
            transcript, gold = transcript_of(speaker, dialogues[place], turn), dialogues[place].turns[turn]
            if has_room(speaker, transcript, gold):
                yield place_number, ask_turn(speaker, transcript, gold, lambda _, found=gold.results or "": found)  # type: ignore[misc]
            else:
                left_out["turns_too_long"] += 1

    found = dict(speaker.decoder.run(tasks()))
    return {places[one]: found[one] for one in sorted(found)}, left_out


def judge_format(turn: AskedTurn) -> dict[str, tuple[float, float]]:
    """What holds of a turn, each with its weight: 0 where it does not apply."""
    written = turn.segments.values()
    ends = all(one.end is End.own for one in written)
    order = all(one.end is not End.other and not any(spelled in one.text for spelled in _SPELLED) for one in written)
    moss = turn.segments.get("moss")
    reply = moss is not None and bool(moss.text.strip()) and moss.end is End.own
    commands = turn.segments.get("commands")
    calls = calls_in(commands.text) if commands is not None else []
    formed = calls == [] or well_formed(calls)
    found = {"all": ends and order and reply and formed, "ends": ends, "order": order, "reply": reply}
    return {name: (float(holds), 1.0) for name, holds in found.items()} | {"commands": (float(formed), float(commands is not None))}


# ---------------------------------------------------------------------- what is written


def _losses(measures: Mapping[str, Measure], seed: int) -> Any:
    table = make_table("nats per token of contents and their ends", ("", "dialogues", "tokens", "loss", "95 %", "perplexity"))
    for key, words in _loss_rows(measures):
        measure = measures[key]
        tokens = sum(weight for _, weight in measure.parts.values())
        value = measure.value
        perplexity = f"{math.exp(value):.2f}" if value is not None and value < 700 else "-"
        table.add_row(words, f"{len(measure.parts):,}", f"{tokens:,.0f}", *number(measure, seed), perplexity)
    return table


def _loss_rows(measures: Mapping[str, Measure]) -> list[tuple[str, str]]:
    rows = [(f"{SUITE}/loss", "all that MOSS writes")]
    rows += [(f"{SUITE}/{kind}/loss", _KIND_WORDS[kind] + (" (never trained)" if kind == "results" else "")) for kind in _KINDS]
    rows += [(f"{SUITE}/turn_{turn}/loss", f"turn {turn}{' and later' if turn == _LAST_TURN else ''}") for turn in range(1, _LAST_TURN + 1)]
    return [row for row in rows if row[0] in measures]


def _formats(measures: Mapping[str, Measure], seed: int) -> Any:
    table = make_table("format of turns written anew, in %", ("", "dialogues", "turns", "share", "95 %"))
    for key, words in _FORMAT.items():
        measure = measures.get(f"{SUITE}/format/{key}")
        if measure is not None and measure.parts:
            turns = sum(weight for _, weight in measure.parts.values())
            table.add_row(words, f"{len(measure.parts):,}", f"{turns:,.0f}", *percent(measure, seed))
    return table


def _picture(measures: Mapping[str, Measure], seed: int) -> bytes:
    return draw_bars("nats per token, lower is better", [Bar(words, measures[key].describe(seed)) for key, words in _loss_rows(measures)])


def _line(dialogue: Dialogue, place: int, turn: AskedTurn) -> dict[str, Any]:
    return {
        "id": dialogue.id,
        "origin": dialogue.origin,
        "turn": place + 1,
        "human": dialogue.turns[place].human.strip(),
        "segments": {name: {"text": one.text, "end": one.end.value} for name, one in turn.segments.items()},
        "format": {name: bool(part) for name, (part, weight) in judge_format(turn).items() if weight},
    }
