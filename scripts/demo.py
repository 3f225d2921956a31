"""The whole chain on bundled data, on two CPU ranks under ZeRO-3: a small English model, more vocabulary for Chinese, a corpus of token
shards, continued pretraining on it, fine-tuning in both languages, export, reload, generate.

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
from importlib import resources
from pathlib import Path
from typing import Any

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

    texts = write_texts(ROOT / run)
    python = sys.executable
    step(
        "a small model that knows English only, to begin with (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/sft.py",
            "+config=tiny_sft",
            f"run.dir={run}/base",
            f"data.train={texts}/dialogues_en.jsonl",
            f"data.valid={texts}/dialogues_dev_en.jsonl",
            "data.seq_len=1024",
            "data.loss_on=release",
            "train.steps=100",
            "train.log_every=20",
            "train.eval_every=100",
        ],
    )
    step(
        "give it tokens for Chinese: what it says about English stays what it is",
        [
            python,
            "scripts/extend_vocab.py",
            f"model={run}/base/export",
            f"out={run}/extended",
            f"text={texts}/zh.jsonl",
            "licence=Apache-2.0",
            "new_tokens=512",
            "strategy=weighted",
            "compare=[mean_of_pieces,random]",
            f"heldout={{zh: {texts}/dev_zh.jsonl, en: {texts}/dev_en.jsonl, code: scripts}}",
        ],
    )
    step(
        "prepare a corpus of token shards with that vocabulary: Chinese, English, code",
        [
            python,
            "scripts/prepare.py",
            f"tokenizer={run}/extended",
            f"out={run}/corpus",
            f"sources.zh={{path: {texts}/zh.jsonl, language: zh, licence: Apache-2.0}}",
            f"sources.en={{path: {texts}/en.jsonl, language: en, licence: Apache-2.0}}",
            "sources.code={path: moss_train, language: code, licence: Apache-2.0, extensions: [py]}",
            "exact_dedup=true",
        ],
    )
    step("look into it", [python, "scripts/prepare.py", "inspect", f"{run}/corpus", "--source", "zh", "--length", "60"])
    step(
        "go on pretraining on that corpus: mostly Chinese, with English and code replayed (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/pretrain.py",
            "+config=tiny_pretrain",
            f"init_from={run}/extended",
            f"run.dir={run}/pretrain",
            f"data.train={run}/corpus",
            "data.weights={zh: 0.6, en: 0.2, code: 0.2}",
            "train.steps=100",
            "train.log_every=20",
            "train.eval_every=50",
            "optim.schedule=wsd",
        ],
    )
    step(
        "fine-tune it on bundled dialogues, zh and en, plain and plugin (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/sft.py",
            "+config=tiny_sft",
            f"init_from={run}/pretrain/export",
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


def write_texts(run: Path) -> Path:
    """Writes the bundled dialogues by language: as dialogues (English), and as plain texts (both)."""
    folder = run / "texts"
    folder.mkdir(parents=True)
    for part, name in (("dialogues_train", ""), ("dialogues_dev", "dev_")):
        lines = (resources.files("moss_train.data.bundled") / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for language in ("en", "zh"):
            chosen = [record for record in records if record["category"].endswith(f"_{language}")]
            write_lines(folder / f"{name}{language}.jsonl", [{"text": text_of(record)} for record in chosen])
            if language == "en":
                write_lines(folder / f"dialogues_{name}en.jsonl", chosen)
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def text_of(record: dict[str, Any]) -> str:
    """What is said in a dialogue, without markers."""
    said = [turn[field] for turn in record["chat"].values() for field in ("Human", "MOSS")]
    return "\n".join(part.split(": ", 1)[1].rsplit("<", 1)[0] for part in said)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


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
    print("\n| stage | tokens | with loss | what came of it | artefact |\n|---|---|---|---|---|")
    for place in ("base/export", "extended", "corpus", "pretrain/export", "sft/export"):
        record = json.loads((run / place / "lineage.json").read_text(encoding="utf-8"))
        tokens, supervised = record["tokens_seen"], f"{record['supervised_tokens']:,}"
        if place == "extended":
            report = json.loads((run / place / "extension.json").read_text(encoding="utf-8"))["heldout"]
            gain, changed = (
                report["zh"]["tokens_before"] / report["zh"]["tokens_after"],
                report["code"]["changed_elsewhere"] + report["en"]["changed_elsewhere"],
            )
            came, supervised, tokens = f"Chinese takes {gain:.2f} times fewer tokens; {changed} texts without Chinese changed", "", 0
        elif place == "corpus":
            corpus = json.loads((run / place / "corpus.json").read_text(encoding="utf-8"))["totals"]
            tokens, supervised, came = corpus["tokens"], "", f"{corpus['documents']:,} documents"
        else:
            lines = (run / place).parent.joinpath("metrics.jsonl").read_text(encoding="utf-8").splitlines()
            found = [event for event in map(json.loads, lines) if "eval/valid/loss" in event]
            came = f"validation loss {found[0]['eval/valid/loss']:.3f} -> {found[-1]['eval/valid/loss']:.3f}"
            if record["stage"] == "pretrain":
                names = [f"eval/valid/bits_per_byte/{language}" for language in ("zh", "en", "code")]
                changes = [f"{name.rpartition('/')[2]} {found[0][name]:.2f} -> {found[-1][name]:.2f}" for name in names]
                came = f"bits per byte of held-out text: {', '.join(changes)}"
        print(f"| {record['stage']} | {tokens:,} | {supervised} | {came} | {record['id'][:19]} |")
    print(f"\nloss plot: {run / 'sft' / 'plots' / 'loss.png'}\nthe demo took {seconds:.0f} s")


if __name__ == "__main__":
    main()
