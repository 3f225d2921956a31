"""What is measured of responses in several conditions: pure figures. P prompts, K responses to each, L levels.

A response without text has no reward; it stands below every one that has, and equals others without. One that the judge could not read,
because it does not fit, has no standing at all and is left out of what compares rewards. Each prompt weighs 1 in win rates, each response 1
elsewhere. Intervals are at 95 %: a bootstrap over prompts, or Wilson's, as `clustered_share` says.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moss_train.errors import DataError
from moss_train.evaluate.correlation import (
    Floats,
    spearman,
    spearman_interval,
    spearman_within,
    spearman_within_interval,
)
from moss_train.evaluate.intervals import clustered_share, ratio_of_sums
from moss_train.pm.levels import LevelsBy, Scale, make_scale

NEAR = 10
"""Lengths that differ by no more than one part in so many of the longer one, or by one token, are about equal."""

REFUSALS = (
    "sorry", "i'm sorry", "i am sorry", "i'm afraid", "i am afraid", "i apologize", "i apologise", "i cannot", "i can't", "i can not",
    "i'm unable", "i am unable", "i'm not able", "i am not able", "i won't", "i will not", "i must decline", "unfortunately, i",
    "as an ai", "抱歉", "很抱歉", "非常抱歉", "对不起", "不好意思", "我不能", "我无法", "我没有办法", "我拒绝", "无法回答",
    "作为一个人工智能", "作为人工智能", "作为一个ai", "作为一名ai", "作为ai",
)  # fmt: skip
"""How refusals begin, in English and Chinese: few and plain, so that a reader knows what is counted. Case, width and curly quotes do not
matter."""
_ENGLISH_ENDS = tuple(" ,.!?:;")


@dataclass(frozen=True)
class Response:
    """What is known of a response.

    Attributes:
        reward: By the judge, or None.
        empty: It has no text.
        ids: Tokens of the reply, by the judge's tokenizer: of all models in one measure.
        tokens: That the model wrote, of all segments, by its own tokenizer.
        finished: The model ended it itself.
        refuses: It begins as refusals do.
        correct: As the prompt's checker says; None where it has none.
        calls: It has commands. calls_formed: They could be read as calls, and were run where tools are.
    """

    reward: float | None
    empty: bool
    ids: tuple[int, ...]
    tokens: int
    finished: bool
    refuses: bool
    correct: bool | None = None
    calls: bool = False
    calls_formed: bool = False

    @property
    def standing(self) -> float | None:
        """What is compared; see the module."""
        return float("-inf") if self.empty else self.reward


Answers = Sequence[Sequence[Response]]
"""Of one condition, the responses by prompt."""


def refuses(text: str) -> bool:
    """Whether a reply begins as refusals do."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").lstrip(" \t\n\"'“‘*")
    # An English opening ends with its word: `sorry` is none in `sorrysorry`.
    return any(plain.startswith(one) and (not one.isascii() or plain[len(one) : len(one) + 1] in ("", *_ENGLISH_ENDS)) for one in REFUSALS)


# ---------------------------------------------------------------------- win rates


def win_rate(first: Answers, second: Answers, near: bool = False, seed: int = 0) -> dict[str, Any]:
    """How often a response of one condition has the larger reward than one of another to the same prompt; equal ones count half.

    Every response to a prompt is held against every one of the other condition, and a prompt weighs 1.

    Args:
        first, second: By prompt.
        near: Take pairs of about equal length only (`NEAR`). A prompt then weighs as much as the share of its pairs that are such.
        seed: Of the resampling.

    Returns:
        `rate`, None where there is no pair; `interval`, `interval_by`, `prompts`, `pairs`.
    """
    parts, weights, pairs = [], [], 0
    for some, others in zip(first, second, strict=True):
        left = [one for one in some if one.standing is not None]
        right = [one for one in others if one.standing is not None]
        results = [_win(a, b) for a in left for b in right if not near or about_equal(len(a.ids), len(b.ids))]
        if results:
            weight = len(results) / (len(left) * len(right))
            parts.append(weight * sum(results) / len(results))
            weights.append(weight)
            pairs += len(results)
    return {**_share(parts, weights, seed, "rate"), "prompts": len(parts), "pairs": pairs}


