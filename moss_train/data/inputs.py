"""What settings such as `data.train` and `data.valid` name: files and what they hold, and a tokenizer where none is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.cache import Cache, key_of
from moss_train.data.fingerprint import combined, hash_inputs
from moss_train.data.mixture import permutation_key, permuted_index
from moss_train.data.records import RecordError, find_files, read_records, split_limit
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

Say = Callable[[str], None]

BUNDLED_LICENCE = "Apache-2.0"
# Enough text for a small vocabulary; learning merges from more takes minutes and changes little.
TOKENIZER_TRAINING_CHARACTERS = 20_000_000


@dataclass
class Input:
    """One path of `data.train` or `data.valid`, and what its files hold.

    Attributes:
        spec: As given. files: In order. hashes: sha256 of each. limit: Records taken at most. weight: In a mixture, else None.
        role: `train` or `valid`. licence: Where it is known.
    """

    spec: str
    files: list[str]
    hashes: list[str]
    limit: int | None
    weight: float | None
    role: str
    licence: str | None = None

    @property
    def content(self) -> list[Any]:
        """What stands for the records: hashes, kinds of file, and the limit, but no paths."""
        return [self.hashes, [Path(name).suffixes for name in self.files], self.limit]

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.spec.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]

    @property
    def sha256(self) -> str:
        """Of the file, where it is one file taken whole; else over all of its files."""
        return combined(self.files, self.hashes, self.limit)

    def source(self, records: int) -> lineage.Source:
        """Itself, for a record of lineage."""
        return lineage.Source(self.name, self.sha256, records, self.role, self.licence)

    def parents(self) -> list[lineage.Parent]:
        """Those of its files that this project wrote."""
        return [parent for name in self.files for parent in lineage.recorded_parent(Path(name), "data")]


def find_inputs(train: Any, valid: Any, cache: Cache, bundled: tuple[str, str]) -> list[Input]:
    """What two settings name, or the bundled files where `train` names nothing.

    Args:
        train, valid: A path, a list of paths, `{path: weight}`, or None.
        cache: Remembers the hashes of files.
        bundled: Names of files that come with the package, for training and validation.

    Raises:
        DataError: A path is missing or holds nothing readable.
    """
    named, held = _weighted(train), _weighted(valid)
    folder = resources.files("moss_train.data.bundled")
    if not named:
        named = [(str(folder / bundled[0]), None)]
        held = held or [(str(folder / bundled[1]), None)]
    found = []
    for role, specs in (("train", named), ("valid", held)):
        for spec, weight in specs:
            pattern, limit = split_limit(spec)
            paths = find_files(pattern)
            hashes = hash_inputs(paths, cache)
            licence = BUNDLED_LICENCE if Path(pattern).parent == Path(str(folder)) else lineage_kinds.licence_of(paths)
            found.append(Input(spec, [str(path) for path in paths], hashes, limit, weight, role, licence))
    return found


def _weighted(value: Any) -> list[tuple[str, float | None]]:
    if value is None:
        return []
    if isinstance(value, dict):
        return [(path, float(weight)) for path, weight in value.items()]
    return [(path, None) for path in ([value] if isinstance(value, str) else value)]


def train_tokenizer(
    inputs: Sequence[Input],
    texts_of: Callable[[Any, str], Iterable[str]],
    vocab_size: int,
    cache: Cache,
    say: Say,
    *,
    stage: str,
    what: str,
    key: Sequence[Any] = (),
) -> str:
    """The directory of a small tokenizer trained on the training records, kept in the cache.

    Args:
        inputs: Those of the role `train` are read.
        texts_of: (record, origin) -> its texts; raises RecordError for a bad record, which is told of when it is rendered.
        vocab_size: Of the tokenizer.
        cache: Keeps it.
        say: Told what was made.
        stage: What it is made for. what: The records, in a word.
        key: What else it depends on.
    """
    train = [found for found in inputs if found.role == "train"]
    records = [0] * len(train)
    trained: list[MossTokenizer] = []

    def make(out: Path) -> dict[str, Any]:
        tokenizer = MossTokenizer.train(_texts(train, texts_of, records), vocab_size)
        trained.append(tokenizer)
        tokenizer.save(out)
        say(f"tokenizer: trained on the training {what}, {tokenizer.size} tokens")
        return {}

    def seal(out: Path) -> None:
        data = [found.source(count) for found, count in zip(train, records) if count]
        (made,) = trained
        lineage.write(out, lineage_kinds.tokenizer(stage, data, made.size, made.vocab_size, made.fingerprint))

    name = key_of("tokenizer v2", [found.content for found in train], *key, vocab_size, tokenizers.__version__)
    return str(cache.get("tokenizer", name, make, say, seal)[0])


def hold_out(count: int, share: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the documents to train on and to keep apart: at least one, never all; the same ones for the same seed and count."""
    if count < 2:
        raise DataError(f"data.holdout={share} needs two documents or more, to keep one apart; there is {count}. Name data.valid instead")
    chosen = min(max(1, round(share * count)), count - 1)
    key = permutation_key("holdout", seed, 0)
    apart = np.sort(np.fromiter((permuted_index(key, count, i) for i in range(chosen)), dtype=np.int64, count=chosen))
    return np.setdiff1d(np.arange(count), apart, assume_unique=True), apart


def _texts(inputs: Sequence[Input], texts_of: Callable[[Any, str], Iterable[str]], records: list[int]) -> Iterator[str]:
    """Text to train a tokenizer on, up to a bound. `records` is counted up: those used of each input."""
    left = TOKENIZER_TRAINING_CHARACTERS
    for number, found in enumerate(inputs):
        for record in read_records(found.spec, on_error=lambda error: None):
            try:
                parts = [part for part in texts_of(record.value, record.origin) if part]
            except RecordError:
                continue
            records[number] += 1
            yield from parts
            left -= sum(map(len, parts))
            if left < 0:
                return
