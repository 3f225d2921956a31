"""Runs the stages of a preparation: in processes of this machine, on Slurm, or on Ray.

All three are datatrove's executors, with its markers of what is complete; the local one has processes of its own: datatrove's pool waits
for ever when one of them is killed.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any
from unittest import mock

import dill
from datatrove.executor import slurm
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.utils.logging import logger as datatrove_log

from moss_train.cores import cores
from moss_train.data.prepare.config import PrepareConfig, RayConfig
from moss_train.data.prepare.pipeline import Stage
from moss_train.data.prepare.plan import WORK, Plan
from moss_train.data.terminal import count
from moss_train.errors import DataError, DiskFullError, FailedElsewhereError, OutOfMemoryError, UsageError

_log = logging.getLogger("moss_train")
_SAY_SECONDS = 10.0


def silence() -> None:
    """Keeps datatrove's log off the terminal; tasks have files for it."""
    datatrove_log.remove()


def logs_of(out: Path, stage: Stage) -> Path:
    """datatrove's folder of a stage: logs, statistics, and markers of complete tasks."""
    return out / WORK / "stages" / stage.name


def incomplete(out: Path, stage: Stage) -> list[int]:
    """Ranks of a stage that are not complete."""
    folder = logs_of(out, stage) / "completions"
    done = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [rank for rank in range(stage.tasks) if f"{rank:05d}" not in done]


def raise_failure(out: Path, stage: Stage, ranks: Sequence[int]) -> None:
    """Raises the error of the first task that failed, as it wrote it down; does nothing where none did."""
    for rank in ranks:
        path = out / WORK / "failures" / f"{stage.name}-{rank:05d}.json"
        try:
            told = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        where = f"; its log: {logs_of(out, stage) / 'logs' / f'task_{rank:05d}.log'}" if told["exit_code"] == 1 else ""
        kinds = {kind.exit_code: kind for kind in (DataError, DiskFullError, OutOfMemoryError)}
        if told["exit_code"] in kinds:
            raise kinds[told["exit_code"]](told["message"])
        raise FailedElsewhereError(f"{told['message']}{where}", told["exit_code"])


def clear_failures(out: Path) -> None:
    """Forgets how tasks failed before."""
    shutil.rmtree(out / WORK / "failures", ignore_errors=True)


# ---------------------------------------------------------------------- local


class LocalExecutor(LocalPipelineExecutor):
    """Processes of this machine; one that is killed ends the preparation with an error."""

    def run_ranks(self, ranks: Sequence[int], progress: Progress) -> None:
        """Runs tasks, in this process where one is enough.

        Raises:
            OutOfMemoryError: A process was killed.
            Exception: What the first task that failed raised.
        """
        packed = dill.dumps(self)
        if self.workers == 1 or len(ranks) == 1:
            for only in ranks:
                _run_rank(packed, only)
                progress.add(only)
            return
        pool = ProcessPoolExecutor(min(self.workers, len(ranks)), get_context(_start_method()), initializer=_end_with_parent)
        waiting = iter(ranks)
        running: dict[Future[None], int] = {}
        try:
            while True:
                for rank in itertools.islice(waiting, self.workers - len(running)):
                    running[pool.submit(_run_rank, packed, rank)] = rank
                if not running:
                    break
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                progress.say()
                for future in done:
                    rank = running.pop(future)
                    future.result()
                    progress.add(rank)
        except BrokenProcessPool:
            named = ", ".join(map(str, sorted(running.values())))
            raise OutOfMemoryError(
                f"a process of the preparation was killed, as when no memory is left (one of the tasks {named}); set workers or shard_mb "
                "lower, and give the same command again: what is complete is kept"
            ) from None
        finally:
            # On the way out because of an error, tasks that still run are of no use.
            for process in list((pool._processes or {}).values()) if running else []:
                process.kill()
            # Its threads must have ended before a process can be forked again.
            pool.shutdown(cancel_futures=True)


