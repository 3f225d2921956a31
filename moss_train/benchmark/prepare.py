"""Preparing a corpus beside datatrove's own tokenizer pipeline, from JSONL to ids on disk, the sides taking turns in one process.

    python benchmarks/prepare_speed.py DIALOGUES.jsonl [--mb 100] [--rounds 3] [--tokenizer DIR] [--out speed.json]

Two corpora: code, which is Python's standard library with its blocks shuffled over files of the sizes it has, and Chinese, which is the
Chinese text of MOSS dialogues with its sentences shuffled likewise. Shuffling makes as much text as is asked for without repeating any in
its place. Without a tokenizer, one is trained on some of both.

* *ours*: `prepare`, workers = cores, everything included: starting processes, comparing samples, hashing, waiting for the disk.
* *datatrove*: `JsonlReader` and `DocumentTokenizer` with the same tokenizer.json and workers.
* *reading and writing*: the lines parsed and as many bytes written, by as many processes, with nothing in between.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import random
import re
import shutil
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moss_train.cores import cores
from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.tokenizer import MossTokenizer


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


def read_and_write(data: Path, tokens: int, out: Path) -> None:
    """Nothing but reading and writing."""
    out.mkdir()
    paths = sorted(data.iterdir())
    with multiprocessing.get_context("fork").Pool(cores()) as pool:
        pool.map(copy_one, [(path, out / path.name, 4 * tokens // len(paths)) for path in paths])


def timed(run: Callable[..., Any], data: Path, what: Any, out: Path) -> tuple[float, Any]:
    """Seconds and result of a run that writes below the folder `out`, which is then removed."""
    os.sync()
    started = time.perf_counter()
    result = run(data, what, out)
    seconds = time.perf_counter() - started
    shutil.rmtree(out, ignore_errors=True)
    return seconds, result


def measure(name: str, data: Path, tokenizer: Path, rounds: int, work: Path) -> dict[str, Any]:
    """All sides in turn, `rounds` times."""
    size = sum(path.stat().st_size for path in data.iterdir())
    rows = []
    out = work / "out"
    for number in range(rounds):
        ours_seconds, tokens = timed(ours, data, tokenizer, out)
        theirs_seconds, theirs = timed(datatrove, data, tokenizer, out)
        copy_seconds, _ = timed(read_and_write, data, tokens, out)
        row = {
            "ours_tokens_per_second": tokens / ours_seconds,
            "datatrove_tokens_per_second": theirs / theirs_seconds,
            "ratio": theirs_seconds / ours_seconds,
            "share_of_reading_and_writing": copy_seconds / ours_seconds,
            "ours_seconds": ours_seconds,
            "datatrove_seconds": theirs_seconds,
            "read_and_write_seconds": copy_seconds,
            "load": os.getloadavg()[0],
        }
        rows.append(row)
        print(
            f"{name} round {number + 1}: {size / 1e6:.0f} MB, {tokens:,} ids; ours {row['ours_tokens_per_second'] / 1e6:.2f} M/s, "
            f"datatrove {row['datatrove_tokens_per_second'] / 1e6:.2f} M/s ({theirs:,} ids), ratio {row['ratio']:.1f}; reading and "
            f"writing alone take {row['share_of_reading_and_writing']:.0%} of our time",
            flush=True,
        )
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(f"{name}: median ratio {median['ratio']:.1f} (from {min(r['ratio'] for r in rows):.1f} to {max(r['ratio'] for r in rows):.1f})")
    return {"bytes": size, "tokens": tokens, "median": median, "rounds": rows}


def main() -> None:
    """Makes the corpora and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dialogues", type=Path, help="MOSS dialogues, for the Chinese text")
    parser.add_argument("--mb", type=int, default=100, help="of each corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="directory; by default one of 32,000 ids is trained")
    parser.add_argument("--only", choices=["code", "zh"])
    parser.add_argument("--out", type=Path, help="JSON of all numbers")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sources = {"code": code(arguments.mb * 10**6), "zh": chinese(arguments.dialogues, arguments.mb * 10**6)}
        tokenizer = arguments.tokenizer
        if tokenizer is None:
            tokenizer = work / "tokenizer"
            texts = [*code(12 * 10**6), *chinese(arguments.dialogues, 12 * 10**6)]
            MossTokenizer.train(texts, 32000).save(tokenizer)
        results: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": cores(), "mb": arguments.mb}
        for name, texts_of in sources.items():
            if arguments.only in (None, name):
                write_jsonl(texts_of, work / name)
                results[name] = measure(name, work / name, tokenizer, arguments.rounds, work)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
