"""A file of lines in the making by several ranks, each of which may be killed at any time.

    responses.jsonl.partial/settings.json      what the lines are made with
                            part-*.lines       NUMBER <tab> LINE, as each is finished; a file for each rank of each start
                            lock               held by rank 0 of the program that is at it

Which rank wrote a line means nothing: whoever goes on keeps what is complete, with any number of ranks. A last line that was cut off in the
middle of its writing is made anew.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from moss_train import files
from moss_train.artifacts import lineage
from moss_train.errors import DiskFullError, MossTrainError, UsageError


class _Place(NamedTuple):
    """Where a line stands in a part: bytes `start` to `end`."""

    part: Path
    start: int
    end: int


class Partial:
    """The lines of `out` that are there so far.

    Args:
        out: The file they are for; all ranks see its folder.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.with_name(f"{out.name}.partial")
        self._part: Path | None = None
        self._lock: int | None = None

    def refuse_finished(self) -> None:
        """Refuses a file that is there, before any work is done.

        Raises:
            UsageError: `out` exists.
        """
        if self.out.exists():
            raise UsageError(f"out={self.out} exists; name another file, or remove it")

    def begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder, or takes it up again. Rank 0 does this, before any other rank looks.

        Args:
            settings: All that the lines follow from, as JSON has it.

        Raises:
            UsageError: `out` exists, another program is at it, or what is there was made with other settings.
        """
        self.refuse_finished()
        with self._explaining():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
            if not files.try_lock(self._lock):
                raise UsageError(f"out={self.out}: another program is writing it now; wait for its end, or name another file")
            settings = json.loads(json.dumps(settings))
            path = self.folder / "settings.json"
            if self.finished():
                self._compare(path, settings)
            else:
                files.replace_content(path, (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode())

    def close(self) -> None:
        """Lets another program go on; what is there stays."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _compare(self, path: Path, settings: dict[str, Any]) -> None:
        remedy = f"Name another out, or remove {self.folder}"
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            raise UsageError(f"{path} does not say what the lines in its folder were made with. {remedy}.") from None
        differing = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if differing:
            told = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(settings.get(name))}" for name in differing)
            held = f"{self.folder} holds lines that were made with other settings"
            raise UsageError(f"{held}: {told}. {remedy}, or go on with those settings.")

    def finished(self) -> dict[int, _Place]:
        """The numbers of all lines that are complete."""
        found: dict[int, _Place] = {}
        with self._explaining():
            for part in sorted(self.folder.glob("part-*.lines")):
                start = 0
                with part.open("rb") as file:
                    for line in file:
                        number = _number(line)
                        if number is not None:
                            found.setdefault(number, _Place(part, start + line.index(b"\t") + 1, start + len(line)))
                        start += len(line)
        return found

    def append(self, number: int, line: bytes) -> None:
        """Adds a line, which ends with its line end; it is on the disk when this returns."""
        self.append_all([(number, line)])

    def append_all(self, lines: Sequence[tuple[int, bytes]]) -> None:
        """Adds numbered lines, each with its line end; they are on the disk when this returns."""
        with self._explaining():
            is_new = self._part is None
            if self._part is None:
                self._part = self.folder / f"part-{uuid.uuid4().hex[:16]}.lines"
            with self._part.open("ab", buffering=0) as file:
                rest = memoryview(b"".join(b"%d\t%b" % one for one in lines))
                while len(rest):
                    rest = rest[files.write_piece(file.fileno(), rest) :]
                files.sync(file.fileno())
            if is_new:
                files.sync_directory(self.folder)

    def lines(self, count: int) -> Iterator[bytes]:
        """Lines 0 to `count` - 1, each with its line end.

        Raises:
            UsageError: Some are missing: a rank wrote them elsewhere.
        """
        found = self.finished()
        missing = [number for number in range(count) if number not in found]
        if missing:
            raise UsageError(
                f"{self.folder} lacks {len(missing)} of {count} lines, the first is number {missing[0]}, although all ranks have ended: "
                "out must be in a folder that all of them see"
            )
        opened = {part: part.open("rb") for part in {place.part for place in found.values()}}
        try:
            for number in range(count):
                place = found[number]
                opened[place.part].seek(place.start)
                yield opened[place.part].read(place.end - place.start)
        finally:
            for file in opened.values():
                file.close()

    def merge(self, count: int, record: lineage.Lineage) -> None:
        """Writes `out` with its record, once lines 0 to `count` - 1 are all there, and removes the folder.

        Raises:
            UsageError: Some are missing: a rank wrote them elsewhere.
        """
        with self._explaining():
            merged = self.folder / "merged"
            lineage.write_lines(self.out, self.lines(count), record, merged)
            files.remove_directory(self.folder)
            self.close()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turns what a disk says into an error for people."""
        try:
            yield
        except MossTrainError:
            raise
        except OSError as error:
            if files.is_disk_full(error):
                kept = f"what is in {self.folder} is kept, and the same command goes on from there"
                raise DiskFullError(f"out={self.out}: no space is left; {kept}") from error
            raise UsageError(f"out={self.out} cannot be written: {error.strerror or error}") from error


def _number(line: bytes) -> int | None:
    """The number of a complete line of a part."""
    number, tab, text = line.partition(b"\t")
    if not (tab and number.isdigit() and line.endswith(b"\n")):
        return None
    try:
        json.loads(text)
    except ValueError:
        return None
    return int(number)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
