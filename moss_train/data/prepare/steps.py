"""The steps of a task, as datatrove's executors run them: read -> filter -> (drop repeats) -> write a shard.

Each task of an executor gets its own copy of the steps, which share one ledger. Filters depend on the source of the task, so they are made
when it begins.
"""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from moss_train import files
from moss_train.data.corpus import TOKENIZER_FOLDER
from moss_train.data.corpus_writer import ShardWriter, spell
from moss_train.data.fast_tokens import FastEncoder, Ranges, SlowEncoder
from moss_train.data.prepare.ledger import Dropped, Ledger
from moss_train.data.prepare.plan import WORK, Plan, Task, read_plan
from moss_train.data.prepare.reading import PieceReader
from moss_train.data.prepare.words import HASHING, WORDS
from moss_train.data.records import PROBLEMS_SHOWN
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, DiskFullError, MossTrainError

_BATCH_CHARACTERS = 2**20
_BATCH_DOCUMENTS = 4096
_SHOWN_ALIKE = 2

Documents = Iterator[Document]


def plan_of(out: Path) -> Plan:
    """The plan that tasks go by; read once a process."""
    if out not in _plans:
        plan = read_plan(out)
        if plan is None:
            raise DataError(f"{out / WORK}: the plan has gone; give the command again.")
        _plans[out] = plan
    return _plans[out]


_plans: dict[Path, Plan] = {}


def keep_plan(out: Path, plan: Plan) -> None:
    """Has tasks in this process, and in those forked from it, go by a plan that is there already."""
    _plans[out] = plan


class ReadSource(PipelineStep):
    """Reads the documents of a task.

    Args:
        out: The corpus. ledger: Gets bad records and kinds of files.
    """

    type, name = "READER", "pieces of a source"

    def __init__(self, out: Path, ledger: Ledger):
        super().__init__()
        self._out, self._ledger = out, ledger

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """The documents, in the order of the files."""
        plan = plan_of(self._out)
        task = plan.tasks[rank]
        source, form = plan.source(task.source), plan.forms[task.source]
        plan.require_unchanged(task)
        reader = PieceReader(form, source["text"], task.source, self._ledger.reject)
        least, most = plan.settings["min_chars"], plan.settings["max_chars"] or 1 << 62
        # The first task has the highest priority where dedup chooses which of equal documents stays.
        metadata = {"priority": 65535 - min(rank, 65534)}
        number = 0
        for piece in plan.pieces(task):
            for text, kind in reader.read(piece):
                if kind:
                    self._ledger.kinds[kind] += 1
                if least <= len(text) <= most:
                    yield Document(text=text, id=str(number), metadata=metadata.copy())
                else:
                    self._ledger.drop("empty" if not text else "too short" if len(text) < least else "too long", text)
                number += 1
        plan.require_unchanged(task)
        bad = sum(self._ledger.bad.values())
        if bad and plan.settings["on_bad"] == "fail":
            raise DataError(_describe(task, bad, self._ledger, number))
        self._ledger.digest = reader.digest.hexdigest()


def _describe(task: Task, bad: int, ledger: Ledger, good: int) -> str:
    lines: list[str] = []
    alike: Counter[str] = Counter()
    for entry in ledger.problems:
        text = entry["problem"].removeprefix(entry["origin"])
        alike[text] += 1
        if alike[text] <= _SHOWN_ALIKE and len(lines) < PROBLEMS_SHOWN:
            lines.append(entry["problem"])
    shown = "\n".join(lines)
    more = f"\n... and {bad - len(lines)} more" if bad > len(lines) else ""
    totals = ", ".join(f"{code} {number}" for code, number in ledger.bad.most_common())
    return (
        f"{bad} bad of {bad + good} records of {task.source} (shard {task.number}):\n{shown}{more}\ntotals: {totals}\n"
        "Repair them, or set on_bad=skip to leave them out."
    )


