"""Comparisons as ids, stored and read back, and as batches for a rank.

A sample is a comparison: all of its responses, each with the context, are in one micro-batch of one rank, which is one packed row. So
every rank makes one forward for a micro-batch, however many responses its comparisons have.

Shape legend: T tokens of a micro-batch, R its responses, P its pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moss_train.data.comparisons import Pair
from moss_train.data.loader import LENGTH_MULTIPLE, StepPlan, evaluation_steps
from moss_train.data.mixture import Mixture, sample_index
from moss_train.data.packing import IGNORE_INDEX

_ARRAYS = {
    "ids": np.int32,
    "marks": np.bool_,
    "lengths": np.int32,
    "replies": np.int32,
    "counts": np.int32,
    "pairs": np.int32,
    "strengths": np.float32,
    "pair_counts": np.int32,
    "best": np.int32,
}


class RenderedComparison(NamedTuple):
    """A comparison as ids.

    Attributes:
        documents: Of each response: context and response, up to and with the token that ends the reply.
        marks: Of each: which tokens MOSS wrote in the response.
        reply_tokens: Of each: tokens of the reply.
        pairs: Of the responses.
        best: Number of the best one.
        line: The comparison in words, for reports.
    """

    documents: list[list[int]]
    marks: list[list[bool]]
    reply_tokens: list[int]
    pairs: Sequence[Pair]
    best: int
    line: dict[str, Any]


class ComparisonRow(NamedTuple):
    """A comparison of a run.

    Attributes:
        documents, marks: Ids and marks of each response.
        pairs: [P, 2]: better, worse; of a tie in any order. strengths: [P]; of a tie 0.
        best: Number of the best response.
        source, objective: As in `packing.Row`.
    """

    documents: list[npt.NDArray[np.int32]]
    marks: list[npt.NDArray[np.bool_]]
    pairs: npt.NDArray[np.int32]
    strengths: npt.NDArray[np.float32]
    best: int
    source: int = 0
    objective: float = 1.0


class Store:
    """Rendered comparisons in a directory, mapped.

    Attributes:
        lengths: int32, tokens of each response with its context. replies: int32, tokens of the reply alone.
        counts: int32, responses of each comparison.
        digest: sha256 of all that is stored.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        for name in _ARRAYS:
            setattr(self, f"_{name}", np.load(directory / f"{name}.npy", mmap_mode="r"))
        self.lengths: npt.NDArray[np.int32] = np.asarray(self._lengths)  # type: ignore[attr-defined]
        self.replies: npt.NDArray[np.int32] = np.asarray(self._replies)  # type: ignore[attr-defined]
        self.counts: npt.NDArray[np.int32] = np.asarray(self._counts)  # type: ignore[attr-defined]
        self._tokens_before = np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])
        self.first_response = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        self._pairs_before = np.concatenate([[0], np.cumsum(self._pair_counts, dtype=np.int64)])  # type: ignore[attr-defined]
        self.digest = (directory / "digest").read_text(encoding="ascii")

    def __len__(self) -> int:
        """Comparisons."""
        return len(self.counts)

    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each comparison, all responses together."""
        return np.add.reduceat(self.lengths.astype(np.int64), self.first_response[:-1]) if len(self) else np.zeros(0, dtype=np.int64)

    def read(self, number: int) -> ComparisonRow:
        """One comparison."""
        first, end = self.first_response[number : number + 2]
        spans = [slice(self._tokens_before[r], self._tokens_before[r + 1]) for r in range(first, end)]
        pairs = slice(*self._pairs_before[number : number + 2])
        return ComparisonRow(
            [self._ids[span] for span in spans],  # type: ignore[attr-defined]
            [self._marks[span] for span in spans],  # type: ignore[attr-defined]
            self._pairs[pairs],  # type: ignore[attr-defined]
            self._strengths[pairs],  # type: ignore[attr-defined]
            int(self._best[number]),  # type: ignore[attr-defined]
        )

    def lines(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Comparisons in words, with `origin`."""
        wanted = set(numbers)
        with (self.directory / "lines.jsonl").open(encoding="utf-8") as file:
            found = {number: json.loads(line) for number, line in enumerate(file) if number in wanted}
        return (found[number] for number in numbers)


