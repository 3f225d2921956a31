"""Batches for a rank: rows of packed documents, chosen by the sample contract, with their weight known before any forward.

Shape legend: B rows of a micro-batch, T input tokens of its longest row rounded up to a multiple of 64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from moss_train.data.documents import Documents, MemoryDocuments, RenderedDocument
from moss_train.data.mixture import sample_index
from moss_train.data.packing import IGNORE_INDEX, Example, PackingPlan, Row, build_row, plan_rows
from moss_train.errors import DataError, UsageError

# Rows are cut to the longest one rounded up to this: few different shapes, whole matrix tiles.
LENGTH_MULTIPLE = 64


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank.

    Attributes:
        input_ids: [B, T] int64.
        targets: [B, T] int64, already shifted, IGNORE_INDEX where no loss.
        position_ids: [B, T] int64, from 0 in every document; padding is a document of its own.
        cu_seqlens: int32 [documents + 1], boundaries over the flattened B*T tokens. Stays on the CPU, where attention reads it.
        weight: Supervised tokens, the unit of weight of the loss; each counts what its row's objective says.
        tokens: Input tokens without padding.
        rows: Of each row, where losses are told apart by source: its source (int64 [B]), what its targets count (float32 [B]), and the
            bytes they spell (int64 [B]), by the names that the model's forward has for them.
    """

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    weight: float
    tokens: int
    rows: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward."""
        tensors = {"input_ids": self.input_ids, "targets": self.targets, "position_ids": self.position_ids, "cu_seqlens": self.cu_seqlens}
        return tensors | self.rows

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; copies to CUDA go through pinned memory and do not wait."""
        device = torch.device(device)

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)

        moved = {name: move(tensor) for name, tensor in self.rows.items()}
        return replace(self, input_ids=move(self.input_ids), targets=move(self.targets), position_ids=move(self.position_ids), rows=moved)


@dataclass(frozen=True)
class StepPlan:
    """How the rows of one optimizer step are dealt out; accumulation is derived.

    Sample number of (micro-step m, rank r, row b) = first sample of the step + (m * world_size + r) * micro_batch_size + b.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        numbers = f"global batch {self.global_batch_size}, micro-batch {self.micro_batch_size}, ranks {self.world_size}"
        if min(self.global_batch_size, self.micro_batch_size, self.world_size) < 1:
            raise UsageError(f"batch sizes and the number of ranks must be positive: {numbers}.")
        per_pass = self.micro_batch_size * self.world_size
        if self.global_batch_size % per_pass:
            raise UsageError(
                f"train.global_batch_size must be a multiple of train.micro_batch_size x ranks: {numbers}; "
                f"{self.global_batch_size} is not a multiple of {self.micro_batch_size} x {self.world_size} = {per_pass}."
            )

    @property
    def accumulation(self) -> int:
        """Micro-steps of an optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def sample_numbers(self, first_sample: int, rank: int) -> list[list[int]]:
        """Numbers of the samples a rank takes in the step that begins with `first_sample`, by micro-step."""
        size = self.micro_batch_size
        starts = [first_sample + (micro * self.world_size + rank) * size for micro in range(self.accumulation)]
        return [list(range(start, start + size)) for start in starts]


class Samples(Protocol):
    """Rows by the number of a sample: a `RowDataset`, or several of them mixed."""

    seq_len: int
    pad_id: int

    def sample(self, number: int) -> Row:
        """The row that is sample `number` of a run; samples run across epochs."""
        ...


class RowDataset:
    """Rendered documents packed into rows.

    Args:
        documents: With at least one target each, of at most `seq_len` ids (so that the limit means ids, as it does in the published
            training, and a document of `seq_len` ids uses `seq_len` - 1 input positions).
        seq_len: Input tokens of a row.
        seed: Of the order of samples.
        pad_id: Id written where a row has no token (`tokenizer.endoftext`); never a target and never attended to.
        plan: Rows, where they are known already.

    Attributes:
        fingerprint: sha256 over ids, loss marks and the packing plan; part of every sample's address.
        tokens: Input tokens in all rows. supervised_tokens: Targets in all rows.
        fill: Share of the rows' positions that hold a token.
        documents: Number of documents.
    """

    def __init__(
        self,
        documents: Documents | Sequence[RenderedDocument],
        seq_len: int,
        seed: int,
        *,
        pad_id: int,
        plan: PackingPlan | None = None,
    ):
        held: Documents = MemoryDocuments(documents) if isinstance(documents, Sequence) else documents
        if plan is None:
            plan = plan_rows(self._checked(held, seq_len), seq_len)
        self.seq_len = seq_len
        self.seed = seed
        self.pad_id = pad_id
        self._documents = held
        self._plan = plan
        lengths = held.lengths[plan.documents].astype(np.int64) - 1
        self.documents = len(lengths)
        self.tokens = int(lengths.sum())
        self.supervised_tokens = int(held.supervised[plan.documents].sum(dtype=np.int64))
        self.fill = self.tokens / (len(self) * seq_len)
        self._context = int((lengths * (lengths + 1)).sum())
        digest = hashlib.sha256(f"rows v2 seq_len={seq_len} {held.digest}".encode())
        for array in (plan.documents.astype("<i4"), plan.starts.astype("<i8")):
            digest.update(str(array.shape).encode() + array.tobytes())
        self.fingerprint = digest.hexdigest()

    @staticmethod
    def _checked(documents: Documents, seq_len: int) -> npt.NDArray[np.int32]:
        """The lengths of documents that make rows."""
        lengths = documents.lengths
        if not len(lengths):
            raise DataError("no dialogue is left to make rows of; see the counts of dropped dialogues above.")
        if lengths.max() > seq_len:
            where = f"document {int(lengths.argmax())}"
            raise DataError(f"{where} has {lengths.max()} ids, more than seq_len={seq_len}; shorten it while rendering.")
        if not documents.supervised.all():
            raise DataError(
                f"document {int(documents.supervised.argmin())} has no token with loss; leave such documents out while rendering."
            )
        return lengths

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._plan.starts) - 1

    @property
    def mean_context(self) -> float:
        """Keys a token attends to, on average, its own included: (n + 1) / 2 in a document of n tokens."""
        return self._context / (2 * self.tokens)

    def documents_of(self, row: int) -> list[int]:
        """Numbers of the documents in a row."""
        return self._plan.documents[self._plan.starts[row] : self._plan.starts[row + 1]].tolist()

    def origins_of_sample(self, number: int) -> list[str]:
        """Where the documents of sample `number` of a run came from, as `file:line`."""
        _, index = sample_index(self.fingerprint, self.seed, number, len(self))
        return [self._documents.origin(document) for document in self.documents_of(index)]

    def row(self, index: int) -> Row:
        """One row, shifted, without padding."""
        return build_row([Example(*self._documents.read(document)) for document in self.documents_of(index)], self.seq_len)

    def sample(self, number: int) -> Row:
        """The row that is sample `number` of a run; samples run across epochs."""
        _, index = sample_index(self.fingerprint, self.seed, number, len(self))
        return self.row(index)


