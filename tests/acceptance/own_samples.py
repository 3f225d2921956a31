"""A preference model without a comparison that anybody made: a small model is fine-tuned, sampled, its answers checked, and a preference
model trained on what is right and what is wrong; tested on questions that nothing was trained on (`make_prompts.py` says how they differ).

    python -m tests.acceptance.own_samples --out runs/own_samples --seed 0

Prints how often the model is right, and the accuracy on held-out comparisons with the trivial baselines on the same pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from moss_train.data.bundled import make_prompts
from tests.launch import deepspeed, python, succeeded

PARTS = ("train", "heldout")


def chain(out: Path, seed: int, samples: int, temperature: float) -> dict[str, Any]:
    """Runs it; the report of the preference model, with the seconds of each step."""
    out.mkdir(parents=True)
    bundled = Path(str(resources.files("moss_train.data.bundled")))
    dialogues, _ = make_prompts.write_dialogues(out)
    seconds: dict[str, int] = {}

    def timed(name: str, result: Any) -> None:
        succeeded(result)
        seconds[name] = round(time.time() - started)

    common = (f"run.seed={seed}", "train.save_every=0", "train.eval_at_start=false")
    settings = ["+config=tiny_sft", "model.num_layers=4", f"data.train={dialogues}", "data.seq_len=512", f"run.dir={out / 'sft'}", *common]
    settings += ["train.steps=300", "train.global_batch_size=8", "train.micro_batch_size=4", "train.eval_every=0", "optim.lr=2e-3"]
    started = time.time()
    timed("sft", deepspeed(2, "scripts/sft.py", *settings, timeout=1200))
    shares = {}
    for part in PARTS:
        responses, comparisons = out / f"{part}.jsonl", out / f"comparisons_{part}.jsonl"
        asked = [f"model={out / 'sft' / 'export'}", f"prompts={bundled / f'checked_prompts_{part}.jsonl'}", f"out={responses}", "system="]
        asked += [f"samples={samples}", f"temperature={temperature}", f"seed={seed}", "max_new_tokens=40", "batch_size=64"]
        started = time.time()
        timed(f"sample {part}", deepspeed(2, "scripts/sample.py", *asked, timeout=1200))
        succeeded(python("scripts/rank.py", f"responses={responses}", f"out={comparisons}", "by=checker"))
        ranked = [json.loads(line) for line in comparisons.read_text(encoding="utf-8").splitlines()]
        right = [one["rank"] == 1 for line in ranked for one in line["responses"] if one["rank"] is not None]
        shares[part] = {"comparisons": len(ranked), "right_of_ranked": sum(right) / len(right)}
    pm = ["+config=tiny_pm", f"init_from={out / 'sft' / 'export'}", f"run.dir={out / 'pm'}", "data.ties=drop", *common]
    pm += [
        f"data.train={out / 'comparisons_train.jsonl'}",
        f"data.valid={out / 'comparisons_heldout.jsonl'}",
        "train.epochs=3",
        "optim.lr=5e-4",
    ]
    started = time.time()
    timed("pm", deepspeed(2, "scripts/pm.py", *pm, timeout=2400))
    report: dict[str, Any] = json.loads((out / "pm" / "pm_report.json").read_text(encoding="utf-8"))
    return {"seed": seed, "samples": shares, "seconds": seconds, **report}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--temperature", type=float, default=1.0)
    arguments = parser.parse_args()
    found = chain(arguments.out.resolve(), arguments.seed, arguments.samples, arguments.temperature)
    baselines = {name: one["accuracy"] for name, one in found["baselines"].items()}
    shown = {key: found[key] for key in ("seed", "samples", "seconds", "comparisons", "pairs")}
    json.dump({**shown, "accuracy": found["accuracy"], "baselines": baselines, "by_category": found["by_category"]}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
