"""Facts told in one language, asked in the other: the task `transfer`.

The answer with the highest score is the model's. With `normalize=prior` the score of an answer is its log-probability in the sentence that
asks, less the logarithm of its mean probability in the same sentence about things that were never told: how much likelier the name has made
it. Log-probabilities alone favour short and frequent answers; per byte they depend on how a script is encoded, so figures of two languages
are not alike. Scores of the sentences that ask for one fact are averaged: a fact is one decision in each language, independent of others.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage, lineage_kinds, lineage_verify
from moss_train.artifacts.export import DTYPES
from moss_train.cores import threads_per_rank
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError
from moss_train.evaluate.config import Ask, EvaluateConfig, Normalize
from moss_train.evaluate.intervals import difference, ratio_interval, wilson
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.evaluate.planting import NOWHERE
from moss_train.evaluate.probes import NAME_SLOT, Probe, probes_file, read_probes
from moss_train.evaluate.scoring import Frame, score
from moss_train.evaluate.wordings import LANGUAGES, SAME, WORD
from moss_train.files import hash_file
from moss_train.model.codegen import CodeGenLM
from moss_train.model.loading import load_model

_log = logging.getLogger("moss_train")

ALL = "all"


@dataclass(frozen=True)
class Item:
    """What a model said to a probe.

    Attributes:
        probe: What was asked.
        choices: The answers to choose from.
        scores: Of each.
    """

    probe: Probe
    choices: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def picked(self) -> str:
        """The answer with the highest score; of equal ones the first, and the order does not tell the right one."""
        return self.choices[self.scores.index(max(self.scores))]

    @property
    def correct(self) -> bool:
        """Whether that is the right one."""
        return self.picked == self.probe.answer

    def as_json(self) -> dict[str, Any]:
        """A line of items.jsonl."""
        probe = self.probe
        said = {key: getattr(probe, key) for key in ("id", "fact", "planted", "asked", "relation", "kind", "name", "answer")}
        return said | {"choices": list(self.choices), "scores": list(self.scores), "picked": self.picked, "correct": self.correct}


@dataclass
class Share:
    """A share of right answers.

    Attributes:
        right, count: The share.
        control, control_count: That of what was never told, asked in the same language.
    """

    right: int
    count: int
    control: int
    control_count: int

    def as_json(self) -> dict[str, Any]:
        """With what is derived of it."""
        gain = self.right / max(1, self.count) - self.control / max(1, self.control_count)
        controlled = self.control_count > 0 and self.count > 0
        return {
            **asdict(self),
            "accuracy": self.right / self.count if self.count else None,
            "interval": wilson(self.right, self.count),
            "control_accuracy": self.control / self.control_count if self.control_count else None,
            "control_interval": wilson(self.control, self.control_count),
            "gain": gain if controlled else None,
            "gain_interval": difference(self.right, self.count, self.control, self.control_count) if controlled else None,
        }


@dataclass
class Cell:
    """Facts told in one language, or nowhere, and asked in one.

    Attributes:
        planted, asked: The languages.
        whole: All of its facts.
        kinds, relations: Parts of them.
    """

    planted: str
    asked: str
    whole: Share
    kinds: dict[str, Share] = field(default_factory=dict)
    relations: dict[str, Share] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For report.json."""
        parts = {name: {key: share.as_json() for key, share in getattr(self, name).items()} for name in ("kinds", "relations")}
        return {"planted": self.planted, "asked": self.asked, **self.whole.as_json(), **parts}


@dataclass(frozen=True)
class Transfer:
    """From one language to the other.

    Attributes:
        source, target: The languages.
        kind: Of answers: `word` or `same`; `all` of them together.
        ratio: (cross - control) / (same - control); None where what was told is not known in its own language better than
            controls and chance, beyond the 95 % intervals: nothing is there to be carried over.
        interval: Of the ratio.
        both, source_only, target_only, neither: Facts by the languages in which the answer was right.
    """

    source: str
    target: str
    kind: str
    ratio: float | None
    interval: tuple[float, float] | None
    both: int
    source_only: int
    target_only: int
    neither: int


