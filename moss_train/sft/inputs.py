"""What `data.train` and `data.valid` name: files, what they hold, and a tokenizer where none is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data import formats
from moss_train.data.cache import Cache, default_directory, key_of
from moss_train.data.fingerprint import combined, hash_inputs
from moss_train.data.records import RecordError, find_files, read_records, split_limit
from moss_train.data.tokenizer import MossTokenizer
from moss_train.sft.config import DialogueDataConfig

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


def open_cache(config: DialogueDataConfig) -> Cache:
    """The cache of `data.cache`."""
    return Cache(Path(config.cache) if config.cache else default_directory())


def find_inputs(config: DialogueDataConfig) -> list[Input]:
    """What `data.train` and `data.valid` name, or the bundled dialogues.

    Raises:
        DataError: A path is missing or holds nothing readable.
    """
    cache = open_cache(config)
    train, valid = _weighted(config.train), _weighted(config.valid)
    folder = resources.files("moss_train.data.bundled")
    if not train:
        train = [(str(folder / "dialogues_train.jsonl"), None)]
        valid = valid or [(str(folder / "dialogues_dev.jsonl"), None)]
    found = []
    for role, specs in (("train", train), ("valid", valid)):
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


def train_tokenizer(config: DialogueDataConfig, inputs: Sequence[Input], vocab_size: int, say: Say) -> str:
    """The directory of a small tokenizer trained on the training dialogues, kept in the cache."""
    train = [found for found in inputs if found.role == "train"]
    records = [0] * len(train)
    trained: list[MossTokenizer] = []

    def make(out: Path) -> dict[str, Any]:
        tokenizer = MossTokenizer.train(_texts(config, train, records), vocab_size)
        trained.append(tokenizer)
        tokenizer.save(out)
        say(f"tokenizer: trained on the training dialogues, {tokenizer.size} tokens")
        return {}

    def seal(out: Path) -> None:
        data = [found.source(count) for found, count in zip(train, records) if count]
        (made,) = trained
        lineage.write(out, lineage_kinds.tokenizer("sft", data, made.size, made.vocab_size, made.fingerprint))

    key = key_of("tokenizer v1", [found.content for found in train], config.format.value, vocab_size, tokenizers.__version__)
    return str(open_cache(config).get("tokenizer", key, make, say, seal)[0])


def _texts(config: DialogueDataConfig, inputs: Sequence[Input], records: list[int]) -> Iterator[str]:
    """Text to train a tokenizer on: every content of the dialogues, up to a bound. Bad records are told of when they are rendered.

    `records` is counted up: those used of each input.
    """
    left = TOKENIZER_TRAINING_CHARACTERS
    for number, found in enumerate(inputs):
        for record in read_records(found.spec, on_error=lambda error: None):
            try:
                dialogue = formats.parse(record.value, record.origin, config.format.value)
            except RecordError:
                continue
            records[number] += 1
            parts = [dialogue.meta_instruction]
            for turn in dialogue.turns:
                parts += [part for part in (turn.human, turn.thoughts, turn.commands, turn.results, turn.moss) if part]
            yield from filter(None, parts)
            left -= sum(map(len, parts))
            if left < 0:
                return
