"""A million dialogues through a real two-rank run: python -m tests.acceptance.full_size [DIALOGUES] [FOLDER]

The real sample is repeated with new ids and changed texts. Timed: encoding alone (the same tokenizer, as many processes, nothing else),
the first start, which renders everything, and the second, to its first step, beside a start on ten dialogues. Memory is the largest
resident size of a rank, beside that of the run on ten dialogues. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from moss_train.cores import cores
from moss_train.data.tokenizer import MossTokenizer
from moss_train.ports import free_port
from tests.launch import BIN, REPOSITORY, environment

REAL_DATA = Path(os.environ.get("MOSS_TRAIN_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
SAMPLE = REAL_DATA / "moss-003-sft-sample" / "train.jsonl"
WORDS = ("river", "山水", "lambda", "carefully", "为什么", "neural", "计算", "window", "因此", "seventeen", "城市", "gradient")
VOCABULARY = 32768


def changed(text: str, chance: random.Random) -> str:
    """A field with a word put in somewhere between its colon and its control token."""
    opening, control = text.index(":") + 1, text.rindex("<")
    if text[opening:control].strip() == "None":
        return text
    place = chance.randint(opening, control)
    return f"{text[:place]} {chance.choice(WORDS)}{chance.randint(0, 99999)} {text[place:]}"


def write_share(target: Path, first: int, last: int) -> None:
    """The dialogues of these numbers, as JSONL."""
    records = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as out:
        for number in range(first, last):
            chance = random.Random(number)
            record = dict(records[number % len(records)], conversation_id=number)
            record["chat"] = {name: {key: changed(text, chance) for key, text in turn.items()} for name, turn in record["chat"].items()}
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


def make_data(folder: Path, count: int) -> Path:
    """One file of `count` dialogues."""
    shares = 8 * cores()
    names = [folder / f"share-{index}.jsonl" for index in range(shares)]
    bounds = [count * index // shares for index in range(shares + 1)]
    with ProcessPoolExecutor(cores()) as pool:
        list(pool.map(write_share, names, bounds, bounds[1:]))
    data = folder / "dialogues.jsonl"
    with data.open("wb") as out:
        for name in names:
            with name.open("rb") as share:
                shutil.copyfileobj(share, out, 2**24)
            name.unlink()
    return data


def contents(data: Path, start: int, count: int) -> list[list[str]]:
    """The contents of some dialogues, each dialogue's together."""
    with data.open(encoding="utf-8") as lines:
        dialogues = [json.loads(line) for line in islice(lines, start, start + count)]
    return [[text[text.index(":") + 1 : text.rindex("<")] for turn in d["chat"].values() for text in turn.values()] for d in dialogues]


