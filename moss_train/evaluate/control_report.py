"""The report of the suite `control`: from responses in all conditions to figures, and from these to a text that says who wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moss_train.evaluate import control_measures as measures
from moss_train.evaluate.config import SFT
from moss_train.evaluate.control_conditions import NONE, name_of_level
from moss_train.evaluate.control_measures import Answers, Response
from moss_train.pm.levels import Scale

_UNSURE = "not distinguishable from it, at 95 %"


@dataclass(frozen=True)
class Measured:
    """What was answered.

    Attributes:
        answers: Of each condition, by name.
        levels: Those the model was trained with, ascending.
        categories: Of the prompts.
        scale: Of measured levels, or None. why_no_scale: Why there is none.
        strengths: Of guidance, besides 1, with which levels were asked for too.
    """

    answers: Mapping[str, Answers]
    levels: Sequence[int]
    categories: Sequence[str]
    scale: Scale | None
    why_no_scale: str | None
    strengths: Sequence[float] = ()

    def named(self, level: int, guidance: float = 1.0) -> str:
        """The condition in which a level was asked for with guidance; the level that is led away from is the same with any."""
        name = name_of_level(level, guidance)
        return name if name in self.answers else name_of_level(level)

    def requested(self, guidance: float = 1.0) -> dict[int, Answers]:
        """The answers for which a level was asked, by level."""
        return {level: self.answers[self.named(level, guidance)] for level in self.levels}

    def level_of(self, response: Response) -> int | None:
        """The measured level of a response, or None."""
        return None if self.scale is None else measures.measured_level(self.scale, self.levels, response)


def measure(answers: Mapping[str, Answers], levels: Sequence[int], categories: Sequence[str], strengths: Sequence[float] = ()) -> Measured:
    """Answers with the scale of their measured levels, which those without guidance make; arguments as in `Measured`."""
    scale, why = measures.try_measure({level: answers[name_of_level(level)] for level in levels})
    return Measured(answers, levels, categories, scale, why, strengths)


def report(measured: Measured, seed: int = 0) -> dict[str, Any]:
    """All figures.

    Args:
        measured: What was answered. seed: Of the intervals.

    Returns:
        Values of JSON, None where a figure is not defined: `levels`; `scale`, or `no_scale`, which says why; `matrix`; `agreement`;
        `spearman` of `reward` and `measured_level`; `contrasts`; `guided`, of each strength of guidance the `spearman` of `reward` and the
        `contrasts`; `conditions` by name; `conclusion`, sentences.
    """
    requested, scale = measured.requested(), measured.scale
    rows = {NONE: measured.answers[NONE], **{name_of_level(level): requested[level] for level in measured.levels}}
    found: dict[str, Any] = {
        "levels": list(measured.levels),
        "scale": None if scale is None else scale.to_json(),
        "no_scale": measured.why_no_scale,
        "matrix": None if scale is None else measures.matrix(scale, rows, measured.levels, seed),
        "agreement": None if scale is None else measures.agreement(scale, requested, seed),
        "spearman": {
            "reward": measures.steering(requested, lambda one: one.standing, seed),
            "measured_level": measures.steering(requested, measured.level_of, seed),
        },
        "contrasts": _contrasts(measured, seed),
        "guided": [
            {
                "guidance": one,
                "spearman": {"reward": measures.steering(measured.requested(one), lambda one: one.standing, seed)},
                "contrasts": _contrasts(measured, seed, one),
            }
            for one in measured.strengths
        ],
        "conditions": {name: _condition(measured, name, seed) for name in measured.answers},
    }
    return {**found, "conclusion": conclude(found)}


def _contrasts(measured: Measured, seed: int, guidance: float = 1.0) -> list[dict[str, Any]]:
    """Best over none, best over worst, none over worst; with one level the first alone."""
    worst, best = (measured.named(measured.levels[place], guidance) for place in (0, -1))
    pairs = {"best over none": (best, NONE)}
    if worst != best:
        pairs |= {"best over worst": (best, worst), "none over worst": (NONE, worst)}
    return [
        {"name": name, "first": first, "second": second, **_wins(measured.answers[first], measured.answers[second], seed)}
        for name, (first, second) in pairs.items()
    ]


def _wins(first: Answers, second: Answers, seed: int) -> dict[str, Any]:
    return {"win": measures.win_rate(first, second, seed=seed), "equal_length": measures.win_rate(first, second, near=True, seed=seed)}


def _condition(measured: Measured, name: str, seed: int) -> dict[str, Any]:
    answers = measured.answers[name]
    over = {
        f"over_{other}": _wins(answers, measured.answers[other], seed)
        for other in (NONE, SFT)
        if other in measured.answers and other != name
    }
    return {**over, "correct": measures.correctness(answers, measured.categories, seed), **measures.side_effects(answers, seed)}


# ---------------------------------------------------------------------- who wins


def conclude(found: Mapping[str, Any]) -> list[str]:
    """Sentences that say who wins, from the figures of `report`."""
    spearman = found["spearman"]["reward"]
    said = [_steers("over all responses", spearman["value"], spearman["interval"])]
    said.append(_steers("among the responses to one prompt", spearman["within"], spearman["within_interval"]))
    for one in found["contrasts"]:
        said.append(_contrast(one))
    for guided in found["guided"]:
        strength, spearman = f"guidance {guided['guidance']:g}", guided["spearman"]["reward"]
        said.append(_steers(f"with {strength}, over all responses", spearman["value"], spearman["interval"]))
        said.append(_steers(f"with {strength}, among the responses to one prompt", spearman["within"], spearman["within_interval"]))
    rates = {name: one[f"over_{NONE}"]["win"] for name, one in found["conditions"].items() if f"over_{NONE}" in one}
    placed = {name: (one["rate"], one["interval"]) for name, one in rates.items() if one["rate"] is not None}
    if placed:
        # Of itself it wins half, and that is no estimate.
        said.append(_leader("By the judge's rewards over `none`", {NONE: (0.5, [0.5, 0.5]), **placed}))
    checked = {name: one["correct"] for name, one in found["conditions"].items() if one["correct"] is not None}
    if checked:
        said.append(_leader("By answers that were checked", {name: (one["share"], one["interval"]) for name, one in checked.items()}))
    return said


def _steers(where: str, value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return f"Level asked for and reward, {where}: no correlation is defined."
    told = f"Spearman {value:+.2f} ({interval[0]:+.2f} to {interval[1]:+.2f})"
    if interval[0] > 0:
        return f"The tag steers, {where}: {told}."
    if interval[1] < 0:
        return f"The tag steers the wrong way, {where}: {told}."
    return f"That the tag steers cannot be told, {where}: {told}."


def _contrast(one: Mapping[str, Any]) -> str:
    win = one["win"]
    if win["rate"] is None:
        return f"{_capital(one['name'])}: no rewards to compare."
    low, high = win["interval"]
    told = f"{_capital(one['name'])} ({one['first']} over {one['second']}): {_percent(win['rate'])} % ({_interval(win['interval'])})"
    equal = one["equal_length"]
    also = "no pairs of equal length" if equal["rate"] is None else f"of equal length {_percent(equal['rate'])} %"
    if equal["rate"] is not None:
        also += f" ({_interval(equal['interval'])})"
    verdict = f"{one['first']} wins" if low > 0.5 else f"{one['second']} wins" if high < 0.5 else "not distinguishable"
    return f"{told}; {also}: {verdict}."


def _leader(by: str, placed: Mapping[str, tuple[float, Sequence[float]]]) -> str:
    """Which has the largest share, and whose intervals overlap with its."""
    first = max(placed, key=lambda name: placed[name][0])
    share, interval = placed[first]
    near = [name for name, (_, other) in placed.items() if name != first and other[1] >= interval[0]]
    told = f"{by}, {first} is first with {_percent(share)} %" + (f" ({_interval(interval)})" if interval[0] < interval[1] else "")
    return f"{told}; {_UNSURE}: {', '.join(near)}." if near else f"{told}; all others are below its interval."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------------- as a text


def describe(found: Mapping[str, Any]) -> str:
    """The report as Markdown that can be read in a terminal too: one table of all conditions, the matrix, and who wins.

    Args:
        found: As `report` gives it, with `prompts`, `samples`, `model` and `judge` beside.
    """
    lines = [
        "# Does the tag steer?",
        "",
        f"{found['prompts']:,} prompts, {found['samples']} responses to each in every condition; model {found['model']['name']}, judged by "
        f"{found['judge']['name']}. In % with intervals at 95 %, by prompts.",
        "",
        *_conditions(found),
        "",
        *_matrix(found),
        "",
        *[f"- {sentence}" for sentence in found["conclusion"]],
    ]
    return "\n".join(lines) + "\n"


def _conditions(found: Mapping[str, Any]) -> list[str]:
    conditions: Mapping[str, Mapping[str, Any]] = found["conditions"]
    others = [other for other in (NONE, SFT) if other in conditions]
    has_checks = any(one["correct"] is not None for one in conditions.values())
    has_calls = any(one["calls"]["share"] for one in conditions.values())
    has_held_out = any(one.get("held_out") is not None for one in conditions.values())
    headings = ["condition"]
    for other in others:
        headings += [f"over {other}", "equal length"]
    headings += ["right"] * has_checks + ["length", "finished", "refused", "distinct-1", "distinct-2"]
    headings += ["calls", "formed"] * has_calls + ["nats a token"] * has_held_out
    rows = []
    for name, one in conditions.items():
        row = [name]
        for other in others:
            wins = one.get(f"over_{other}")
            row += ["-", "-"] if wins is None else [_cell(wins[part], "rate") for part in ("win", "equal_length")]
        row += [_cell(one["correct"], "share")] * has_checks
        length = one["length"]["mean"]
        row += ["-" if length is None else f"{length:.1f}", _percent(one["finished"]["share"]), _percent(one["refused"]["share"])]
        row += ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("distinct_1", "distinct_2")]
        row += [_percent(one[key]["share"]) for key in ("calls", "calls_formed")] * has_calls
        held_out = one.get("held_out")
        row += ["-" if held_out is None else f"{held_out['log_probability']:.3f}"] * has_held_out
        rows.append(row)
    return _table(headings, rows)


def _matrix(found: Mapping[str, Any]) -> list[str]:
    matrix = found["matrix"]
    if matrix is None:
        return [f"No measured levels: {found['no_scale']}"]
    headings = ["asked for", *(f"measured {level}" for level in matrix["columns"])]
    rows = [[name, *map(_percent, shares)] for name, shares in zip(matrix["rows"], matrix["shares"], strict=True)]
    agreement = found["agreement"]
    level = found["spearman"]["measured_level"]
    told = f"Measured as asked: {_cell(agreement, 'share')} %, by chance {_percent(agreement['by_chance'])} %"
    if level["value"] is not None:
        told += f"; Spearman of level asked for and measured {level['value']:+.2f}"
    return [*_table(headings, rows), "", f"{told}."]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown, its columns aligned."""
    widths = [max(len(row[place]) for row in (headings, *rows)) for place in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join([cells[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))])} |"

    rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    return [line(headings), line(rule), *map(line, rows)]


def _cell(part: Mapping[str, Any] | None, name: str) -> str:
    if part is None or part[name] is None:
        return "-"
    low, high = part["interval"]
    return f"{_percent(part[name])} ({100 * low:.0f} to {100 * high:.0f})"


def _interval(bounds: Sequence[float]) -> str:
    return f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