def answer_probes(model: CodeGenLM, tokenizer: MossTokenizer, probes: list[Probe], config: EvaluateConfig) -> list[Item]:
    """What a model says to probes.

    Args:
        model: In evaluation mode. tokenizer: Its tokenizer.
        probes: What is asked. config: How, by `choices`, `ask`, `normalize` and `batch_size`.
    """
    asks = [_frames(probe, config.ask, (probe.name,)) for probe in probes]
    with_prior = config.normalize == Normalize.prior
    baselines = [_frames(probe, config.ask, probe.stand_ins) if with_prior else [] for probe in probes]
    wanted = (
        (frame, answer)
        for probe, *sides in zip(probes, asks, baselines, strict=True)
        for side in sides
        for frames in side
        for frame in frames
        for answer in probe.choices(config.choices)
    )
    found = score(model, tokenizer, wanted, config.batch_size)
    items = []
    for probe, ask, baseline in zip(probes, asks, baselines, strict=True):
        scores = []
        for answer in probe.choices(config.choices):
            values = [found[frame, answer] for (frame,) in ask]
            if with_prior:
                values = [
                    value - _log_mean(found[frame, answer] for frame in frames) for value, frames in zip(values, baseline, strict=True)
                ]
            elif config.normalize == Normalize.bytes:
                values = [value / len(answer.encode()) for value in values]
            scores.append(sum(values) / len(values))
        items.append(Item(probe, probe.choices(config.choices), tuple(scores)))
    return items


def _frames(probe: Probe, ask: Ask, names: Iterable[str]) -> list[list[Frame]]:
    """For each sentence that asks, its frames about each of the names."""
    names = tuple(names)
    sentences = probe.cloze if ask == Ask.cloze else probe.question
    return [[Frame(sentence.replace(NAME_SLOT, name), probe.pool) for name in names] for sentence in sentences]


def _log_mean(values: Iterable[float]) -> float:
    """The logarithm of the mean of probabilities given by their logarithms."""
    listed = list(values)
    most = max(listed)
    return most + math.log(sum(math.exp(value - most) for value in listed) / len(listed))


def make_cells(items: list[Item]) -> list[Cell]:
    """The cells that there are items of, controls last."""

    def share(planted: str, asked: str, key: str = "", value: str = "") -> Share:
        def count(where: str) -> tuple[int, int]:
            found = [
                item.correct
                for item in items
                if item.probe.planted == where and item.probe.asked == asked and (not key or getattr(item.probe, key) == value)
            ]
            return sum(found), len(found)

        return Share(*count(planted), *count(NOWHERE))

    relations = list(dict.fromkeys(item.probe.relation for item in items))
    cells = []
    for planted in (*LANGUAGES, NOWHERE):
        for asked in (planted, *(other for other in LANGUAGES if other != planted)) if planted != NOWHERE else LANGUAGES:
            cell = Cell(planted, asked, share(planted, asked))
            if cell.whole.count:
                cell.kinds = {kind: part for kind in (WORD, SAME) if (part := share(planted, asked, "kind", kind)).count}
                cell.relations = {name: part for name in relations if (part := share(planted, asked, "relation", name)).count}
                cells.append(cell)
    return cells


def make_transfers(items: list[Item]) -> list[Transfer]:
    """The paired figures of both directions and of each kind of answers, over facts that were asked in both languages."""
    kinds = {kind: [item for item in items if item.probe.kind == kind] for kind in (WORD, SAME)} | {ALL: items}
    return [one for kind, part in kinds.items() for one in _transfers(part, kind)]


