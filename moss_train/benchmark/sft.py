"""The suite `sft`: fine-tuning on dialogues beside the published recipe on stock parts, under the launcher; `sft_speed.py` measures.

Peers of the same kind, TRL's `SFTTrainer` and LLaMA-Factory, are not run: see `not_run`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.launch import environment, launcher
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import FailedError

_PROGRAM = Path(__file__).with_name("sft_speed.py")
_STOCK = "published recipe, stock parts"


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Launches both sides in turns on `config.ranks` ranks."""
    data = config.data or str(resources.files("moss_train.data.bundled") / "dialogues_train.jsonl")
    outcome = Outcome("sft", "supervised tokens/s", _STOCK, settings={"data": Path(data).name, "seq_len": config.seq_len})
    outcome.settings |= {"dialogues": config.dialogues, "ranks": config.ranks, **vars(config.shape), "dtype": str(config.dtype)}
    found = _launch(config, data, device)
    results = found["results"][config.dtype.value]
    case = f"{config.dialogues} dialogues, rows of {config.seq_len}, {config.dtype}, {config.ranks} ranks, ZeRO-3"
    for side, name in (("stock", _STOCK), ("ours", "ours")):
        memory = results[side].get("memory_mib")
        peak = int(max(memory) * 2**20) if memory else None
        ratio = None if side == "stock" else {key: results["ratio"][key] for key in ("median", "min", "max")}
        outcome.rows.append(Row(case, name, results[side]["supervised_tokens_per_second"], ratio, peak, side == "ours"))
    outcome.figures = {
        "ours over stock, median of rounds": results["ratio"]["median"],
        "ours over stock, all rounds": results["ratio_over_all"],
        "ours over stock, processor time": results["ratio_by_cpu_time"]["median"],
        "padding, stock": results["stock"]["padding"],
        "padding, ours": results["ours"]["padding"],
        "parameters": found["parameters"],
    }
    for name in ("trl", "llamafactory"):
        where = "is installed, but this suite does not drive it" if find_spec(name) else "is not installed"
        outcome.not_run[name] = f"{where}; neither packs CodeGen without one document seeing another, so there is no equal work to time"
    return outcome


def _launch(config: BenchmarkConfig, data: str, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        given = {
            "out": out,
            "precisions": config.dtype.value,
            "dialogues": config.dialogues,
            "seq-len": config.seq_len,
            "vocabulary": min(16384, config.shape.vocab_size),
            "hidden-size": config.shape.hidden_size,
            "num-layers": config.shape.num_layers,
            "memory-steps": 1,
        }
        command = [*launcher(config.ranks), str(_PROGRAM), data]
        command += [part for name, value in given.items() for part in (f"--{name}", str(value))]
        done = subprocess.run(command, env=environment(device), capture_output=True, text=True)
        if done.returncode or not out.is_file():
            raise FailedError(f"sft_speed.py ended with {done.returncode}: {(done.stderr or done.stdout)[-1000:]}")
        measured: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return measured
