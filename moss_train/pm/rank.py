"""The job behind `scripts/rank.py`: responses to comparisons.

    OUT.partial         the settings, then what came of each line, as soon as it is known; gone when OUT is there
    OUT                 the lines that were ranked, in the order of the input, each with `rank` at its responses and its provenance
    OUT.lineage.json    what it was made from, and how many lines were left out, by name

A run that was stopped or killed goes on from OUT.partial, and gives the same bytes as one that was not.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.comparisons import parse_responses
from moss_train.data.records import Record, read_all
from moss_train.data.sources import source_of
from moss_train.errors import DataError, DiskFullError, PreemptedError, UsageError
from moss_train.pm import checkers, person
from moss_train.pm.judge import Judge
from moss_train.pm.rank_config import By, RankConfig
from moss_train.pm.ranking import RANKED, Line, Outcome, make_line

_log = logging.getLogger("moss_train")
_STANDINGS = ("rank", "score")


def main(config: RankConfig) -> None:
    """Ranks responses.

    Raises:
        UsageError: `out` exists, or was begun with other settings; the judge refuses.
        DataError: The responses cannot be read, a checker lacks what it needs, or no line was ranked.
        PreemptedError: The person stopped.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    out = Path(config.out)
    partial_path = out.with_name(f"{out.name}.partial")
    if (out.exists() or out.is_symlink()) and not partial_path.exists():
        raise UsageError(f"out={out} exists; name another file, or remove it")
    lines, source, parents = read_lines(config)
    judge = Judge(config.judge) if config.by == By.judge else None
    settings: dict[str, Any] = {"by": str(config.by), "responses": source.sha256}
    if config.by == By.checker:
        settings |= {"checker": None if config.checker is None else str(config.checker)}
    elif judge is not None:
        settings |= {"judge": judge.settings()}
    else:
        settings |= {"person": config.person, "seed": config.seed}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with Partial(partial_path, settings, len(lines), wait_for_disk=config.by != By.checker) as partial:
            if out.exists():
                # Killed between the last two steps.
                partial.remove()
                _log.info(f"{out} is complete already")
                return
            if partial.done:
                _log.info(f"{len(partial.done)} of {len(lines)} lines are ranked already ({partial_path})")
            _rank(config, judge, lines, partial)
            _write(out, lines, partial, source, parents, settings)
            partial.remove()
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent}; free some. What is ranked is kept in {partial_path}") from error
        raise UsageError(f"out={out} cannot be written: {error.strerror or error}") from error


def read_lines(config: RankConfig) -> tuple[list[Line], lineage.Source, list[lineage.Parent]]:
    """The lines of responses, and what they are for the record, as a source and as parents. All bad ones are told together.

    Raises:
        DataError: They cannot be read, or a checker lacks what it needs.
    """

    def make(number: int, record: Record) -> Line:
        line = make_line(number, record.origin, parse_responses(record.value, record.origin))
        if config.by == By.checker:
            checkers.check_line(line, config.checker)
        return line

    lines = read_all(config.responses, "responses", make, "Repair them first.")
    return lines, *source_of(config.responses, len(lines), "source")


def _rank(config: RankConfig, judge: Judge | None, lines: Sequence[Line], partial: Partial) -> None:
    """Ranks what is not ranked yet."""
    todo = []
    for line in lines:
        if line.index in partial.done:
            continue
        if len(line.groups) < 2:
            # Fewer than two that have text and differ.
            partial.put(line.index, Outcome("one_response"))
        else:
            todo.append(line)
    if judge is not None:
        _rank_together(judge, todo, partial, config.judge.concurrency)
    elif config.by == By.checker:
        for line in todo:
            partial.put(line.index, checkers.rank_line(line, config.checker))
    else:
        for line in todo:
            outcome = person.rank_line(line, len(partial.done) + 1, len(lines), str(config.person), config.seed)
            if outcome is None:
                kept = f"{len(partial.done)} of {len(lines)} lines are done and kept in {partial.path}"
                raise PreemptedError(f"{kept}; the same command goes on from there")
            partial.put(line.index, outcome)


def _rank_together(judge: Judge, lines: Sequence[Line], partial: Partial, concurrency: int) -> None:
    """Several lines at a time; what the others have done when one fails is kept."""

    def rank(line: Line) -> None:
        partial.put(line.index, judge.rank_line(line))

    with ThreadPoolExecutor(concurrency) as pool:
        asked = [pool.submit(rank, line) for line in lines]
        try:
            wait(asked, return_when=FIRST_EXCEPTION)
            failed = next((one for one in asked if one.done() and one.exception() is not None), None)
        except BaseException:
            judge.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        if failed is not None:
            judge.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            error = failed.exception()
            assert error is not None
            raise error