class FilterSource(PipelineStep):
    """Runs the filters of a task's source, and decontamination.

    Args:
        out: The corpus. ledger: Told of what is dropped.
    """

    type, name = "FILTER", "filters of a source"

    def __init__(self, out: Path, ledger: Ledger):
        super().__init__()
        self._out, self._ledger = out, ledger

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Documents:
        """The documents that are kept; some filters take lines out of them."""
        plan = plan_of(self._out)
        source = plan.source(plan.tasks[rank].source)
        names = plan.settings["filters"] if source["filters"] is None else source["filters"]
        for name in names:
            data = _make_filter(name, plan.settings["filter_options"].get(name) or {}, self._ledger).run(data, rank, world_size)
        if plan.settings["decontaminate"]["files"]:
            from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter

            config = NGramsDecontConfig(n_grams=plan.settings["decontaminate"]["ngram"], hash_config=HASHING)
            folder = str(self._out / WORK / "contamination")
            step = NGramsDecontFilter(folder, config, Dropped(self._ledger, "decontamination"), WORDS)
            data = step.run(data, rank, world_size)
        return cast(Documents, data)


def _make_filter(name: str, options: dict[str, Any], ledger: Ledger) -> Any:
    """One of datatrove's filters by its name here."""
    from datatrove.pipeline import filters

    kinds = {
        "gopher_quality": filters.GopherQualityFilter,
        "gopher_repetition": filters.GopherRepetitionFilter,
        "fineweb_quality": filters.FineWebQualityFilter,
        "c4_quality": filters.C4QualityFilter,
    }
    try:
        return kinds[name](exclusion_writer=Dropped(ledger, name), **{"language": WORDS, **options})
    except TypeError as error:
        raise DataError(f"filter_options.{name}: {error}; expected arguments of datatrove's {kinds[name].__name__}.") from None


class WithLedger(PipelineStep):
    """One of datatrove's steps that leave documents out.

    Args:
        step: The step, made without a writer for them. ledger: Told of them. reason: Why.
    """

    type, name = "DEDUP", "repeats"

    def __init__(self, step: Any, ledger: Ledger, reason: str):
        super().__init__()
        self._step = step
        step.exclusion_writer = Dropped(ledger, reason)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Documents:
        """What the step keeps."""
        return cast(Documents, self._step.run(data, rank, world_size))


