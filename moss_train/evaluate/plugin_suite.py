"""The suite `plugins`: held-out dialogues with tools, asked turn by turn, each with the turns before it as they stand in the data.

Asked are all turns that have Commands in the data, be they `None`. A turn calls where its Commands are not `None`, readable or not. Where
no tool is switched on in the meta instruction, a call is a mistake, and only inner thoughts and commands are written. Calls are run: the
calculator's and the equation solver's here; where a model's calls are equivalent to those of the data, the results of the data stand in for
tools that are not on this machine, such as a search.

    decision     calls where the data does: accuracy, precision, recall, F1 over turns
    well formed  of the turns in which it calls, those whose Commands are calls of known tools with one text each
    right tool   of the turns in which the data calls, those with the same tools, each as often
    arguments    of the same turns, those whose calls are equivalent (`tool_calls.py`); also of those with the right tools
    uses         of the turns with a result of which that can be told, those whose reply says it

Beside them stand two that need no model: one that always does what is done most in these very turns (the majority decision, and the
majority tool), and one that calls wherever a tool is switched on. Intervals are over dialogues.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.calls import Call, read_results, scan_commands
from moss_train.data.sources import source_of
from moss_train.data.survey import language_of
from moss_train.errors import DataError
from moss_train.evaluate.asking import AskedTurn, End, ask_turn, has_room, transcript_of
from moss_train.evaluate.bars import Bar, draw_bars
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.dialogue_data import read_parts
from moss_train.evaluate.figures import Measure, difference
from moss_train.evaluate.output import json_lines
from moss_train.evaluate.suite import (
    Outcome,
    common_settings,
    describe_counts,
    generation_settings,
    make_table,
    open_speaker,
    percent,
    run_suite,
)
from moss_train.evaluate.suite import label as as_label
from moss_train.evaluate.tool_calls import same_calls, uses_result, well_formed
from moss_train.inference.plugins import NO_RESULTS, Toolbox, make_toolbox, switched_on
from moss_train.inference.speaker import Speaker

_log = logging.getLogger("moss_train")

SUITE = "plugins"
_TOLD_EVERY = 15.0
_SHOWN = {
    "accuracy": "decision: right",
    "precision": "decision: precision",
    "recall": "decision: recall",
    "f1": "decision: F1",
    "on/accuracy": "right where tools are on",
    "well_formed": "calls well formed",
    "tool": "right tool",
    "arguments": "arguments equivalent",
    "arguments_given_tool": "arguments, tool right",
    "uses_result": "reply uses the result",
    "ended": "segments end as they should",
}


@dataclass
class Question:
    """A turn to ask.

    Attributes:
        item: Name of its dialogue. dialogue: That. number: Of the turn, from 0.
        calls: What the data calls; empty for none, None where its Commands cannot be read. on: Whether a tool is switched on.
    """

    item: str
    dialogue: Dialogue
    number: int
    calls: list[Call] | None
    on: bool = True

    @property
    def gold(self) -> Turn:
        """As it stands in the data."""
        return self.dialogue.turns[self.number]

    @property
    def asked(self) -> Turn:
        """The segments to write: all of them, or, where no tool is switched on, those up to the decision."""
        return self.gold if self.on else replace(self.gold, results=None, moss=None)

    @property
    def called(self) -> bool:
        """Whether the data calls."""
        return self.calls is None or bool(self.calls)


@dataclass
class Answer:
    """What came of a question.

    Attributes:
        turn: As the model wrote it. results: Of each call that was run, with the call.
        calls: What it called; empty for none, None where that cannot be read.
    """

    turn: AskedTurn
    calls: list[Call] | None
    results: list[tuple[Call, str]] = field(default_factory=list)

    @property
    def called(self) -> bool:
        """Whether it calls."""
        return self.calls is None or bool(self.calls)


def evaluate_plugins(config: EvaluateConfig) -> None:
    """Asks, reports, and writes the evaluation.

    Raises:
        DataError: The dialogues cannot be read, or none has a tool.
        CheckpointError: The model cannot be loaded.
        UsageError: `out` cannot be written.
    """
    dialogues, parts, bad = read_parts(config)
    questions, left_out = find_questions(dialogues)
    if not questions:
        raise DataError(f"data={config.data}: no turn to ask ({describe_counts(left_out)}); expected dialogues with Commands, be they None")

    def measure() -> tuple[Outcome, Sequence[Any]]:
        started = time.perf_counter()
        speaker = open_speaker(config)
        answers = ask(speaker, questions, left_out)
        _log.info(f"{len(answers):,} turns in {time.perf_counter() - started:.1f} s")
        asked = [question for number, question in enumerate(questions) if number in answers]
        given = [answers[number] for number in sorted(answers)]
        measures = tally(asked, given)
        majority, baseline = majority_of(asked)
        compared = compare(measures, baseline, config.seed)
        switches = compare(measures, guess(asked, [one.on for one in asked], majority["tool"]), config.seed)
        sources = [source_of(spec, records, "evaluation") for spec, records in parts]
        counts = {"turns": len(asked), "called_in_data": sum(one.called for one in asked), "called": sum(one.called for one in given)}
        outcome = Outcome(
            SUITE,
            measures,
            {**common_settings(speaker), **generation_settings(speaker)},
            {"counts": counts, "majority": majority, "baseline": compared, "as_switched": switches, "left_out": dict(left_out + bad)},
            sources=[source for source, _ in sources],
            parents=[parent for _, parents in sources for parent in parents],
            files={
                "turns.jsonl": json_lines(map(_line, asked, given)).encode(errors="replace"),
                "plugins.png": _picture(measures, baseline, config.seed),
            },
        )
        lines = [
            f"{counts['turns']:,} turns, the data calls in {counts['called_in_data']:,}, the model in {counts['called']:,}; "
            f"baseline: always {'a call' if majority['calls'] else 'no call'}, tool {majority['tool']}"
        ]
        return outcome, [
            _table(measures, compared, switches, config.seed),
            *lines,
            f"left out: {describe_counts(left_out + bad) or 'nothing'}",
        ]

    run_suite(config, measure)


def find_questions(dialogues: Sequence[Dialogue]) -> tuple[list[Question], Counter[str]]:
    """The turns to ask, and how many others there are, by what they lack."""
    found, left_out = [], Counter[str]()
    for place, dialogue in enumerate(dialogues):
        on = bool(switched_on(dialogue.meta_instruction))
        for number, turn in enumerate(dialogue.turns):
            if turn.commands is None or turn.moss is None:
                left_out["turns_without_commands"] += 1
            else:
                found.append(Question(f"{place}:{dialogue.id}", dialogue, number, calls_in(turn.commands), on))
    return found, left_out


def calls_in(commands: str) -> list[Call] | None:
    """The calls in Commands; empty for none, None where it says something that is no list of calls."""
    return [] if commands.strip().rstrip(".。") in ("", "None") else scan_commands(commands)


def ask(speaker: Speaker, questions: Sequence[Question], left_out: Counter[str]) -> dict[int, Answer]:
    """Answers by number of the question; those that leave no room for a reply are counted as `too_long`."""
    toolbox = make_toolbox()
    results: dict[int, list[tuple[Call, str]]] = {}

    def tasks() -> Iterator[tuple[int, Any]]:
        for number, question in enumerate(questions):
            transcript = transcript_of(speaker, question.dialogue, question.number)
            if not has_room(speaker, transcript, question.gold):
                left_out["turns_too_long"] += 1
                continue

            def find(commands: str, number: int = number, question: Question = question) -> str:
                text, results[number] = run_calls(commands, question, toolbox)
                return text

            yield number, ask_turn(speaker, transcript, question.asked, find)

    answers: dict[int, Answer] = {}
    told = time.perf_counter()
    for number, turn in speaker.decoder.run(tasks()):
        answers[number] = Answer(turn, calls_in(turn.segments["commands"].text), results.get(number, []))
        if time.perf_counter() - told >= _TOLD_EVERY:
            told = time.perf_counter()
            _log.info(f"{len(answers):,} of {len(questions):,} turns")
    return answers


def run_calls(commands: str, question: Question, toolbox: Toolbox) -> tuple[str, list[tuple[Call, str]]]:
    """The content of Results, and the result of each call that was run.

    Args:
        commands: As the model wrote them. question: What was asked. toolbox: The tools of this machine.
    """
    calls, gold = calls_in(commands), question.calls
    found = read_results(question.gold.results or "", gold) if gold else None
    if calls and gold and found is not None and any(call.name in ("Search", "Text2Image") for call in gold) and same_calls(calls, gold):
        return question.gold.results or NO_RESULTS, list(zip(gold, found, strict=True))
    run = toolbox.run(commands, switched_on(question.dialogue.meta_instruction))
    texts = read_results(run.results_text, run.calls) if run.calls else None
    return run.results_text, list(zip(run.calls, texts or [], strict=False))


def tally(questions: Sequence[Question], answers: Sequence[Answer | None]) -> dict[str, Measure]:
    """The figures. An answer of None is one that calls nothing and writes nothing: a baseline's.

    Args:
        questions: What was asked. answers: In the same order.
    """
    measures = {f"{SUITE}/{name}": Measure() for name in _SHOWN}

    def add(name: str, item: str, part: float, weight: float = 1.0) -> None:
        measures.setdefault(f"{SUITE}/{name}", Measure()).add(item, part, weight)

    for question, answer in zip(questions, answers, strict=True):
        item = question.item
        called, calls = (answer.called, answer.calls or []) if answer is not None else (False, [])
        right = called and question.called
        add("accuracy", item, called == question.called)
        add("on/accuracy", item, called == question.called, question.on)
        add("precision", item, right, called)
        add("recall", item, right, question.called)
        # F1 is a ratio of counts: twice the right calls to all calls of both.
        add("f1", item, 2 * right, called + question.called)
        add(f"language/{language_of(question.dialogue)}/f1", item, 2 * right, called + question.called)
        if answer is not None:
            add("well_formed", item, well_formed(answer.calls) and answer.turn.segments["commands"].end is End.own, called)
            add("ended", item, all(one.end is End.own for one in answer.turn.segments.values()))
            moss = answer.turn.segments.get("moss")
            told = [uses_result(moss.text if moss else "", call, result) for call, result in answer.results]
            add("uses_result", item, any(told), bool(moss) and any(said is not None for said in told))
        if question.calls:
            names = Counter(call.name for call in question.calls)
            right_tool = Counter(call.name for call in calls) == names
            same = right_tool and same_calls(calls, question.calls)
            add("tool", item, right_tool)
            add("arguments", item, same)
            add("arguments_given_tool", item, same, right_tool)
            for name in names:
                add(f"tool/{name}", item, any(call.name == name for call in calls))
    return measures


def majority_of(questions: Sequence[Question]) -> tuple[dict[str, Any], dict[str, Measure]]:
    """What is done most in these turns, and the figures of doing nothing else."""
    calls = 2 * sum(question.called for question in questions) > len(questions)
    tools = Counter(call.name for question in questions for call in question.calls or ())
    tool = tools.most_common(1)[0][0] if tools else None
    return {"calls": calls, "tool": tool, "tools": dict(tools.most_common())}, guess(questions, [calls] * len(questions), tool)


def guess(questions: Sequence[Question], calls: Sequence[bool], tool: str | None) -> dict[str, Measure]:
    """The figures of decisions that no model made.

    Args:
        questions: What was asked. calls: Whether it calls, in the same order. tool: What it calls.
    """
    measures = tally(questions, [None] * len(questions))
    fresh = {name: Measure() for name in ("accuracy", "precision", "recall", "f1", "on/accuracy", "tool")}
    for question, called in zip(questions, calls, strict=True):
        right = called and question.called
        fresh["accuracy"].add(question.item, called == question.called, 1)
        fresh["on/accuracy"].add(question.item, called == question.called, question.on)
        fresh["precision"].add(question.item, right, called)
        fresh["recall"].add(question.item, right, question.called)
        fresh["f1"].add(question.item, 2 * right, called + question.called)
        if question.calls:
            # As if it knew when to call: the tool alone is guessed.
            fresh["tool"].add(question.item, [call.name for call in question.calls] == [tool], 1)
    return measures | {f"{SUITE}/{name}": one for name, one in fresh.items()}


def compare(measures: Mapping[str, Measure], baseline: Mapping[str, Measure], seed: int) -> dict[str, Any]:
    """A baseline's figures, and the model's less these."""
    found = {}
    for name in ("accuracy", "precision", "recall", "f1", "on/accuracy", "tool", "arguments"):
        model, other = measures[f"{SUITE}/{name}"], baseline[f"{SUITE}/{name}"]
        found[f"{SUITE}/{name}"] = {**other.describe(seed), "model_minus_it": difference(other, model, seed)}
    return found


def _table(measures: Mapping[str, Measure], compared: Mapping[str, Any], switches: Mapping[str, Any], seed: int) -> Any:
    headings = ("", "dialogues", "of", "model", "95 %", "majority", "model minus it", "95 %", "as switched")
    table = make_table("tools, in %", headings)
    for key, words in {**_SHOWN, **_more_shown(measures)}.items():
        name = f"{SUITE}/{key}"
        measure, other, switched = measures[name], compared.get(name), switches.get(name)
        beside = ["-"] * 4
        if other is not None and other["value"] is not None:
            beside[0] = f"{100 * other['value']:.1f}"
            minus = other["model_minus_it"]
            if minus is not None:
                beside[1] = f"{100 * minus['value']:+.1f}"
                beside[2] = "..".join(f"{100 * bound:+.1f}" for bound in minus["interval"]) if minus["interval"] else "-"
        if switched is not None and switched["value"] is not None:
            beside[3] = f"{100 * switched['value']:.1f}"
        weight = sum(one for _, one in measure.parts.values())
        table.add_row(as_label(words), f"{len(measure.parts):,}", f"{weight:,.0f}", *percent(measure, seed), *beside)
    return table


def _more_shown(measures: Mapping[str, Measure]) -> dict[str, str]:
    """Figures by tool and by language, and their words."""
    found = {}
    for name in sorted(measures):
        key = name.removeprefix(f"{SUITE}/")
        if key not in _SHOWN:
            found[key] = key.replace("tool/", "recall of ").replace("/f1", ": F1").replace("/", " ")
    return found


def _picture(measures: Mapping[str, Measure], baseline: Mapping[str, Measure], seed: int) -> bytes:
    guessed = ("accuracy", "precision", "recall", "f1", "on/accuracy", "tool", "arguments")
    bars = [
        Bar(words, measures[f"{SUITE}/{key}"].describe(seed), baseline[f"{SUITE}/{key}"].value if key in guessed else None)
        for key, words in _SHOWN.items()
    ]
    return draw_bars("tools: shares", bars, 1.0)


def _line(question: Question, answer: Answer) -> dict[str, Any]:
    return {
        "item": question.item,
        "origin": question.dialogue.origin,
        "turn": question.number + 1,
        "human": question.gold.human.strip(),
        "gold_commands": question.gold.commands,
        "segments": {name: {"text": one.text, "end": one.end.value} for name, one in answer.turn.segments.items()},
        "results": answer.turn.results,
        "on": question.on,
        "called": answer.called,
        "well_formed": well_formed(answer.calls),
        "same": bool(answer.calls and question.calls and same_calls(answer.calls, question.calls)),
        "dropped_turns": answer.turn.dropped_turns,
    }
