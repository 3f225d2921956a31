"""The suite `pm`: how good a preference model's rewards are on comparisons, as figures, a diagram, and the rewards themselves."""

from __future__ import annotations

import io
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.comparisons import Comparison
from moss_train.data.formats.preference import parse_preference
from moss_train.data.records import ProblemList, RecordError, read_records
from moss_train.data.sources import source_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, OutOfMemoryError
from moss_train.evaluate.config import EvaluateConfig, paths_of
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.evaluate.preference_pairs import Judged
from moss_train.evaluate.preference_report import report
from moss_train.evaluate.preference_table import describe
from moss_train.evaluate.reliability_plot import reliability_diagram
from moss_train.inference.speaker import training_details
from moss_train.model.pm import CodeGenPM
from moss_train.pm.score import load_scorer, score_responses
from moss_train.pm.score_lines import NO_FAULT

_log = logging.getLogger("moss_train")

_AT_ONCE = 64
"""Comparisons rendered together."""
_TOLD_EVERY = 10.0
"""Seconds between two lines about how far it has come."""


def evaluate_preferences(config: EvaluateConfig) -> None:
    """Scores the comparisons, reports, and writes the evaluation.

    Raises:
        DataError: The comparisons cannot be read, some are bad, or none is left.
        CheckpointError: The model cannot be loaded, or is a language model.
        NonFiniteError: A reward is not a finite number.
        UsageError: `out` cannot be written.
    """
    directory = Path(config.model or "")
    default_meta = training_details(directory).get("meta_instruction")
    left_out: Counter[str] = Counter()
    comparisons, parts = read_parts(paths_of(config.data), config, default_meta, left_out)
    train, train_parts = read_parts(paths_of(config.train), config, default_meta, Counter())
    model, tokenizer = load_scorer(
        directory, config.dtype.value, attention="auto", unverified=config.unverified, allow_pickle=config.allow_pickle
    )
    started = time.perf_counter()
    try:
        judged = judge(model, tokenizer, comparisons, config.batch_tokens, left_out)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_tokens or number format takes less.") from error
    seconds = time.perf_counter() - started
    if not judged:
        raise DataError(f"data={config.data}: no comparison is left ({dict(left_out)}); the model has {model.config.n_positions} positions")
    temperature = float(getattr(model.config, "moss_temperature", None) or 1.0)
    found = report(judged, temperature=temperature, train=train or None, seed=config.seed)
    settings = {"suite": "pm", "temperature": temperature, "dtype": str(model.dtype)[6:], "left_out": dict(sorted(left_out.items()))}
    settings |= {"batch_tokens": config.batch_tokens, "default_meta": default_meta}
    sources, parents = [], []
    for role, counted in (("evaluation", parts), ("baseline", train_parts)):
        for spec, records in counted:
            source, recorded = source_of(spec, records, role)
            sources.append(source)
            parents += [lineage.Parent("data", parent.id, parent.name, parent.path) for parent in recorded]
    record = lineage_kinds.evaluation(lineage.parent_of(directory, "model"), sources, _metrics(found), settings)
    record.parents += parents
    diagram = io.BytesIO()
    reliability_diagram(found, diagram)
    whole = {"model": directory.resolve().name, "data": [source.name for source in sources], **settings, **found}
    contents: dict[str, str | bytes] = {
        "report.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n",
        "rewards.jsonl": json_lines(_rewards(one) for one in judged),
        "reliability.png": diagram.getvalue(),
    }
    identity = write_artefact(Path(config.out), contents, record)
    print(describe(found), end="")
    if left_out:
        _log.info(f"left out: {', '.join(f'{name} {count:,}' for name, count in sorted(left_out.items()))}")
    _log.info(f"{len(judged):,} comparisons in {seconds:.1f} s -> {config.out} ({identity})")


def read_parts(
    specs: Sequence[str], config: EvaluateConfig, default_meta: str | None, left_out: Counter[str]
) -> tuple[list[Comparison], list[tuple[str, int]]]:
    """The comparisons of some paths, and how many each has; those that compare nothing are counted in `left_out`.

    Raises:
        DataError: Some are bad, all of which are told, or a path has none.
    """
    problems = ProblemList(config.on_bad.value, config.max_bad_share, "on_bad")
    found: list[Comparison] = []
    parts = []

    def add(error: RecordError) -> None:
        left_out[error.code] += 1
        if error.code not in NO_FAULT:
            problems.add(error)

    for spec in specs:
        before = len(found)
        for record in read_records(spec, add):
            try:
                found.append(parse_preference(record.value, record.origin, default_meta=default_meta))
            except RecordError as error:
                add(error)
        parts.append((spec, len(found) - before))
    problems.finish(len(found))
    empty = [spec for spec, count in parts if not count]
    if empty:
        raise DataError(f"{', '.join(empty)}: no comparisons ({dict(left_out)}); expected context and responses, or another layout of them")
    return found, parts


def judge(
    model: CodeGenPM, tokenizer: MossTokenizer, comparisons: Sequence[Comparison], batch_tokens: int, left_out: Counter[str]
) -> list[Judged]:
    """Comparisons with their rewards; those of which a response does not fit are counted in `left_out`, as `too_long`."""
    judged = []
    told = time.perf_counter()
    for start in range(0, len(comparisons), _AT_ONCE):
        chunk = comparisons[start : start + _AT_ONCE]
        groups = [[one.dialogue(number) for number in range(len(one.responses))] for one in chunk]
        for comparison, scored in zip(chunk, score_responses(model, tokenizer, groups, batch_tokens=batch_tokens), strict=True):
            rewards = [one.reward for one in scored if one.reward is not None]
            if len(rewards) < len(scored):
                left_out[next(str(one.problem) for one in scored if one.problem)] += 1
                continue
            judged.append(Judged(comparison, rewards, [one.reply_tokens for one in scored]))
        if time.perf_counter() - told >= _TOLD_EVERY:
            told = time.perf_counter()
            _log.info(f"{start + len(chunk):,} of {len(comparisons):,} comparisons")
    return judged


def _rewards(one: Judged) -> dict[str, Any]:
    context = one.comparison.context
    return {
        "id": context.id,
        "origin": context.origin,
        "rewards": list(one.rewards),
        "pairs": [list(pair) for pair in one.comparison.pairs],
    }


def _metrics(found: dict[str, Any]) -> dict[str, float]:
    given = found["calibration"]["given"]
    values = {
        "pm/accuracy": found["accuracy"]["accuracy"],
        "pm/best_of_k": found["best_of_k"]["accuracy"],
        **{f"pm/{name}": given[name] for name in ("ece", "brier", "log_loss")},
        "pm/margin": found["margin"]["mean"],
    }
    return {name: value for name, value in values.items() if value is not None}