class ManyRows(Protocol):
    """A number of rows, to be gone through in order."""

    seq_len: int
    pad_id: int

    def __len__(self) -> int: ...

    def row(self, index: int) -> Row:
        """One row, shifted, without padding."""
        ...


def step_batches(
    dataset: Samples, first_sample: int, plan: StepPlan, rank: int, last_sample: int | None = None, by_source: bool = False
) -> list[Batch]:
    """The micro-batches of one rank in one optimizer step.

    Args:
        dataset: Rows.
        first_sample: Number of the step's first sample.
        plan: Batch sizes and ranks.
        rank: This rank.
        last_sample: Number of samples of the whole run (the first number not used); places beyond it become rows of weight zero, so that
            every rank makes the same number of forwards. None: no end.
        by_source: Whether batches say which source their rows are from.
    """
    micro_batches = []
    for numbers in plan.sample_numbers(first_sample, rank):
        rows = [dataset.sample(number) if last_sample is None or number < last_sample else None for number in numbers]
        micro_batches.append(collate(rows, dataset.seq_len, dataset.pad_id, by_source))
    return micro_batches


def evaluation_batches(dataset: ManyRows, micro_batch_size: int, world_size: int, rank: int, by_source: bool = False) -> Iterator[Batch]:
    """All rows once, in order, dealt out over ranks; every rank gets the same number of batches, filled up with rows of weight zero."""
    per_pass = micro_batch_size * world_size
    for start in range(0, len(dataset), per_pass):
        first = start + rank * micro_batch_size
        rows = [dataset.row(index) if index < len(dataset) else None for index in range(first, first + micro_batch_size)]
        yield collate(rows, dataset.seq_len, dataset.pad_id, by_source)


def evaluation_steps(dataset: ManyRows, micro_batch_size: int, world_size: int) -> int:
    """Number of batches `evaluation_batches` gives each rank."""
    return -(-len(dataset) // (micro_batch_size * world_size))


class EvaluationBatches:
    """The batches of `evaluation_batches`, made anew for each evaluation."""

    def __init__(self, dataset: ManyRows, micro_batch_size: int, world_size: int, rank: int, by_source: bool = False):
        self._asked = (dataset, micro_batch_size, world_size, rank)
        self._by_source = by_source

    def __len__(self) -> int:
        """As many on every rank."""
        return evaluation_steps(*self._asked[:3])

    def __iter__(self) -> Iterator[Batch]:
        return evaluation_batches(*self._asked, by_source=self._by_source)


def collate(rows: Sequence[Row | None], seq_len: int, pad_id: int, by_source: bool = False) -> Batch:
    """Pad rows to a common length and stack them; None is a row of padding, which has no weight."""
    longest = max((len(row.input_ids) for row in rows if row is not None), default=1)
    width = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, seq_len)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    targets = np.full((len(rows), width), IGNORE_INDEX, dtype=np.int64)
    position_ids = np.empty((len(rows), width), dtype=np.int64)
    boundaries = [0]
    weight, tokens = 0.0, 0
    for place, row in enumerate(rows):
        length = 0 if row is None else len(row.input_ids)
        if row is not None:
            input_ids[place, :length] = row.input_ids
            targets[place, :length] = row.targets
            position_ids[place, :length] = row.position_ids
            weight += row.objective * int((row.targets != IGNORE_INDEX).sum())
            tokens += length
        position_ids[place, length:] = np.arange(width - length)
        for document in [*(row.doc_lengths if row is not None else ()), width - length]:
            if document:
                boundaries.append(boundaries[-1] + document)
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.tensor(boundaries, dtype=torch.int32),
        weight=float(weight),
        tokens=tokens,
        rows=_by_row(rows) if by_source else {},
    )


def _by_row(rows: Sequence[Row | None]) -> dict[str, torch.Tensor]:
    """What the forward is told of each row; padding is of source 0, where it counts nothing."""
    return {
        "row_sources": torch.tensor([row.source if row is not None else 0 for row in rows]),
        "row_weights": torch.tensor([row.objective if row is not None else 0.0 for row in rows], dtype=torch.float32),
        "row_bytes": torch.tensor([row.text_bytes if row is not None else 0 for row in rows]),
    }
