"""What a task counts: documents, bytes and tokens read, kept, and dropped by reason; bad records by code."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from moss_train.data.fast_tokens import FastEncoder
from moss_train.data.records import PROBLEMS_SHOWN, RecordError

_PENDING_BYTES = 4 * 2**20


@dataclass
class Count:
    """A number of documents."""

    documents: int = 0
    bytes: int = 0
    """Of their text in UTF-8."""
    tokens: int = 0
    """Without the `<|endoftext|>` of each."""

    def add(self, other: Count) -> None:
        """Takes in what another counted."""
        self.documents += other.documents
        self.bytes += other.bytes
        self.tokens += other.tokens


@dataclass
class Ledger:
    """The counts of a task, or of several.

    Attributes:
        kept, dropped: Documents, and by reason.
        bad: Records that are no documents, by code. problems: The first of them, in words.
        kinds: Documents read by kind of file, such as python, where a source is a tree of files.
        lengths: Documents kept with 2^n to 2^(n+1) - 1 tokens, by n.
    """

    kept: Count = field(default_factory=Count)
    dropped: dict[str, Count] = field(default_factory=dict)
    bad: Counter[str] = field(default_factory=Counter)
    problems: list[dict[str, str]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    digest: str = ""
    """Over what was read."""
    encoder: FastEncoder | None = None
    """Counts the tokens of what is dropped; without one, nothing dropped is counted."""
    _pending: list[tuple[str, bytes]] = field(default_factory=list)
    _pending_bytes: int = 0

    @property
    def read(self) -> Count:
        """All documents: kept and dropped."""
        whole = Count()
        for part in (self.kept, *self.dropped.values()):
            whole.add(part)
        return whole

    def reject(self, error: RecordError) -> None:
        """Notes a record that is no document."""
        self.bad[error.code] += 1
        self.problems.append({"origin": error.origin, "code": error.code, "problem": str(error)})

    def drop(self, reason: str, text: str) -> None:
        """Notes a document that a step leaves out."""
        if self.encoder is None:
            return
        raw = text.encode()
        self._pending.append((reason, raw))
        self._pending_bytes += len(raw)
        if self._pending_bytes >= _PENDING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Counts the tokens of what was dropped."""
        if self.encoder is None or not self._pending:
            return
        lengths = self.encoder.encode([raw for _, raw in self._pending]).lengths
        for (reason, raw), tokens in zip(self._pending, lengths.tolist(), strict=True):
            self.dropped.setdefault(reason, Count()).add(Count(1, len(raw), tokens))
        self._pending, self._pending_bytes = [], 0

    def keep(self, sizes: int, lengths: npt.NDArray[np.int64]) -> None:
        """Notes documents that were written.

        Args:
            sizes: Bytes of all of them.
            lengths: int64 [documents], tokens of each.
        """
        self.kept.add(Count(len(lengths), sizes, int(lengths.sum())))
        binned = np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64))
        self.lengths.update({int(power): int(binned[power]) for power in np.flatnonzero(binned)})

    def add(self, other: Ledger) -> None:
        """Takes in what another task counted."""
        self.kept.add(other.kept)
        for reason, counted in other.dropped.items():
            self.dropped.setdefault(reason, Count()).add(counted)
        self.bad.update(other.bad)
        self.problems += other.problems[: max(0, PROBLEMS_SHOWN - len(self.problems))]
        self.kinds.update(other.kinds)
        self.lengths.update(other.lengths)

    def to_json(self) -> dict[str, Any]:
        """As JSON; `problems` are kept elsewhere."""
        return {
            "read": vars(self.read),
            "kept": vars(self.kept),
            "dropped": {reason: vars(counted) for reason, counted in sorted(self.dropped.items())},
            "bad": dict(sorted(self.bad.items())),
            "kinds": dict(sorted(self.kinds.items())),
            "lengths": {str(power): number for power, number in sorted(self.lengths.items())},
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Ledger:
        """The counts that gave `raw`."""
        return cls(
            Count(**raw["kept"]),
            {reason: Count(**counted) for reason, counted in raw["dropped"].items()},
            Counter(raw["bad"]),
            kinds=Counter(raw["kinds"]),
            lengths=Counter({int(power): number for power, number in raw["lengths"].items()}),
        )


class Dropped:
    """What datatrove's steps take for a writer of excluded documents: it counts them.

    Args:
        ledger: Where. step: The reason, where the step gives none of its own; else before it.
    """

    def __init__(self, ledger: Ledger, step: str):
        self._ledger, self._step = ledger, step

    def __enter__(self) -> Dropped:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, document: Any, rank: int = 0) -> None:
        """Counts a document."""
        reason = document.metadata.get("filter_reason")
        self._ledger.drop(f"{self._step}: {reason}" if reason else self._step, document.text)
