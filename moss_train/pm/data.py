"""Files of comparisons to the samples of a run, rendered once a machine and kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.config import DefaultMeta, OnBad
from moss_train.data import inputs as files_of
from moss_train.data.cache import Cache, default_directory, key_of, read_entry
from moss_train.data.comparison_render import comparison_of, render_comparisons
from moss_train.data.comparison_rows import (
    ComparisonEvaluation,
    ComparisonRows,
    RenderedComparison,
    Store,
    comparison_batches,
    write_store,
)
from moss_train.data.comparisons import Comparison
from moss_train.data.dialogue import meta_instruction, spelled_segments
from moss_train.data.fingerprint import hash_inputs
from moss_train.data.formats.preference import parse_preference, without_ties
from moss_train.data.inputs import Input, hold_out
from moss_train.data.loader import StepPlan
from moss_train.data.mixture import Mixture
from moss_train.data.records import PROBLEMS_SHOWN, ProblemList, RecordError, read_records
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.pm.config import ComparisonDataConfig, PMConfig, Ties
from moss_train.train import engine as distributed
from moss_train.train.stage import StageData

Say = Callable[[str], None]

_VERSION = 1
_BUNDLED = ("comparisons_train.jsonl", "comparisons_dev.jsonl")
REJECTS = "rejects.jsonl"


def open_cache(config: ComparisonDataConfig) -> Cache:
    """The cache of `data.cache`."""
    return Cache(Path(config.cache) if config.cache else default_directory())


def find_inputs(config: ComparisonDataConfig) -> list[Input]:
    """What `data.train` and `data.valid` name, or the bundled comparisons.

    Raises:
        DataError: A path is missing or holds nothing readable.
    """
    return files_of.find_inputs(config.train, config.valid, open_cache(config), _BUNDLED)


def train_tokenizer(config: ComparisonDataConfig, inputs: Sequence[Input], vocab_size: int, say: Say) -> str:
    """The directory of a small tokenizer trained on the training comparisons, kept in the cache."""

    def texts_of(value: Any, origin: str) -> list[str]:
        comparison = parse_preference(value, origin, config.format.value, default_meta(config))
        turns = [*comparison.context.turns, *comparison.responses]
        return [comparison.context.meta_instruction, *(segment for turn in turns for segment in spelled_segments(turn))]

    key = ["comparisons", config.format.value]
    return files_of.train_tokenizer(inputs, texts_of, vocab_size, open_cache(config), say, stage="pm", what="comparisons", key=key)


def default_meta(config: ComparisonDataConfig) -> str:
    """Meta instruction of records that have none."""
    moss = config.default_meta is DefaultMeta.moss
    return meta_instruction(**{plugin.value: True for plugin in config.plugins}) if moss else ""


def render_inputs(config: PMConfig, inputs: Sequence[Input], tokenizer: MossTokenizer, say: Say, tokenizer_directory: Path) -> list[str]:
    """Renders what is not in the cache yet; called on one rank of a machine.

    Returns:
        The entry of each input.

    Raises:
        DataError: With the bad records, each by file and line, and what to do.
    """
    cache, data = open_cache(config.data), config.data
    settings = {
        **{key: getattr(data, key) for key in ("seq_len", "max_responses")},
        **{key: getattr(data, key).value for key in ("format", "on_long", "on_marker", "ties")},
        "default_meta": default_meta(data),
    }
    entries = []
    for found in inputs:
        key = key_of("comparisons", _VERSION, found.content, settings, tokenizer.fingerprint, tokenizers.__version__)

        def make(out: Path, found: Input = found) -> dict[str, Any]:
            report = _Report()
            count = write_store(out, _render(found, data, tokenizer, report))
            (out / REJECTS).write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in report.rejects), encoding="utf-8")
            if hash_inputs([Path(name) for name in found.files], cache) != found.hashes:
                raise DataError(f"{found.spec} was changed since it was first read; give the same command again when it is left alone")
            return {"records": report.records, "good": count, "problems": dict(report.problems.counts)}

        def seal(out: Path, found: Input = found) -> None:
            made = read_entry(out)
            parents = [*found.parents(), *lineage.recorded_parent(tokenizer_directory, "tokenizer")]
            shaped = {**settings, "tokenizer_fingerprint": tokenizer.fingerprint}
            counts = {"records": made["records"], **{f"left out: {code}": count for code, count in made["problems"].items()}}
            lineage.write(out, lineage_kinds.rendered("pm", parents, found.source(made["records"]), shaped, counts))

        entry, _ = cache.get("comparisons", key, make, say, seal)
        _check(entry, found, data, say)
        entries.append(str(entry))
    return entries


class _Report:
    """What came of reading an input."""

    def __init__(self) -> None:
        self.records = 0
        self.problems = ProblemList("skip", 1.0)
        self.rejects: list[dict[str, str]] = []

    def add(self, error: RecordError) -> None:
        self.problems.add(error)
        self.rejects.append({"origin": error.origin, "code": error.code, "problem": str(error)})


def _render(found: Input, data: ComparisonDataConfig, tokenizer: MossTokenizer, report: _Report) -> Iterator[RenderedComparison]:
    meta = default_meta(data)

    def parsed() -> Iterator[Comparison]:
        for record in read_records(found.spec, on_error=report.add):
            report.records += 1
            try:
                comparison = parse_preference(record.value, record.origin, data.format.value, meta)
                yield without_ties(comparison) if data.ties is Ties.drop else comparison
            except RecordError as error:
                report.add(error)

    return render_comparisons(parsed(), tokenizer, data.seq_len, report.add, data.on_long.value, data.on_marker.value, data.max_responses)


def _check(entry: Path, found: Input, data: ComparisonDataConfig, say: Say) -> None:
    """Refuses data with bad records, or with too many of them.

    What says nothing about the record itself, such as its length or that nobody preferred anything, is counted and no fault.
    """
    made = read_entry(entry)
    if not made["records"]:
        raise DataError(f"{found.spec}: no records: the file is empty or holds only blank lines.")
    counts: dict[str, int] = made["problems"]
    bad = sum(count for code, count in counts.items() if code not in _NO_FAULT)
    told = ", ".join(f"{count:,} {code}" for code, count in sorted(counts.items(), key=lambda item: -item[1]))
    with (entry / REJECTS).open(encoding="utf-8") as file:
        shown = [line["problem"] for line, _ in zip(map(json.loads, file), range(PROBLEMS_SHOWN)) if line["code"] not in _NO_FAULT]
    head = f"{bad:,} bad of {made['records']:,} records in {found.spec}"
    if bad and data.on_bad is OnBad.fail:
        raise DataError("\n".join([f"{head} ({told}):", *shown, "Repair them, or set data.on_bad=skip to leave them out."]))
    if bad > data.max_bad_share * made["records"]:
        raise DataError("\n".join([f"{head}, more than the {data.max_bad_share:.1%} of data.max_bad_share ({told}):", *shown]))
    if not made["good"]:
        raise DataError(f"{found.spec}: no comparison is left ({told})")
    if counts:
        say(f"{found.role}: {found.name}: left out: {told}")


_NO_FAULT = frozenset({"too_long", "equal_after_truncation", "no_preference", "identical_responses"})
"""Codes of comparisons that are what they should be, and from which there is nothing to learn."""


@dataclass
class Samples:
    """The comparisons of both splits."""

    train: Mixture
    train_parts: list[ComparisonRows]
    valid: ComparisonRows | None
    config: PMConfig
    tokenizer: MossTokenizer
    sources: list[lineage.Source]
    details: dict[str, Any]
    rejects: list[str]

    @property
    def fingerprint(self) -> str:
        """Of both splits: the same on every rank."""
        return f"{self.train.fingerprint} {self.valid.fingerprint if self.valid else None}"

    @property
    def with_lm(self) -> bool:
        """Whether batches hold the targets of the language model's loss."""
        return self.config.objective.lm_coefficient > 0

    def write_rejects(self, directory: Path) -> Path | None:
        """Writes down the records left out, one a line; None where there are none."""
        if not self.rejects:
            return None
        files.replace_content(directory / REJECTS, "".join(self.rejects).encode())
        return directory / REJECTS

    def evaluation(self) -> ComparisonEvaluation | None:
        """The batches of the validation comparisons, for this rank."""
        if self.valid is None:
            return None
        size = self.config.train.micro_batch_size
        return ComparisonEvaluation(self.valid, size, distributed.world_size(), distributed.rank(), self.with_lm)

    def comparisons(self, rows: ComparisonRows, most: int | None = None) -> list[Comparison]:
        """In words: those of a split, or its first ones."""
        return [comparison_of(line) for line in rows.store.lines([int(number) for number in rows.chosen[:most]])]

    def stage_data(self) -> StageData:
        """What the loop takes."""
        train, rank = self.config.train, distributed.rank()
        plan = StepPlan(train.global_batch_size, train.micro_batch_size, distributed.world_size())
        evaluation = self.evaluation()
        return StageData(
            rows=len(self.train),
            batches=lambda first, last: comparison_batches(self.train, first, plan, rank, last, self.with_lm),
            valid={"valid": evaluation} if evaluation is not None else {},
            sources=self.sources,
            weight_name="comparisons",
            mean_context=self.train.mean_context,
            fingerprint=self.train.fingerprint,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            write_tokenizer=self.tokenizer.save,
            origins=self.train.origins_of_sample,
            position=self.train.position,
            changes=self.train.changes,
            details=self.details,
            kind="pm",
            row_tokens=max(part.longest for part in self.train_parts),
            identity={"objective": asdict(self.config.objective)},
        )


