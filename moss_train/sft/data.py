"""Dialogue files to the rows of a run.

    files -> rendered documents -> (a share kept apart for validation) -> plan of the rows -> batches

All but the last step is done once a machine and kept in the cache, by the hash of all that it depends on: a second start, and every other
rank, only opens files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.config import DefaultMeta, OnBad
from moss_train.data import render_files
from moss_train.data.cache import Cache, key_of, read_entry
from moss_train.data.dialogue import meta_instruction
from moss_train.data.documents import Documents, JoinedDocuments, StoredDocuments
from moss_train.data.fingerprint import hash_inputs
from moss_train.data.inputs import Input, hold_out
from moss_train.data.loader import EvaluationBatches, RowDataset, StepPlan, step_batches
from moss_train.data.mixture import Mixture
from moss_train.data.packing import PackingPlan, plan_rows
from moss_train.data.render_worker import RenderSettings, Report
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.sft.config import DialogueDataConfig, SFTConfig
from moss_train.sft.inputs import open_cache
from moss_train.train import engine as distributed
from moss_train.train.stage import StageData

Say = Callable[[str], None]

_PLAN_VERSION = 1
REJECTS = "rejects.jsonl"
_MOST_TOKENIZER_BYTES = 64 * 2**20


@dataclass
class Rows:
    """Packed rows of both splits."""

    train_rows: Mixture
    valid_rows: RowDataset | None
    config: SFTConfig
    tokenizer: MossTokenizer
    sources: list[lineage.Source]
    details: dict[str, Any]
    rejects: list[dict[str, str]]
    """The records left out, as `{"origin", "code", "problem"}`."""

    @property
    def fingerprint(self) -> str:
        """Of both splits: the same on every rank, or ranks would train on different things."""
        return f"{self.train_rows.fingerprint} {self.valid_rows.fingerprint if self.valid_rows else None}"

    def write_rejects(self, directory: Path) -> Path | None:
        """Writes down the records left out, one a line; None where there are none."""
        if not self.rejects:
            return None
        lines = [json.dumps(reject, ensure_ascii=False) + "\n" for reject in self.rejects]
        files.replace_content(directory / REJECTS, "".join(lines).encode())
        return directory / REJECTS

    def stage_data(self) -> StageData:
        """What the loop takes."""
        train, world_size, rank = self.config.train, distributed.world_size(), distributed.rank()
        plan = StepPlan(train.global_batch_size, train.micro_batch_size, world_size)
        valid = {}
        if self.valid_rows is not None:
            valid["valid"] = EvaluationBatches(self.valid_rows, train.micro_batch_size, world_size, rank)
        return StageData(
            rows=len(self.train_rows),
            # A number of epochs ends in the middle of a step, most often; the rest of it is rows of weight zero.
            batches=lambda first, last: step_batches(self.train_rows, first, plan, rank, last),
            valid=valid,
            sources=self.sources,
            weight_name="supervised_tokens",
            mean_context=self.train_rows.mean_context,
            fingerprint=self.train_rows.fingerprint,
            tokenizer_fingerprint=self.tokenizer.fingerprint,
            write_tokenizer=self.tokenizer.save,
            origins=self.train_rows.origins_of_sample,
            position=self.train_rows.position,
            changes=self.train_rows.changes,
            details=self.details,
        )


def render_settings(config: DialogueDataConfig, seed: int) -> RenderSettings:
    """What shapes documents."""
    moss = config.default_meta is DefaultMeta.moss
    return RenderSettings(
        format=config.format.value,
        default_meta=meta_instruction(**{plugin.value: True for plugin in config.plugins}) if moss else "",
        loss_on=config.loss_on.value,
        on_marker=config.on_marker.value,
        on_long=config.on_long.value,
        max_tokens=config.seq_len,
        switch_off=config.switch_off,
        tag_dropout=config.tag_dropout,
        level_weights=tuple(config.level_weights),
        # Without these nothing is random, and runs with other seeds share what is rendered.
        seed=seed if config.switch_off or config.tag_dropout or config.level_weights else 0,
    )


def render_inputs(
    config: SFTConfig, inputs: Sequence[Input], tokenizer: MossTokenizer, say: Say, tokenizer_directory: Path | None = None
) -> list[str]:
    """Renders what is not in the cache yet, and plans the rows; called on one rank of a machine.

    Args:
        config: Of the run.
        inputs: What to render.
        tokenizer: Gives the ids.
        say: Told of what takes time.
        tokenizer_directory: Where it came from, for the record of what is rendered.

    Returns:
        The entry of each input.

    Raises:
        DataError: With the bad records, each by file and line, and what to do.
    """
    cache, data = open_cache(config.data), config.data
    settings = render_settings(data, config.run.seed)
    entries = []
    for found in inputs:
        key = key_of("documents", render_files.VERSION, found.content, asdict(settings), tokenizer.fingerprint, tokenizers.__version__)

        def make(out: Path, found: Input = found) -> dict[str, Any]:
            paths = [Path(name) for name in found.files]
            made = render_files.render_files(paths, found.limit, settings, tokenizer, out, say, f"{found.role}: {found.name}")
            check_report(Report.from_json(made["report"]), data, found)
            if hash_inputs(paths, cache) != found.hashes:
                raise DataError(f"{found.spec} was changed since it was first read; give the same command again when it is left alone")
            return made

        def seal(out: Path, found: Input = found) -> None:
            report = read_report(out)
            parents = [*found.parents(), *(lineage.recorded_parent(tokenizer_directory, "tokenizer") if tokenizer_directory else [])]
            shaped = {**asdict(settings), "tokenizer_fingerprint": tokenizer.fingerprint}
            lineage.write(out, lineage_kinds.rendered("sft", parents, found.source(report.records), shaped, dict(report.counts)))

        entry, _ = cache.get("documents", key, make, say, seal)
        # Known from before, or rendered for another run that skipped more.
        check_report(read_report(entry), data, found)
        entries.append(str(entry))
    for split in split_documents(config, inputs, entries).values():
        for pool in split:
            pool.plan(cache, say)
    return entries


def check_report(report: Report, config: DialogueDataConfig, found: Input) -> None:
    """Refuses data with bad records, or with too many of them.

    Raises:
        DataError: With the first of them and totals by code.
    """
    if report.records == 0:
        raise DataError(f"{found.spec}: no records: the file is empty or holds only blank lines.")
    head = f"{report.bad:,} bad of {report.records:,} records in {found.spec}"
    if report.bad and config.on_bad is OnBad.fail:
        raise DataError(f"{head}:\n{report.describe(found.files)}\nRepair them, or set data.on_bad=skip to leave them out.")
    if report.bad > config.max_bad_share * report.records:
        raise DataError(f"{head}, more than the {config.max_bad_share:.1%} of data.max_bad_share:\n{report.describe(found.files)}")


def read_report(entry: Path) -> Report:
    """What came of rendering an entry."""
    return Report.from_json(read_entry(entry)["report"])


@dataclass
class Pool:
    """Documents that are packed together.

    Attributes:
        documents: All of them. chosen: Numbers of those to take, None for all. chosen_by: What that follows from, besides the documents.
        seq_len: Tokens of a row. weight: In a mixture, else None. name: For messages.
    """

    documents: Documents
    chosen: npt.NDArray[np.int64] | None
    chosen_by: list[Any]
    seq_len: int
    weight: float | None
    name: str

    def plan(self, cache: Cache, say: Say) -> PackingPlan:
        """The rows, planned where they are not in the cache."""

        def make(out: Path) -> dict[str, Any]:
            plan = plan_rows(self.documents.lengths, self.seq_len, self.chosen)
            np.save(out / "documents.npy", plan.documents)
            np.save(out / "starts.npy", plan.starts)
            return {}

        entry, _ = cache.get("plan", key_of("plan", _PLAN_VERSION, self.documents.digest, self.chosen_by, self.seq_len), make, say)
        return PackingPlan(*(np.load(entry / f"{name}.npy", mmap_mode="r") for name in ("documents", "starts")))


def split_documents(config: SFTConfig, inputs: Sequence[Input], entries: Sequence[str]) -> dict[str, list[Pool]]:
    """The pools for training and for validation.

    Paths without weights are one pool; each path of a mixture is one of its own. Without `data.valid`, `data.holdout` of the documents of
    each pool is kept apart.

    Raises:
        DataError: Nothing is left of one of them.
    """
    data, seed = config.data, config.run.seed
    pools: dict[str, list[Pool]] = {"train": [], "valid": []}
    for role in pools:
        mine = [(found, StoredDocuments(Path(entry), found.files)) for found, entry in zip(inputs, entries) if found.role == role]
        for found, documents in mine:
            if not len(documents.lengths):
                counts = dropped(Report.from_json(documents.record["report"]))
                raise DataError(f"{found.spec}: no dialogue is left at data.seq_len={data.seq_len}: {describe(counts)}")
        if mine and mine[0][0].weight is None:
            joined = JoinedDocuments([documents for _, documents in mine])
            pools[role].append(Pool(joined, None, [], data.seq_len, None, role))
        else:
            pools[role] += [Pool(documents, None, [], data.seq_len, found.weight, found.name) for found, documents in mine]
    if not pools["valid"] and data.holdout:
        for pool in pools["train"]:
            kept, apart = hold_out(len(pool.documents.lengths), data.holdout, seed)
            by = ["holdout", data.holdout, seed]
            pools["valid"].append(replace(pool, chosen=apart, chosen_by=[*by, "valid"], weight=None, name="valid"))
            pool.chosen, pool.chosen_by = kept, [*by, "train"]
    return pools


def open_rows(config: SFTConfig, inputs: Sequence[Input], entries: Sequence[str], tokenizer: MossTokenizer, say: Say) -> Rows:
    """The rows of both splits, from entries of the cache; says what came of the data."""
    cache, data, seed = open_cache(config.data), config.data, config.run.seed
    reports = [read_report(Path(entry)) for entry in entries]
    pools = split_documents(config, inputs, entries)

    def rows(pool: Pool) -> RowDataset:
        dataset = RowDataset(pool.documents, data.seq_len, seed, pad_id=tokenizer.endoftext, plan=pool.plan(cache, say))
        weight = f", weight {pool.weight:g}" if pool.weight is not None else ""
        say(
            f"{pool.name}: {dataset.documents:,} dialogues in {len(dataset):,} rows of {data.seq_len} ({dataset.fill:.1%} filled), "
            f"{dataset.tokens:,} tokens, {dataset.supervised_tokens:,} with loss ({data.loss_on.value}){weight}"
        )
        return dataset

    for found, report in zip(inputs, reports):
        if report.bad:
            say(f"{found.role}: {report.bad:,} bad records of {found.name} left out (data.on_bad=skip)\n{report.describe(found.files)}")
        if lost := dropped(report):
            share = report.counts["supervised_tokens_dropped"] / max(
                1, report.counts["supervised_tokens"] + report.counts["supervised_tokens_dropped"]
            )
            say(f"{found.role}: {found.name}: {describe(lost)}: {share:.1%} of the tokens with loss (data.on_long={data.on_long.value})")
    parts = [rows(pool) for pool in pools["train"]]
    weights = [pool.weight for pool in pools["train"] if pool.weight is not None]
    train = Mixture(parts, weights or [1.0], [pool.name for pool in pools["train"]])
    valid = None
    if pools["valid"]:
        # Validation looks at every row once; weights mean nothing there.
        valid = rows(pools["valid"][0] if len(pools["valid"]) == 1 else _together(pools["valid"]))
    whole = Report()
    for found, report in zip(inputs, reports):
        if found.role == "train":
            whole.add(report)
    common = whole.metas.most_common(1)
    details: dict[str, Any] = {
        "loss_on": data.loss_on.value,
        "seq_len": data.seq_len,
        "rows_fingerprint": train.fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "dropped": dict(dropped(whole)),
        "left_out": dict(whole.problems),
        "meta_instruction": common[0][0] if common else None,
        # A prompt should look like what was trained on: with inner thoughts, commands and results, if only as None, or without.
        "middle_segments": 2 * whole.middle_turns > whole.turns,
    }
    if whole.levels:
        # Turns by level: what tags the model knows, and the best of them. Of a tag that is never there, or after which nothing is learned,
        # it knows nothing.
        learned = {level: whole.levels[level] for level in sorted(whole.levels, key=int) if _is_learned(int(level), data)}
        if learned:
            details["levels"] = learned
        details["tag_dropout"] = data.tag_dropout
        details["level_weights"] = list(data.level_weights)
    if weights:
        details["mixture"] = {pool.name: pool.weight for pool in pools["train"]}
    sources = [found.source(report.records) for found, report in zip(inputs, reports)]
    rejects = [
        one
        for found, entry, report in zip(inputs, entries, reports)
        if report.bad
        for one in StoredDocuments(Path(entry), found.files).rejects()
    ]
    return Rows(train, valid, config, tokenizer, sources, details, rejects)


def _is_learned(level: int, data: DialogueDataConfig) -> bool:
    """Whether some replies of a level carry loss behind its tag."""
    weight = data.level_weights[level - 1] if level <= len(data.level_weights) else 1.0
    return data.tag_dropout < 1 and weight > 0


def parents_of_rows(config: SFTConfig, tokenizer_directory: Path, entries: Sequence[str]) -> list[lineage.Parent]:
    """The rendered data, and the tokenizer where it is not that of `init_from`, as parents of what is trained."""
    found = [parent for entry in dict.fromkeys(entries) for parent in lineage.recorded_parent(Path(entry), "data")]
    if config.tokenizer.path is None and config.init_from is not None:
        return found
    if lineage.record_path(tokenizer_directory).is_file():
        return [*found, *lineage.recorded_parent(tokenizer_directory, "tokenizer")]
    sizes = (path.stat().st_size for path in tokenizer_directory.rglob("*") if path.is_file())
    # Without a record it is named by the hash of its files, unless a whole model stands there: the fingerprint in the details has to do.
    return [*found, lineage.parent_of(tokenizer_directory, "tokenizer")] if sum(sizes) < _MOST_TOKENIZER_BYTES else found


def _together(pools: Sequence[Pool]) -> Pool:
    """One pool of what several chose."""
    starts = np.cumsum([0, *(len(pool.documents.lengths) for pool in pools)])
    chosen = [np.arange(len(p.documents.lengths)) if p.chosen is None else p.chosen for p in pools]
    numbers = np.concatenate([numbers + start for numbers, start in zip(chosen, starts)])
    documents = JoinedDocuments([pool.documents for pool in pools])
    return replace(pools[0], documents=documents, chosen=numbers, chosen_by=[pool.chosen_by for pool in pools], weight=None, name="valid")


def dropped(report: Report) -> Counter[str]:
    """What did not fit, as counts by reason."""
    return Counter(
        {
            reason: count
            for reason, count in report.counts.items()
            if ("dropped" in reason or reason == "dialogues_shortened") and "tokens" not in reason
        }
    )


def describe(counts: Counter[str]) -> str:
    """Counts in words, most frequent first."""
    words = {reason: reason.replace("_dropped", "").replace("_", " ") for reason in counts}
    return ", ".join(f"{count:,} {words[reason]}" for reason, count in counts.most_common()) or "nothing"