def _win(first: Response, second: Response) -> float:
    a, b = first.standing, second.standing
    assert a is not None
    assert b is not None
    return 0.5 if a == b else float(a > b)


def about_equal(first: int, second: int) -> bool:
    """Whether two lengths differ by at most a tenth of the longer one, or one token."""
    return abs(first - second) * NEAR <= max(first, second, NEAR)


# ---------------------------------------------------------------------- requested and measured levels


def make_measure(requested: dict[int, Answers]) -> Scale:
    """The scale of measured levels: quantiles of the rewards of all responses for which a level was asked, as many as levels.

    Each level is asked for equally often. So where every response has the level that was asked for, the matrix is 1 on its diagonal and 0
    elsewhere, and where the tag says nothing to the model it is 1 / L everywhere, however good the model is.

    Raises:
        DataError: The rewards are too few, or too many are equal.
    """
    groups = [[one.reward for one in some if not one.empty] for answers in requested.values() for some in answers]
    return make_scale(groups, LevelsBy.quantiles, len(requested))


def measured_level(scale: Scale, levels: Sequence[int], response: Response) -> int | None:
    """The level that a response has, of those the model was trained with; the lowest without text, None where it was not read."""
    standing = response.standing
    return None if standing is None else levels[bisect_right(scale.thresholds, standing)]


