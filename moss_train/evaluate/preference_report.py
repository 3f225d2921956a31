"""The report on a preference model's scores: from comparisons and rewards to figures. C comparisons, P pairs, R responses.

Each comparison weighs 1, whatever its K: a pair weighs 1 / number of the comparison's pairs of its kind. The table of it is in
`preference_table.py`, the reliability diagram in `reliability_plot.py`. Comparisons are taken as independent of each other: where several
have the same context, as explicit pairs have, intervals are too narrow (`contexts` says how many there are).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train.data.comparisons import Comparison
from moss_train.evaluate.correlation import correlation, ranks
from moss_train.evaluate.intervals import clustered_share
from moss_train.evaluate.preference_baselines import compare_baselines
from moss_train.evaluate.preference_calibration import calibrate, search_temperature
from moss_train.evaluate.preference_pairs import Judged, Pairs, context_key, list_pairs, right

ABOUT_EQUAL = 0.1
"""Lengths that differ by no more than this share of the longer one are about equal."""
FEW = 20
"""Categories with fewer comparisons are pooled."""
OTHER, UNKNOWN = "other", "unknown"


def report(
    judged: Sequence[Judged], *, temperature: float = 1.0, train: Sequence[Comparison] | None = None, seed: int = 0
) -> dict[str, Any]:
    """How good the rewards are.

    Args:
        judged: Comparisons with rewards.
        temperature: What margins are divided by where a probability is made of them; fitted on other comparisons than these.
        train: What the bag of words is fitted on; cross-validation over the judged comparisons otherwise.
        seed: Of the intervals, and of the bag of words.

    Returns:
        Values of JSON, None where a figure is not defined: `comparisons`, `contexts`, `responses`, `pairs` (with a better response), `ties`
        (pairs too), `only_ties` (comparisons); `accuracy`, overall, and `by_length`, `by_language`, `by_category`, `by_k`; `best_of_k`;
        `margin`; `tie_margin`; `reward_length`; `calibration` with `unscaled`, `given` and `fitted`; `baselines`. Intervals are at 95 %;
        `interval_by` says of each whether it is Wilson's or a bootstrap over comparisons. The fitted temperature is fitted on these very
        comparisons, so its calibration is better than on new ones.

    Raises:
        ValueError: The temperature is not above zero.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature}; expected a number above zero.")
    pairs, ties = list_pairs(judged), list_pairs(judged, tied=True)
    only_ties = len(judged) - len(pairs.owners())
    return {
        "comparisons": len(judged),
        "contexts": len({context_key(one.comparison) for one in judged}),
        "responses": sum(len(one.rewards) for one in judged),
        "pairs": len(pairs.margin),
        "ties": len(ties.margin),
        "only_ties": only_ties,
        "accuracy": _accuracy(pairs, np.ones(len(pairs.margin), dtype=bool), seed),
        "by_length": _by_length(pairs, seed),
        "by_language": _by_label(pairs, [one.comparison.language or UNKNOWN for one in judged], seed),
        "by_category": _by_label(pairs, _categories(judged, pairs), seed),
        "by_k": _by_label(pairs, [len(one.rewards) for one in judged], seed),
        "best_of_k": _best_of_k(judged, seed),
        "margin": {
            "mean": pairs.mean(pairs.margin),
            "mean_absolute": pairs.mean(np.abs(pairs.margin)),
            "share_negative": pairs.mean((pairs.margin < 0).astype(float)),
            "share_zero": pairs.mean((pairs.margin == 0).astype(float)),
        },
        "tie_margin": {"mean_absolute": ties.mean(np.abs(ties.margin)), "mean_absolute_of_others": pairs.mean(np.abs(pairs.margin))},
        "reward_length": _reward_length(judged),
        "calibration": _calibration(pairs, temperature, seed),
        "baselines": compare_baselines(judged, train=train, seed=seed),
    }


