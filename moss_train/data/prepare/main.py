"""The job behind `scripts/prepare.py`: sources to a corpus, continued where an earlier call was ended.

configuration -> tokenizer -> plan (or the one there is, if nothing has changed) -> stages -> finish -> table
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from moss_train import files
from moss_train.artifacts.lineage import recorded_parent
from moss_train.data.corpus import FILE_NAME, TOKENIZER_FOLDER, Corpus, open_corpus
from moss_train.data.corpus_writer import TEMPORARY
from moss_train.data.fast_tokens import FastEncoder, SlowEncoder
from moss_train.data.prepare.config import Encoder, Executor, PrepareConfig
from moss_train.data.prepare.plan import WORK, Plan, make_plan, read_plan
from moss_train.data.prepare.summary import print_summary
from moss_train.data.terminal import count
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, DiskFullError, UsageError

_log = logging.getLogger("moss_train")
_LOCK_SECONDS = 10.0


def main(config: PrepareConfig) -> None:
    """Prepares a corpus."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("moss_train").setLevel(logging.INFO)
    corpus = prepare(config)
    if corpus is not None:
        print_summary(corpus, Console())


def prepare(config: PrepareConfig) -> Corpus | None:
    """Prepares a corpus, or goes on with one.

    Args:
        config: Checked.

    Returns:
        The corpus; None: its tasks were given to Slurm.

    Raises:
        UsageError: `out` holds something else, or a corpus of other settings; or a package is missing.
        DataError: A source is missing, bad, or has changed.
        DiskFullError: No space is left.
    """
    out = Path(config.out).absolute()
    tokenizer = MossTokenizer.load(config.tokenizer)
    told = _describe_tokenizer(tokenizer, Path(config.tokenizer))
    if (out / FILE_NAME).exists() and not (out / WORK / "plan.json").exists():
        return _finished(config, out, told)
    # Of datatrove's steps; what is told here is told in lines.
    os.environ.setdefault("TQDM_DISABLE", "1")
    _require_datatrove()
    try:
        with _claim(out):
            return _run(config, out, tokenizer, told)
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out}; free some, and give the same command again") from error
        raise


def _run(config: PrepareConfig, out: Path, tokenizer: MossTokenizer, told: dict[str, Any]) -> Corpus | None:
    from moss_train.data.prepare import executors, pipeline, steps
    from moss_train.data.prepare.finish import finish
    from moss_train.data.prepare.finish_step import FinishCorpus

    encoder = FastEncoder(tokenizer) if config.encoder is Encoder.auto else SlowEncoder(tokenizer)
    if encoder.note is not None:
        _log.info(encoder.note)
    submitted = out / WORK / "slurm" / "submitted"
    if submitted.exists() and not config.slurm.again:
        raise UsageError(
            f"out={out}: its jobs were given to Slurm before ({submitted}), and what they write must not be touched while they run; "
            "when none of them runs any more (squeue), slurm.again=true goes on"
        )
    plan = _settle_plan(config, out, tokenizer, told)
    names, read = ", ".join(config.sources), len(plan.files) - len(plan.evaluation)
    _log.info(
        f"{names}: {count(read, 'file')}, {plan.total_bytes / 1e6:,.1f} MB, {count(len(plan.tasks), 'task')}; "
        f"ids by {encoder.name}, tokenizer {tokenizer.fingerprint[:12]}"
    )
    if config.decontaminate.files and not pipeline.contamination_path(out).is_file():
        number = pipeline.write_contamination(config, out)
        _log.info(
            f"decontamination: {number:,} sequences of {config.decontaminate.ngram} words of "
            f"{count(len(config.decontaminate.files), 'file')}"
        )
    executors.clear_failures(out)
    steps.keep_plan(out, plan)
    steps.keep_encoder(out, encoder)
    executors.silence()
    stages = pipeline.make_stages(config, plan, None if isinstance(encoder, SlowEncoder) else encoder.differences)
    if config.executor is Executor.slurm:
        last = pipeline.Stage("finish", "putting together", [pipeline.Recorded(FinishCorpus(out), out, "finish")], 1, False)
        if config.slurm.submit:
            # Before the first of them can write anything.
            submitted.parent.mkdir(exist_ok=True)
            submitted.touch()
        try:
            commands = executors.run_slurm(config, stages, last)
        except UsageError:
            submitted.unlink(missing_ok=True)
            raise
        folder = out / WORK / "slurm"
        done = "submitted" if config.slurm.submit else "written"
        _log.info(
            f"{count(len(commands), 'job')} {done}; scripts in {folder}, submitted by {folder / 'submit.sh'}. The last one completes {out}."
        )
        return None
    if config.executor is Executor.ray:
        executors.run_ray(config, plan, stages)
    else:
        executors.run_local(config, plan, stages)
    return finish(out)


