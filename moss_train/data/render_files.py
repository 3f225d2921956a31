"""Files of records to rendered documents in the cache, once a machine and by several processes.

files -> pieces -> jobs -> workers: read, parse, render -> parts -> joined in the order of the files -> an entry of the cache
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from moss_train.cores import cores
from moss_train.data.cache import Say
from moss_train.data.documents import TABLE, digest_of, id_type
from moss_train.data.fingerprint import stamp
from moss_train.data.records import Piece, split_file
from moss_train.data.render_worker import Job, RenderSettings, Report, part_files, render_job
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, OutOfMemoryError

VERSION = 1
"""Of what records become: raise it when the same records come to give other ids or marks. Part of every key."""

_PIECE_BYTES = 16 * 2**20
_LEAST_SIZE = 4096
"""Bytes that a piece counts as at least: opening a file takes time too."""
_WORTH_A_PROCESS = 4 * 2**20
"""Bytes of records below which starting workers takes longer than rendering."""
_SAY_SECONDS = 10.0


def render_files(
    paths: Sequence[Path], limit: int | None, settings: RenderSettings, tokenizer: MossTokenizer, out: Path, say: Say, what: str
) -> dict[str, Any]:
    """Renders the records of files into a directory, in the order of the files.

    Args:
        paths: Files of `find_files`.
        limit: Records to take at most.
        settings: What shapes documents.
        tokenizer: Gives the ids.
        out: An empty directory; gets the files of `documents.StoredDocuments`.
        say: Told of progress.
        what: Name of the data, for that.

    Returns:
        What the entry of the cache is to say: digest, type of the ids, report.

    Raises:
        DataError: A file cannot be read, or has changed meanwhile.
    """
    before = [stamp(path) for path in paths]
    jobs = _jobs([(number, piece) for number, path in enumerate(paths) for piece in split_file(path, _PIECE_BYTES)])
    parts = out / "parts"
    parts.mkdir()
    progress = _Progress(sum(size_of(job) for job in jobs), say, what)
    # A number of records can only be counted from the front.
    if limit is not None or progress.total < _WORTH_A_PROCESS:
        reports = _render_here(jobs, limit, settings, tokenizer, parts, progress)
    else:
        reports = _render_in_workers(jobs, settings, tokenizer, parts, progress)
    if [stamp(path) for path in paths] != before:
        changed = next(path for path, old in zip(paths, before) if stamp(path) != old)
        raise DataError(f"{changed} was changed while it was read; give the same command again when whatever writes it has ended")
    digest = _join([parts / str(index) for index in range(len(reports))], out)
    shutil.rmtree(parts)
    whole = Report()
    for report in reports:
        whole.add(report)
    return {"digest": digest, "dtype": id_type(tokenizer.size).str, "report": whole.to_json()}


def _jobs(pieces: Job) -> list[Job]:
    """Groups small pieces that follow one another: with a file a dialogue, a part for each would be millions of files."""
    jobs: list[Job] = []
    left = 0
    for number, piece in pieces:
        size = _size(piece)
        if not jobs or size > left:
            jobs.append([])
            left = _PIECE_BYTES
        jobs[-1].append((number, piece))
        left -= max(size, _LEAST_SIZE)
    return jobs


def size_of(job: Job) -> int:
    """Bytes of a job's records."""
    return sum(_size(piece) for _, piece in job)


def _size(piece: Piece) -> int:
    """Bytes of a piece; of Parquet's, which are counted in row groups, a share of the file."""
    size = piece.path.stat().st_size if piece.path.is_file() else sum(path.stat().st_size for path in piece.path.iterdir())
    if piece.end is None or piece.path.suffix.lower() == ".parquet":
        return size if piece.end is None else max(1, (piece.end - piece.start) * _PIECE_BYTES)
    return piece.end - piece.start


