"""Batches: the sample contract over any number of ranks, and what a batch holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from moss_train.data.loader import (
    Batch,
    RowDataset,
    StepPlan,
    collate,
    evaluation_batches,
    evaluation_steps,
    step_batches,
)
from moss_train.data.mixture import sample_index
from moss_train.data.packing import IGNORE_INDEX, Row
from moss_train.errors import DataError, UsageError

PAD = 999


class Document(NamedTuple):
    """The least a data set is built from."""

    input_ids: list[int]
    loss_mask: list[bool]
    origin: str = "made"


def documents(count: int = 23, longest: int = 60, seed: int = 0) -> list[Document]:
    chance = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(chance.integers(2, longest + 1))
        mask = (chance.random(length) < 0.5).tolist()
        mask[-1] = True
        made.append(Document([number * 100 + place for place in range(length)], mask))
    return made


@pytest.fixture(scope="module")
def dataset() -> RowDataset:
    return RowDataset(documents(), 64, seed=5, pad_id=PAD)


def rows_of(batch: Batch) -> list[tuple[int, ...]]:
    """Each row of a batch as its input without padding; an empty one for a row of padding."""
    return [tuple(token for token in row.tolist() if token != PAD) for row in batch.input_ids]


def test_rows_hold_every_document_and_the_counts_are_right(dataset: RowDataset) -> None:
    made = documents()
    held = sorted(index for row in range(len(dataset)) for index in dataset.documents_of(row))
    assert held == list(range(len(made))) == list(range(dataset.documents))
    assert dataset.tokens == sum(len(document.input_ids) - 1 for document in made)
    assert dataset.supervised_tokens == sum(sum(document.loss_mask[1:]) for document in made)
    rows = [dataset.row(index) for index in range(len(dataset))]
    assert sum(len(row.input_ids) for row in rows) == dataset.tokens
    assert sum(int((row.targets != IGNORE_INDEX).sum()) for row in rows) == dataset.supervised_tokens
    assert dataset.fill == dataset.tokens / (len(dataset) * 64)
    assert all((row.targets != IGNORE_INDEX).any() for row in rows)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro", [1, 2])
def test_any_number_of_ranks_takes_the_same_samples_in_a_step(dataset: RowDataset, world_size: int, micro: int) -> None:
    plan = StepPlan(48, micro, world_size)
    for step in (0, 1, 7):
        ranks = [step_batches(dataset, step * 48, plan, rank) for rank in range(world_size)]
        taken = [row for micro_step in range(plan.accumulation) for batches in ranks for row in rows_of(batches[micro_step])]
        numbers = range(step * 48, step * 48 + 48)
        expected = [sample_index(dataset.fingerprint, 5, number, len(dataset))[1] for number in numbers]
        assert taken == [tuple(dataset.row(index).input_ids.tolist()) for index in expected], "the order of micro-step, rank, row too"


def test_an_epoch_holds_every_row_once_across_steps(dataset: RowDataset) -> None:
    plan, rows = StepPlan(4, 2, 2), len(dataset)
    taken = [
        row for step in range(rows) for rank in (0, 1) for batch in step_batches(dataset, step * 4, plan, rank) for row in rows_of(batch)
    ]
    everything = sorted(tuple(dataset.row(index).input_ids.tolist()) for index in range(rows))
    assert sorted(taken) == sorted(everything * 4), "4 rows a step for as many steps as there are rows is four epochs"


def test_places_after_the_last_sample_weigh_nothing(dataset: RowDataset) -> None:
    plan = StepPlan(8, 2, 2)
    batches = [[step_batches(dataset, 8, plan, rank, last_sample=11) for rank in (0, 1)][rank] for rank in (0, 1)]
    assert [[len(rank) for rank in batches], plan.accumulation] == [[2, 2], 2]
    shown = [row != () for micro in range(2) for rank in range(2) for row in rows_of(batches[rank][micro])]
    assert shown == [True] * 3 + [False] * 5
    nothing = batches[1][1]
    assert (nothing.weight, nothing.tokens) == (0, 0)
    assert (nothing.targets == IGNORE_INDEX).all()
    assert nothing.input_ids.shape == (2, 64)
    assert nothing.cu_seqlens.tolist() == [0, 64, 128]
    total = sum(batch.weight for rank in batches for batch in rank)
    used = [dataset.sample(number) for number in (8, 9, 10)]
    assert total == sum(int((row.targets != IGNORE_INDEX).sum()) for row in used)


def test_a_batch_literally() -> None:
    def row(*lengths: int) -> Row:
        total = sum(lengths)
        positions = np.concatenate([np.arange(length) for length in lengths])
        return Row(np.arange(10, 10 + total), np.where(positions > 0, 7, IGNORE_INDEX), positions, list(lengths))

    batch = collate([row(3, 2), None, row(6)], seq_len=6, pad_id=PAD)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, PAD], [PAD] * 6, [10, 11, 12, 13, 14, 15]]
    assert batch.targets.tolist() == [[-100, 7, 7, -100, 7, -100], [-100] * 6, [-100, 7, 7, 7, 7, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6, 12, 18]
    assert (batch.weight, batch.tokens) == (8.0, 11)
    assert {tensor.dtype for tensor in (batch.input_ids, batch.targets, batch.position_ids)} == {torch.int64}
    assert batch.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize(("longest", "seq_len", "width"), [(1, 2048, 64), (64, 2048, 64), (65, 2048, 128), (100, 100, 100), (90, 100, 100)])
def test_rows_are_cut_to_the_longest(longest: int, seq_len: int, width: int) -> None:
    row = Row(np.zeros(longest, np.int64), np.zeros(longest, np.int64), np.arange(longest), [longest])
    assert collate([row, None], seq_len, PAD).input_ids.shape == (2, width)


def test_boundaries_agree_with_positions(dataset: RowDataset) -> None:
    for batch in step_batches(dataset, 0, StepPlan(8, 4, 1), 0):
        starts = torch.nonzero(batch.position_ids.flatten() == 0).flatten().tolist()
        assert starts == batch.cu_seqlens.tolist()[:-1]
        assert batch.cu_seqlens[-1] == batch.input_ids.numel()
        assert batch.weight == (batch.targets != IGNORE_INDEX).sum()
        assert batch.tokens == (batch.input_ids != PAD).sum()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro", [1, 3])
def test_evaluation_sees_every_row_once_with_equal_forwards(dataset: RowDataset, world_size: int, micro: int) -> None:
    ranks = [list(evaluation_batches(dataset, micro, world_size, rank)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {evaluation_steps(dataset, micro, world_size)}
    seen = [row for batches in ranks for batch in batches for row in rows_of(batch) if row]
    assert sorted(seen) == sorted(tuple(dataset.row(index).input_ids.tolist()) for index in range(len(dataset)))
    assert sum(batch.weight for batches in ranks for batch in batches) == dataset.supervised_tokens


def test_the_fingerprint_is_of_ids_masks_and_plan() -> None:
    made = documents()
    base = RowDataset(made, 64, 0, pad_id=PAD).fingerprint
    assert base == RowDataset(documents(), 64, 1, pad_id=PAD).fingerprint, "the seed is not data"
    one_id = [made[0]._replace(input_ids=[made[0].input_ids[0] + 1, *made[0].input_ids[1:]]), *made[1:]]
    one_mark = [made[0]._replace(loss_mask=[not made[0].loss_mask[0], *made[0].loss_mask[1:]]), *made[1:]]
    variants = [RowDataset(changed, 64, 0, pad_id=PAD).fingerprint for changed in (one_id, one_mark, made[1:], [*made[1:], made[0]])]
    variants.append(RowDataset(made, 128, 0, pad_id=PAD).fingerprint)
    assert len({base, *variants}) == 6


@pytest.mark.parametrize(
    ("plan", "said"), [((6, 4, 1), "6 is not a multiple of 4 x 1 = 4"), ((8, 2, 3), "8 is not a multiple of 2 x 3 = 6")]
)
def test_an_indivisible_trio_shows_its_numbers(plan: tuple[int, int, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        StepPlan(*plan)
    assert StepPlan(24, 2, 3).accumulation == 4


@pytest.mark.parametrize("plan", [(0, 1, 1), (8, 0, 1), (8, -2, 1)])
def test_batch_sizes_are_positive(plan: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        StepPlan(*plan)


def test_documents_that_make_no_row_are_refused() -> None:
    with pytest.raises(DataError, match="no dialogue is left"):
        RowDataset([], 64, 0, pad_id=PAD)
    with pytest.raises(DataError, match="65 ids, more than seq_len=64"):
        RowDataset([Document([1] * 65, [True] * 65)], 64, 0, pad_id=PAD)
    with pytest.raises(DataError, match="document 1 has no token with loss"):
        RowDataset([Document([1, 2], [False, True]), Document([1, 2], [True, False])], 64, 0, pad_id=PAD)
    assert RowDataset([Document([1] * 64, [True] * 64)], 64, 0, pad_id=PAD).tokens == 63


def test_a_batch_moves_but_its_boundaries_stay(dataset: RowDataset) -> None:
    (batch,) = step_batches(dataset, 0, StepPlan(2, 2, 1), 0)
    moved = batch.to("meta")
    assert moved.input_ids.device.type == moved.targets.device.type == moved.position_ids.device.type == "meta"
    assert moved.cu_seqlens.device.type == "cpu"
    assert moved.weight == batch.weight


@pytest.mark.gpu
def test_a_batch_on_a_gpu_is_equal(dataset: RowDataset) -> None:
    (batch,) = step_batches(dataset, 0, StepPlan(2, 2, 1), 0)
    moved = batch.to("cuda")
    torch.cuda.synchronize()
    for name in ("input_ids", "targets", "position_ids"):
        assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name))


def test_the_origins_of_a_sample_are_those_of_its_row() -> None:
    """What a message about a bad step names."""
    made = [document._replace(origin=f"file:{number}") for number, document in enumerate(documents())]
    dataset = RowDataset(made, 64, 5, pad_id=PAD)
    for number in range(2 * len(dataset)):
        ids = dataset.sample(number).input_ids.tolist()
        found = [made[int(origin.removeprefix("file:"))].input_ids[:-1] for origin in dataset.origins_of_sample(number)]
        assert [token for part in found for token in part] == ids
