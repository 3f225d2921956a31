"""Comparisons with rewards, made for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moss_train.data.comparisons import Comparison, compare
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.evaluate.preference_pairs import Judged


def comparison(
    standings: Sequence[float],
    *,
    question: str = " Why?",
    replies: Sequence[str] | None = None,
    language: str | None = None,
    category: str | None = None,
    origin: str = "made.jsonl:1",
) -> Comparison:
    """A comparison of replies, of which the larger standing is better."""
    texts = replies or [f" Reply {number}." for number in range(len(standings))]
    context = Dialogue("made", "", (Turn(human=question),), category=category, origin=origin)
    return compare(context, [Turn(human=question, moss=text) for text in texts], standings, language=language)


def judged(standings: Sequence[float], rewards: Sequence[float], lengths: Sequence[int] | None = None, **rest: object) -> Judged:
    """The same with rewards; `rest` as of `comparison`."""
    return Judged(comparison(standings, **rest), rewards, lengths or [10] * len(standings))  # type: ignore[arg-type]


def many(count: int, seed: int = 0) -> list[Judged]:
    """Comparisons of 2 to 5 responses with rewards that are right more often than not, with ties and equal rewards among them."""
    generator = np.random.default_rng(seed)
    made: list[Judged] = []
    while len(made) < count:
        size = int(generator.integers(2, 6))
        quality = generator.normal(size=size)
        standings = np.round(quality)
        rewards = np.round(2 * quality + generator.normal(size=size), 1)
        lengths = generator.integers(1, 40, size=size)
        number = len(made)
        labels = {
            "language": ("en", "zh", None)[number % 3],
            "category": ("code", "math", None)[number // 3 % 3] if number % 10 else "rare",
        }
        made.append(judged(standings.tolist(), rewards.tolist(), lengths.tolist(), question=f" Question {number}?", **labels))
    return made
