"""The whole chain on bundled dialogues, on two CPU ranks under ZeRO-3: train, export, reload, generate.

python scripts/demo.py            # what `make demo` runs
python scripts/demo.py runs/demo  # into another directory

Each step is a command that you can type yourself; it is printed before it runs.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LAUNCHER = [str(BIN / "deepspeed"), "--num_accelerators", "2"]
QUESTIONS = ["What is 12 + 7?", "法国的首都是哪里？", "Who are you?"]


def step(title: str, command: list[str]) -> None:
    """Shows a command and runs it; the demo ends with its exit code when it fails."""
    shown = [Path(part).name if part in (sys.executable, LAUNCHER[0]) else "..." if part == STOCK else part for part in command]
    print(f"\n\033[1m== {title}\033[0m\n$ {shlex.join(shown)}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code:
        sys.exit(code)


def main() -> None:
    """Runs the chain and closes with a table."""
    started = time.time()
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo")
    shutil.rmtree(ROOT / run, ignore_errors=True)
    os.environ["DS_ACCELERATOR"] = "cpu"

    step(
        "fine-tune a small model on bundled dialogues, zh and en, plain and plugin (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/sft.py",
            "+config=tiny_sft",
            f"run.dir={run}/sft",
            "data.seq_len=1024",
            "train.steps=300",
            "train.log_every=20",
            "train.eval_every=100",
        ],
    )
    export = run / "sft" / "export"
    for question in QUESTIONS:
        step(
            "ask the exported model",
            [sys.executable, "scripts/generate.py", f"model={export}", f"prompt={question}", "temperature=0", "max_new_tokens=64"],
        )
    step("open the export with stock transformers, without this project", [sys.executable, "-c", STOCK, str(export)])
    summary(ROOT / run, time.time() - started)


# Runs in a process that imports transformers alone.
STOCK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not report["missing_keys"] and not report["unexpected_keys"], report
print(type(model).__name__, f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
print("moss_train imported:", "moss_train" in sys.modules)
"""


def summary(run: Path, seconds: float) -> None:
    """The closing table: stage, tokens, loss before and after, artefact."""
    events = [json.loads(line) for line in (run / "sft" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluations = [event["eval/valid/loss"] for event in events if "eval/valid/loss" in event]
    record = json.loads((run / "sft" / "export" / "lineage.json").read_text(encoding="utf-8"))
    print("\n| stage | tokens | with loss | validation loss before -> after | artefact |\n|---|---|---|---|---|")
    print(
        f"| {record['stage']} | {record['tokens_seen']:,} | {record['supervised_tokens']:,} "
        f"| {evaluations[0]:.3f} -> {evaluations[-1]:.3f} | {record['id'][:19]} |"
    )
    print(f"\nloss plot: {run / 'sft' / 'plots' / 'loss.png'}\nthe demo took {seconds:.0f} s")


if __name__ == "__main__":
    main()
