"""Memory and speed of real runs, predicted and measured on this machine: `python -m moss_train.benchmark.predict` prints the table.

Short pretraining runs of small models, each in a process of its own. The first calibrates one figure: the share that training reaches of
the rate at which this machine multiplies matrices of that model's size. The others, of other widths, depths, row lengths and batches, are
predicted with it: their arithmetic over the rate of matrices of *their* size, and the optimizer's bytes over the rate of memory. Memory is
predicted from the configuration alone.

A machine's speed drifts, so both rates are measured before and after each run, and their means taken.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.config import ModelConfig, Precision, RunConfig
from moss_train.cores import cores
from moss_train.errors import UsageError
from moss_train.ports import free_port
from moss_train.pretrain.config import PretrainConfig, PretrainTrainConfig

_log = logging.getLogger("moss_train")

_PROBE_SECONDS = 1.0
_MEMORY_BYTES = 2**28
"""Of each tensor of the probe of memory: far more than a cache holds."""


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        layers, width, heads, vocabulary: Of the model.
        seq_len, micro_batch, accumulation: Tokens of a row, rows of a rank's forward, forwards of a step.
        zero: Name of the DeepSpeed section. recompute: Whether blocks keep only their input.
    """

    layers: int
    width: int
    heads: int
    vocabulary: int
    seq_len: int
    micro_batch: int
    accumulation: int = 1
    zero: str = "zero2"
    recompute: bool = False


CASES = (
    Case(6, 768, 12, 16384, 512, 1),
    Case(4, 1024, 16, 16384, 256, 2),
    Case(3, 1280, 20, 8192, 1024, 1),
    Case(8, 768, 12, 8192, 512, 1, accumulation=2, recompute=True),
)
"""The first calibrates. Below 60 M parameters, small blocks that the plan does not count are a large part of memory (docs/memory.md)."""


@dataclass(frozen=True)
class Rates:
    """Of this machine, of one rank: FLOP/s of matrix products of a case's size, bytes/s of its memory."""

    flops: float
    memory: float


def probe(case: Case, threads: int, precision: str = "fp32") -> Rates:
    """Measures the rates for about two seconds.

    Args:
        case: Whose sizes are multiplied: [tokens, width] with [width, 4 width], and back.
        threads: Of a rank.
        precision: "fp32" or "bf16".
    """
    import torch

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    tokens, width = case.seq_len * case.micro_batch, case.width
    hidden, up, down = (torch.randn(shape, dtype=dtype) for shape in ((tokens, width), (width, 4 * width), (4 * width, width)))
    once = _seconds_of(lambda: hidden @ up @ down)
    source, target = torch.ones(_MEMORY_BYTES // 4), torch.zeros(_MEMORY_BYTES // 4)
    moved = _seconds_of(lambda: target.add_(source))
    # add_ reads two tensors and writes one.
    return Rates(16 * tokens * width**2 / once, 3 * _MEMORY_BYTES / moved)


def _seconds_of(call: Callable[[], Any]) -> float:
    """Median seconds of a call."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + _PROBE_SECONDS
    while not taken or time.perf_counter() < until:
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def measure(
    cases: Sequence[Case] = CASES,
    ranks: int = 1,
    steps: int = 8,
    precision: str = "fp32",
    folder: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs the cases and holds what was predicted against what was measured.

    Args:
        cases: Two or more; the first calibrates.
        ranks: Processes of each run, on this machine.
        steps: Of each run; the first is not timed.
        precision: "fp32" or "bf16".
        folder: For the runs; by default a temporary one.
        say: Told a line a case.

    Returns:
        `efficiency`, of the calibration, and `cases`: each with `predicted` and `measured` of `memory_gib` and `tokens_per_second`, their
        ratios (`memory_ratio`, `speed_ratio`, predicted over measured), the rates of the machine, and whether it calibrates.

    Raises:
        RuntimeError: A run failed; with the end of what it printed.
    """
    if len(cases) < 2:
        raise ValueError(f"{len(cases)} cases: expected one that calibrates, and at least one that is predicted")
    with tempfile.TemporaryDirectory(prefix="predict-") as temporary:
        place, efficiency, found = folder or Path(temporary), None, []
        for number, case in enumerate(cases):
            row = _run(case, ranks, steps, precision, place / str(number))
            if efficiency is None:
                efficiency = _efficiency(case, ranks, precision, row)
            row["predicted"]["tokens_per_second"] = _tokens_per_second(case, ranks, precision, row["rates"], efficiency)
            row["calibrates"] = number == 0
            for name, key in (("memory", "memory_gib"), ("speed", "tokens_per_second")):
                row[f"{name}_ratio"] = row["predicted"][key] / row["measured"][key]
            found.append(row)
            say(_line(case, row))
    return {"efficiency": efficiency, "ranks": ranks, "steps": steps, "precision": precision, "cores": cores(), "cases": found}


def _line(case: Case, row: dict[str, Any]) -> str:
    predicted, measured = row["predicted"], row["measured"]
    more = (", recompute" if case.recompute else "") + (" (calibrates)" if row["calibrates"] else "")
    return (
        f"{case.layers} x {case.width}, vocabulary {case.vocabulary}, {case.micro_batch} x {case.seq_len} tokens, "
        f"{case.accumulation} forwards, {case.zero}{more}: "
        f"memory {predicted['memory_gib']:.2f} / {measured['memory_gib']:.2f} GiB = {row['memory_ratio']:.2f}, tokens/s "
        f"{predicted['tokens_per_second']:,.0f} / {measured['tokens_per_second']:,.0f} = {row['speed_ratio']:.2f} (predicted / measured)"
    )


def _run(case: Case, ranks: int, steps: int, precision: str, run_dir: Path) -> dict[str, Any]:
    """Trains a case; what it took, and the rates of the machine around it."""
    threads = max(1, cores() // ranks)
    before = probe(case, threads, precision)
    _train(case, ranks, steps, precision, run_dir)
    after = probe(case, threads, precision)
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speeds = [event["perf/tokens_per_second"] for event in events if "perf/tokens_per_second" in event]
    told = next(event for event in events if "plan/measured_peak_gib" in event)
    return {
        **asdict(case),
        "rates": asdict(Rates((before.flops + after.flops) / 2, (before.memory + after.memory) / 2)),
        "rates_before": asdict(before),
        "rates_after": asdict(after),
        "predicted": {"memory_gib": told["plan/predicted_peak_gib"]},
        "measured": {"memory_gib": told["plan/measured_peak_gib"], "tokens_per_second": statistics.median(speeds[1:])},
        # Of the steps that were timed: how noisy the machine was.
        "measured_range": [min(speeds[1:]), max(speeds[1:])],
    }


def _train(case: Case, ranks: int, steps: int, precision: str, run_dir: Path) -> None:
    """One run of the pretraining stage on the bundled texts, in processes of its own."""
    overrides = {
        "model.num_layers": case.layers,
        "model.hidden_size": case.width,
        "model.num_heads": case.heads,
        "model.rotary_dim": 32,
        "model.vocab_size": case.vocabulary,
        "model.recompute": str(case.recompute).lower(),
        "data.seq_len": case.seq_len,
        "data.holdout": 0,
        "tokenizer.train_vocab_size": 2048,
        "train.steps": steps,
        "train.micro_batch_size": case.micro_batch,
        "train.global_batch_size": case.micro_batch * case.accumulation * ranks,
        "train.precision": precision,
        "train.eval_every": 0,
        "train.eval_at_start": "false",
        "train.keep": 0,
        "export.enabled": "false",
        "deepspeed": case.zero,
        "run.dir": run_dir,
    }
    arguments = ["+config=tiny_pretrain", *(f"{key}={value}" for key, value in overrides.items())]
    command = [sys.executable, "-c", "from moss_train.cli import run; run('pretrain')", *arguments]
    port = str(free_port())
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    processes = []
    with (run_dir.parent / f"{run_dir.name}.log").open("w+", encoding="utf-8") as log:
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            # One thread is what launchers set, and means: share the cores (`cores.threads_per_rank`).
            env = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL))
        codes = [process.wait() for process in processes]
        if any(codes):
            log.seek(0)
            raise RuntimeError(f"a run of {case} ended with exit code {next(code for code in codes if code)}:\n{log.read()[-3000:]}")


