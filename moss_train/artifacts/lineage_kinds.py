"""The records of each kind of artefact: what belongs to it, as arguments, so that whoever makes one only fills them in.

Trainings make theirs in `train.stage` (kinds `checkpoint`, `export`, `pm`), from what the run knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moss_train.artifacts.lineage import UNKNOWN_LICENCE, Lineage, Parent, Record, Source, load, parent_of, recorded_path


def tokenizer(stage: str, data: list[Source], size: int, rows: int, fingerprint: str) -> Lineage:
    """A tokenizer that was trained, or extended.

    Args:
        stage: What made it. data: Texts it learned from.
        size: Ids in use. rows: Embedding rows it is made for.
        fingerprint: `MossTokenizer.fingerprint`.
    """
    return Lineage("tokenizer", stage, data=data, details={"size": size, "vocab_size": rows, "tokenizer_fingerprint": fingerprint})


def rendered(stage: str, parents: list[Parent], data: Source, settings: dict[str, Any], counts: dict[str, int]) -> Lineage:
    """Dialogues as ids and loss marks.

    Args:
        stage: What they were rendered for. parents: The tokenizer, and the files where these have records. data: What was rendered.
        settings: What shaped them. counts: What came of it.
    """
    return Lineage("rendered", stage, parents, [data], details={**settings, "counts": counts})


def shards(parents: list[Parent], data: list[Source], tokens: int, documents: int, settings: dict[str, Any]) -> Lineage:
    """Documents as memory-mapped token shards."""
    return Lineage("shards", "prepare", parents, data, details={**settings, "tokens": tokens, "documents": documents})


def dialogues(stage: str, parents: list[Parent], data: list[Source], records: int, details: dict[str, Any]) -> Lineage:
    """Records that were written: converted, sampled, ranked, scored or tagged.

    Args:
        stage: What wrote them. parents: Models and files with records that took part; a tagging preference model has the role `tagger`.
        data: What was read. records: How many were written. details: Such as their format, or the thresholds of tags.
    """
    return Lineage("data", stage, parents, data, details={**details, "records": records})


def extended_model(source: Parent, before: Record | None, learned_from: list[Source], rows: tuple[int, int], method: str) -> Lineage:
    """A model whose embedding has rows for a larger vocabulary.

    Args:
        source: The model. before: Its record. learned_from: Texts that the new tokens were learned from.
        rows: Before and after. method: How the new rows were made.
    """
    made = _rewritten("model", "extend_vocab", [source], before)
    made.data = [*made.data, *learned_from]
    # How a dialogue model was trained tells how it is to be prompted, and that stays.
    made.details |= {"vocab_size_before": rows[0], "vocab_size": rows[1], "method": method}
    return made


def variant(
    source: Parent, before: Record | None, bits: int, scheme: str, group_size: int | None, calibration: Source | None = None
) -> Lineage:
    """Quantised weights.

    Args:
        source: What was quantised. before: Its record.
        bits: Of a weight. scheme: Such as `gptq`. group_size: Weights that share a scale; None where a whole row does.
        calibration: Data the scales were fitted to.
    """
    made = _rewritten("variant", before.lineage.stage if before is not None else "import", [source], before)
    made.details |= {"bits": bits, "scheme": scheme, "group_size": group_size}
    if calibration is not None:
        made.data = [*made.data, calibration]
        made.details["calibration"] = calibration.name
    return made


def rewritten_export(source: Path, parameters: int) -> Lineage:
    """An export made of another model directory: in another number format or layout.

    How it was trained tells how it is to be prompted, and what was measured of it still holds, but for rounding. It begins with what its
    source began with.

    Args:
        source: The directory. parameters: Of the model.
    """
    before = load(source)
    made = _rewritten("export", before.lineage.stage if before is not None else "import", [parent_of(source, "source")], before)
    made.details |= {"parameters": parameters, "rewritten_from": source.resolve().name}
    if before is not None:
        made.metrics = before.lineage.metrics
        begun = [parent for parent in before.lineage.parents if parent.role == "init"]
        made.parents += [replace(parent, path=recorded_path(source, parent)) for parent in begun]
    return made


def evaluation(model: Parent, data: list[Source], metrics: dict[str, float], details: dict[str, Any]) -> Lineage:
    """What was measured of a model, which itself stays as it is."""
    return Lineage("evaluation", "evaluate", [model], data, metrics=metrics, details=details)


def _rewritten(kind: str, stage: str, parents: list[Parent], before: Record | None) -> Lineage:
    """The same weights in another form keep what they were trained on, but not what was measured of the old form."""
    made = Lineage(kind, stage, parents)
    if before is not None:
        made.data, made.details = list(before.lineage.data), {k: v for k, v in before.lineage.details.items() if k != "number_format"}
        made.tokens_seen, made.supervised_tokens = before.lineage.tokens_seen, before.lineage.supervised_tokens
    return made


def licence_of(artefacts: Sequence[Path]) -> str | None:
    """The licence that recorded data have, all of them named where there are several; None where one of them is not known."""
    found: set[str] = set()
    for artefact in artefacts:
        record = load(artefact)
        if record is None:
            return None
        found.update(record.lineage.licences)
    return None if not found or UNKNOWN_LICENCE in found else " AND ".join(sorted(found))