def write_store(directory: Path, rendered: Iterator[RenderedComparison]) -> int:
    """Writes comparisons as they come into an empty directory; how many there were."""
    parts: dict[str, list[Any]] = {name: [] for name in _ARRAYS if name not in ("ids", "marks")}
    digest = hashlib.sha256(b"comparisons v1")
    count = 0
    raw = {name: directory / f"{name}.raw" for name in ("ids", "marks")}
    with raw["ids"].open("wb") as ids, raw["marks"].open("wb") as marks, (directory / "lines.jsonl").open("w", encoding="utf-8") as lines:
        for one in rendered:
            for document, mark, reply in zip(one.documents, one.marks, one.reply_tokens, strict=True):
                ids.write(np.asarray(document, dtype="<i4").tobytes())
                marks.write(np.asarray(mark, dtype=np.bool_).tobytes())
                parts["lengths"].append(len(document))
                parts["replies"].append(reply)
                digest.update(np.asarray(document, dtype="<i4").tobytes() + np.asarray(mark, dtype=np.bool_).tobytes())
            parts["counts"].append(len(one.documents))
            parts["pairs"] += [(pair.better, pair.worse) for pair in one.pairs]
            parts["strengths"] += [0.0 if pair.tied else pair.strength for pair in one.pairs]
            parts["pair_counts"].append(len(one.pairs))
            parts["best"].append(one.best)
            digest.update(repr([tuple(pair) for pair in one.pairs]).encode())
            lines.write(json.dumps(one.line, ensure_ascii=False) + "\n")
            count += 1
    for name, path in raw.items():
        flat = np.memmap(path, dtype=_ARRAYS[name], mode="r") if path.stat().st_size else np.zeros(0, dtype=_ARRAYS[name])
        np.save(directory / f"{name}.npy", flat)
        path.unlink()
    for name, values in parts.items():
        shape = (-1, 2) if name == "pairs" else (-1,)
        np.save(directory / f"{name}.npy", np.asarray(values, dtype=_ARRAYS[name]).reshape(shape))
    (directory / "digest").write_text(digest.hexdigest(), encoding="ascii")
    return count


