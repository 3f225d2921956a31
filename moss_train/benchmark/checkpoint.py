"""How fast checkpoints are written, held against `dd` on the same disk; how long a step waits for an asynchronous one, against a copy."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moss_train.artifacts.lineage import Lineage
from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import apart, spread
from moss_train.config import OptimConfig, Precision
from moss_train.train import checkpoint, manifest, shards
from moss_train.train import engine as distributed
from moss_train.train.background import Background
from moss_train.train.interrupt import StopRequest
from moss_train.train.run import Run
from moss_train.train.shards import MOMENTS

_LAYERS, _VOCABULARY = 12, 1024
_PIECE = 16 * 2**20
"""Bytes that `dd` writes at once; as many as a save."""


def measure(folder: Path, parameters: int, rounds: int) -> dict[str, Any]:
    """Saves a model's state as a run of one rank does, with the disk's and the memory's own speed measured in between.

    A round is: `dd`, a save that is waited for, a copy in memory, a save beside training. Ratios are taken within a round, since other work
    on the machine changes from one to the next.

    Args:
        folder: On the disk to measure; it must have room for two checkpoints. What is written there is removed.
        parameters: About how many the model has; each takes 12 bytes of a checkpoint.
        rounds: Of which medians are given.

    Returns:
        Sizes, medians and, by round, the raw seconds; as JSON.

    Raises:
        DiskFullError: There is no room. CheckpointError: The folder cannot be written. RuntimeError: `dd` failed.
    """
    distributed.start()
    folder.mkdir(parents=True, exist_ok=True)
    run = Run("benchmark", folder, {}, StopRequest())
    engine = _engine(parameters)
    try:
        background = Background(run, engine)
        found = [_round(run, engine, background, number) for number in range(1, rounds + 1)]
    finally:
        distributed.release(engine)
    size = found[0]["bytes"]
    raw = {name: [one[name] for one in found] for name in found[0] if name.endswith("_seconds")}
    median = {name: statistics.median(values) for name, values in raw.items()}

    def ratio(above: str, below: str) -> float:
        return statistics.median(one[above] / one[below] for one in found)

    return {
        "parameters": found[0]["parameters"],
        "bytes": size,
        "threads": torch.get_num_threads(),
        "device": distributed.device().type,
        "rounds": rounds,
        "dd_mb_per_second": size / median["dd_seconds"] / 1e6,
        "save_mb_per_second": size / median["save_seconds"] / 1e6,
        "save_to_dd": ratio("dd_seconds", "save_seconds"),
        "copy_seconds": median["copy_seconds"],
        "pause_seconds": median["pause_seconds"],
        "pause_to_copy": ratio("pause_seconds", "copy_seconds"),
        "background_mb_per_second": size / median["background_seconds"] / 1e6,
        "raw_seconds": raw,
    }


def measure_in(folder: str, parameters: int, rounds: int) -> dict[str, Any]:
    """`measure` from plain values."""
    return measure(Path(folder), parameters, rounds)


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Megabytes a second of a save and of `dd`, and the pause of a save beside training, in a process of its own."""
    folder = Path(config.out).absolute() / "checkpoint-files"
    given = {"folder": str(folder), "parameters": config.parameters, "rounds": config.rounds}
    try:
        found = apart("moss_train.benchmark.checkpoint:measure_in", given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    size, seconds = found["bytes"], found["raw_seconds"]
    outcome = Outcome("checkpoint", "MB/s", "dd", settings={"parameters": found["parameters"], "bytes": size, "ranks": 1})
    for side, name, over in (("dd", "dd", None), ("save", "save", "dd"), ("copy", "copy", None), ("pause", "pause", "copy")):
        ratios = [below / own for own, below in zip(seconds[f"{name}_seconds"], seconds[f"{over}_seconds"])] if over else None
        case = "to the disk" if side in ("dd", "save") else "in memory"
        told = {"dd": "dd", "save": "a save that is waited for", "copy": "a plain copy", "pause": "the pause of a save beside training"}
        rate = size / statistics.median(seconds[f"{name}_seconds"]) / 1e6
        outcome.rows.append(Row(case, told[side], rate, spread(ratios) if ratios else None, ours=over is not None))
    outcome.figures = {"save over dd": found["save_to_dd"], "pause over copy": found["pause_to_copy"]}
    return outcome


def _engine(parameters: int) -> Any:
    """An engine around a model of about so many parameters, in bfloat16 under ZeRO-3, with a state that is not all zeros."""
    from transformers import CodeGenConfig

    from moss_train.model.codegen import init_model

    # 12 layers of 12 * width^2 parameters.
    width = 64 * max(1, round((parameters / (12 * _LAYERS)) ** 0.5 / 64))
    shape = CodeGenConfig(
        vocab_size=_VOCABULARY,
        n_positions=64,
        n_ctx=64,
        n_embd=width,
        n_layer=_LAYERS,
        n_head=4,
        rotary_dim=8,
        tie_word_embeddings=False,
        use_cache=False,
    )
    config = distributed.deepspeed_config({"zero_optimization": {"stage": 3}}, Precision.bf16, 1, 1, 1.0)
    with distributed.building(config):
        model = init_model(shape, 0, torch.bfloat16)
    engine = distributed.initialize(model, config, OptimConfig())
    for flat in shards.flat_tensors(engine):
        for kind in MOMENTS:
            shards.optimizer_state(engine, flat)[kind].uniform_()
    return engine


def _round(run: Run, engine: Any, background: Background, number: int) -> dict[str, Any]:
    state = checkpoint.RunState(
        run_id="benchmark", stage=run.stage, step=number, samples=0, adam_step=0, tokens_seen=0, weight_seen=0.0, identity={}
    )

    def content() -> checkpoint.Content:
        return checkpoint.content_of(engine, state, Lineage("checkpoint", run.stage), lambda folder: None)

    size = content().bytes_needed
    found: dict[str, Any] = {"parameters": size // 12, "bytes": size}
    found["dd_seconds"] = _dd_seconds(run.dir, size)
    found["save_seconds"] = _seconds(lambda: checkpoint.save(run, engine, content()))
    _remove(run, number)
    found["copy_seconds"] = _copy_seconds(engine)
    started = time.perf_counter()
    writing = background.save(content(), lambda: None)
    found["pause_seconds"] = time.perf_counter() - started
    writing.result()
    found["background_seconds"] = writing.seconds
    _remove(run, number)
    return found


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _remove(run: Run, step: int) -> None:
    """Removes a checkpoint, and lets the disk come to rest."""
    shutil.rmtree(run.checkpoints / manifest.step_name(step))
    subprocess.run(["sync", "-f", str(run.dir)], check=False)


def _dd_seconds(folder: Path, size: int) -> float:
    """Seconds in which `dd` writes `size` zeros until they are on the disk."""
    path = folder / "dd"
    command = ["dd", "if=/dev/zero", f"of={path}", f"bs={_PIECE}", f"count={size}", "iflag=count_bytes", "conv=fsync"]
    try:
        started = time.perf_counter()
        result = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if result.returncode:
            raise RuntimeError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    finally:
        path.unlink(missing_ok=True)
    return seconds


def _copy_seconds(engine: Any) -> float:
    """Seconds of a plain copy of the state into memory that was written before."""
    sources = []
    for flat in shards.flat_tensors(engine):
        held = shards.optimizer_state(engine, flat)
        sources += [flat.data, *(held[kind] for kind in MOMENTS)]
    targets = [torch.zeros(source.shape, pin_memory=distributed.on_gpu()) for source in sources]

    def copy() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)

    return _seconds(copy)