def open_samples(config: PMConfig, inputs: Sequence[Input], entries: Sequence[str], tokenizer: MossTokenizer, say: Say) -> Samples:
    """The samples of both splits, from entries of the cache; says what came of the data."""
    data, seed, pad = config.data, config.run.seed, tokenizer.endoftext
    stores = [Store(Path(entry)) for entry in entries]
    chosen: list[tuple[Input, Store, npt.NDArray[np.int64], str]] = []
    for found, store in zip(inputs, stores):
        everything = np.arange(len(store))
        if found.role == "train" and data.holdout and not any(one.role == "valid" for one in inputs):
            kept, apart = _hold_out(store, data.holdout, seed)
            chosen += [(found, store, kept, "train"), (found, store, apart, "valid")]
        else:
            chosen.append((found, store, everything, found.role))
    parts: dict[str, list[ComparisonRows]] = {"train": [], "valid": []}
    for found, store, numbers, role in chosen:
        rows = ComparisonRows(store, numbers, seed, pad, data.seq_len)
        parts[role].append(rows)
        pairs = int(sum(len(store.read(int(number)).pairs) for number in numbers)) if len(numbers) <= 100_000 else None
        told = f", {pairs:,} pairs" if pairs is not None else ""
        say(f"{role}: {found.name}: {len(rows):,} comparisons of {rows.documents:,} responses{told}, {rows.tokens:,} tokens")
    if len(parts["valid"]) > 1:
        raise DataError("validation comparisons come from several paths; name one file or directory in data.valid")
    weights = [found.weight for found in inputs if found.role == "train"]
    shares = [weight if weight is not None else float(len(rows)) for weight, rows in zip(weights, parts["train"])]
    names = [found.name for found in inputs if found.role == "train"]
    mixture = Mixture(parts["train"], shares, names)  # type: ignore[arg-type]  # its samples are comparisons
    rejects = [line for entry in entries for line in (Path(entry) / REJECTS).read_text(encoding="utf-8").splitlines(keepends=True)]
    records = [read_entry(Path(entry))["records"] for entry in entries]
    details = {
        "seq_len": data.seq_len,
        "on_long": data.on_long.value,
        "ties": data.ties.value,
        "objective": asdict(config.objective),
        "rows_fingerprint": mixture.fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "meta_instruction": default_meta(data),
    }
    sources = [found.source(count) for found, count in zip(inputs, records)]
    valid = parts["valid"][0] if parts["valid"] else None
    return Samples(mixture, parts["train"], valid, config, tokenizer, sources, details, rejects)


def _hold_out(store: Store, share: float, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers of the comparisons to train on and to keep apart; those of one context are on one side."""
    keys = [json.dumps(line["context"], ensure_ascii=False) for line in store.lines(range(len(store)))]
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    _, apart = hold_out(len(groups), share, seed)
    is_apart = np.isin(np.array([groups[key] for key in keys]), apart)
    return np.flatnonzero(~is_apart), np.flatnonzero(is_apart)


def parents_of_samples(config: PMConfig, tokenizer_directory: Path, entries: Sequence[str]) -> list[lineage.Parent]:
    """The rendered comparisons, and the tokenizer where it is not that of `init_from`."""
    found = [parent for entry in dict.fromkeys(entries) for parent in lineage.recorded_parent(Path(entry), "data")]
    if config.tokenizer.path is None and config.init_from is not None:
        return found
    return [*found, *lineage.recorded_parent(tokenizer_directory, "tokenizer")]