def _accuracy(pairs: Pairs, inside: npt.NDArray[np.bool_], seed: int) -> dict[str, Any]:
    """The weighted share of pairs `inside` that are right. Pairs keep the weight that they have in the whole."""
    weights = np.bincount(pairs.owner, weights=pairs.weight * inside, minlength=pairs.count)
    parts = np.bincount(pairs.owner, weights=pairs.weight * inside * right(pairs.margin), minlength=pairs.count)
    used = weights > 0
    found: dict[str, Any] = {"accuracy": None, "interval": None, "interval_by": None}
    if used.any():
        low, high, method = clustered_share(parts[used], weights[used], seed)
        found = {"accuracy": float(parts.sum() / weights.sum()), "interval": [low, high], "interval_by": method}
    return {**found, "comparisons": int(used.sum()), "pairs": int(inside.sum()), "weight": float(weights.sum())}


def _by_length(pairs: Pairs, seed: int) -> dict[str, Any]:
    """By whether the better response is the shorter one, about equal, or the longer one."""
    gap = pairs.better_length - pairs.worse_length
    # Whole numbers are compared, so that exactly 10 % counts as equal.
    equal = np.abs(gap) * round(1 / ABOUT_EQUAL) <= np.maximum(pairs.better_length, pairs.worse_length)
    bins = {"shorter": ~equal & (gap < 0), "equal": equal, "longer": ~equal & (gap > 0)}
    return {name: _accuracy(pairs, inside, seed) for name, inside in bins.items()}


def _by_label(pairs: Pairs, labels: Sequence[Any], seed: int) -> dict[str, Any]:
    """By a label of each comparison, of those that have pairs; the pooled ones come last."""
    used = sorted({labels[number] for number in pairs.owners()}, key=lambda label: (label == OTHER, label))
    of_pairs = np.array([labels[number] for number in pairs.owner], dtype=object)
    return {str(label): _accuracy(pairs, (of_pairs == label).astype(bool), seed) for label in used}


def _categories(judged: Sequence[Judged], pairs: Pairs) -> list[str]:
    names = [one.comparison.category or UNKNOWN for one in judged]
    counts = Counter(names[number] for number in pairs.owners())
    return [name if counts[name] >= FEW else OTHER for name in names]


def _best_of_k(judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    """How often the response with the largest reward is one that no other is better than, of comparisons with a preference.

    Of several with the largest reward, the share of good ones counts. `random` is the mean share of such responses.
    """
    hits, chances = [], []
    for one in judged:
        worse = {pair.worse for pair in one.comparison.pairs if not pair.tied}
        if worse:
            top = max(one.rewards)
            chosen = [number for number, reward in enumerate(one.rewards) if reward == top]
            hits.append(sum(number not in worse for number in chosen) / len(chosen))
            chances.append(1 - len(worse) / len(one.rewards))
    if not hits:
        return {"accuracy": None, "interval": None, "interval_by": None, "random": None, "comparisons": 0}
    low, high, method = clustered_share(hits, np.ones(len(hits)), seed)
    mean, chance = float(np.mean(hits)), float(np.mean(chances))
    return {"accuracy": mean, "interval": [low, high], "interval_by": method, "random": chance, "comparisons": len(hits)}


def _reward_length(judged: Sequence[Judged]) -> dict[str, float | None]:
    """Correlations of the reward and the length of a response, over all, and within contexts: of what is left when the context's mean is
    taken off. Spearman's within contexts is of ranks within the context."""
    names = [context_key(one.comparison) for one in judged for _ in one.rewards]
    rewards = np.array([float(reward) for one in judged for reward in one.rewards])
    lengths = np.array([float(length) for one in judged for length in one.lengths])
    _, groups = np.unique(np.array(names, dtype=object), return_inverse=True) if names else (None, np.zeros(0, dtype=np.int64))
    everything = np.zeros_like(groups)
    return {
        "pearson": correlation(rewards, lengths, everything),
        "spearman": correlation(ranks(rewards, everything), ranks(lengths, everything), everything),
        "pearson_within": correlation(rewards, lengths, groups),
        "spearman_within": correlation(ranks(rewards, groups), ranks(lengths, groups), groups),
    }


def _calibration(pairs: Pairs, temperature: float, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"unscaled": calibrate(pairs, 1.0, seed), "given": calibrate(pairs, temperature, seed), "fitted": None}
    if len(pairs.margin):
        fitted = search_temperature(pairs)
        found["fitted"] = {**calibrate(pairs, fitted.value, seed), "bound": fitted.bound}
    return found