class _Progress:
    """Says how far it is, every few seconds."""

    def __init__(self, total: int, say: Say, what: str):
        self.total, self._say, self._what = total, say, what
        self._done = 0
        self._started = self._said = time.monotonic()
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done += size
            now = time.monotonic()
            if now - self._said < _SAY_SECONDS or self._done >= self.total:
                return
            self._said = now
            rate = self._done / (now - self._started)
            left = (self.total - self._done) / rate
            self._say(
                f"{self._what}: {self._done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB read and rendered, {rate / 1e6:.1f} MB/s, "
                f"about {int(left // 60)} min {int(left % 60):02d} s left"
            )


def _render_here(
    jobs: Sequence[Job],
    limit: int | None,
    settings: RenderSettings,
    tokenizer: MossTokenizer,
    parts: Path,
    progress: _Progress,
) -> list[Report]:
    reports: list[Report] = []
    left = limit
    for index, job in enumerate(jobs):
        report = render_job(job, parts / str(index), settings, tokenizer, left)
        reports.append(report)
        progress.add(size_of(job))
        if left is not None:
            left -= report.readable
            if left <= 0:
                break
    return reports


def _render_in_workers(
    jobs: Sequence[Job], settings: RenderSettings, tokenizer: MossTokenizer, parts: Path, progress: _Progress
) -> list[Report]:
    """One worker a core; each is fed by a thread of its own."""
    folder = parts / "tokenizer"
    tokenizer.save(folder)
    setup = {"settings": asdict(settings), "tokenizer": str(folder)}
    reports: dict[int, Report] = {}
    failures: list[BaseException] = []
    waiting = iter(enumerate(jobs))
    lock = threading.Lock()

    def feed(worker: _Worker) -> None:
        try:
            while not failures:
                with lock:
                    index, job = next(waiting, (-1, []))
                if index < 0:
                    return
                reports[index] = worker.render(job, parts / str(index))
                progress.add(size_of(job))
        except BaseException as error:
            failures.append(error)

    count = min(cores(), len(jobs))
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(_Worker(setup)) for _ in range(count)]
        threads = [threading.Thread(target=feed, args=(worker,), daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            # In short waits, so that a signal's exception is raised here; a failure is not kept waiting by the other workers.
            while thread.is_alive() and not failures:
                thread.join(0.2)
    if failures:
        raise failures[0]
    shutil.rmtree(folder)
    return [reports[index] for index in range(len(jobs))]


class _Worker(contextlib.AbstractContextManager["_Worker"]):
    """A process that renders; killed on leaving."""

    def __init__(self, setup: dict[str, Any]):
        # One thread each: there is a worker for every core.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-c", "from moss_train.data.render_worker import main; main()"]
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, encoding="utf-8", start_new_session=True
        )
        self._ask(setup)

    def _ask(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def render(self, job: Job, stem: Path) -> Report:
        """Has pieces rendered; see `render_job`."""
        assert self._process.stdout is not None
        pieces = [(number, str(piece.path), piece.start, piece.end, piece.first_line) for number, piece in job]
        self._ask({"pieces": pieces, "stem": str(stem)})
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            others = f" or one of the {len(job) - 1} pieces after it" if job[1:] else ""
            message = f"a process that renders ended with {code} at {job[0][1].path}{others}"
            if code == -signal.SIGKILL:
                raise OutOfMemoryError(f"{message}: killed, as when no memory is left; free some, or give smaller files")
            raise RuntimeError(message)
        answer = json.loads(line)
        if "os_error" in answer:
            number, text, name = answer["os_error"]
            raise OSError(number, text, name or None)
        if "error" in answer:
            raise DataError(answer["error"])
        return Report.from_json(answer["report"])

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _join(stems: Sequence[Path], out: Path) -> str:
    """Puts parts side by side, and removes each as soon as it is copied; returns the digest of the documents."""
    for name, target in (("ids", "ids.bin"), ("marks", "marks.bin"), ("rejects", "rejects.jsonl")):
        with (out / target).open("wb") as joined:
            for stem in stems:
                part = part_files(stem)[name]
                with part.open("rb") as file:
                    shutil.copyfileobj(file, joined, 16 * 2**20)
                part.unlink()
    table = np.concatenate([np.fromfile(part_files(stem)["table"], dtype=TABLE) for stem in stems])
    np.save(out / "table.npy", table)
    return digest_of(part_files(stem)["hashes"].read_bytes() for stem in stems)
