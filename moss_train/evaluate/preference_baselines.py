"""What a preference model has to be better than: the length of a reply, the words in it, a coin. C comparisons, P pairs, F features."""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.data.comparisons import Comparison
from moss_train.evaluate.intervals import Z, clustered_share, ratio_of_sums, wilson
from moss_train.evaluate.preference_pairs import Floats, Judged, Pairs, context_key, list_pairs, right

FEATURES = 2**15
FOLDS = 5
TRAINED_ON = 20_000
"""At most so many comparisons: minutes for nothing are not worth a baseline's third digit."""
_L2 = 1.0
_CJK = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_CJK}]+|[^\\W{_CJK}]+(?:['’][^\\W{_CJK}]+)*|[^\\w\\s]")
_IS_CJK = re.compile(f"[{_CJK}]")


class _Rows(NamedTuple):
    """A sparse matrix `[rows, F]`: entry `value[i]` at `row[i]`, `column[i]`."""

    height: int
    row: npt.NDArray[np.int64]
    column: npt.NDArray[np.int64]
    value: Floats

    def times(self, theta: Floats) -> Floats:
        """`[rows, F] @ [F]`."""
        return np.bincount(self.row, weights=self.value * theta[self.column], minlength=self.height).astype(float)

    def transposed_times(self, values: Floats) -> Floats:
        """`[F, rows] @ [rows]`."""
        return np.bincount(self.column, weights=self.value * values[self.row], minlength=FEATURES).astype(float)


def compare_baselines(
    judged: Sequence[Judged], *, train: Sequence[Comparison] | None = None, seed: int = 0
) -> dict[str, dict[str, Any] | None]:
    """Trivial scorers on the pairs that a preference model was asked of, and by how much it is better.

    `longer` and `shorter` prefer the longer and the shorter reply, `bag_of_words` is fitted (`bag_of_words_margins`), `random` is a random
    reward per response: its interval is where such a scorer would come out on comparisons of these sizes.

    Args:
        judged: What the preference model said.
        train: What to fit on; cross-validation over the judged comparisons otherwise.
        seed: Of the intervals, the folds, and the comparisons drawn from too many.

    Returns:
        By name `accuracy`, `interval`, `interval_by`, `difference` (the model's accuracy minus this one), `difference_interval`, of a
        paired bootstrap over comparisons; None where there are no pairs, or nothing to fit on. `bag_of_words` has `fitted_on` (`train`, or
        `folds`), `trained_on` (comparisons) and `seen_contexts`: judged comparisons of which the context stands in `train`.
    """
    pairs = list_pairs(judged)
    if not len(pairs.margin):
        return dict.fromkeys(("random", "longer", "shorter", "bag_of_words"))
    longer = pairs.better_length - pairs.worse_length
    found: dict[str, dict[str, Any] | None] = {"random": _random(pairs, seed)}
    for name, margin in (("longer", longer), ("shorter", -longer)):
        found[name] = _beside(pairs, margin, seed)
    bag = bag_of_words_margins(judged, train=train, seed=seed)
    found["bag_of_words"] = None if bag is None else _beside(pairs, bag, seed)
    if found["bag_of_words"] is not None:
        contexts = {context_key(one) for one in train or ()}
        source = [one.comparison for one in judged] if train is None else train
        found["bag_of_words"] |= {
            "fitted_on": "folds" if train is None else "train",
            "trained_on": min(TRAINED_ON, sum(any(not pair.tied for pair in one.pairs) for one in source)),
            "seen_contexts": sum(context_key(one.comparison) in contexts for one in judged),
        }
    return found


def bag_of_words_margins(judged: Sequence[Judged], *, train: Sequence[Comparison] | None = None, seed: int = 0) -> Floats | None:
    """Bradley-Terry on the words of the reply: margins `[P]` of the pairs with a better response.

    A reply's score is theta . log(1 + counts) of its hashed words, of CJK its characters and pairs of neighbours; theta has the least
    log loss of sigmoid(difference of scores) plus L2 / 2 * |theta|^2, each comparison weighing 1.

    Args:
        judged: What to score.
        train: What to fit on. Without, each fifth of the contexts is scored by what was fitted on the others.
        seed: Which contexts are in a fifth, and which comparisons are drawn where there are more than `TRAINED_ON`.

    Returns:
        None where there is nothing to fit on.
    """
    numbers = {}

    def features(text: str) -> dict[int, float]:
        if text not in numbers:
            numbers[text] = count_words(text)
        return numbers[text]

    comparisons = [one.comparison for one in judged]
    if train is not None:
        theta = _fit(list(train), features, seed)
        return None if theta is None else _rows(comparisons, features)[0].times(theta)
    keys = [_draw(context_key(one), seed) for one in comparisons]
    fold_of = {key: place % FOLDS for place, key in enumerate(sorted(set(keys)))}
    folds = np.array([fold_of[key] for key in keys])
    pairs = list_pairs(judged)
    margins = np.zeros(len(pairs.margin))
    for fold in sorted(set(folds[pairs.owners()].tolist())):
        theta = _fit([one for one, own in zip(comparisons, folds) if own != fold], features, seed)
        if theta is None:
            return None
        scored = [one for one, own in zip(comparisons, folds) if own == fold]
        margins[folds[pairs.owner] == fold] = _rows(scored, features)[0].times(theta)
    return margins


def count_words(text: str) -> dict[int, float]:
    """Hashed number of a word -> log(1 + how often it occurs)."""
    counts = Counter(zlib.crc32(word.encode("utf-8", "surrogatepass")) % FEATURES for word in _words(text))
    return {number: math.log1p(count) for number, count in counts.items()}


def spread_at_random(pairs: Pairs) -> float:
    """Standard deviation of the accuracy of independent random rewards without equal ones.

    In a comparison with n pairs, in which response i is the better one of b_i pairs and the worse one of w_i, the variance is
    (sum_i (b_i - w_i)^2 + n) / (12 n^2): of three responses any order is as likely, so two pairs with one response in common have
    covariance 1/12 where it is better in both or worse in both, and -1/12 otherwise.
    """
    variance = 0.0
    order = np.argsort(pairs.owner, kind="stable")
    starts = np.flatnonzero(np.diff(pairs.owner[order], prepend=-1))
    for own in np.split(order, starts[1:]):
        balance = np.bincount(pairs.better[own], minlength=1 + int(pairs.worse[own].max())).astype(float)
        balance -= np.bincount(pairs.worse[own], minlength=len(balance))
        variance += (float(np.square(balance).sum()) + len(own)) / (12 * len(own) ** 2)
    return math.sqrt(variance) / len(starts)


def _random(pairs: Pairs, seed: int) -> dict[str, Any]:
    half = min(0.5, Z * spread_at_random(pairs))
    found = _difference(pairs, np.full(len(pairs.margin), 0.5), seed)
    return {"accuracy": 0.5, "interval": [0.5 - half, 0.5 + half], "interval_by": "normal", **found}


def _beside(pairs: Pairs, margin: Floats, seed: int) -> dict[str, Any]:
    own = pairs.by_comparison(right(margin))
    low, high, method = clustered_share(own, np.ones(len(own)), seed)
    return {"accuracy": float(own.mean()), "interval": [low, high], "interval_by": method, **_difference(pairs, right(margin), seed)}


def _difference(pairs: Pairs, other: Floats, seed: int) -> dict[str, Any]:
    """The model's accuracy minus that of another scorer, from -1 to 1, with the interval of a paired bootstrap."""
    gap = np.round(pairs.by_comparison(right(pairs.margin) - other), 12)
    if np.all(gap == gap[0]) and gap[0] != 0:
        # Resampling would give no width.
        interval = [2 * bound - 1 for bound in wilson(len(gap) * (gap[0] + 1) / 2, len(gap))]
    else:
        interval = list(ratio_of_sums(gap, np.ones(len(gap)), seed))
    return {"difference": float(gap.mean()), "difference_interval": [float(bound) for bound in interval]}


def _draw(text: str, seed: int) -> bytes:
    """A key that is random by the seed, and the same wherever the text stands."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=str(seed).encode(), digest_size=16).digest()


def _words(text: str) -> Iterator[str]:
    for run in _WORD.findall(text.lower()):
        if not _IS_CJK.match(run):
            yield run
            continue
        yield from run
        yield from (run[place : place + 2] for place in range(len(run) - 1))


def _rows(comparisons: Sequence[Comparison], features: Callable[[str], dict[int, float]]) -> tuple[_Rows, Floats]:
    """Better minus worse of each pair that is no tie, and the weights of the pairs."""
    rows, columns, values = [], [], []
    weights: list[float] = []
    for comparison in comparisons:
        own = [pair for pair in comparison.pairs if not pair.tied]
        for pair in own:
            for number, sign in ((pair.better, 1), (pair.worse, -1)):
                counts = features(comparison.responses[number].moss or "")
                rows.append(np.full(len(counts), len(weights), dtype=np.int64))
                columns.append(np.fromiter(counts, dtype=np.int64, count=len(counts)))
                values.append(sign * np.fromiter(counts.values(), dtype=float, count=len(counts)))
            weights.append(1 / len(own))
    if not weights:
        return _Rows(0, np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)), np.zeros(0)
    return _Rows(len(weights), np.concatenate(rows), np.concatenate(columns), np.concatenate(values)), np.array(weights)


def _fit(comparisons: list[Comparison], features: Callable[[str], dict[int, float]], seed: int) -> Floats | None:
    """Theta `[F]`, by Newton's method with conjugate gradients; None where there are no pairs to fit on."""
    comparisons = [one for one in comparisons if any(not pair.tied for pair in one.pairs)]
    if len(comparisons) > TRAINED_ON:
        keys = {id(one): _draw(context_key(one) + repr(one.responses), seed) for one in comparisons}
        comparisons = sorted(comparisons, key=lambda one: keys[id(one)])[:TRAINED_ON]
    rows, weight = _rows(comparisons, features)
    if not rows.height:
        return None
    theta: Floats = np.zeros(FEATURES)
    margin: Floats = np.zeros(rows.height)

    def loss(margin: Floats, theta: Floats) -> float:
        return float(weight @ np.logaddexp(0, -margin)) + _L2 / 2 * float(theta @ theta)

    for _ in range(50):
        wrong = np.exp(-np.logaddexp(0, margin))
        gradient = _L2 * theta - rows.transposed_times(weight * wrong)
        if np.linalg.norm(gradient) <= 1e-8 * max(1.0, float(np.linalg.norm(theta))):
            break
        step = _solve(rows, weight * wrong * (1 - wrong), -gradient)
        size, along, now = 1.0, rows.times(step), loss(margin, theta)
        while loss(margin + size * along, theta + size * step) > now + 1e-4 * size * float(gradient @ step) and size > 1e-6:
            size /= 2
        theta, margin = theta + size * step, margin + size * along
    return theta


def _solve(rows: _Rows, curvature: Floats, target: Floats) -> Floats:
    """(X' diag(curvature) X + L2)^-1 target, by conjugate gradients."""
    solution, residual = np.zeros_like(target), target.copy()
    direction, size = residual.copy(), float(target @ target)
    goal = 1e-12 * size
    for _ in range(100):
        if size <= goal:
            break
        product = rows.transposed_times(curvature * rows.times(direction)) + _L2 * direction
        step = size / float(direction @ product)
        solution += step * direction
        residual -= step * product
        before, size = size, float(residual @ residual)
        direction = residual + size / before * direction
    return solution
