"""New tokens for Chinese, learned from real dialogues: shorter Chinese, English and code as they were, and what the model makes of it.

    python -m tests.acceptance.test_a_vocabulary_for_chinese_on_real_text --data ../shared/data --steps 500

prints the figures of docs/vocabulary.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts.config import ExtendVocabConfig, Rows
from moss_train.artifacts.extend_vocab import main
from tests.campaigns import record
from tests.codegen_base import write_model, write_vocabulary
from tests.real_texts import read, write_texts

BASE_MERGES, NEW_TOKENS = 8000, 4096


def extend(data: Path, folder: Path, steps: int = 0) -> dict[str, Any]:
    """A base vocabulary of English and code, extended for Chinese; with steps, a model trained on all three as well. The report."""
    texts = write_texts(data, folder / "texts")
    learning = {name: read(parts["train"]) for name, parts in texts.items()}
    used = write_vocabulary(folder / "base", learning["en"] + learning["code"][::4], BASE_MERGES)
    if steps:
        mixed = learning["zh"] + learning["en"] + learning["code"][::5]
        write_model(folder / "base", used, hidden_size=128, layers=4, texts=mixed, steps=steps)
    main(
        ExtendVocabConfig(
            model=str(folder / "base"),
            out=str(folder / "extended"),
            text=str(texts["zh"]["train"]),
            new_tokens=NEW_TOKENS,
            heldout={name: str(parts["dev"]) for name, parts in texts.items()},
            heldout_bytes=100_000,
            compare=[Rows.random, Rows.weighted] if steps else [],
        )
    )
    report: dict[str, Any] = json.loads((folder / "extended" / "extension.json").read_text(encoding="utf-8"))["heldout"]
    return report


def test_chinese_gets_shorter_and_the_rest_stays(real_data: Path, tmp_path: Path) -> None:
    report = extend(real_data, tmp_path)
    assert report["zh"]["tokens_before"] >= 1.5 * report["zh"]["tokens_after"]
    for name in ("en", "code"):
        assert report[name]["changed"] <= 0.001 * report[name]["documents"]
        assert report[name]["changed_elsewhere"] == 0
    assert min(found["documents"] for found in report.values()) > 40
    assert not any(found["inexact"] for found in report.values())


@pytest.mark.slow
def test_bits_per_byte_right_after(real_data: Path, tmp_path: Path) -> None:
    """Rows made of the pieces beat random ones on Chinese; `weighted` is the best of all, and leaves English and code as they were."""
    report = extend(real_data, tmp_path, steps=500)
    record("extension", report)
    bits = {name: found["bits_per_byte"] for name, found in report.items()}
    assert bits["zh"]["weighted"] < bits["zh"]["mean_of_pieces"] < bits["zh"]["random"] < bits["zh"]["before"]
    for name in ("en", "code"):
        assert bits[name]["weighted"] < 1.01 * bits[name]["before"]
        assert bits[name]["weighted"] < min(bits[name]["mean_of_pieces"], bits[name]["random"])


# Reads Chinese sentences of real dialogues again and again in a random order, half of them in runs of 10,000 characters.
_LEARN = """
import random, regex, sys
from pathlib import Path
from moss_train.data.extend import text_tokens
from moss_train.data.merges import learn_merges
from moss_train.data.pieces import PieceCounter
from moss_train.data.tokenizer import MossTokenizer
from tests.real_texts import read
folder, amount, memory, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw, left = random.Random(1), amount
runs = [run for text in read(Path(folder, "texts/zh_train.jsonl")) for run in regex.findall(r"\\p{Han}{2,}", text)]
tokenizer, counter = MossTokenizer.load(folder + "/base"), PieceCounter(memory)
while left > 0:
    text = "".join(draw.choices(runs, k=3000))[:10_000] if draw.random() < 0.5 else "，".join(draw.choices(runs, k=1500))
    counter.add(text)
    left -= len(text.encode())
seen = counter.seen
merges = learn_merges(counter.symbols(tokenizer), text_tokens(tokenizer), tokens)
# Not getrusage: its maximum begins with what the process had that started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(merges), seen.share, seen.cut, int(peak.split()[1]) * 1024)
"""


def learn_under_a_bound(data: Path, folder: Path, amount: int, memory: int, new_tokens: int) -> dict[str, float]:
    """Learns in a process of its own and says what that took at its peak."""
    texts = write_texts(data, folder / "texts")
    write_vocabulary(folder / "base", read(texts["en"]["train"]), 2000)
    command = [sys.executable, "-c", _LEARN, str(folder), str(amount), str(memory), str(new_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5000)
    assert done.returncode == 0, done.stderr
    merges, share, cut, peak = done.stdout.split()
    return {"bytes": amount, "merges": int(merges), "share": float(share), "cut_runs": int(cut), "peak": int(peak), "bound": memory}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_gigabyte_of_chinese_is_learned_from_within_the_bound(real_data: Path, tmp_path: Path) -> None:
    found = learn_under_a_bound(real_data, tmp_path, 10**9, 2 * 2**30, 8192)
    record("learning_memory", found)
    assert found["peak"] <= found["bound"]
    assert found["merges"] >= 8192
    assert found["cut_runs"] > 1000


def test_text_beyond_the_bound_is_learned_from_within_it(real_data: Path, tmp_path: Path) -> None:
    found = learn_under_a_bound(real_data, tmp_path, 15 * 10**6, 500 * 2**20, 300)
    assert found["peak"] <= found["bound"]
    assert found["share"] < 1
    assert found["merges"] >= 300


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(extend(arguments.data, Path(name), arguments.steps), ensure_ascii=False, indent=1))
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
