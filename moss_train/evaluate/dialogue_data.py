"""The held-out dialogues of `suite=dialogue`, `suite=plugins` and `suite=control`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from moss_train.data.dialogue import Dialogue
from moss_train.data.formats import parse
from moss_train.data.records import RecordError, read_records
from moss_train.errors import DataError
from moss_train.evaluate.config import EvaluateConfig, paths_of
from moss_train.evaluate.suite import problems_of
from moss_train.inference.speaker import training_details


def read_parts(config: EvaluateConfig) -> tuple[list[Dialogue], list[tuple[str, int]], Counter[str]]:
    """The dialogues, how many each path has, and the bad records that were left out, by code.

    A record without a meta instruction gets the one that the model was trained with most.

    Raises:
        DataError: Some are bad, all of which are told, or a path has none.
    """
    default = training_details(Path(config.model or "")).get("meta_instruction")
    problems = problems_of(config)
    found: list[Dialogue] = []
    parts = []
    for spec in paths_of(config.data):
        before = len(found)
        for record in read_records(spec, problems.add):
            try:
                found.append(parse(record.value, record.origin, default_meta=default))
            except RecordError as error:
                problems.add(error)
        parts.append((spec, len(found) - before))
    problems.finish(len(found))
    empty = [spec for spec, count in parts if not count]
    if empty:
        raise DataError(f"{', '.join(empty)}: holds no dialogue; expected records in a training layout")
    return found, parts, problems.counts
