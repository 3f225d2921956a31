"""A trillion tokens in a thousand shards: what is kept of them in memory does not grow with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.corpora import write_tokenizer
from tests.launch import run, succeeded
from tests.sparse_corpus import write_sparse_corpus

# In a process of its own, so that nothing else counts.
PROGRAM = """
import json, sys, time
from moss_train.data.tokenizer import MossTokenizer
from moss_train.pretrain import main
from moss_train.pretrain.config import CorpusDataConfig, PretrainConfig
from moss_train.pretrain.data import open_windows
from moss_train.data.loader import StepPlan, step_batches

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

folder = sys.argv[1]
tokenizer = MossTokenizer.load(folder + "/tokenizer")
data = CorpusDataConfig(train=folder, weights={"zh": 0.7, "en": 0.1, "code": 0.2}, seq_len=2048, holdout=0.0001)
config = PretrainConfig(init_from=None, data=data)
before, started = resident(), time.perf_counter()
windows = open_windows(config, {"train": [[folder, folder]], "valid": [], "tokenizer": ""}, tokenizer, lambda text: None)
plan = StepPlan(1024, 4, 8)
first = step_batches(windows.mixture, 0, plan, 5, by_source=True)
seconds = time.perf_counter() - started
far = windows.mixture.sample(10**8 + 12345)
for step in range(1, 40):
    step_batches(windows.mixture, 1024 * step, plan, 5, by_source=True)
print(json.dumps({"grown": resident() - before, "seconds": seconds, "rows": len(windows.mixture), "tokens": windows.mixture.tokens,
                  "first": first[0].tokens, "far": len(far.input_ids)}))
"""


def test_a_trillion_tokens_take_less_than_200_megabytes(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    shards = {"zh": (600, 10**9), "en": (200, 10**9), "code": (200, 10**9)}
    folder = write_sparse_corpus(tmp_path / "corpus", tokenizer, shards)
    measured = json.loads(succeeded(run([sys.executable, "-c", PROGRAM, str(folder)])).stdout.splitlines()[-1])
    assert measured["tokens"] > 0.999e12
    assert measured["rows"] > 4.8e8
    assert measured["first"] == 4 * 2048
    assert measured["far"] == 2048
    assert measured["grown"] < 200e6
    print(measured)