def matrix(scale: Scale, conditions: dict[str, Answers], levels: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Shares of measured levels.

    Args:
        scale: As `make_measure` gives it. conditions: Rows by name. levels: Columns, ascending. seed: Of the resampling.

    Returns:
        `rows` and `columns`, and [rows, columns] `shares`, `intervals` and `counts`.
    """
    rows, intervals, counts = [], [], []
    for answers in conditions.values():
        found = [Counter(level for one in some if (level := measured_level(scale, levels, one)) is not None) for some in answers]
        used = [one for one in found if one.total()]
        cells = [_share([one[level] for one in used], [one.total() for one in used], seed, "share") for level in levels]
        rows.append([cell["share"] for cell in cells])
        intervals.append([cell["interval"] for cell in cells])
        counts.append([sum(one[level] for one in used) for level in levels])
    return {"rows": list(conditions), "columns": list(levels), "shares": rows, "intervals": intervals, "counts": counts}


def agreement(scale: Scale, requested: dict[int, Answers], seed: int = 0) -> dict[str, Any]:
    """The share of responses whose measured level is the one that was asked for; 1 / L by chance."""
    levels = list(requested)
    counts, totals = np.zeros(len(requested[levels[0]])), np.zeros(len(requested[levels[0]]))
    for level, answers in requested.items():
        for number, some in enumerate(answers):
            found = [measured_level(scale, levels, one) for one in some]
            counts[number] += sum(one == level for one in found)
            totals[number] += sum(one is not None for one in found)
    return _share(counts[totals > 0], totals[totals > 0], seed, "share") | {"by_chance": 1 / len(levels)}


def steering(requested: dict[int, Answers], value: Callable[[Response], float | None], seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation of the level that was asked for and what came of it, over responses.

    Args:
        requested: By level. value: Of a response; None leaves it out.

    Returns:
        `value` and `interval`, over all responses; `within` and `within_interval`, of ranks among the responses to the same prompt.
    """
    found = [
        (level, one_value, number)
        for level, answers in requested.items()
        for number, some in enumerate(answers)
        for one in some
        if (one_value := value(one)) is not None
    ]
    asked, came = (np.array([one[place] for one in found], dtype=float) for place in (0, 1))
    # Prompts that are left are numbered anew: one without responses is not resampled.
    _, prompts = np.unique(np.array([one[2] for one in found], dtype=np.int64), return_inverse=True)
    return {
        "value": _rounded(spearman(asked, came)),
        "interval": _rounded_all(spearman_interval(asked, came, prompts, seed)),
        "within": _rounded(spearman_within(asked, came, prompts)),
        "within_interval": _rounded_all(spearman_within_interval(asked, came, prompts, seed)),
        "responses": len(found),
    }


def _rounded(value: float | None) -> float | None:
    """Without what rounding leaves of a correlation of zero: an interval that ends there holds it."""
    return None if value is None else round(value, 12) + 0.0


def _rounded_all(values: tuple[float, float] | None) -> list[float] | None:
    return None if values is None else [round(value, 12) + 0.0 for value in values]


# ---------------------------------------------------------------------- one condition


def correctness(answers: Answers, categories: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """The share of correct responses to prompts with a checker, and that by category; None where no prompt has one.

    Args:
        answers: By prompt. categories: Of the prompts.
    """
    checked = [number for number, some in enumerate(answers) if some and some[0].correct is not None]
    if not checked:
        return None
    groups = {name: [number for number in checked if categories[number] == name] for name in sorted({categories[n] for n in checked})}
    by_category = {name: _of_responses([answers[number] for number in group], _is_correct, seed) for name, group in groups.items()}
    return {**_of_responses([answers[number] for number in checked], _is_correct, seed), "by_category": by_category}


def _is_correct(response: Response) -> float:
    return float(bool(response.correct))


def side_effects(answers: Answers, seed: int = 0) -> dict[str, Any]:
    """What a condition does besides: lengths, endings, refusals, variety, calls, and the reward itself."""
    everyone = [one for some in answers for one in some]
    calling = [[one for one in some if one.calls] for some in answers]
    return {
        "responses": len(everyone),
        "empty": sum(one.empty for one in everyone),
        "not_read": sum(one.standing is None for one in everyone),
        "reward": _mean([[one.reward for one in some if one.reward is not None] for some in answers], seed),
        "length": _mean([[float(len(one.ids)) for one in some] for some in answers], seed),
        "tokens": _mean([[float(one.tokens) for one in some] for some in answers], seed),
        "finished": _of_responses(answers, lambda one: float(one.finished), seed),
        "refused": _of_responses(answers, lambda one: float(one.refuses), seed),
        "distinct_1": distinct(everyone, 1),
        "distinct_2": distinct(everyone, 2),
        "calls": _of_responses(answers, lambda one: float(one.calls), seed),
        "calls_formed": _of_responses(calling, lambda one: float(one.calls_formed), seed),
    }


def distinct(responses: Sequence[Response], n: int) -> float | None:
    """Different n-grams of tokens over all n-grams, of all replies together (Li et al. 2016, distinct-n); None without any."""
    grams = [one.ids[start : start + n] for one in responses for start in range(len(one.ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _of_responses(answers: Answers, value: Callable[[Response], float], seed: int) -> dict[str, Any]:
    used = [some for some in answers if some]
    found = _share([sum(map(value, some)) for some in used], [len(some) for some in used], seed, "share")
    return {**found, "prompts": len(used), "responses": sum(map(len, used))}


def _share(parts: Sequence[float] | Floats, weights: Sequence[float] | Floats, seed: int, name: str) -> dict[str, Any]:
    """A share of sums over prompts, with its interval; None of nothing."""
    if not len(parts):
        return {name: None, "interval": None, "interval_by": None}
    low, high, method = clustered_share(parts, weights, seed)
    return {name: float(np.sum(parts) / np.sum(weights)), "interval": [low, high], "interval_by": method}


def _mean(values: Sequence[Sequence[float]], seed: int) -> dict[str, Any]:
    """The mean over responses, with its interval by prompts."""
    used = [some for some in values if some]
    if not used:
        return {"mean": None, "interval": None}
    sums, counts = [sum(some) for some in used], [len(some) for some in used]
    return {"mean": sum(sums) / sum(counts), "interval": _listed(ratio_of_sums(sums, counts, seed))}


def _listed(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def try_measure(requested: dict[int, Answers]) -> tuple[Scale | None, str | None]:
    """The scale of `make_measure`, or why there is none."""
    if len(requested) < 2:
        return None, "the model was trained with one level only"
    try:
        return make_measure(requested), None
    except DataError as error:
        return None, str(error)
