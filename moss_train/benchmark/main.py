"""Benchmarks: what a user would otherwise run beside this project, on the same work, in the same run; see docs/performance.md.

Each suite is measured and written before the next begins, so that a run that is stopped goes on with what is missing. A suite that fails
is told, and the others run all the same.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import traceback
from pathlib import Path
from typing import Any

from moss_train.benchmark.config import BenchmarkConfig, Device, Suite
from moss_train.benchmark.outcome import Outcome, describe, draw, machine
from moss_train.benchmark.timing import FailedError
from moss_train.cores import threads_per_rank
from moss_train.errors import MossTrainError, UsageError

_log = logging.getLogger("moss_train")


def main(config: BenchmarkConfig) -> None:
    """Measures the suites that are asked for.

    Raises:
        UsageError: CUDA is asked for and not there, or a suite could not be run.
    """
    import torch

    torch.set_num_threads(threads_per_rank())
    device = _device(config.device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for suite in config.suite or [suite for suite in Suite if suite is not Suite.pretrain]:
        if not config.again and _is_there(out / f"{suite}.json", config, device):
            print((out / f"{suite}.md").read_text(encoding="utf-8"))
            continue
        try:
            outcome = measure(suite, config, device)
        except (MossTrainError, FailedError, AssertionError, torch.OutOfMemoryError) as error:
            _log.error(f"{suite}: {error}")
            _log.debug(traceback.format_exc())
            failed.append(f"{suite}: {error}")
            continue
        write(outcome, config, device)
        gc.collect()
    if failed:
        raise UsageError("not all suites could be run:\n" + "\n".join(f"  - {one}" for one in failed))


def measure(suite: Suite, config: BenchmarkConfig, device: str) -> Outcome:
    """Runs one suite; its module has the suite's name."""
    module: Any = importlib.import_module(f"moss_train.benchmark.{suite}")
    outcome: Outcome = module.run(config, device)
    return outcome


def write(outcome: Outcome, config: BenchmarkConfig, device: str) -> None:
    """Writes and prints what a suite found."""
    out = Path(config.out)
    whole = {**outcome.to_json(), "device": device, "asked": _asked(config)}
    text = describe(outcome)
    (out / f"{outcome.suite}.md").write_text(text, encoding="utf-8")
    (out / f"{outcome.suite}.png").write_bytes(draw(outcome))
    # Last, since it is what says that the suite is done.
    (out / f"{outcome.suite}.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(text)


def _device(asked: Device) -> str:
    import torch

    if asked is Device.cuda and not torch.cuda.is_available():
        raise UsageError("device=cuda: torch finds no CUDA device here; give device=cpu")
    return "cuda" if asked is not Device.cpu and torch.cuda.is_available() else "cpu"


def _asked(config: BenchmarkConfig) -> dict[str, Any]:
    """The settings that figures depend on, as JSON has them."""
    kept = {name: value for name, value in vars(config).items() if name not in ("suite", "out", "again", "device")}
    return dict(json.loads(json.dumps({**kept, "shape": vars(config.shape)}, default=str)))


def _is_there(path: Path, config: BenchmarkConfig, device: str) -> bool:
    """Whether a file has these settings measured on this commit and device."""
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return False
    commit = machine()["commit"]
    return bool(found["machine"]["commit"] == commit and found["asked"] == _asked(config) and found["device"] == device)