def _efficiency(case: Case, ranks: int, precision: str, row: dict[str, Any]) -> float:
    """Share of the matrix rate that the arithmetic of a run reached, its update taken off."""
    at_peak = _speed(case, ranks, precision, row["rates"], 1.0)
    step = at_peak.tokens / row["measured"]["tokens_per_second"]
    return float(at_peak.arithmetic / (step - at_peak.update))


def _tokens_per_second(case: Case, ranks: int, precision: str, rates: dict[str, float], efficiency: float) -> float:
    return float(_speed(case, ranks, precision, rates, efficiency).tokens_per_second)


def _speed(case: Case, ranks: int, precision: str, rates: dict[str, float], efficiency: float) -> Any:
    """The predicted step. Ranks on one CPU machine exchange through its memory: its rate stands for their link."""
    from moss_train.train.devices import Links
    from moss_train.train.speed import Machine, predict_speed

    links = Links(nvlink=rates["memory"], nic=rates["memory"], pcie=rates["memory"], node_size=ranks)
    return predict_speed(setup(case, ranks, precision), Machine(rates["flops"], efficiency, rates["memory"], links))


def setup(case: Case, ranks: int, precision: str) -> Any:
    """What the plan is told of a case."""
    from moss_train.train.auto import SECTIONS
    from moss_train.train.forecast import setup_of
    from moss_train.train.start import architecture

    model = ModelConfig(case.layers, case.heads, case.width, 32, vocab_size=case.vocabulary, recompute=case.recompute)
    train = PretrainTrainConfig(
        steps=1,
        global_batch_size=case.micro_batch * case.accumulation * ranks,
        micro_batch_size=case.micro_batch,
        precision=Precision(precision),
    )
    config = PretrainConfig(
        run=RunConfig(dir="."), init_from=None, model=model, train=train, deepspeed={"zero_optimization": SECTIONS[case.zero]}
    )
    return setup_of(config, architecture(config, case.seq_len, print), case.seq_len, ranks, is_cuda=False)


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Memory and tokens a second of the cases: predicted, and measured."""
    if device != "cpu":
        raise UsageError("suite=predict runs on the CPU; on a GPU every run logs its own plan, predicted and measured. Give device=cpu")
    found = measure(precision=config.dtype.value, say=_log.info)
    settings = {name: found[name] for name in ("efficiency", "ranks", "steps", "precision")}
    outcome = Outcome("predict", "tokens/s", "", settings=settings)
    for case, row in zip(CASES, found["cases"], strict=True):
        name = f"{case.layers} x {case.width}, rows of {case.seq_len}" + (", calibrates" if row["calibrates"] else "")
        for side in ("predicted", "measured"):
            peak = int(row[side]["memory_gib"] * 2**30)
            outcome.rows.append(Row(name, side, row[side]["tokens_per_second"], peak=peak, ours=side == "measured"))
        outcome.figures[f"{name}: memory, predicted over measured"] = row["memory_ratio"]
        if not row["calibrates"]:
            outcome.figures[f"{name}: tokens/s, predicted over measured"] = row["speed_ratio"]
    return outcome


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
