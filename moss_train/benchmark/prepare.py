"""The suite `prepare`: a corpus beside datatrove's own tokenizer pipeline, from JSONL to ids on disk.

Two corpora: code, which is Python's standard library with its blocks shuffled over files of the sizes it has, and Chinese, which is the
Chinese text of MOSS dialogues with its sentences shuffled likewise. Shuffling makes as much text as is asked for without repeating any in
its place. The tokenizer is trained on some of both.

* *ours*: `prepare`, workers = cores, everything included: starting processes, comparing samples, hashing, waiting for the disk.
* *datatrove*: `JsonlReader` and `DocumentTokenizer` with the same tokenizer.json and workers.
* *reading and writing*: the lines parsed and as many bytes written, by as many processes, with nothing in between.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import in_turns
from moss_train.cores import cores
from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError

_DATATROVE, _OURS, _COPY = "datatrove", "ours", "reading and writing"


def shuffled(documents: list[list[str]], separator: str, target: int) -> Iterator[str]:
    """Documents of the sizes of those given, made of their parts in random order, until they have `target` bytes."""
    generator, parts, done = random.Random(0), [part for document in documents for part in document], 0
    while True:
        generator.shuffle(parts)
        start = 0
        for document in documents:
            text = separator.join(parts[start : start + len(document)])
            start += len(document)
            done += len(text.encode())
            yield text
            if done >= target:
                return


def code(target: int) -> Iterator[str]:
    """Python's standard library."""
    documents = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" not in path.parts:
            try:
                documents.append(re.split(r"(?<=\n)\n(?=\S)", path.read_text(encoding="utf-8")))
            except UnicodeDecodeError:
                continue
    return shuffled(documents, "\n", target)


def chinese(dialogues: Path, target: int) -> Iterator[str]:
    """The Chinese dialogues in a file of MOSS records, without their markers."""
    documents = []
    for line in dialogues.read_text(encoding="utf-8").splitlines():
        turns = json.loads(line)["chat"].values()
        text = re.sub(r"<\|[^|]*\|>:?|<eo[a-z]>", "", "\n".join(value for turn in turns for value in turn.values()))
        if 3 * sum("\u4e00" <= character <= "\u9fff" for character in text) > len(text):
            documents.append(re.split(r"(?<=[。！？\n])", text))
    return shuffled(documents, "", target)


def write_jsonl(texts: Iterator[str], folder: Path) -> None:
    """Writes documents to as many files as there are workers: datatrove gives whole files to its tasks."""
    folder.mkdir()
    files = [(folder / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(cores())]
    for number, text in enumerate(texts):
        files[number % len(files)].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    for file in files:
        file.close()


def ours(data: Path, tokenizer: Path, out: Path) -> int:
    """A shard a file, so that all cores have work, as on the other side."""
    largest = max(path.stat().st_size for path in data.iterdir())
    corpus = prepare(PrepareConfig(str(tokenizer), str(out), {"source": SourceConfig(str(data), "any")}, shard_mb=largest / 1e6))
    assert corpus is not None
    return corpus.tokens


def datatrove(data: Path, tokenizer: Path, out: Path) -> int:
    """datatrove's own way, with an end of text after each document too."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    file = str(tokenizer / "tokenizer.json")
    steps: list[Any] = [
        JsonlReader(str(data)),
        DocumentTokenizer(str(out / "ids"), tokenizer_name_or_path=file, eos_token="<|endoftext|>", shuffle_documents=False),
    ]
    LocalPipelineExecutor(steps, tasks=cores(), workers=cores(), logging_dir=str(out / "logs")).run()
    return sum(int(path.read_text().splitlines()[1]) for path in (out / "ids").glob("*.metadata"))


def copy_one(task: tuple[Path, Path, int]) -> None:
    """Parses the lines of a file and writes a number of bytes, forced to the disk."""
    import orjson

    data, out, size = task
    with data.open("rb") as lines:
        for line in lines:
            orjson.loads(line)
    block = os.urandom(1 << 20)
    with out.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        os.fsync(file.fileno())


def read_and_write(data: Path, tokens: int, out: Path) -> int:
    """Nothing but reading and writing; gives `tokens` back."""
    out.mkdir()
    paths = sorted(data.iterdir())
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        pool.map(copy_one, [(path, out / path.name, 4 * tokens // len(paths)) for path in paths])
    return tokens


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Tokens a second of both kinds of text, from files to files."""
    outcome = Outcome("prepare", "tokens/s", _DATATROVE, settings={"megabytes": config.megabytes, "workers": cores()})
    if find_spec("datatrove") is None:
        raise UsageError("suite=prepare compares with datatrove, which is not installed; pip install 'moss-train[prepare]'")
    sources = {"code": code(config.megabytes * 10**6)}
    if config.data is None:
        outcome.not_run["Chinese text"] = "it is taken from dialogues: give data=FILE"
    else:
        sources["zh"] = chinese(Path(config.data), config.megabytes * 10**6)
    logging.disable(logging.INFO)
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            texts = [*code(12 * 10**6), *(chinese(Path(config.data), 12 * 10**6) if config.data else ())]
            MossTokenizer.train(texts, 32000).save(work / "tokenizer")
            for name, texts_of in sources.items():
                write_jsonl(texts_of, work / name)
                _measure(name, work, config.rounds, outcome)
    finally:
        logging.disable(logging.NOTSET)
    return outcome


def _measure(name: str, work: Path, rounds: int, outcome: Outcome) -> None:
    """All sides in turn, each below a folder that is removed before the next."""
    data, out, tokens = work / name, work / "out", {}

    def timed(side: str, do: Callable[[], int]) -> Callable[[], None]:
        def write() -> None:
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            tokens[side] = do()

        return write

    sides = {
        _DATATROVE: timed(_DATATROVE, lambda: datatrove(data, work / "tokenizer", out)),
        _OURS: timed(_OURS, lambda: ours(data, work / "tokenizer", out)),
        _COPY: timed(_COPY, lambda: read_and_write(data, tokens[_OURS], out)),
    }
    found = in_turns(sides, rounds)
    for side in sides:
        ratio = None if side == _DATATROVE else found.ratio(side)
        outcome.rows.append(Row(name, side, tokens[side] / found.median(side), ratio, ours=side == _OURS))
    outcome.figures[f"{name}: ours over datatrove"] = found.ratio(_OURS)["median"]
    outcome.figures[f"{name}: share of reading and writing"] = 1 / found.ratio(_COPY, over=_OURS)["median"]
