"""Choosing tokens: the rules of transformers, and draws that belong to a row."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moss_train.errors import NonFiniteError
from moss_train.inference.sampling import Sampling, choose, row_key, uniform

VOCABULARY = 50
NOTHING = torch.zeros(VOCABULARY, dtype=torch.bool)


def held_of(rows: torch.Tensor) -> torch.Tensor:
    """Which ids each row holds."""
    return torch.zeros(len(rows), VOCABULARY, dtype=torch.bool).scatter_(1, rows, True)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0),
        Sampling(temperature=1.3, top_p=0.5, top_k=0, repetition_penalty=1.5),
        Sampling(temperature=0.4, top_p=1.0, top_k=5, repetition_penalty=0.8),
    ],
)
def test_probabilities_are_those_of_transformers(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, VOCABULARY, generator=generator) * 3
    rows = torch.randint(VOCABULARY, (3, 20), generator=generator)
    rules = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty), TemperatureLogitsWarper(sampling.temperature)]
    )
    if sampling.top_k:
        rules.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        rules.append(TopPLogitsWarper(sampling.top_p))
    expected = torch.softmax(rules(rows, logits.clone()).double(), -1)
    steps = 4000
    # Draws at even distances give each token its share exactly, but for one step.
    found = torch.zeros(3, VOCABULARY, dtype=torch.float64)
    for step in range(steps):
        ids, log_probabilities = choose(logits, held_of(rows), NOTHING, [(step + 0.5) / steps] * 3, sampling)
        for row, (token, log_probability) in enumerate(zip(ids, log_probabilities)):
            found[row, token] += 1 / steps
            assert math.isclose(math.exp(log_probability), expected[row, token], rel_tol=1e-5)
    assert (found - expected).abs().max() <= 1.01 / steps


def test_no_temperature_takes_the_likeliest_that_is_allowed() -> None:
    logits = torch.arange(VOCABULARY).float()[None]
    forbidden = NOTHING.clone()
    forbidden[-3:] = True
    ids, _ = choose(logits, held_of(torch.tensor([[0]])), forbidden, [0.9], Sampling(temperature=0))
    assert ids == [VOCABULARY - 4]


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(1, VOCABULARY)
    forbidden = ~NOTHING
    forbidden[7] = False
    for draw in (0.0, 0.5, 1 - 2**-53):
        ids, (log_probability,) = choose(logits, held_of(torch.tensor([[0]])), forbidden, [draw], Sampling(top_k=0, top_p=1.0))
        assert ids == [7]
        assert log_probability == 0.0


def test_a_row_draws_the_same_beside_any_others() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, rows = torch.randn(8, VOCABULARY, generator=generator), torch.randint(VOCABULARY, (8, 6), generator=generator)
    draws = [uniform(row_key(3, row), 5) for row in range(8)]
    together, _ = choose(logits, held_of(rows), NOTHING, draws, Sampling())
    alone = [
        choose(logits[row : row + 1], held_of(rows[row : row + 1]), NOTHING, draws[row : row + 1], Sampling())[0][0] for row in range(8)
    ]
    assert together == alone
    equal, _ = choose(torch.zeros(2, VOCABULARY), held_of(rows[:2]), NOTHING, [0.0, 0.0], Sampling(top_k=3, repetition_penalty=1.0))
    assert equal[0] == equal[1]


def test_draws_are_uniform_and_independent() -> None:
    values = [uniform(row_key(0, row), position) for row in range(200) for position in range(100)]
    counts = Counter(int(value * 10) for value in values)
    # Chi-square of 9 degrees of freedom: 27.9 is passed once in a thousand.
    assert sum((counts[bucket] - 2000) ** 2 / 2000 for bucket in range(10)) < 27.9
    pairs = [uniform(row_key(0, row), 0) * uniform(row_key(0, row + 1), 0) for row in range(2000)]
    assert abs(sum(pairs) / len(pairs) - 0.25) < 0.02
    assert len({row_key(0, 1), row_key(1, 0), row_key(0, 1, "commands")}) == 3


def test_logits_that_are_not_numbers_are_told() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[1, 3] = float("nan")
    for temperature in (0.0, 0.7):
        with pytest.raises(NonFiniteError, match="dtype=bf16"):
            choose(logits, held_of(torch.tensor([[0], [0]])), NOTHING, [0.5, 0.5], Sampling(temperature=temperature))
