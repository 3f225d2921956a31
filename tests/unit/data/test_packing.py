"""Rows: every document once, as full as best-fit gets them, shifted within documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_train.data.packing import IGNORE_INDEX, Example, build_row, pack
from moss_train.errors import DataError


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_document_is_in_one_row_and_every_row_fits(lengths: list[int]) -> None:
    rows = pack(lengths, 64).rows()
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 64 for row in rows)
    assert all(row == sorted(row) for row in rows)
    assert rows == sorted(rows)
    assert rows == pack(lengths, 64).rows()


def naive_best_fit(lengths: list[int], seq_len: int) -> list[int]:
    """Sizes of rows by the textbook: look at every row for each document."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda place: rooms[place])
            rooms[best] -= length
        else:
            rooms.append(seq_len - length)
    return sorted(seq_len - room for room in rooms)


@given(st.lists(st.integers(1, 40), max_size=80))
def test_the_rows_are_those_of_the_textbook(lengths: list[int]) -> None:
    assert sorted(sum(lengths[index] for index in row) for row in pack(lengths, 40).rows()) == naive_best_fit(lengths, 40)


def test_a_known_packing() -> None:
    assert pack([5, 7, 3, 1, 4], 10).rows() == [[0, 3, 4], [1, 2]]
    assert pack([10, 10], 10).rows() == [[0], [1]]
    assert pack([], 10).rows() == []


@pytest.mark.parametrize("length", [0, 11, -1])
def test_a_document_that_is_no_row_is_refused(length: int) -> None:
    with pytest.raises(DataError, match=f"document 1 has {length} input tokens"):
        pack([3, length], 10)


def test_the_shift_literally() -> None:
    row = build_row([Example([1, 2, 3, 4], [False, False, True, True]), Example([5, 6, 7], [True, True, False])], 8)
    assert row.input_ids.tolist() == [1, 2, 3, 5, 6]
    assert row.targets.tolist() == [IGNORE_INDEX, 3, 4, 6, IGNORE_INDEX]
    assert row.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert row.doc_lengths == [3, 2]
    assert IGNORE_INDEX == -100
    assert {array.dtype for array in row[:3]} == {np.dtype("int64")}


@given(st.lists(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=2, max_size=9), min_size=1, max_size=5))
def test_no_token_is_lost_and_none_predicts_across_documents(documents: list[list[tuple[int, bool]]]) -> None:
    examples = [Example([token for token, _ in document], [mark for _, mark in document]) for document in documents]
    row = build_row(examples, 64)
    start = 0
    for document, length in zip(documents, row.doc_lengths, strict=True):
        assert length == len(document) - 1
        assert row.input_ids[start : start + length].tolist() == [token for token, _ in document[:-1]]
        assert row.targets[start : start + length].tolist() == [token if mark else IGNORE_INDEX for token, mark in document[1:]]
        start += length
    assert start == len(row.input_ids)


def test_what_is_no_row_is_refused() -> None:
    with pytest.raises(DataError, match="longer than seq_len=3"):
        build_row([Example([1, 2, 3], [True] * 3), Example([1, 2, 3], [True] * 3)], 3)
    with pytest.raises(DataError, match="2 ids and 3 loss marks"):
        build_row([Example([1, 2], [True] * 3)], 8)
    with pytest.raises(DataError, match="at least 2"):
        build_row([Example([1], [True])], 8)
