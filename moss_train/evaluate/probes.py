"""Reads probes: a line each, checked before a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.data.records import PROBLEMS_SHOWN, Record, RecordError, read_records
from moss_train.errors import DataError
from moss_train.evaluate.planting import NOWHERE, PROBES_NAME
from moss_train.evaluate.wordings import LANGUAGES, SAME, WORD

NAME_SLOT, ANSWER_SLOT = "{name}", "{answer}"


@dataclass(frozen=True)
class Probe:
    """One fact, asked in one language.

    Attributes:
        id, fact: Of the probe, and of what it asks for.
        planted: Language the fact was told in, or `none`.
        asked: Language it is asked in.
        relation, kind: What it is about; `word` or `same`.
        name: Of the thing. stand_ins: Names of things that were never told of.
        answer: The right one. distractors: Wrong ones, in the order in which they are offered.
        cloze, question: Sentences with the slots `{name}` and `{answer}`.
        origin: `file:line`.
    """

    id: str
    fact: str
    planted: str
    asked: str
    relation: str
    kind: str
    name: str
    stand_ins: tuple[str, ...]
    answer: str
    distractors: tuple[str, ...]
    cloze: tuple[str, ...]
    question: tuple[str, ...]
    origin: str

    @property
    def pool(self) -> tuple[str, ...]:
        """All answers of the relation, in an order that does not tell the right one."""
        return tuple(sorted((self.answer, *self.distractors)))

    def choices(self, count: int) -> tuple[str, ...]:
        """The answers to choose from, in an order that does not tell the right one."""
        return tuple(sorted((self.answer, *self.distractors[: count - 1])))


def probes_file(given: Path) -> Path:
    """The file of probes that a directory, or a file, stands for.

    Raises:
        DataError: There is none.
    """
    path = given / PROBES_NAME if given.is_dir() else given
    if not path.is_file():
        what = f"it holds no {PROBES_NAME}" if given.is_dir() else "there is no such file or directory"
        raise DataError(f"probes={given}: {what}; write some with scripts/evaluate.py task=make_probes out=DIR")
    return path


def read_probes(path: Path, choices: int) -> list[Probe]:
    """Probes of a file.

    Args:
        path: The file. choices: How many answers each must offer.

    Raises:
        DataError: With everything that is wrong, by file and line.
    """
    problems: list[str] = []
    probes: list[Probe] = []
    lines: dict[tuple[str, str], str] = {}
    groups: dict[str, tuple[str, str]] = {}
    for record in read_records(path, lambda error: problems.append(str(error))):
        try:
            probe = _parse(record, choices)
        except RecordError as error:
            problems.append(str(error))
            continue
        probes.append(probe)
        before = lines.setdefault((probe.fact, probe.asked), probe.origin)
        if before != probe.origin:
            problems.append(f"{probe.origin}: bad_probe: {probe.fact} was asked in {probe.asked} before, in {before}")
        planted, first = groups.setdefault(probe.fact, (probe.planted, probe.origin))
        if planted != probe.planted:
            problems.append(f"{probe.origin}: bad_probe: planted is {probe.planted!r}, but {planted!r} for the same fact in {first}")
    if problems:
        more = [f"... and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
        raise DataError("\n".join([f"{len(problems)} problem(s) of probes:", *problems[:PROBLEMS_SHOWN], *more]))
    if not probes:
        raise DataError(f"{path}: no probes: the file is empty or holds only blank lines")
    return probes


def _parse(record: Record, choices: int) -> Probe:
    value, origin = record

    def wrong(problem: str) -> RecordError:
        return RecordError(origin, "bad_probe", problem)

    if not isinstance(value, dict):
        raise wrong(f"expected an object, found {str(value)[:60]}")

    def text(key: str, allowed: tuple[str, ...] = ()) -> str:
        found = value.get(key)
        if not isinstance(found, str) or not found:
            raise wrong(f"{key} is {str(found)[:60]!r}; expected a text")
        if allowed and found not in allowed:
            raise wrong(f"{key} is {found[:60]!r}; expected one of {', '.join(allowed)}")
        return found

    def texts(key: str) -> tuple[str, ...]:
        found: Any = value.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(item, str) and item for item in found):
            raise wrong(f"{key} is {str(found)[:60]!r}; expected a list of texts")
        return tuple(found)

    probe = Probe(
        id=text("id"),
        fact=text("fact"),
        relation=text("relation"),
        name=text("name"),
        answer=text("answer"),
        planted=text("planted", (*LANGUAGES, NOWHERE)),
        asked=text("asked", LANGUAGES),
        kind=text("kind", (WORD, SAME)),
        distractors=texts("distractors"),
        stand_ins=texts("stand_ins"),
        cloze=texts("cloze"),
        question=texts("question"),
        origin=origin,
    )
    for key in ("cloze", "question"):
        for sentence in getattr(probe, key):
            for slot in (NAME_SLOT, ANSWER_SLOT):
                if sentence.count(slot) != 1:
                    raise wrong(f"{key} has {sentence[:60]!r}; expected {slot} in it once")
    if len(set(probe.pool)) != len(probe.pool):
        raise wrong("answer and distractors repeat one another; expected different ones")
    if len(probe.pool) < choices:
        raise wrong(f"{len(probe.pool)} answers; choices={choices} needs as many, take fewer choices")
    return probe
