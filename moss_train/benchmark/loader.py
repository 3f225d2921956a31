"""The suite `loader`: how long a step waits for its batch, beside the step itself.

The batch of a step is made where it is used, between two steps: rows are looked up in memory-mapped ids, and collated. So the tax is its
time over the step's, of a model of the benchmark's shape. A larger model or a GPU's longer step takes less of it; a GPU's faster one,
more: tokens a second of the loader alone say how fast a rank may become before it waits.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from moss_train.benchmark import train
from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import in_turns
from moss_train.data.corpus import open_corpus
from moss_train.data.dialogue import read_dialogues
from moss_train.data.loader import RowDataset, StepPlan, step_batches
from moss_train.data.mixture import Mixture
from moss_train.data.prepare.config import PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.render import render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.data.windows import SourceWindows, token_bytes

_BATCHES = 20
"""Batches in one timing."""


def dialogue_rows(config: BenchmarkConfig) -> tuple[RowDataset, MossTokenizer]:
    """Dialogues as packed rows, with a tokenizer trained on them."""
    data = config.data or str(resources.files("moss_train.data.bundled") / "dialogues_train.jsonl")
    dialogues, _ = read_dialogues(data)
    tokenizer = MossTokenizer.train((turn.moss or "" for one in dialogues for turn in one.turns), 2048)
    rendered, _ = render_all(dialogues, tokenizer, "generated", config.seq_len)
    return RowDataset(rendered, config.seq_len, 0, pad_id=tokenizer.endoftext), tokenizer


def corpus_rows(config: BenchmarkConfig, tokenizer: MossTokenizer, folder: Path) -> Mixture:
    """Windows of a corpus of token shards, made of this package's own source."""
    tokenizer.save(folder / "tokenizer")
    source = SourceConfig(str(Path(__file__).parents[1]), "code", licence="Apache-2.0", extensions=["py"])
    prepare(PrepareConfig(str(folder / "tokenizer"), str(folder / "corpus"), {"code": source}))
    corpus = open_corpus(folder / "corpus")
    windows = SourceWindows(corpus, corpus.source("code"), config.seq_len, 0, token_bytes(tokenizer))
    return Mixture([windows], [1.0], ["code"])


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Tax and tokens a second of both kinds of data."""
    outcome = Outcome("loader", "tokens/s", "", settings={"rows": config.rows, "seq_len": config.seq_len, **vars(config.shape)})
    dtype = "bfloat16" if config.dtype == "bf16" else "float32"
    side = train.make_side(True, vars(config.shape), config.rows, config.seq_len, dtype, device)
    plan, tokens = StepPlan(config.rows, config.rows, 1), config.rows * config.seq_len
    with tempfile.TemporaryDirectory() as folder:
        rows, tokenizer = dialogue_rows(config)
        for name, samples in (("packed dialogues", rows), ("token shards", corpus_rows(config, tokenizer, Path(folder)))):
            first = itertools.count(0, config.rows)

            def batches(samples: Any = samples, first: Iterator[int] = first) -> None:
                for _ in range(_BATCHES):
                    step_batches(samples, next(first), plan, 0)

            timed = in_turns({"step": side.step, "batches": batches}, config.rounds, device)
            seconds = timed.median("batches") / _BATCHES
            outcome.rows += [
                Row(name, "the loader alone", tokens / seconds, ours=True),
                Row(name, "the step of the model", tokens / timed.median("step"), ours=True),
            ]
            outcome.figures[f"tax, {name}"] = seconds / timed.median("step")
    return outcome
