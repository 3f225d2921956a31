"""The job behind `scripts/score.py`: rewards of the responses of a file, or of all replies in dialogues.

What is scored at once follows from the file and from `batch_tokens`, not from what is left to do or from how many share the work: a piece
of the file is scored by one rank as if it were alone. So the same bytes come out, however often the job was killed, and on any number of
ranks.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.sources import source_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, MossTrainError, OutOfMemoryError
from moss_train.inference import together
from moss_train.inference.speaker import training_details
from moss_train.model.pm import CodeGenPM
from moss_train.pm.partial import Partial
from moss_train.pm.score import load_scorer, score_responses, score_turns
from moss_train.pm.score_config import ScoreConfig
from moss_train.pm.score_lines import SHORTENED, Line, Plan, count, good_lines, plan_pieces, scored_line

_log = logging.getLogger("moss_train")

_CHARACTERS_PER_TOKEN = 4
"""Of a piece, for each of `batch_tokens`: enough text for a batch in any language."""
_TOLD_EVERY = 10.0
"""Seconds between two lines about how far it has come."""


def main(config: ScoreConfig) -> None:
    """Scores.

    Raises:
        UsageError: `out` exists, or was begun with other settings.
        DataError: The file cannot be read, holds nothing, or has bad records.
        CheckpointError: The model cannot be loaded, or is a language model.
        NonFiniteError: A reward is not a finite number.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        together.join()
    if rank != 0:
        _log.setLevel(logging.WARNING)
    partial = Partial(Path(config.out))
    error: MossTrainError | None = None
    record, plan, settings = lineage.Lineage("data", "score"), Plan(0, [], {}), dict[str, Any]()
    default_meta = None
    try:
        if rank == 0:
            partial.refuse_finished()
        default_meta = training_details(Path(config.model)).get("meta_instruction")
        plan = plan_pieces(config, default_meta, _CHARACTERS_PER_TOKEN * config.batch_tokens)
        if rank == 0:
            source, parents = source_of(config.data, plan.lines, "source")
            model_parent = lineage.parent_of(Path(config.model), "tagger")
            settings = _settings(config, model_parent, source, default_meta)
            partial.begin(settings)
            record = lineage_kinds.dialogues("score", [model_parent, *parents], [source], plan.lines, settings)
    except MossTrainError as caught:
        error = caught
    together.raise_together(error, ranks)
    scorer: tuple[CodeGenPM, MossTokenizer] | None = None
    todo: list[int] = []
    try:
        there = partial.finished()
        mine = range(rank, len(plan.pieces), ranks)
        todo = [piece for piece in mine if any(number not in there for number in range(*plan.pieces[piece]))]
        if there:
            _log.info(f"{len(there):,} of {plan.lines:,} lines are scored already ({partial.folder})")
        if todo:
            scorer = load_scorer(
                Path(config.model),
                config.dtype.value,
                attention=config.attention.value,
                unverified=config.unverified,
                allow_pickle=config.allow_pickle,
            )
    except torch.OutOfMemoryError as caught:
        error = _explained(caught)
    except MossTrainError as caught:
        error = caught
    # Whatever is wrong with the settings, the model or a line is told by all before any of them spends time on the rest.
    together.raise_together(error, ranks)
    try:
        if scorer is not None:
            _score(config, *scorer, plan, todo, default_meta, partial)
    except torch.OutOfMemoryError as caught:
        error = _explained(caught)
    except MossTrainError as caught:
        error = caught
    together.raise_together(error, ranks)
    if ranks > 1:
        dist.destroy_process_group()
    if rank == 0:
        record.details["counts"] = counts = count(map(json.loads, partial.lines(plan.lines)))
        record.details["left_out"] = plan.left_out
        partial.merge(plan.lines, record)
        told = ", ".join(f"{name} {number:,}" for name, number in counts.items())
        if plan.left_out:
            _log.info(f"left out: {', '.join(f'{name} {number:,}' for name, number in plan.left_out.items())}")
        _log.info(f"{plan.lines:,} lines: {told} -> {config.out}")
        if counts.get(SHORTENED):
            _log.info(f"{counts[SHORTENED]:,} replies were read without the oldest turns of their contexts, which are too long")


def _settings(config: ScoreConfig, model: lineage.Parent, source: lineage.Source, default_meta: str | None) -> dict[str, Any]:
    """All that the rewards follow from, to the last bit."""
    return {
        "model": model.id,
        "data": source.sha256,
        "taken_from": config.kind,
        "batch_tokens": config.batch_tokens,
        "seq_len": config.seq_len,
        "default_meta": default_meta,
        "dtype": config.dtype.value,
        "attention": config.attention.value,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }


def _score(
    config: ScoreConfig,
    model: CodeGenPM,
    tokenizer: MossTokenizer,
    plan: Plan,
    todo: Sequence[int],
    default_meta: str | None,
    partial: Partial,
) -> None:
    """Scores pieces of the file, in order; each is on the disk before the next is begun."""
    started = told = time.perf_counter()
    score = score_turns if config.kind == "dialogues" else score_responses
    for done, (piece, lines) in enumerate(_read_pieces(config, plan, todo, default_meta), 1):
        wanted: Any = [one.dialogues[0] for one in lines] if config.kind == "dialogues" else [one.dialogues for one in lines]
        scored = score(model, tokenizer, wanted, batch_tokens=config.batch_tokens, seq_len=config.seq_len)
        written = [scored_line(config.kind, line, one) for line, one in zip(lines, scored, strict=True)]
        content = [(json.dumps(one, ensure_ascii=False) + "\n").encode(errors="replace") for one in written]
        partial.append_all(list(zip(range(*plan.pieces[piece]), content, strict=True)))
        now = time.perf_counter()
        if now - told >= _TOLD_EVERY or done == len(todo):
            told = now
            _log.info(f"rank 0: {done:,} of {len(todo):,} pieces in {now - started:,.0f} s")


def _read_pieces(config: ScoreConfig, plan: Plan, todo: Sequence[int], default_meta: str | None) -> Iterator[tuple[int, list[Line]]]:
    """The lines of some pieces; others are passed over."""
    # All that is bad has been told.
    lines = good_lines(config.kind, config.data, default_meta, lambda error: None)
    at = 0
    for piece in todo:
        first, end = plan.pieces[piece]
        chosen = list(islice(lines, first - at, end - at))
        if len(chosen) < end - first:
            raise DataError(f"{config.data} was changed since it was first read; give the same command again when it is left alone")
        at = end
        yield piece, chosen


def _explained(error: torch.OutOfMemoryError) -> OutOfMemoryError:
    return OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_tokens or number format takes less.")
