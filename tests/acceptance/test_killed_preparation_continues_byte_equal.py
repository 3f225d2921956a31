"""A preparation that is killed, at any time and as often as one likes, comes out byte for byte as one that is left alone.

Kills come at seeded moments of a real process: after a seeded number of files have appeared in the work folder, or after a seeded time; the
process alone is killed, or its workers too. Deduplication, exact and by MinHash, is part of it, so kills land in every stage.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from moss_train.data.corpus import open_corpus
from moss_train.data.corpus_check import check_corpus
from moss_train.data.prepare.plan import WORK
from tests.campaigns import record
from tests.corpora import digests, documents, write_jsonl, write_tokenizer
from tests.launch import REPOSITORY, environment, python, succeeded

SEED = 7


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and two sources with repeats within and between them."""
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    chinese = documents("zh", 120)
    write_jsonl(folder / "zh.jsonl", [*chinese, *chinese[::9]])
    (folder / "code").mkdir()
    for number, text in enumerate(documents("code", 40)):
        (folder / "code" / f"{number:03d}.py").write_text(text)
    return folder


def arguments(inputs: Path, out: Path, workers: int, **settings: str) -> list[str]:
    return [
        f"tokenizer={inputs / 'tokenizer'}",
        f"out={out}",
        f"sources.zh={{path: {inputs / 'zh.jsonl'}, language: zh}}",
        f"sources.code={{path: {inputs / 'code'}, language: code}}",
        "shard_mb=0.02",
        "exact_dedup=true",
        "minhash.enabled=true",
        "minhash.buckets=4",
        f"workers={workers}",
        *(f"{key}={value}" for key, value in settings.items()),
    ]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float, int]:
    """What comes out when nothing happens, how long it takes, and how many files appear in the work folder."""
    out = tmp_path_factory.mktemp("undisturbed") / "corpus"
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "scripts/prepare.py"), *arguments(inputs, out, 2)], env=environment(), stdout=subprocess.DEVNULL
    )
    started, most = time.monotonic(), 0
    while process.poll() is None:
        most = max(most, work_files(out))
        time.sleep(0.005)
    assert process.returncode == 0
    return digests(out), time.monotonic() - started, most


def work_files(out: Path) -> int:
    """Files in the work folder, and shards."""
    return sum(len(names) for _, _, names in os.walk(out))


def stage_of(out: Path) -> str:
    """The stage in which a preparation has been killed."""
    if (out / "corpus.json").exists():
        return "finish"
    folder = out / WORK / "stages"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    order = ["shards", "minhash-clusters", "minhash-buckets", "minhash-signatures", "exact-repeats", "exact-signatures"]
    return next((name for name in order if name in names), "start")


def disturb(command: list[str], out: Path, generator: random.Random, seconds: float, most: int) -> bool:
    """Starts a preparation and kills it at a random moment; False: it had ended by itself."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    files = generator.randint(1, most) if generator.random() < 0.7 else None
    deadline = time.monotonic() + (generator.uniform(0.2, 1.0) * seconds if files is None else 3 * seconds + 30)
    while process.poll() is None and time.monotonic() < deadline:
        if files is not None and work_files(out) >= files:
            break
        time.sleep(0.002)
    alone = generator.random() < 0.5
    ended = process.poll() is not None
    if not ended:
        os.kill(process.pid, signal.SIGKILL) if alone else os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return not ended


def campaign(inputs: Path, out_of: Path, undisturbed: tuple[dict[str, str], float, int], kills: int, per_corpus: int) -> dict[str, object]:
    """Kills preparations until there were `kills`, each corpus at most `per_corpus` times, and compares every one."""
    expected, seconds, most = undisturbed
    generator = random.Random(SEED)
    landed: Counter[str] = Counter()
    corpora = 0
    while sum(landed.values()) < kills:
        out = out_of / f"corpus-{corpora}"
        command = [sys.executable, str(REPOSITORY / "scripts/prepare.py"), *arguments(inputs, out, generator.choice([1, 2]))]
        for _ in range(min(per_corpus, kills - sum(landed.values()))):
            if not disturb(command, out, generator, seconds, most):
                break
            landed[stage_of(out)] += 1
        succeeded(python("scripts/prepare.py", *arguments(inputs, out, generator.choice([1, 2]))))
        assert digests(out) == expected, f"corpus {corpora} of seed {SEED} differs"
        corpora += 1
    return {"seed": SEED, "kills": sum(landed.values()), "corpora": corpora, "stages": dict(landed), "differences": 0}


def test_killed_preparations_come_out_the_same(inputs: Path, tmp_path: Path, undisturbed: tuple[dict[str, str], float, int]) -> None:
    summary = campaign(inputs, tmp_path, undisturbed, kills=3, per_corpus=3)
    record("prepare_kills", summary)


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_long_campaign_of_kills(inputs: Path, tmp_path: Path, undisturbed: tuple[dict[str, str], float, int]) -> None:
    summary = campaign(inputs, tmp_path, undisturbed, kills=100, per_corpus=6)
    record("prepare_kills_long", summary)
    assert len(summary["stages"]) >= 5  # type: ignore[arg-type]


def test_one_worker_and_two_write_the_same(inputs: Path, tmp_path: Path, undisturbed: tuple[dict[str, str], float, int]) -> None:
    out = tmp_path / "corpus"
    succeeded(python("scripts/prepare.py", *arguments(inputs, out, 1)))
    assert digests(out) == undisturbed[0]
    corpus = open_corpus(out)
    assert list(check_corpus(corpus)) == []
    dropped = corpus.sources["zh"].counts["dropped"]
    assert dropped["repeated"]["documents"] == 14


def test_inputs_that_change_before_the_restart_are_noticed(inputs: Path, tmp_path: Path) -> None:
    mine = tmp_path / "inputs"
    mine.mkdir()
    (mine / "tokenizer").symlink_to(inputs / "tokenizer")
    (mine / "code").symlink_to(inputs / "code")
    (mine / "zh.jsonl").write_bytes((inputs / "zh.jsonl").read_bytes())
    out = tmp_path / "corpus"
    command = [sys.executable, str(REPOSITORY / "scripts/prepare.py"), *arguments(mine, out, 1)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / WORK / "stages").is_dir():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    changed = bytearray((mine / "zh.jsonl").read_bytes())
    changed[20:21] = b"9"
    (mine / "zh.jsonl").write_bytes(changed)
    refused = python("scripts/prepare.py", *arguments(mine, out, 1))
    assert refused.returncode == 3
    assert "zh.jsonl: has changed since the preparation began" in refused.stderr
    other = python("scripts/prepare.py", *arguments(mine, out, 1, min_chars="9"))
    assert other.returncode == 2
    assert "min_chars: was 1, now 9" in other.stderr
