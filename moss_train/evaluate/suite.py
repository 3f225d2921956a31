"""What the suites `perplexity`, `dialogue`, `plugins`, `hhh` and `harness` share: the model, and the artefact with its figures.

Every one of them loads a model as generation does (`inference.speaker.Speaker`), so that whatever can be talked to can be measured, and
writes `report.json` with `figures` (see `figures.py`) and `items.jsonl`, from which `compare` takes what it needs.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.lineage_graph import name_of
from moss_train.data.records import ProblemList
from moss_train.errors import OutOfMemoryError, UsageError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.figures import Measure, by_item
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.speaker import Speaker

_log = logging.getLogger("moss_train")
_WIDTH = 140


@dataclass
class Outcome:
    """What a suite found.

    Attributes:
        suite: Its name.
        measures: The figures by name, the most telling ones first.
        settings: All that the figures follow from, besides model and data.
        details: More for report.json.
        lines: What items.jsonl holds of each item besides its parts, by item.
        sources: What was read. parents: Artefacts that took part besides the model.
        files: More files by name.
    """

    suite: str
    measures: dict[str, Measure]
    settings: dict[str, Any]
    details: dict[str, Any] = field(default_factory=dict)
    lines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sources: list[lineage.Source] = field(default_factory=list)
    parents: list[lineage.Parent] = field(default_factory=list)
    files: dict[str, str | bytes] = field(default_factory=dict)


def open_speaker(config: EvaluateConfig, **more: Any) -> Speaker:
    """The model of a suite, by the loader that generation has.

    Args:
        config: Of the suite. more: Settings of a `SpeakerConfig` that differ from the suite's.

    Raises:
        CheckpointError: It cannot be loaded, or its tokenizer does not fit it.
        UsageError: It does not have the tag that is asked for.
        OutOfMemoryError: It needs more memory than there is.
    """
    return make_speaker(config.speaking(**more))


def make_speaker(speaking: SpeakerConfig) -> Speaker:
    """As `open_speaker`, of settings of generation."""
    return Speaker(speaking, speaking.batch_size)


def run_suite(config: EvaluateConfig, measure: Callable[[], tuple[Outcome, Sequence[Any]]]) -> None:
    """Runs a suite, writes the evaluation, and prints its tables.

    Args:
        config: Settings.
        measure: What does it; gives the outcome, and what is printed: tables of rich, or lines.

    Raises:
        UsageError: Several ranks were started.
        MossTrainError: As `measure` does; or `out` cannot be written.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise UsageError(f"suite={config.chosen} with {ranks} ranks: it is measured by one process; start it with python")
    try:
        outcome, shown = measure()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_tokens, batch_size or number format takes less.") from error
    directory = Path(config.model or "")
    figures = {name: one.describe(config.seed) for name, one in outcome.measures.items()}
    whole: dict[str, Any] = {"suite": outcome.suite, "model": describe_model(directory), "settings": outcome.settings, "figures": figures}
    whole |= {"data": [{"name": one.name, "sha256": one.sha256, "records": one.records} for one in outcome.sources], **outcome.details}
    record = lineage_kinds.evaluation(
        lineage.parent_of(directory, "model"),
        outcome.sources,
        {name: one["value"] for name, one in figures.items() if one["value"] is not None},
        {"suite": outcome.suite, **outcome.settings},
    )
    record.parents += list({(one.role, one.id): one for one in outcome.parents}.values())
    items = [{"item": item, **outcome.lines.get(item, {}), "parts": parts} for item, parts in by_item(outcome.measures).items()]
    contents: dict[str, str | bytes] = {
        "report.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n",
        # A text may hold half a surrogate pair, which UTF-8 has no spelling for.
        "items.jsonl": json_lines(items).encode(errors="replace"),
        **outcome.files,
    }
    identity = write_artefact(Path(config.out), contents, record)
    print(to_text(shown), end="")
    _log.info(f"-> {config.out} ({identity})")


def describe_model(directory: Path) -> dict[str, Any]:
    """A model for people: its name, id, and what its record says of its stage, kind and bits."""
    found: dict[str, Any] = {"name": name_of(directory), "id": lineage.parent_of(directory, "model").id}
    record = lineage.load(directory)
    if record is not None:
        found |= {"stage": record.lineage.stage, "kind": record.lineage.kind, "number_format": record.lineage.number_format}
        found |= {key: record.lineage.details[key] for key in ("bits", "scheme", "group_size") if key in record.lineage.details}
    return found


def common_settings(speaker: Speaker) -> dict[str, Any]:
    """What every figure follows from."""
    return {
        "dtype": str(speaker.model.dtype)[6:],
        "device": speaker.device.type,
        "positions": int(speaker.model.config.n_positions),
        "tokenizer": speaker.tokenizer.fingerprint,
    }


def generation_settings(speaker: Speaker) -> dict[str, Any]:
    """What generated text follows from besides."""
    names = ("temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "seed", "tag")
    return {name: getattr(speaker.config, name) for name in names}


def problems_of(config: EvaluateConfig) -> ProblemList:
    """Where bad records of `data` go."""
    return ProblemList(config.on_bad.value, config.max_bad_share, "on_bad")


# ---------------------------------------------------------------------- what is printed


def make_table(title: str, headings: Sequence[str]) -> Any:
    """A table whose first column holds names and whose others hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def to_text(shown: Sequence[Any]) -> str:
    """Tables and lines as they are printed: plain, so that a file of it reads as the terminal does."""
    from rich.console import Console

    # In a file, and on a narrow terminal, a figure cut short is worse than a long line.
    console = Console(file=io.StringIO(), width=_WIDTH, highlight=False, color_system=None, markup=False)
    for one in shown:
        console.print(one, soft_wrap=isinstance(one, str))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"  # type: ignore[attr-defined]


def label(name: str) -> Any:
    """A name that comes from data: one line, and not too long a one."""
    from rich.text import Text

    return Text(" ".join(name.split())[:40])


def percent(measure: Measure | None, seed: int = 0) -> tuple[str, str]:
    """A share and its interval, in %."""
    if measure is None or measure.value is None:
        return "-", "-"
    found = measure.describe(seed)
    low, high = found["interval"]
    return f"{100 * found['value']:.1f}", f"{100 * low:.1f}..{100 * high:.1f}"


def number(measure: Measure | None, seed: int = 0, form: str = ".4f") -> tuple[str, str]:
    """A mean and its interval."""
    if measure is None or measure.value is None:
        return "-", "-"
    bounds = measure.describe(seed)["interval"]
    return format(measure.value, form), "-" if bounds is None or None in bounds else "..".join(format(bound, form) for bound in bounds)


def describe_counts(counts: Counter[str]) -> str:
    """Counts in words."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in sorted(counts.items()))