def _start_method() -> str:
    """A forked process has everything loaded already, which saves seconds; it is safe where no other thread can hold a lock."""
    # fsspec's thread is idle, and fsspec makes itself another one in a forked process.
    others = {thread.name for thread in threading.enumerate()} - {threading.current_thread().name, "fsspecIO"}
    return "spawn" if others or "torch" in sys.modules else "fork"


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone; a Ctrl-C is for that one alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return
    watched = parent

    def watch() -> None:
        watched.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_rank(packed: bytes, rank: int) -> None:
    """Runs a task with a copy of the steps of its own."""
    executor: LocalExecutor = dill.loads(packed)
    # datatrove prints the log of local rank 0 to the terminal; a failure is told by whoever waits.
    datatrove_log.remove()
    with mock.patch("datatrove.executor.base.add_task_logger", _only_to_file):
        executor._run_for_rank(rank, local_rank=1)


def _only_to_file(logging_dir: Any, rank: int, *_: Any, **__: Any) -> Any:
    """datatrove's log of a task, without a copy of its errors on the terminal."""
    datatrove_log.remove()
    file = logging_dir.open(f"logs/task_{rank:05d}.log", "w")
    datatrove_log.add(file, level="INFO")
    return file


class Progress:
    """Says how far a stage is, every few seconds.

    Args:
        stage: The stage. plan: Its tasks. ranks: Those still to do.
    """

    def __init__(self, stage: Stage, plan: Plan, ranks: Sequence[int]):
        self._stage = stage
        self._sizes = {rank: plan.tasks[rank].bytes if stage.reads else 0 for rank in range(stage.tasks)}
        self._before = sum(self._sizes.values()) - sum(self._sizes[rank] for rank in ranks)
        self._tasks_done = stage.tasks - len(ranks)
        self._done = 0
        self._started = self._said = time.monotonic()

    def add(self, rank: int) -> None:
        """A task is complete."""
        self._done += self._sizes[rank]
        self._tasks_done += 1
        self.say()

    def say(self) -> None:
        """Prints a line, unless one was printed just now, or all is done."""
        now = time.monotonic()
        if now - self._said < _SAY_SECONDS or self._tasks_done == self._stage.tasks:
            return
        self._said = now
        line = f"{self._stage.title}: {self._tasks_done:,} of {self._stage.tasks:,} tasks"
        total = sum(self._sizes.values())
        if total:
            line += f", {(self._before + self._done) / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        if self._done:
            rate = self._done / (now - self._started)
            left = (total - self._before - self._done) / rate
            line += f", {rate / 1e6:.1f} MB/s, about {int(left // 60)} min {int(left % 60):02d} s left"
        _log.info(line)


def run_local(config: PrepareConfig, plan: Plan, stages: Sequence[Stage]) -> None:
    """Runs all stages in processes of this machine."""
    out = Path(config.out).absolute()
    workers = config.workers or cores()
    for stage in stages:
        ranks = incomplete(out, stage)
        if not ranks:
            continue
        if len(ranks) < stage.tasks:
            _log.info(f"{stage.title}: {stage.tasks - len(ranks):,} of {stage.tasks:,} tasks are complete from before")
        executor = LocalExecutor(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=str(logs_of(out, stage)))
        try:
            executor.run_ranks(ranks, Progress(stage, plan, ranks))
        except OutOfMemoryError:
            raise
        except Exception:
            raise_failure(out, stage, ranks)
            raise


# ---------------------------------------------------------------------- clusters


