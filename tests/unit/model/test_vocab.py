"""Rows for a larger vocabulary, by strategy."""

from __future__ import annotations

import math

import pytest
import torch

from moss_train.model.vocab import BIAS, INPUT, OUTPUT, STRATEGIES, RowPlan, extend_parameters, extend_rows

# Old rows 0..4; the new vocabulary is 0 1 2 | two new tokens | 3 (moved), a control, an unused row.
PLAN = RowPlan.make(
    torch.tensor([0, 1, 2, -1, -1, 3, -1, -1]), torch.tensor([3, 4]), [(0, 1), (1, 2, 2)], torch.log(torch.tensor([0.5, 0.25])), used=7
)
TABLE = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 8.0], [7.0, 7.0], [9.0, 9.0]])
BIASES = torch.tensor([1.0, 2.0, 3.0, -4.0, 9.0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_old_rows_are_copied_to_where_their_ids_went(strategy: str) -> None:
    for name, old in ((INPUT, TABLE), (OUTPUT, TABLE), (BIAS, BIASES)):
        rows = extend_rows(name, old, PLAN, strategy)
        assert torch.equal(rows[[0, 1, 2, 5]], old[:4])
        assert rows.shape == (8, *old.shape[1:])


def test_mean_of_pieces() -> None:
    rows = extend_rows(INPUT, TABLE, PLAN, "mean_of_pieces")
    assert rows[3].tolist() == [2.0, 1.0]
    torch.testing.assert_close(rows[4], torch.tensor([13.0, 18.0]) / 3)
    torch.testing.assert_close(extend_rows(BIAS, BIASES, PLAN, "mean_of_pieces")[[3, 4]], torch.tensor([1.5, 8 / 3]))


def test_weighted_reads_the_last_piece_and_writes_the_first() -> None:
    rows = extend_rows(INPUT, TABLE, PLAN, "weighted")
    torch.testing.assert_close(rows[3], torch.tensor([1 + 2 * 3.0, 2 * 2.0]) / 3)
    torch.testing.assert_close(rows[4], (1 * TABLE[1] + 2 * TABLE[2] + 3 * TABLE[2]) / 6)
    assert torch.equal(extend_rows(OUTPUT, TABLE, PLAN, "weighted")[[3, 4]], TABLE[[0, 1]])
    torch.testing.assert_close(extend_rows(BIAS, BIASES, PLAN, "weighted")[[3, 4]], torch.tensor([1 + math.log(0.5), 2 + math.log(0.25)]))


def test_random_rows_have_the_spread_of_the_initialisation() -> None:
    learned = torch.arange(10, 2010)
    plan = RowPlan.make(torch.cat([torch.arange(10), torch.full((2000,), -1)]), learned, [(0, 1)] * 2000, torch.zeros(2000), used=2010)
    rows = extend_rows(INPUT, torch.ones(10, 8), plan, "random", seed=5)[10:]
    assert abs(float(rows.std()) - 0.02) < 0.001
    assert torch.equal(rows, extend_rows(INPUT, torch.ones(10, 8), plan, "random", seed=5)[10:])
    assert not torch.equal(rows, extend_rows(INPUT, torch.ones(10, 8), plan, "random", seed=6)[10:])
    assert not bool(extend_rows(BIAS, torch.ones(10), plan, "random")[10:].any())


def test_controls_start_near_the_mean_and_unused_rows_are_not_written() -> None:
    kept = TABLE[:4]
    rows = extend_rows(OUTPUT, TABLE, PLAN, "mean_of_pieces")
    assert float((rows[6] - kept.mean(0)).abs().max()) < 0.1
    assert not torch.equal(rows[6], kept.mean(0))
    assert torch.equal(rows[7], kept.mean(0))
    biases = extend_rows(BIAS, BIASES, PLAN, "mean_of_pieces")
    assert biases[[6, 7]].tolist() == [0.5, -4.0]


def test_the_number_format_stays() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert extend_rows(INPUT, TABLE.to(dtype), PLAN, "mean_of_pieces").dtype == dtype


def test_other_parameters_pass_as_they_are() -> None:
    given = {"transformer.wte.weight": TABLE, "transformer.ln_f.bias": BIASES, "lm_head.weight": TABLE, "lm_head.bias": BIASES}
    made = dict(extend_parameters(given.items(), PLAN, "mean_of_pieces"))
    assert list(made) == list(given)
    assert made["transformer.ln_f.bias"] is BIASES
    assert {name: len(tensor) for name, tensor in made.items()} == {**dict.fromkeys(given, 8), "transformer.ln_f.bias": 5}


def test_a_strategy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of mean_of_pieces"):
        extend_rows(INPUT, TABLE, PLAN, "best")
