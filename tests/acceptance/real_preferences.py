"""Preference models on data that nobody here made: right and wrong solutions of GSM8K, and harmlessness pairs of HH-RLHF.

    python -m tests.acceptance.real_preferences --data DIR --out runs/real_preferences

Each starts from a small model that was first fine-tuned on real replies of the same kind (GSM8K's answers, or the better sides). All that
comes out is listed, with the trivial baselines on the same pairs.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.launch import deepspeed, succeeded

MODEL = ("model.num_layers=4", "model.hidden_size=192", "model.num_heads=4", "model.rotary_dim=32")
SEEDS = (0,)


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def gsm8k(data: Path, out: Path) -> tuple[Path, Path, Path]:
    """(dialogues, comparisons to train on, comparisons held out): a fifth of the questions is held out."""
    asked = [{"prompt": one["question"], "completion": one["answer"]} for one in lines(data / "gsm8k" / "train.jsonl")]
    records = list(lines(data / "gsm8k" / "model_solutions.jsonl"))
    random.Random(0).shuffle(records)
    cut = len(records) // 5
    held, train = write(out / "gsm8k_held.jsonl", records[:cut]), write(out / "gsm8k_train.jsonl", records[cut:])
    return write(out / "gsm8k_sft.jsonl", asked), train, held


def harmless(data: Path, out: Path) -> tuple[Path, Path, Path]:
    """The same of HH-RLHF, whose own split is kept."""
    folder = data / "hh-rlhf-harmless"
    dialogues = []
    for one in lines(folder / "train.jsonl"):
        parts = one["chosen"].split("\n\n")
        messages: list[dict[str, str]] = []
        for part in parts:
            speaker, _, said = part.partition(":")
            if speaker in ("Human", "Assistant") and said.strip():
                messages.append({"role": "user" if speaker == "Human" else "assistant", "content": said.strip()})
        roles = [message["role"] for message in messages]
        if roles == ["user", "assistant"] * (len(roles) // 2) and roles:
            dialogues.append({"messages": messages})
    return write(out / "hh_sft.jsonl", dialogues), folder / "train.jsonl", folder / "dev.jsonl"


def run(name: str, paths: tuple[Path, Path, Path], out: Path, seed: int, sft_steps: int, epochs: float) -> dict[str, Any]:
    """One preference model; its report."""
    dialogues, train, held = paths
    started = time.time()
    common = (f"run.seed={seed}", "data.default_meta=none", "train.eval_at_start=false", "train.save_every=0", "train.keep=1")
    sft = out / f"{name}_sft_{seed}"
    settings = ["+config=tiny_sft", *MODEL, *common, f"data.train={dialogues}", "data.seq_len=512", "data.on_bad=skip", "data.holdout=0.02"]
    settings += [f"train.steps={sft_steps}", "train.global_batch_size=16", "train.micro_batch_size=4", "train.eval_every=0"]
    succeeded(deepspeed(2, "scripts/sft.py", *settings, "optim.lr=2e-3", f"run.dir={sft}", timeout=3000))
    pm = out / f"{name}_pm_{seed}"
    settings = ["+config=tiny_pm", *common, f"init_from={sft / 'export'}", f"data.train={train}", f"data.valid={held}", "data.on_bad=skip"]
    settings += ["data.holdout=0", "data.seq_len=512", "data.max_bad_share=0.6", f"train.epochs={epochs}", "train.global_batch_size=16"]
    succeeded(deepspeed(2, "scripts/pm.py", *settings, "optim.lr=3e-4", "objective.centring=0.01", f"run.dir={pm}", timeout=3000))
    report: dict[str, Any] = json.loads((pm / "pm_report.json").read_text(encoding="utf-8"))
    return {"name": name, "seed": seed, "seconds": round(time.time() - started), **report}


def row(found: dict[str, Any]) -> str:
    """A line of Markdown."""
    share, given, length = found["accuracy"], found["calibration"]["given"], found["reward_length"]
    baselines = " | ".join(f"{100 * found['baselines'][name]['accuracy']:.1f}" for name in ("random", "longer", "shorter", "bag_of_words"))
    low, high = share["interval"]
    accuracy = f"{100 * share['accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    figures = f"{given['ece']:.3f} | {given['brier']:.3f} | {found['temperature']:.2f} | {length['pearson']:+.2f}"
    return f"| {found['name']} | {found['comparisons']} | {found['pairs']} | {accuracy} | {baselines} | {figures} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sft-steps", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in SEEDS:
        for name, make in (("gsm8k", gsm8k), ("harmless", harmless)):
            found.append(
                run(name, make(arguments.data, arguments.out), arguments.out.resolve(), seed, arguments.sft_steps, arguments.epochs)
            )
            print(row(found[-1]), found[-1]["seconds"], "s", flush=True)
    (arguments.out / "reports.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