def run_ray(config: PrepareConfig, plan: Plan, stages: Sequence[Stage]) -> None:
    """Runs all stages on Ray: a cluster, or one started here."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("executor=ray needs Ray: pip install ray") from error
    from datatrove.executor.ray import RayPipelineExecutor

    out = Path(config.out).absolute()
    started = not ray.is_initialized()
    if started:
        _start_ray(ray, config.ray, config.workers)
    try:
        for stage in stages:
            ranks = incomplete(out, stage)
            if not ranks:
                continue
            _log.info(f"{stage.title}: {count(len(ranks), 'task')} on Ray")
            datatrove_log.remove()
            executor = RayPipelineExecutor(
                stage.steps,
                tasks=stage.tasks,
                workers=config.workers or stage.tasks,
                logging_dir=str(logs_of(out, stage)),
                mem_per_cpu_gb=config.ray.mem_per_cpu_gb,
            )
            executor.run()
            left = incomplete(out, stage)
            if left:
                raise_failure(out, stage, left)
                raise OutOfMemoryError(f"{len(left)} tasks of {stage.name} were lost by Ray; see {logs_of(out, stage) / 'logs'}")
    finally:
        if started:
            ray.shutdown()


def _start_ray(ray: Any, config: RayConfig, workers: int | None) -> None:
    if config.address is not None:
        ray.init(address=config.address, log_to_driver=False)
    else:
        ray.init(num_cpus=workers or cores(), include_dashboard=False, log_to_driver=False, configure_logging=False)


def run_slurm(config: PrepareConfig, stages: Sequence[Stage], finish: Stage) -> list[str]:
    """Writes the scripts of all stages, each of which waits for the one before, and hands them to sbatch unless `slurm.submit` is false.

    Args:
        config: The configuration. stages: What runs. finish: What puts the corpus together, after them.

    Returns:
        The commands that submit them, in order; `$JOBN` stands for the number of job N.
    """
    out = Path(config.out).absolute()
    folder = out / WORK / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    if config.slurm.submit and shutil.which("sbatch") is None:
        raise UsageError("sbatch is not found; submit from a login node, or write the scripts only with slurm.submit=false")
    commands: list[str] = []
    before: Any = None
    for stage in [*stages, finish]:
        executor = slurm.SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            time=config.slurm.time,
            partition=config.slurm.partition,
            mem_per_cpu_gb=config.slurm.mem_per_cpu_gb,
            workers=config.workers or -1,
            job_name=f"prepare-{stage.name}",
            qos=config.slurm.qos,
            env_command=config.slurm.setup or None,
            max_array_size=config.slurm.max_array_size,
            logging_dir=str(logs_of(out, stage)),
            depends=before,
        )
        before = executor
    # Jobs that only add up datatrove's statistics are left out: the ledgers have all that is told.
    submitter = mock.patch.object(slurm, "launch_slurm_job", _Submitter(folder, commands, config.slurm.submit))
    with submitter, mock.patch.object(slurm.SlurmPipelineExecutor, "launch_merge_stats"):
        before.run()
    return commands


class _Submitter:
    """Stands in for datatrove's call of sbatch: keeps each script, and calls it or notes how it is called.

    Args:
        folder: Of the scripts. commands: Gets the calls. submits: Whether they are made.
    """

    def __init__(self, folder: Path, commands: list[str], submits: bool):
        self._folder, self._commands, self._submits = folder, commands, submits

    def __call__(self, content: str, job_id_of: Any, *arguments: str) -> str:
        number = len(self._commands)
        name = next(line.split("=", 1)[1] for line in content.splitlines() if line.startswith("#SBATCH --job-name="))
        script = self._folder / f"{number:02d}-{name}.slurm"
        script.write_text(content, encoding="utf-8")
        # Numbers of jobs that are not submitted are shell variables, which the last command set.
        quoted = [argument if "$JOB" in argument else shlex.quote(argument) for argument in arguments]
        self._commands.append(f"JOB{number}=$(sbatch --parsable {' '.join([*quoted, shlex.quote(str(script))])})")
        listed = "".join(f"{line}\n" for line in self._commands)
        (self._folder / "submit.sh").write_text(f"#!/bin/sh\nset -e\n{listed}", encoding="utf-8")
        if not self._submits:
            return f"$JOB{number}"
        answer = subprocess.run(["sbatch", *arguments, str(script)], capture_output=True, text=True)
        if answer.returncode:
            raise UsageError(f"sbatch refused {script}: {answer.stderr.strip() or answer.stdout.strip()}")
        return str(job_id_of(answer.stdout))