def _require_datatrove() -> None:
    try:
        import datatrove.data  # noqa: F401
        import orjson  # noqa: F401
    except ImportError as error:
        raise UsageError(f'preparing corpora needs datatrove ({error}): pip install "moss-train[prepare]"') from error


def _describe_tokenizer(tokenizer: MossTokenizer, directory: Path) -> dict[str, Any]:
    """What a plan says of a tokenizer."""
    parents = recorded_parent(directory, "tokenizer")
    return {
        "fingerprint": tokenizer.fingerprint,
        "size": tokenizer.size,
        "vocab_size": tokenizer.vocab_size,
        "endoftext": tokenizer.endoftext,
        "parent": asdict(parents[0]) if parents else None,
    }


# ---------------------------------------------------------------------- what is there already


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[None]:
    """Makes the directory, and keeps other preparations out of it."""
    if out.exists() and not (out / WORK).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out} exists and is not a corpus in the making; name another directory")
    try:
        (out / WORK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if files.is_disk_full(error):
            raise
        raise UsageError(f"out={out} cannot be written: {error.strerror}") from error
    with (out / WORK / "lock").open("a") as lock:
        # A preparation that was killed holds it until its last process has noticed.
        patience = time.monotonic() + _LOCK_SECONDS
        while not files.try_lock(lock.fileno()):
            if time.monotonic() < patience:
                time.sleep(0.1)
                continue
            raise UsageError(f"out={out}: another preparation is at work there; wait until it has ended, or name another directory")
        yield


def _settle_plan(config: PrepareConfig, out: Path, tokenizer: MossTokenizer, told: dict[str, Any]) -> Plan:
    """The plan there is, where it is that of this configuration; else a new one, written down."""
    before = read_plan(out)
    if before is None:
        plan = make_plan(config, told)
        tokenizer.save(out / TOKENIZER_FOLDER)
        content = json.dumps(plan.to_json(), ensure_ascii=False).encode()
        files.replace_content(out / WORK / "plan.json", content)
        return plan
    _require_same(out, "begun", before.settings, before.tokenizer["fingerprint"], config, told)
    before.require_unchanged()
    now = make_plan(config, told)
    _require_same_files(out, before, now)
    # Of tasks that were killed.
    for name in config.sources:
        for left in (out / name).glob(f".*{TEMPORARY}"):
            left.unlink(missing_ok=True)
    return before


def _finished(config: PrepareConfig, out: Path, told: dict[str, Any]) -> Corpus:
    """A corpus that is there already, if it is the one asked for."""
    corpus = open_corpus(out)
    _require_same(out, "made", corpus.settings, corpus.tokenizer_fingerprint, config, told)
    try:
        now = make_plan(config, told).inputs_fingerprint
    except DataError:
        _log.info("(what it was made from is not at hand)")
    else:
        if now != corpus.inputs_fingerprint:
            raise DataError(f"{out} is complete, but its sources hold other files than when it was made; prepare into another directory.")
    # Of a preparation that was killed while it tidied up.
    for left in (out / WORK, *out.glob(f"{files.TRASH_PREFIX}*")):
        files.empty_trash(left)
    _log.info(f"{out} is complete already, with these settings; nothing to do")
    return corpus


def _require_same(out: Path, verb: str, settings: dict[str, Any], fingerprint: str, config: PrepareConfig, told: dict[str, Any]) -> None:
    """Refuses to go on with other settings, naming each that differs."""
    now = json.loads(json.dumps(config.settings()))
    before, after = dict(_flat(settings)), dict(_flat(now))
    before["tokenizer (fingerprint)"], after["tokenizer (fingerprint)"] = fingerprint[:12], told["fingerprint"][:12]
    differing = [key for key in [*before, *(key for key in after if key not in before)] if before.get(key) != after.get(key)]
    if differing:
        lines = "\n".join(f"  - {key}: was {before.get(key)!r}, now {after.get(key)!r}" for key in differing)
        raise UsageError(f"out={out} was {verb} with other settings:\n{lines}\nName another directory, or give the settings it has.")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _require_same_files(out: Path, before: Plan, now: Plan) -> None:
    """Refuses to go on where a source has come to hold other files."""
    old, new = ({file.path for file in plan.files} for plan in (before, now))
    if old != new or before.tasks != now.tasks:
        more = ", ".join(sorted(new - old)[:5]) or "none"
        gone = ", ".join(sorted(old - new)[:5]) or "none"
        raise DataError(
            f"the sources hold other files than when {out} was begun: added {more}; gone {gone}. Restore them, or prepare into another "
            "directory."
        )
