"""The stages of a preparation, each a datatrove pipeline, in the order in which they run.

    exact-signatures  -> exact-repeats                       with exact_dedup=true
    minhash-signatures -> minhash-buckets -> minhash-clusters  with minhash.enabled=true
    shards

Stages that need the documents read and filter them again: that is cheaper than storing them, and leaves nothing to clean up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

from moss_train import files
from moss_train.data.fast_tokens import Ranges
from moss_train.data.prepare.config import MinhashConfig, PrepareConfig
from moss_train.data.prepare.ledger import Ledger
from moss_train.data.prepare.plan import PLAIN_TEXT, WORK, Plan
from moss_train.data.prepare.steps import FilterSource, ReadSource, Recorded, WithLedger, WriteShard
from moss_train.data.prepare.words import HASHING, WORDS
from moss_train.data.records import read_records
from moss_train.errors import DataError

_LEAST_DISTINCT = 4
"""Different words in a sequence of an evaluation set that is looked for."""


@dataclass(frozen=True)
class Stage:
    """A pipeline and over how many tasks it runs.

    Attributes:
        name: Also of its folder of logs. title: For people.
        reads: Whether its tasks are those of the plan, so that progress can be told in bytes.
    """

    name: str
    title: str
    steps: list[PipelineStep]
    tasks: int
    reads: bool


def make_stages(config: PrepareConfig, plan: Plan, differences: Ranges | None) -> list[Stage]:
    """All stages of a preparation.

    Args:
        config: Its configuration. plan: Its tasks.
        differences: Characters that the fast encoder is not trusted with; None: there is no fast encoder.
    """
    out = Path(config.out).absolute()
    work = out / WORK
    tasks = len(plan.tasks)
    stages: list[Stage] = []

    def add(name: str, title: str, steps: list[PipelineStep], tasks: int, reads: bool) -> None:
        stages.append(Stage(name, title, [*steps[:-1], Recorded(steps[-1], out, name)], tasks, reads))

    def reading(ledger: Ledger) -> list[PipelineStep]:
        """The steps up to what the next stage of dedup sees."""
        steps: list[PipelineStep] = [ReadSource(out, ledger)]
        if needs_filters(plan):
            steps.append(FilterSource(out, ledger))
        return steps

    def exact_filter(ledger: Ledger) -> PipelineStep:
        from datatrove.pipeline.dedup import ExactDedupFilter

        return WithLedger(ExactDedupFilter(str(work / "exact-repeats"), _exact_config()), ledger, "repeated")

    if config.exact_dedup:
        from datatrove.pipeline.dedup import ExactDedupSignature, ExactFindDedups

        finders = min(tasks, 16)
        signatures = ExactDedupSignature(str(work / "exact-signatures"), _exact_config(), finder_workers=finders)
        add("exact-signatures", "hashing documents", [*reading(Ledger()), signatures], tasks, True)
        finder = ExactFindDedups(str(work / "exact-signatures"), str(work / "exact-repeats"), _exact_config(), lines_to_buffer=4096)
        add("exact-repeats", "finding repeats", [finder], finders, False)
    if config.minhash.enabled:
        from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature

        settings = minhash_settings(config.minhash)
        ledger = Ledger()
        steps = [*reading(ledger), *([exact_filter(ledger)] if config.exact_dedup else [])]
        steps.append(MinhashDedupSignature(str(work / "minhash-signatures"), settings, WORDS))
        add("minhash-signatures", "signing documents", steps, tasks, True)
        buckets = MinhashDedupBuckets(str(work / "minhash-signatures"), str(work / "minhash-pairs"), config=settings, lines_to_buffer=1024)
        add("minhash-buckets", "finding near repeats", [buckets], settings.num_buckets, False)
        cluster = MinhashDedupCluster(str(work / "minhash-pairs"), str(work / "minhash-remove"), settings, lines_to_buffer=1024)
        add("minhash-clusters", "choosing what stays", [cluster], 1, False)
    ledger = Ledger()
    steps = reading(ledger)
    if config.exact_dedup:
        steps.append(exact_filter(ledger))
    if config.minhash.enabled:
        from datatrove.pipeline.dedup import MinhashDedupFilter

        steps.append(WithLedger(MinhashDedupFilter(str(work / "minhash-remove")), ledger, "nearly repeated"))
    steps.append(WriteShard(out, ledger, differences is not None, differences))
    add("shards", "tokenizing", steps, tasks, True)
    return stages


def needs_filters(plan: Plan) -> bool:
    """Whether any source is filtered."""
    named = [plan.settings["filters"] if one["filters"] is None else one["filters"] for one in plan.settings["sources"].values()]
    return any(named) or bool(plan.settings["decontaminate"]["files"])


def minhash_settings(config: MinhashConfig) -> Any:
    """datatrove's settings for ours."""
    from datatrove.pipeline.dedup.minhash import MinhashConfig as Settings

    return Settings(n_grams=config.ngram, num_buckets=config.buckets, hashes_per_bucket=config.hashes, hash_config=HASHING)


def _text_of(document: Document):  # type: ignore[no-untyped-def]  # see below
    return document.text


# datatrove reads the type from the signature, and wants the type itself, not its name.
_text_of.__annotations__["return"] = str


def _priority_of(document: Document) -> int:
    return int(document.metadata["priority"])


def _exact_config() -> Any:
    from datatrove.pipeline.dedup import ExactDedupConfig

    return ExactDedupConfig(content_getter=_text_of, document_priority=_priority_of, hash_config=HASHING)


def write_contamination(config: PrepareConfig, out: Path) -> int:
    """Writes the word n-grams of evaluation sets as datatrove's filter reads them; returns their number.

    datatrove's own step for this wants the package lighteval, and knows its tasks only.

    Raises:
        DataError: A file is missing, or none of them holds a text long enough.
    """
    norm, size, hashes = TextNormConfig(), config.decontaminate.ngram, set()
    hash_text: Any = create_hash_func(HASHING)
    for spec in config.decontaminate.files:
        for text in _all_texts(spec):
            words = WORDS.word_tokenize(simplify_text(text, norm))
            # Numbers are all written as 0 here, and rows of them are in every table.
            hashes |= {hash_text(" ".join(one)) for one in ngrams(words, size) if len(set(one)) >= min(size, _LEAST_DISTINCT)}
    if not hashes:
        raise DataError(
            f"decontaminate.files: no text of {', '.join(config.decontaminate.files)} has {config.decontaminate.ngram} words; "
            "set decontaminate.ngram lower."
        )
    path = contamination_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Complete or not there: tasks would take a part of it for all of it.
    files.replace_content(path, np.array(sorted(hashes), dtype=HASHING.np_descr).tobytes())
    return len(hashes)


def contamination_path(out: Path) -> Path:
    """Where the hashes of evaluation sets are, alone in their folder, as datatrove's filter wants it."""
    return out / WORK / "contamination" / "evaluation.index.hashes"


def _all_texts(path: str) -> Any:
    """Every text in a file of records, at any depth; or the whole of a file of plain text."""
    if Path(path).suffix in PLAIN_TEXT:
        try:
            yield Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"decontaminate.files: {path}: cannot be read: {error}.") from None
        return
    pending: list[Any] = [record.value for record in read_records(path)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