def encode_share(tokenizer: Path, data: Path, start: int, count: int) -> tuple[int, float]:
    """Tokens and seconds of encoding every content of some dialogues, with the `tokenizers` library and nothing else."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = MossTokenizer.load(tokenizer)
    texts = contents(data, start, count)
    started, tokens = time.monotonic(), 0
    for some in texts:
        tokens += sum(map(len, backend.encode_batch(some)))
    return tokens, time.monotonic() - started


def encoding_alone(tokenizer: Path, data: Path, count: int) -> dict[str, float]:
    """Seconds that all dialogues would take, from some thousands of them."""
    share = min(4000, count // cores())
    with ProcessPoolExecutor(cores()) as pool:
        encoded = list(pool.map(encode_share, *zip(*[(tokenizer, data, index * share, share) for index in range(cores())])))
    slowest = max(seconds for _, seconds in encoded)
    return {
        "seconds": round(slowest * count / (share * cores())),
        "tokens_per_second": round(sum(tokens for tokens, _ in encoded) / slowest),
    }


def start(data: Path, folder: Path, cache: Path, tokenizer: Path, name: str) -> dict[str, Any]:
    """A two-rank run of two steps: seconds to the first one, the largest memory of a rank, and what the log says of the data.

    It is ended there: going on to evaluate a thousandth of the full size would take as long as the rest.
    """
    run_dir = folder / name
    settings = ["+config=tiny_sft", f"data.train={data}", f"data.cache={cache}", f"tokenizer.path={tokenizer}", f"run.dir={run_dir}"]
    more = ["data.holdout=0.001" if name != "ten" else "data.holdout=0.1", "train.steps=2", "train.eval_at_start=false", "train.keep=0"]
    more += ["train.eval_every=0", "export.enabled=false", "train.hang_seconds=7200", "tracking.wandb=disabled"]
    command = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port()), str(REPOSITORY / "scripts" / "sft.py")]
    shutil.rmtree(run_dir, ignore_errors=True)
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *settings, *more], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )
    largest, first, steps = 0, 0.0, 0
    while process.poll() is None and steps < 2:
        if (run_dir / "metrics.jsonl").exists():
            steps = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").count('train/loss"')
            first = first or (time.monotonic() - started if steps else 0.0)
        largest = max([largest, *ranks_memory(str(run_dir))])
        time.sleep(0.05)
    assert steps >= 2, (run_dir / "train.log").read_text(encoding="utf-8")[-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while ranks_memory(str(run_dir)):
        time.sleep(0.05)
    log = [line for line in (run_dir / "train.log").read_text(encoding="utf-8").splitlines() if " rows of " in line or "turns" in line]
    return {"seconds_to_first_step": round(first, 2), "largest_mib": largest >> 10, "log": log}


def ranks_memory(run_dir: str) -> list[int]:
    """The largest resident size so far of each rank of a run, in KiB."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if f"run.dir={run_dir}" in command and "--num_accelerators" not in command and any("--local_rank" in part for part in command):
                status = (folder / "status").read_text()
                found.append(int(status.split("VmHWM:")[1].split()[0]))
        except (OSError, IndexError):
            continue
    return found


def measure(count: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    tokenizer, cache = folder / "tokenizer", folder / "cache"
    MossTokenizer.train((text for some in contents(SAMPLE, 0, 10**9) for text in some), VOCABULARY).save(tokenizer)
    began = time.monotonic()
    data = make_data(folder, count)
    figures: dict[str, Any] = {
        "dialogues": count,
        "megabytes": data.stat().st_size // 10**6,
        "seconds_to_make": round(time.monotonic() - began),
    }
    figures["encoding_alone_before"] = encoding_alone(tokenizer, data, count)
    ten = folder / "ten.jsonl"
    ten.write_text("".join(SAMPLE.read_text(encoding="utf-8").splitlines(keepends=True)[:10]), encoding="utf-8")
    start(ten, folder, cache, tokenizer, "ten")
    figures["ten"] = start(ten, folder, cache, tokenizer, "ten")
    figures["first"] = start(data, folder, cache, tokenizer, "first")
    figures["encoding_alone_after"] = encoding_alone(tokenizer, data, count)
    figures["second"] = [start(data, folder, cache, tokenizer, "second") for _ in range(3)]
    figures["ten_again"] = [start(ten, folder, cache, tokenizer, "ten") for _ in range(2)]
    figures["cache_megabytes"] = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) // 10**6
    return figures


def main() -> None:
    """Prints the figures as JSON."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_100_000
    if len(sys.argv) > 2:
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        figures = measure(count, Path(name))
    print(json.dumps(figures, indent=1, ensure_ascii=False))
    ten = min(run["seconds_to_first_step"] for run in [figures["ten"], *figures["ten_again"]])
    second = min(run["seconds_to_first_step"] for run in figures["second"])
    assert second - ten < 5, f"the second start takes {second} s, a start on ten dialogues {ten} s"
    runs = {"first": figures["first"], "second": figures["second"][0]}
    grown = {name: run["largest_mib"] - figures["ten"]["largest_mib"] for name, run in runs.items()}
    assert max(grown.values()) < 300, f"MiB more than on ten dialogues: {grown}"


if __name__ == "__main__":
    main()