def to_record(line: Line, outcome: Outcome) -> dict[str, Any]:
    """A ranked line: the line as it was, with ranks and how they came about. An earlier ranking is replaced."""
    record = {key: value for key, value in line.parsed.record.items() if key != "strengths"}
    before = record.get("provenance")
    record["responses"] = [
        {**{key: value for key, value in line.raw(number).items() if key not in _STANDINGS}, "rank": rank}
        for number, rank in enumerate(outcome.ranks)
    ]
    record["provenance"] = {**(before if isinstance(before, dict) else {}), **outcome.provenance}
    return record


def _write(
    out: Path,
    lines: Sequence[Line],
    partial: Partial,
    source: lineage.Source,
    parents: list[lineage.Parent],
    settings: dict[str, Any],
) -> None:
    """Writes the comparisons and their record."""
    outcomes = [partial.done[line.index] for line in lines]
    names = Counter(outcome.name for outcome in outcomes)
    counts = dict(sorted(names.items())) | dict(sum((Counter(outcome.counts) for outcome in outcomes), Counter[str]()))
    summary = ", ".join(f"{name} {number:,}" for name, number in counts.items())
    if not names[RANKED]:
        raise DataError(f"none of the {len(lines)} lines of {source.name} could be ranked ({summary}); {out} was not made")
    ranked = (to_record(line, outcome) for line, outcome in zip(lines, outcomes, strict=True) if outcome.name == RANKED)
    content = ((json.dumps(one, ensure_ascii=False) + "\n").encode(errors="replace") for one in ranked)
    details = {"settings": settings, "counts": counts}
    lineage.write_lines(out, content, lineage_kinds.dialogues("rank", parents, [source], names[RANKED], details))
    _log.info(f"{len(lines):,} lines: {summary} -> {out}")


class Partial:
    """What is ranked so far, in a file whose first line holds the settings. One process at a time.

    Args:
        path: The file. settings: What decides about the ranks. count: Number of lines.
        wait_for_disk: Whether each line is on disk when `put` returns; else a crash of the machine may take the last ones.

    Attributes:
        done: By index of the line.

    Raises:
        UsageError: It was begun with other settings, or another process has it.
        DataError: It is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], count: int, wait_for_disk: bool):
        self.path, self.done, self._sync = path, dict[int, Outcome](), wait_for_disk
        self._lock = threading.Lock()
        self._file: IO[bytes] = path.open("a+b", buffering=0)
        try:
            if not files.try_lock(self._file.fileno()):
                raise UsageError(f"{path} is being written by another process; wait for it, or name another file in out")
            self._open(settings, count)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _open(self, settings: dict[str, Any], count: int) -> None:
        self._file.seek(0)
        content = self._file.read()
        # A line that was being written when the process was killed has no end.
        whole = content.rfind(b"\n") + 1
        self._file.truncate(whole)
        first, *rest = content[:whole].removesuffix(b"\n").split(b"\n")
        head = {"settings": settings, "fingerprint": lineage.hash_value(settings)}
        if not first:
            self._file.truncate(0)
            self._put(head)
            return
        try:
            found = json.loads(first)["settings"]
            for line in rest:
                value = json.loads(line)
                index = value.pop("index")
                if not 0 <= index < count:
                    raise ValueError
                self.done[index] = Outcome(**value)
        except (ValueError, TypeError, KeyError):
            if not self.done and b'"settings"' not in first:
                raise DataError(f"{self.path} is no file of this program; remove it, or name another file in out") from None
            raise DataError(f"{self.path} is damaged; remove it, and rank again") from None
        if found != settings:
            differ = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            raise UsageError(
                f"{self.path} was begun with other settings ({', '.join(differ)}); give these again to go on, or remove it to begin anew"
            )

    def put(self, index: int, outcome: Outcome) -> None:
        """Keeps what came of a line."""
        with self._lock:
            self._put({"index": index, **outcome.to_json()})
            self.done[index] = outcome

    def _put(self, value: dict[str, Any]) -> None:
        content = memoryview((json.dumps(value, ensure_ascii=False) + "\n").encode(errors="replace"))
        while len(content):
            content = content[files.write_piece(self._file.fileno(), content) :]
        if self._sync:
            files.sync(self._file.fileno())

    def remove(self) -> None:
        """All is done."""
        files.remove(self.path)
