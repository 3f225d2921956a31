"""Best-fit rows, and the one place where targets are shifted.

Shape legend: T input tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.errors import DataError

# The value torch's cross-entropy ignores by default.
IGNORE_INDEX = -100


class Example(NamedTuple):
    """A rendered document before the shift: ids and, for each, whether it carries loss."""

    input_ids: Sequence[int] | npt.NDArray[np.integer]
    loss_mask: Sequence[bool] | npt.NDArray[np.bool_]


class Row(NamedTuple):
    """Documents side by side, shifted, without padding."""

    input_ids: npt.NDArray[np.int64]  # [T]
    targets: npt.NDArray[np.int64]  # [T], IGNORE_INDEX where no loss
    position_ids: npt.NDArray[np.int64]  # [T], from 0 in each document
    doc_lengths: list[int]  # their sum is T
    source: int = 0  # number of the source it is from, where sources are told apart
    objective: float = 1.0  # what each of its targets counts in the loss
    text_bytes: int = 0  # UTF-8 bytes that its targets spell; 0 where they are not counted


class PackingPlan(NamedTuple):
    """Which documents share a row, as arrays: row r holds `documents[starts[r]:starts[r + 1]]`, ascending."""

    documents: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]

    def rows(self) -> list[list[int]]:
        """The documents of each row."""
        return [self.documents[start:end].tolist() for start, end in pairwise(self.starts.tolist())]


def plan_rows(lengths: npt.NDArray[np.integer], seq_len: int, chosen: npt.NDArray[np.integer] | None = None) -> PackingPlan:
    """The rows of documents.

    Args:
        lengths: Ids of each document, one more than its input tokens.
        seq_len: Input tokens of a row.
        chosen: Numbers of the documents to take, ascending; by default all.
    """
    taken = np.arange(len(lengths)) if chosen is None else chosen
    plan = pack(lengths[taken] - 1, seq_len)
    return PackingPlan(taken[plan.documents].astype(np.int32), plan.starts)


def pack(lengths: npt.NDArray[np.integer] | Sequence[int], seq_len: int) -> PackingPlan:
    """Which documents share a row: best-fit decreasing, the same for the same lengths.

    Longest first, each goes where the least room remains after it. Documents of one length are placed together: the fullest rows they fit
    into take as many of them as they hold, one row after another, which is what placing them one at a time comes to. So a million
    documents take a second.

    Args:
        lengths: Input tokens of each document, at least 1 and at most `seq_len`.
        seq_len: Input tokens of a row.

    Returns:
        The rows, ordered by their first document.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    bad = np.flatnonzero((lengths < 1) | (lengths > seq_len))
    if len(bad):
        raise DataError(f"document {bad[0]} has {lengths[bad[0]]} input tokens; a row holds 1 to {seq_len}.")
    row_of = np.empty(len(lengths), dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    descending = -lengths[longest_first]
    rows_by_room: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set where a row has room r
    rows = done = 0
    while done < len(lengths):
        length = -int(descending[done])
        end = int(np.searchsorted(descending, -length, side="right"))
        while done < end:
            fitting = rooms >> length
            if fitting:
                room = length + (fitting & -fitting).bit_length() - 1
                found = rows_by_room[room].pop()
                if not rows_by_room[room]:
                    rooms &= ~(1 << room)
            else:
                room = seq_len
                found = np.arange(rows, rows + -(-(end - done) // (seq_len // length)))
                rows += len(found)
            each = room // length
            used = found[: -(-(end - done) // each)]
            count = min(end - done, each * len(used))
            row_of[longest_first[done : done + count]] = np.repeat(used, each)[:count]
            done += count
            # The last row may have taken fewer than it could.
            last = count - each * (len(used) - 1)
            for left, part in ((room - each * length, used[:-1]), (room - last * length, used[-1:]), (room, found[len(used) :])):
                if left and len(part):
                    rows_by_room[left].append(part)
                    rooms |= 1 << left
    first = np.full(rows, len(lengths), dtype=np.int64)
    np.minimum.at(first, row_of, np.arange(len(lengths)))
    rank = np.empty(rows, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(rows)
    place = rank[row_of]
    starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=rows))])
    return PackingPlan(np.argsort(place, kind="stable").astype(np.int32), starts)


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
