"""All that needs a CUDA device: first every test marked `gpu`, then the benchmarks at full size, in pieces that are each kept when done.

python scripts/gpu.py                      # what `make gpu` runs; begins what is missing, for as long as there is time
python scripts/gpu.py --minutes 9          # starts no piece after so many minutes: give the same command again to go on
python scripts/gpu.py --list

What was done stands in runs/gpu/progress.json, with the commit: another commit begins anew. Exit code 0: all is done and passed; 1:
something failed; 75: there is more to do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from moss_train.benchmark.outcome import machine

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "runs" / "gpu"
MORE_LEFT = 75
LARGE = ["rows=8", "loss_tokens=16384", "shape.hidden_size=2560", "shape.num_layers=4", "shape.head_dim=80", "shape.vocab_size=107008"]
BENCHMARKS = {
    "loss": ["suite=[loss]", *LARGE],
    "attention": ["suite=[attention]", *LARGE],
    "train": ["suite=[train]", *LARGE],
    "loader": ["suite=[loader]", *LARGE],
    "sft": ["suite=[sft]", "ranks=1", "dialogues=240", "shape.num_layers=20"],
    "checkpoint": ["suite=[checkpoint]", "parameters=400_000_000"],
    "pretrain-2b": ["suite=[pretrain]", "ranks=1", "models=[codegen_2b]", "rows=8", "overrides=[model.recompute=true]"],
    "pretrain-6b": ["suite=[pretrain]", "ranks=1", "models=[codegen_6b]", "rows=8", "overrides=[model.recompute=true]"],
    "pretrain-16b": ["suite=[pretrain]", "ranks=1", "models=['moss_16b:10']", "rows=8", "overrides=[model.recompute=true]"],
}
"""Name -> settings of scripts/benchmark.py. Head size 80 is that of 2.7B; of 16B, as many layers as fit one device with the optimizer."""


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="start nothing after so many")
    parser.add_argument("--list", action="store_true", help="say what there is, and what is done")
    options = parser.parse_args()
    progress = read_progress()
    pieces = list_pieces()
    if options.list:
        for name in pieces:
            print(f"{progress['done'].get(name, {}).get('outcome', 'missing'):8} {name}")
        return
    started = time.monotonic()
    for name, command in pieces.items():
        if name in progress["done"]:
            continue
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print(f"{len(progress['done'])} of {len(pieces)} pieces are done; the same command goes on")
            sys.exit(MORE_LEFT)
        progress["done"][name] = run(name, command)
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "progress.json").write_text(json.dumps(progress, indent=1) + "\n", encoding="utf-8")
    failed = [name for name, found in progress["done"].items() if found["outcome"] == "failed"]
    print(f"{len(pieces)} pieces: {len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    sys.exit(1 if failed else 0)


def read_progress() -> dict[str, Any]:
    """What was done on this commit."""
    here = machine()
    try:
        found: dict[str, Any] = json.loads((OUT / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = {}
    return found if found.get("machine", {}).get("commit") == here["commit"] else {"machine": here, "done": {}}


def list_pieces() -> dict[str, list[str]]:
    """Name -> command: each test marked `gpu`, file by file, then each benchmark."""
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", "--no-header"], cwd=ROOT, capture_output=True, text=True
    )
    if collected.returncode:
        sys.exit(f"the tests could not be collected:\n{collected.stdout[-2000:]}{collected.stderr[-2000:]}")
    names = dict.fromkeys(line.partition("::")[0] for line in collected.stdout.splitlines() if "::" in line)
    pieces = {f"tests: {name}": [sys.executable, "-m", "pytest", "-m", "gpu", "-q", name] for name in names}
    for name, settings in BENCHMARKS.items():
        out = f"out={OUT.relative_to(ROOT) / name}"
        pieces[f"benchmark: {name}"] = [sys.executable, "scripts/benchmark.py", "device=cuda", out, *settings]
    return pieces


def run(name: str, command: list[str]) -> dict[str, Any]:
    """One piece, as it is shown; its outcome, and how long it took."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    code = subprocess.run(command, cwd=ROOT).returncode
    return {"outcome": "failed" if code else "passed", "code": code, "seconds": round(time.monotonic() - started)}


if __name__ == "__main__":
    main()
