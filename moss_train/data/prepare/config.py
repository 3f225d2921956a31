"""Settings of the preparation of corpora."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from moss_train.config import OnBad


class Form(StrEnum):
    """What a source consists of."""

    auto = "auto"
    """Records where the path holds files of records and nothing that looks like text or code, else texts."""
    records = "records"
    """JSONL, JSON, Parquet, or a saved dataset: a document a record."""
    texts = "texts"
    """A tree of text or code: a document a file."""


class Executor(StrEnum):
    """Where tasks run."""

    local = "local"
    slurm = "slurm"
    ray = "ray"


class Encoder(StrEnum):
    """What gives the ids; they are the same."""

    auto = "auto"
    """gigatoken, and tokenizers where it is absent."""
    tokenizers = "tokenizers"


FILTERS = ("gopher_quality", "gopher_repetition", "fineweb_quality", "c4_quality")
"""datatrove's filters by the names used here."""


@dataclass
class SourceConfig:
    """A source: data of one language and licence, which is mixed as one."""

    path: Any = None
    """A file, directory or glob, or a list of them."""
    language: str = ""
    """Such as zh, en or code; for the tables, and for those who mix."""
    licence: str | None = None
    """Recorded with the corpus; null: not known."""
    text: str = "text"
    """Field of a record that holds the text."""
    form: Form = Form.auto
    extensions: list[str] | None = None
    """Of a tree of texts: which files are read, such as [py, js]; by default those of common languages."""
    filters: list[str] | None = None
    """Filters of this source, instead of `filters`."""

    def paths(self) -> list[str]:
        """The paths as a list."""
        return [str(path) for path in self.path] if isinstance(self.path, list | tuple) else [str(self.path)]


@dataclass
class SlurmConfig:
    """How tasks are given to Slurm."""

    partition: str = ""
    time: str = "20:00:00"
    """Longest time of a task."""
    mem_per_cpu_gb: int = 4
    qos: str = ""
    setup: str = ""
    """Shell command that makes this package available in a job, such as `source /shared/venv/bin/activate`."""
    max_array_size: int = 1001
    """Tasks in an array, at most; what the cluster allows."""
    submit: bool = True
    """Hand the scripts to sbatch; false: only write them."""
    again: bool = False
    """Go on although jobs were submitted before; to be given when none of them runs any more."""


@dataclass
class RayConfig:
    """How tasks are given to Ray."""

    address: str | None = None
    """Of a cluster, or `auto`; null: Ray is started on this machine."""
    mem_per_cpu_gb: float = 1.0
    """Memory reserved for a task."""


@dataclass
class DecontaminationConfig:
    """Removal of documents that hold text of evaluation sets."""

    files: list[str] = field(default_factory=list)
    """Evaluation sets: files of records, whose texts are all looked at, and plain text."""
    ngram: int = 12
    """Words in a row that a document must share with one of them; a Chinese character counts as a word."""


@dataclass
class MinhashConfig:
    """Removal of near duplicates. Two documents that share a share `s` of their word n-grams are found with the probability
    1 - (1 - s^hashes)^buckets: 0.92 for s = 0.8, 0.28 for s = 0.7 (the values of FineWeb)."""

    enabled: bool = False
    ngram: int = 5
    buckets: int = 14
    hashes: int = 8
    """In a bucket."""


@dataclass
class PrepareConfig:
    """What `scripts/prepare.py` takes."""

    tokenizer: str = "???"
    """Directory of a tokenizer or model."""
    out: str = "???"
    """Directory of the corpus. An unfinished one is continued."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Sources by name: `sources.zh={path: ..., language: zh, licence: ...}`."""
    shard_mb: float = 128.0
    """Input of a task, in 10^6 bytes; a task writes one shard. Larger shards are fewer files, smaller ones share out better."""
    encoder: Encoder = Encoder.auto
    on_bad: OnBad = OnBad.fail
    """Records that are no documents: `fail` names them and ends, `skip` leaves them out and lists them in rejects.jsonl."""
    max_bad_share: float = 0.01
    """Share of the records of a source that may be left out with `on_bad=skip`."""
    min_chars: int = 1
    """Shorter documents are dropped."""
    max_chars: int | None = None
    """Longer documents are dropped."""
    filters: list[str] = field(default_factory=list)
    filter_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of datatrove's filters: `filter_options.gopher_quality.min_doc_words=20`."""
    exact_dedup: bool = False
    """Drop documents whose text occurred before, in any source."""
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
    decontaminate: DecontaminationConfig = field(default_factory=DecontaminationConfig)
    samples: int = 8
    """Documents of a shard that are encoded by tokenizers too, beside the first and the longest; a difference ends the preparation."""
    executor: Executor = Executor.local
    workers: int | None = None
    """Tasks at the same time; by default one a core, on a cluster all."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if not self.sources:
            found.append("sources must be given: 'sources.NAME={path: PATH, language: LANGUAGE, licence: LICENCE}'")
        for name, source in self.sources.items():
            key = f"sources.{name}"
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) or name == "tokenizer":
                found.append(f"{key}: the name of a source is a folder's; expected letters, digits, _ and -, and not `tokenizer`")
            if source.path in (None, "", []):
                found.append(f"{key}.path must be given: a file, directory or glob, or a list of them")
            if not source.language:
                found.append(f"{key}.language must be given, such as zh, en or code")
            found += _unknown_filters(f"{key}.filters", source.filters or [])
            if source.extensions and source.form is Form.records:
                found.append(f"{key}.extensions: belongs to form=texts, but form is records")
        found += _unknown_filters("filters", self.filters) + _unknown_filters("filter_options", list(self.filter_options))
        for key, value, least in (
            ("min_chars", self.min_chars, 0),
            ("samples", self.samples, 0),
            ("decontaminate.ngram", self.decontaminate.ngram, 1),
            ("minhash.ngram", self.minhash.ngram, 1),
            ("minhash.buckets", self.minhash.buckets, 1),
            ("minhash.hashes", self.minhash.hashes, 1),
            ("max_chars", self.max_chars, max(1, self.min_chars)),
            ("workers", self.workers, 1),
        ):
            if value is not None and value < least:
                found.append(f"{key} is {value}; expected {least} or more")
        if not (math.isfinite(self.shard_mb) and self.shard_mb >= 0.001):
            found.append(f"shard_mb is {self.shard_mb}; expected 0.001 or more")
        if not (math.isfinite(self.max_bad_share) and 0 <= self.max_bad_share <= 1):
            found.append(f"max_bad_share is {self.max_bad_share}; expected a share from 0 to 1")
        if self.executor is Executor.slurm and not self.slurm.partition:
            found.append("slurm.partition must be given with executor=slurm")
        return found

    def settings(self) -> dict[str, Any]:
        """What decides which documents and ids come out, as JSON: not where it runs, nor the tokenizer, known by its fingerprint."""
        plain = asdict(self)
        for name in ("tokenizer", "out", "executor", "workers", "slurm", "ray", "encoder"):
            del plain[name]
        return plain


def _unknown_filters(key: str, names: list[str]) -> list[str]:
    return [f"{key}: there is no filter {name!r}; expected some of {', '.join(FILTERS)}" for name in names if name not in FILTERS]
