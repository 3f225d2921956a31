"""The whole chain on bundled data, on two CPU ranks under ZeRO-3: a small English model, more vocabulary for Chinese, a corpus of token
shards, continued pretraining on it, fine-tuning in both languages, export, reload, generate; its own answers, sampled and checked, and a
preference model trained on which of them are right.

python scripts/demo.py                     # what `make demo` runs
python scripts/demo.py runs/demo --seed 1  # into another directory, with other random numbers

Each step is a command that you can type yourself; it is printed before it runs. What the closing table says is in DIR/demo.json too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from moss_train.data.bundled import make_prompts
from moss_train.data.comparisons import parse_responses
from moss_train.pm.checkers import check_line, is_correct
from moss_train.pm.ranking import make_line

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = Path("moss_train/data/bundled")
BIN = Path(sys.executable).parent
LAUNCHER = [str(BIN / "deepspeed"), "--num_accelerators", "2"]
QUESTIONS = ["What is 12 + 7?", "法国的首都是哪里？", "Who are you?"]
# Deep enough for a preference model to see at the end of a reply what was expected at its beginning.
MODEL = ["model.num_layers=3", "model.initializer_range=0.09"]
SAMPLES, TEMPERATURE, PM_EPOCHS = 8, 1.2, 5
SYSTEM = f"system='{make_prompts.META.strip()}'"


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run, seed = arguments.out, arguments.seed
    started = time.time()
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
            "data.seq_len=512",
            "data.loss_on=release",
            "train.steps=100",
            "train.global_batch_size=8",
            "train.micro_batch_size=4",
            "train.log_every=20",
            "train.eval_every=100",
            "optim.lr=2e-3",
            f"run.seed={seed}",
            *MODEL,
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
            "optim.lr=2e-3",
            f"run.seed={seed}",
        ],
    )
    step(
        "fine-tune it on bundled dialogues, zh and en, plain and plugin, and on questions with short answers (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/sft.py",
            "+config=tiny_sft",
            f"init_from={run}/pretrain/export",
            f"run.dir={run}/sft",
            f"data.train={{{BUNDLED}/dialogues_train.jsonl: 0.4, {texts}/{make_prompts.DIALOGUES_FILE}: 0.6}}",
            f"data.valid={BUNDLED}/dialogues_dev.jsonl",
            "data.seq_len=512",
            "train.steps=500",
            "train.global_batch_size=4",
            "train.micro_batch_size=2",
            "train.log_every=50",
            "train.eval_every=250",
            "optim.lr=2e-3",
            f"run.seed={seed}",
        ],
    )
    export = run / "sft" / "export"
    for question in QUESTIONS:
        step(
            "ask the exported model",
            [sys.executable, "scripts/generate.py", f"model={export}", f"prompt={question}", "temperature=0", "max_new_tokens=64"],
        )
    step("open the export with stock transformers, without this project", [sys.executable, "-c", STOCK, str(export)])
    for part in ("train", "heldout"):
        step(
            f"let it answer questions that a program can check, some with the calculator: {part} (two ranks)",
            [
                *LAUNCHER,
                "scripts/sample.py",
                f"model={export}",
                f"prompts={BUNDLED}/checked_prompts_{part}.jsonl",
                f"out={run}/responses_{part}.jsonl",
                SYSTEM,
                "thoughts=true",
                f"samples={SAMPLES}",
                f"temperature={TEMPERATURE}",
                "max_new_tokens=40",
                "batch_size=128",
                f"seed={seed}",
            ],
        )
        step(
            "right above wrong",
            [python, "scripts/rank.py", f"responses={run}/responses_{part}.jsonl", f"out={run}/comparisons_{part}.jsonl", "by=checker"],
        )
    step(
        "train a preference model on that, and test it on questions that nothing was trained on (two ranks, ZeRO-3)",
        [
            *LAUNCHER,
            "scripts/pm.py",
            "+config=tiny_pm",
            f"init_from={export}",
            f"run.dir={run}/pm",
            f"data.train={run}/comparisons_train.jsonl",
            f"data.valid={run}/comparisons_heldout.jsonl",
            "data.ties=drop",
            f"train.epochs={PM_EPOCHS}",
            "train.save_every=0",
            "train.log_every=50",
            f"run.seed={seed}",
        ],
    )
    step(
        "score all the responses with it",
        [
            *LAUNCHER,
            "scripts/score.py",
            f"model={run}/pm/export",
            f"responses={run}/responses_train.jsonl",
            f"out={run}/scored_train.jsonl",
        ],
    )
    summary(ROOT / run, seed, time.time() - started)


def write_texts(run: Path) -> Path:
    """Writes the bundled dialogues by language, as dialogues (English) and as plain texts (both), and dialogues of checked questions."""
    folder = run / "texts"
    folder.mkdir(parents=True)
    make_prompts.write_dialogues(folder)
    for part, name in (("dialogues_train", ""), ("dialogues_dev", "dev_")):
        lines = (ROOT / BUNDLED / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for language in ("en", "zh"):
            chosen = [record for record in records if record["category"].endswith(f"_{language}")]
            write_lines(folder / f"{name}{language}.jsonl", [{"text": text_of(record)} for record in chosen])
            if language == "en":
                write_lines(folder / f"dialogues_{name}en.jsonl", chosen)
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def text_of(record: dict[str, Any]) -> str:
    """What is said in a dialogue, without markers; with the blanks that follow these, for a word is another token behind a blank."""
    said = [turn[field] for turn in record["chat"].values() for field in ("Human", "MOSS")]
    return "\n".join(part.split(":", 1)[1].rsplit("<", 1)[0] for part in said)


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


def summary(run: Path, seed: int, seconds: float) -> None:
    """The closing table: stage, tokens, loss before and after, artefact; and how good the preference model is."""
    print("\n| stage | tokens | with loss | what came of it | artefact |\n|---|---|---|---|---|")
    stages = []
    for place in ("base/export", "extended", "corpus", "pretrain/export", "sft/export", "pm/export"):
        record = json.loads((run / place / "lineage.json").read_text(encoding="utf-8"))
        tokens, supervised = record["tokens_seen"], f"{record['supervised_tokens']:,}"
        if place == "extended":
            tokens, supervised, came = 0, "", of_extension(run / place / "extension.json")
        elif place == "corpus":
            corpus = json.loads((run / place / "corpus.json").read_text(encoding="utf-8"))["totals"]
            tokens, supervised, came = corpus["tokens"], "", f"{corpus['documents']:,} documents"
        elif place == "pm/export":
            supervised, came = "", of_preferences(run)
        else:
            came = of_losses((run / place).parent / "metrics.jsonl", record["stage"])
        print(f"| {record['stage']} | {tokens:,} | {supervised} | {came} | {record['id'][:19]} |")
        stages.append({"stage": record["stage"], "tokens": tokens, "came": came, "id": record["id"]})
    report = json.loads((run / "pm" / "pm_report.json").read_text(encoding="utf-8"))
    kept = {name: report[name] for name in ("comparisons", "pairs", "accuracy", "baselines", "by_category")}
    shares = {part: share_correct(run / f"responses_{part}.jsonl") for part in ("train", "heldout")}
    found = {"seed": seed, "seconds": round(seconds), "stages": stages, "responses_correct": shares, "preference_model": kept}
    (run / "demo.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nloss plot: {run / 'sft' / 'plots' / 'loss.png'}\nthe demo took {seconds:.0f} s")


def of_extension(path: Path) -> str:
    """What more vocabulary did to held-out text."""
    report = json.loads(path.read_text(encoding="utf-8"))["heldout"]
    gain = report["zh"]["tokens_before"] / report["zh"]["tokens_after"]
    changed = report["code"]["changed_elsewhere"] + report["en"]["changed_elsewhere"]
    return f"Chinese takes {gain:.2f} times fewer tokens; {changed} texts without Chinese changed"


def of_losses(metrics: Path, stage: str) -> str:
    """What training did to held-out losses."""
    found = [event for event in map(json.loads, metrics.read_text(encoding="utf-8").splitlines()) if "eval/valid/loss" in event]
    if stage != "pretrain":
        return f"validation loss {found[0]['eval/valid/loss']:.3f} -> {found[-1]['eval/valid/loss']:.3f}"
    names = [f"eval/valid/bits_per_byte/{language}" for language in ("zh", "en", "code")]
    changes = [f"{name.rpartition('/')[2]} {found[0][name]:.2f} -> {found[-1][name]:.2f}" for name in names]
    return f"bits per byte of held-out text: {', '.join(changes)}"


def of_preferences(run: Path) -> str:
    """How often the preference model finds the right answer of two, beside what is trivial."""
    report = json.loads((run / "pm" / "pm_report.json").read_text(encoding="utf-8"))
    accuracy, baselines = report["accuracy"], report["baselines"]
    low, high = accuracy["interval"]
    length = max(baselines["longer"]["accuracy"], baselines["shorter"]["accuracy"])
    words = baselines["bag_of_words"]["accuracy"]
    return (
        f"held-out pairs: {accuracy['accuracy']:.1%} right (95 %: {low:.1%} to {high:.1%}; "
        f"bag of words {words:.1%}, length {length:.1%}, coin 50 %)"
    )


def share_correct(path: Path) -> float:
    """Share of a file's responses that are correct."""
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        record = json.loads(line)
        asked = make_line(number, path.name, parse_responses(record, path.name))
        verdicts += [is_correct(asked, index, check_line(asked, None)) for index in range(len(record["responses"]))]
    return sum(verdicts) / len(verdicts)


if __name__ == "__main__":
    main()
