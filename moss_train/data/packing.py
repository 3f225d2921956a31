"""Best-fit rows, and the one place where targets are shifted.

Shape legend: T input tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.errors import DataError

# The value torch's cross-entropy ignores by default.
IGNORE_INDEX = -100


class Example(NamedTuple):
    """A rendered document before the shift: ids and, for each, whether it carries loss."""

    input_ids: Sequence[int] | npt.NDArray[np.int32]
    loss_mask: Sequence[bool] | npt.NDArray[np.bool_]


class Row(NamedTuple):
    """Documents side by side, shifted, without padding."""

    input_ids: npt.NDArray[np.int64]  # [T]
    targets: npt.NDArray[np.int64]  # [T], IGNORE_INDEX where no loss
    position_ids: npt.NDArray[np.int64]  # [T], from 0 in each document
    doc_lengths: list[int]  # their sum is T


def pack(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Which documents share a row: best-fit decreasing, the same for the same lengths.

    Longest first, each goes where the least room remains after it. With room as small integers the best row is found by bit arithmetic, so
    that a million documents take seconds.

    Args:
        lengths: Input tokens of each document, at least 1 and at most `seq_len`.
        seq_len: Input tokens of a row.

    Returns:
        Rows as lists of indices into `lengths`, each ascending, ordered by their first index.
    """
    bad = next((i for i, length in enumerate(lengths) if not 1 <= length <= seq_len), None)
    if bad is not None:
        raise DataError(f"document {bad} has {lengths[bad]} input tokens; a row holds 1 to {seq_len}.")
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set where a row has room r
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(index)
        left = room - length
        if left:
            rows_by_room[left].append(row)
            rooms |= 1 << left
    return sorted(sorted(row) for row in rows)


def build_row(examples: Sequence[Example], seq_len: int) -> Row:
    """One row of documents: input = ids without the last, targets = ids without the first where they carry loss.

    This is the only shift in the project: a model's loss takes `targets` as they are. A document of n ids gives n - 1 positions, and its
    last position never predicts the first id of the next one.

    Args:
        examples: The documents, in order.
        seq_len: Input tokens a row may have.
    """
    inputs, targets, positions, lengths = [], [], [], []
    for ids, mask in examples:
        ids = np.asarray(ids, dtype=np.int64)
        mask = np.asarray(mask, dtype=np.bool_)
        if len(ids) != len(mask) or len(ids) < 2:
            raise DataError(f"an example has {len(ids)} ids and {len(mask)} loss marks; expected equal numbers, at least 2.")
        inputs.append(ids[:-1])
        targets.append(np.where(mask[1:], ids[1:], IGNORE_INDEX))
        positions.append(np.arange(len(ids) - 1, dtype=np.int64))
        lengths.append(len(ids) - 1)
    if sum(lengths) > seq_len:
        raise DataError(f"a row of {sum(lengths)} input tokens is longer than seq_len={seq_len}.")
    return Row(np.concatenate(inputs), np.concatenate(targets), np.concatenate(positions), lengths)