class ComparisonRows:
    """The comparisons of a split, in an order that follows from the seed, epoch after epoch.

    Args:
        store: All of them. chosen: Numbers of those in this split. seed: Of the order. pad_id: Id behind the last response.

    Attributes:
        tokens: Of all responses. documents: Responses. supervised_tokens: Comparisons, the unit of weight here.
        longest: Tokens of the largest comparison.
    """

    def __init__(self, store: Store, chosen: npt.NDArray[np.int64], seed: int, pad_id: int, seq_len: int):
        self.store, self.chosen, self.seed, self.pad_id, self.seq_len = store, chosen, seed, pad_id, seq_len
        sizes = store.tokens()[chosen]
        self.tokens, self.longest = int(sizes.sum()), int(sizes.max())
        self.documents, self.supervised_tokens = int(store.counts[chosen].sum()), len(chosen)
        responses = np.concatenate([np.arange(store.first_response[n], store.first_response[n + 1]) for n in chosen])
        lengths = store.lengths[responses].astype(np.int64)
        self._context = int((lengths * (lengths + 1)).sum())
        self.fingerprint = hashlib.sha256(f"{store.digest}\n".encode() + chosen.astype("<i8").tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def mean_context(self) -> float:
        """Keys a token attends to, on average, its own included."""
        return self._context / (2 * self.tokens)

    def _index(self, number: int) -> int:
        _, index = sample_index(self.fingerprint, self.seed, number, len(self))
        return int(self.chosen[index])

    def row(self, index: int) -> ComparisonRow:
        """The comparison with a number in this split."""
        return self.store.read(int(self.chosen[index]))

    def sample(self, number: int) -> ComparisonRow:
        """The comparison that is sample `number` of a run."""
        return self.store.read(self._index(number))

    def origins_of_sample(self, number: int) -> list[str]:
        """Where sample `number` of a run came from, as `file:line`."""
        return [line["origin"] for line in self.store.lines([self._index(number)])]


@dataclass(frozen=True)
class PMBatch:
    """One micro-batch of one rank.

    Attributes:
        weight: Comparisons. tokens: Of their responses, padding not counted.
        tensors: By the names of `CodeGenPM.forward`.
    """

    weight: float
    tokens: int
    tensors: dict[str, torch.Tensor]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward."""
        return self.tensors

    def to(self, device: torch.device | str) -> PMBatch:
        """The same batch on a device; the boundaries stay on the CPU, where attention reads them."""
        device = torch.device(device)
        if device.type == "cpu":
            return self
        moved = {
            name: tensor if name == "cu_seqlens" else tensor.pin_memory().to(device, non_blocking=True)
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=moved)


def collate_comparisons(rows: Sequence[ComparisonRow | None], pad_id: int, with_lm: bool = False) -> PMBatch:
    """Comparisons as one packed row [1, T]; None is a place that is filled up, without weight.

    Args:
        rows: Of the micro-batch.
        pad_id: Id of the padding at the end, a document of its own.
        with_lm: Whether what the best responses say is a target too.
    """
    present = [row for row in rows if row is not None]
    documents = [document for row in present for document in row.documents]
    lengths = [len(document) for document in documents]
    packed = pack_documents(documents, pad_id)
    first = np.cumsum([0, *(len(row.documents) for row in present)])
    pairs = [row.pairs.astype(np.int64) + start for row, start in zip(present, first)]
    strengths = np.concatenate([row.strengths for row in present]) if present else np.zeros(0, dtype=np.float32)
    tied = strengths == 0
    counts = [len(row.pairs) for row in present]
    weights = np.repeat([1 / count for count in counts], counts)
    untied = [int((row.strengths > 0).sum()) for row in present]
    untied_weights = np.repeat([1 / count if count else 0.0 for count in untied], counts) * ~tied
    tensors = {
        **packed,
        # Behind the last token of each response: from lengths, since a pad id may be a token of a text.
        "reward_index": torch.from_numpy(np.cumsum(lengths, dtype=np.int64) - 1) if lengths else torch.zeros(0, dtype=torch.int64),
        "pair_index": torch.from_numpy(np.concatenate(pairs)) if pairs else torch.zeros((0, 2), dtype=torch.int64),
        "pair_weight": torch.from_numpy(weights.astype(np.float32)),
        "pair_untied_weight": torch.from_numpy(untied_weights.astype(np.float32)),
        "pair_strength": torch.from_numpy(np.where(tied, 1.0, strengths).astype(np.float32)),
        "pair_tied": torch.from_numpy(tied),
    }
    if with_lm:
        tensors |= _lm_targets(present, packed["input_ids"].shape[1])
    return PMBatch(float(len(present)), sum(lengths), tensors)


def pack_documents(documents: Sequence[npt.ArrayLike], pad_id: int) -> dict[str, torch.Tensor]:
    """Documents one behind another in a row, filled up to a multiple of `LENGTH_MULTIPLE` by padding, a document of its own.

    Returns:
        `input_ids` and `position_ids`, int64 [1, T], and `cu_seqlens`, int32.
    """
    lengths = [len(np.asarray(document)) for document in documents]
    tokens = sum(lengths)
    padding = -tokens % LENGTH_MULTIPLE if tokens else LENGTH_MULTIPLE
    boundaries = np.cumsum([0, *lengths, padding] if padding else [0, *lengths])
    ids = np.concatenate([*documents, np.full(padding, pad_id)]).astype(np.int64)
    return {
        "input_ids": torch.from_numpy(ids)[None],
        "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in np.diff(boundaries)]))[None],
        "cu_seqlens": torch.from_numpy(boundaries.astype(np.int32)),
    }


def _lm_targets(rows: Sequence[ComparisonRow], width: int) -> dict[str, torch.Tensor]:
    """What the best response of each comparison says, shifted, and 1 / its number of tokens."""
    targets, weights = np.full(width, IGNORE_INDEX, dtype=np.int64), np.zeros(width, dtype=np.float32)
    start = 0
    for row in rows:
        for number, (ids, marks) in enumerate(zip(row.documents, row.marks)):
            if number == row.best:
                places = np.flatnonzero(marks[1:])
                targets[start + places] = ids[1:][places]
                weights[start + places] = 1 / max(1, len(places))
            start += len(ids)
    return {"lm_targets": torch.from_numpy(targets)[None], "lm_weights": torch.from_numpy(weights)[None]}


def comparison_batches(
    rows: Mixture, first_sample: int, plan: StepPlan, rank: int, last_sample: int | None, with_lm: bool
) -> list[PMBatch]:
    """The micro-batches of one rank in one optimizer step; see `loader.step_batches`."""
    found = []
    for numbers in plan.sample_numbers(first_sample, rank):
        samples: list[Any] = [rows.sample(number) if last_sample is None or number < last_sample else None for number in numbers]
        found.append(collate_comparisons(samples, rows.pad_id, with_lm))
    return found


class ComparisonEvaluation:
    """All comparisons once, in order, dealt out over ranks; as many batches on every rank."""

    def __init__(self, rows: ComparisonRows, micro_batch_size: int, world_size: int, rank: int, with_lm: bool):
        self.rows, self._size, self._world_size, self._rank, self._with_lm = rows, micro_batch_size, world_size, rank, with_lm

    def __len__(self) -> int:
        return evaluation_steps(self.rows, self._size, self._world_size)  # type: ignore[arg-type]  # only its length is asked for

    def numbers(self) -> Iterator[list[int]]:
        """Numbers of the comparisons in each batch; fewer where there are no more."""
        for start in range(0, len(self.rows), self._size * self._world_size):
            first = start + self._rank * self._size
            yield [index for index in range(first, first + self._size) if index < len(self.rows)]

    def __iter__(self) -> Iterator[PMBatch]:
        for numbers in self.numbers():
            yield collate_comparisons([self.rows.row(index) for index in numbers], self.rows.pad_id, self._with_lm)
