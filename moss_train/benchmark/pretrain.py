"""The suite `pretrain`: real runs of `scripts/pretrain.py` at full size, optimizer included, through the launcher.

One run a model of `models`, as NAME, or NAME:LAYERS for one with fewer layers where all of them do not fit. Random weights, the vocabulary
of the suite `loss`, a corpus of this package's source: what the tokens are does not matter to speed. Tokens a second, MFU and the peak of
memory are those that the run itself reports (`perf/...` in its metrics.jsonl), without its first steps.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.launch import ROOT, environment, launcher
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import FailedError, spread

_UNTIMED, _TIMED = 3, 8


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Tokens a second, MFU and peak memory of each model."""
    settings = {"seq_len": config.seq_len, "rows": config.rows, "vocab_size": config.loss_vocab_size, "dtype": str(config.dtype)}
    outcome = Outcome("pretrain", "tokens/s", "", settings={**settings, "deepspeed": config.deepspeed, "overrides": config.overrides})
    with tempfile.TemporaryDirectory() as folder:
        for model in config.models:
            try:
                events = train(model, config, device, Path(folder))
            except FailedError as error:
                outcome.not_run[model] = str(error)
                continue
            rates = spread([event["perf/tokens_per_second"] for event in events])
            peaks = [event["plan/measured_peak_gib"] for event in events if "plan/measured_peak_gib" in event]
            outcome.rows.append(Row(model, "ours", rates["median"], peak=int(max(peaks) * 2**30) if peaks else None, ours=True))
            if shares := [event["perf/mfu"] for event in events if "perf/mfu" in event]:
                outcome.figures[f"{model}: MFU"] = statistics.median(shares)
    return outcome


def train(model: str, config: BenchmarkConfig, device: str, folder: Path) -> list[dict[str, Any]]:
    """Runs one model for a few steps; what it logged of the timed ones.

    Args:
        model: NAME of `configs/model`, or NAME:LAYERS. config: Settings. device: `cpu` or `cuda`. folder: For the corpus and the run.

    Raises:
        FailedError: The run failed; with its last lines.
    """
    name, _, layers = model.partition(":")
    run_dir = folder / model.replace(":", "-")
    command = [*launcher(config.ranks), str(ROOT / "scripts" / "pretrain.py"), "+config=tiny_pretrain", f"model={name}"]
    command += [
        f"model.vocab_size={config.loss_vocab_size}",
        *([f"model.num_layers={layers}"] if layers else []),
        f"run.dir={run_dir}",
        f"data.train={corpus(folder)}",
        "data.holdout=0",
        "data.max_epochs=null",
        f"data.seq_len={config.seq_len}",
        f"train.steps={_UNTIMED + _TIMED}",
        f"train.micro_batch_size={config.rows}",
        f"train.global_batch_size={config.rows * config.ranks}",
        f"train.precision={config.dtype}",
        "train.log_every=1",
        "train.save_every=0",
        "train.keep=0",
        "train.eval_every=0",
        "train.eval_at_start=false",
        "export.enabled=false",
        f"deepspeed={config.deepspeed}",
        *config.overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(device), cwd=ROOT)
    if done.returncode:
        raise FailedError(f"pretrain.py ended with {done.returncode}: {_last_lines(done.stderr or done.stdout)}")
    events = map(json.loads, (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [event for event in events if "perf/tokens_per_second" in event and event["step"] > _UNTIMED]


def corpus(folder: Path) -> Path:
    """A corpus of token shards of this package's source, made once."""
    out = folder / "corpus"
    if not out.is_dir():
        source = f"sources.code={{path: {ROOT / 'moss_train'}, language: code, licence: Apache-2.0, extensions: [py]}}"
        train_tokenizer(folder / "tokenizer")
        command = [sys.executable, str(ROOT / "scripts" / "prepare.py"), f"tokenizer={folder / 'tokenizer'}", f"out={out}", source]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise FailedError(f"prepare.py ended with {done.returncode}: {_last_lines(done.stderr or done.stdout)}")
    return out


def train_tokenizer(out: Path) -> None:
    """One of 2,048 tokens, trained on the same source."""
    from moss_train.data.tokenizer import MossTokenizer

    MossTokenizer.train((path.read_text(encoding="utf-8") for path in sorted((ROOT / "moss_train").rglob("*.py"))), 2048).save(out)


def _last_lines(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return " / ".join(lines[-4:])