def _transfers(items: list[Item], kind: str) -> list[Transfer]:
    right: dict[str, dict[str, bool]] = {}
    planted: dict[str, str] = {}
    for item in items:
        right.setdefault(item.probe.fact, {})[item.probe.asked] = item.correct
        planted[item.probe.fact] = item.probe.planted
    transfers = []
    for source, target in (LANGUAGES, LANGUAGES[::-1]):
        pairs = {
            group: [(said[source], said[target]) for fact, said in right.items() if planted[fact] == group and len(said) == 2]
            for group in (source, NOWHERE)
        }
        told, controls = pairs[source], pairs[NOWHERE]
        if not told:
            continue
        ratio, interval = None, None
        same, cross = (sum(column) for column in zip(*told, strict=True))
        if controls:
            control_same, control_cross = (sum(column) for column in zip(*controls, strict=True))
            # Of two figures near chance one is often enough the larger, so that it has to be better than chance too.
            above_chance = wilson(same, len(told))[0] > 1 / len(items[0].choices)
            if above_chance and difference(same, len(told), control_same, len(controls))[0] > 0:
                gains = (cross / len(told) - control_cross / len(controls), same / len(told) - control_same / len(controls))
                ratio, interval = gains[0] / gains[1], ratio_interval(told, controls)
        counts = {pair: told.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))}
        transfers.append(Transfer(source, target, kind, ratio, interval, *counts.values()))
    return transfers


# ---------------------------------------------------------------------- the task


def evaluate_transfer(config: EvaluateConfig) -> None:
    """Asks a model, reports, and writes the evaluation.

    Raises:
        DataError: The probes are missing or malformed.
        CheckpointError: The model cannot be loaded, or its tokenizer does not fit it.
        UsageError: `out` cannot be written.
    """
    from moss_train.evaluate.transfer_report import print_report

    directory, given = Path(config.model or ""), Path(config.probes or "")
    path = probes_file(given)
    if not config.unverified:
        lineage_verify.require(given, "probes", "unverified=true", _log.debug)
        lineage_verify.require(directory, "model", "unverified=true", _log.debug, reads=False)
    probes = read_probes(path, config.choices)
    model, tokenizer = _load(directory, config)
    started = time.perf_counter()
    items = answer_probes(model, tokenizer, probes, config)
    seconds = time.perf_counter() - started
    cells, transfers = make_cells(items), make_transfers(items)
    settings = {"choices": config.choices, "ask": config.ask.value, "normalize": config.normalize.value, "dtype": str(model.dtype)[6:]}
    report = {
        "task": "transfer",
        "model": directory.resolve().name,
        "probes": given.resolve().name,
        **settings,
        "chance": 1 / config.choices,
        "cells": [cell.as_json() for cell in cells],
        "transfer": [asdict(transfer) for transfer in transfers],
    }
    source = lineage.Source(path.name, hash_file(path).sha256, len(probes), role="evaluation")
    record = lineage_kinds.evaluation(
        lineage.parent_of(directory, "model"), [source], _metrics(cells, transfers), {"task": "transfer", **settings}
    )
    record.parents += lineage.recorded_parent(given, "data")
    contents = {
        "report.json": json.dumps(report, ensure_ascii=False, indent=1) + "\n",
        "items.jsonl": json_lines(item.as_json() for item in items),
    }
    identity = write_artefact(Path(config.out), contents, record)
    print_report(cells, transfers, config)
    _log.info(f"{len(items):,} probes in {seconds:.1f} s -> {config.out} ({identity})")


def _load(directory: Path, config: EvaluateConfig) -> tuple[CodeGenLM, MossTokenizer]:
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(threads_per_rank())
    dtype: Any = DTYPES.get(config.dtype.value) or ("auto" if on_gpu else torch.float32)
    model = load_model(directory, dtype, config.allow_pickle).to("cuda" if on_gpu else "cpu").eval()
    tokenizer = MossTokenizer.load(directory)
    if tokenizer.size > model.config.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer uses {tokenizer.size} ids, the model has {model.config.vocab_size} rows; they do not match"
        )
    return model, tokenizer


def _metrics(cells: list[Cell], transfers: list[Transfer]) -> dict[str, float]:
    found = {f"transfer/planted_{cell.planted}/asked_{cell.asked}/accuracy": cell.whole.right / cell.whole.count for cell in cells}
    return found | {f"transfer/{one.source}_to_{one.target}/{one.kind}/ratio": one.ratio for one in transfers if one.ratio is not None}