class WriteShard(PipelineStep):
    """Encodes the documents of a task and writes them as a shard, with its ledger.

    Args:
        out: The corpus, which holds the copy of the tokenizer. ledger: Shared with the steps before.
        fast: Whether gigatoken is used where it is there. differences: Characters it is not trusted with.
    """

    type, name = "WRITER", "shard"

    def __init__(self, out: Path, ledger: Ledger, fast: bool, differences: Ranges | None):
        super().__init__()
        self._out, self._ledger, self._fast, self._differences = out, ledger, fast, differences

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Writes the shard, and none where nothing is kept."""
        plan = plan_of(self._out)
        task = plan.tasks[rank]
        encoder = encoder_of(self._out, self._fast, self._differences)
        self._ledger.encoder = encoder
        samples = Samples(encoder, plan.settings["samples"], f"{task.source}/{task.shard}")
        record: dict[str, Any] | None = None
        with ShardWriter(self._out, task.source, task.shard, plan.tokenizer["endoftext"]) as shard:
            for texts in _batches(data):
                ids, lengths = encoder.encode(texts)
                samples.look_at(texts, ids, lengths)
                shard.append(ids, lengths)
                self._ledger.keep(sum(map(len, texts)), lengths)
            samples.finish()
            self._ledger.flush()
            source = plan.source(task.source)
            if shard.documents:
                described = {
                    "tokenizer": plan.tokenizer["fingerprint"],
                    "source": task.source,
                    "language": source["language"],
                    "licence": source["licence"],
                    "bytes": self._ledger.kept.bytes,
                    "input_sha256": self._ledger.digest,
                }
                record = shard.close(described)
        folder = self._out / WORK / "ledgers"
        folder.mkdir(parents=True, exist_ok=True)
        content = {"shard": record, "digest": self._ledger.digest, "counts": self._ledger.to_json(), "rejects": self._ledger.problems}
        files.replace_content(folder / f"{rank:05d}.json", spell(content))


def encoder_of(out: Path, fast: bool, differences: Ranges | None) -> FastEncoder:
    """The encoder of a corpus; made once a process."""
    key = (out, fast)
    if key not in _encoders:
        tokenizer = MossTokenizer.load(out / TOKENIZER_FOLDER)
        _encoders[key] = FastEncoder(tokenizer, differences) if fast else SlowEncoder(tokenizer)
    return _encoders[key]


_encoders: dict[tuple[Path, bool], FastEncoder] = {}


def keep_encoder(out: Path, encoder: FastEncoder) -> None:
    """Has tasks in this process, and in those forked from it, use an encoder that is there already."""
    _encoders[out, not isinstance(encoder, SlowEncoder)] = encoder


def _batches(data: Any) -> Iterator[Sequence[bytes]]:
    """Texts in UTF-8, about a million characters at a time."""
    batch: list[bytes] = []
    left = _BATCH_CHARACTERS
    for document in data:
        text = document.text
        batch.append(text.encode())
        left -= len(text)
        if left <= 0 or len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch, left = [], _BATCH_CHARACTERS
    if batch:
        yield batch


class Samples:
    """Holds the ids of some documents against those of tokenizers: the first, the longest, and some spread over the shard.

    Args:
        encoder: What gave them. number: How many, beside the first and the longest. shard: Its name, for messages.
    """

    def __init__(self, encoder: FastEncoder, number: int, shard: str):
        self._encoder, self._left, self._shard = encoder, number, shard
        self._seen, self._next = 0, 0
        self._longest: tuple[int, int, bytes, Any] = (-1, 0, b"", None)

    def look_at(self, texts: Sequence[bytes], ids: Any, lengths: Any) -> None:
        """Documents in the order of the shard; those at 0, 1, 3, 7, ... are compared, up to the number asked for."""
        ends = lengths.cumsum()
        place = int(lengths.argmax())
        if len(texts[place]) > self._longest[0]:
            row = ids[ends[place] - lengths[place] : ends[place]]
            self._longest = (len(texts[place]), self._seen + place, texts[place], row)
        while self._next < self._seen + len(texts) and self._left >= 0:
            inside = self._next - self._seen
            self._compare(self._next, texts[inside], ids[ends[inside] - lengths[inside] : ends[inside]])
            self._next = 2 * self._next + 1
            self._left -= 1
        self._seen += len(texts)

    def finish(self) -> None:
        """Compares the longest."""
        _, number, text, ids = self._longest
        if ids is not None:
            self._compare(number, text, ids)

    def _compare(self, number: int, text: bytes, ids: Any) -> None:
        self._encoder.check_same(text, ids, f"{self._shard}, document {number}")


class Recorded(PipelineStep):
    """The last step of a task: runs another, and writes down how it failed, for whoever waits for tasks on other machines.

    Args:
        step: The step. out: The corpus. stage: Name of the pipeline.
    """

    type, name = "TASK", "last step"

    def __init__(self, step: PipelineStep, out: Path, stage: str):
        super().__init__()
        self._step, self._out, self._stage = step, out, stage

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Runs the step to its end."""
        path = self._out / WORK / "failures" / f"{self._stage}-{rank:05d}.json"
        try:
            for _ in self._step.run(data, rank, world_size) or ():
                pass
            path.unlink(missing_ok=True)
        except Exception as error:
            told = isinstance(error, MossTrainError)
            full = files.is_disk_full(error)
            message = str(error) if told else f"no space is left at {self._out}" if full else traceback.format_exc()
            code = error.exit_code if isinstance(error, MossTrainError) else DiskFullError.exit_code if full else 1
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"exit_code": code, "message": message}), encoding="utf-8")
            raise
