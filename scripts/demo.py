"""The whole chain on bundled data, on two CPU ranks under ZeRO-3: a small English model, more vocabulary for Chinese, a corpus of token
shards, continued pretraining on it, fine-tuning in both languages, export, reload, generate; its own answers, sampled and checked, a
preference model trained on which of them are right, levels from its rewards, training on answers that carry them, and answers under the
best level, beside what else one could have done; variants of the last model with 8 and 4 bits. With --thorough, more of all: of
fine-tuning, three times as much training on levels, a judge that learned as long as the preference model, variants of the other models.

python scripts/demo.py                     # what `make demo` runs
python scripts/demo.py runs/demo --seed 1  # into another directory, with other random numbers
python scripts/demo.py runs/demo --thorough

Each step is a command that you can type yourself; it is printed before it runs. What the closing table says is in DIR/demo.json too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from demo_steps import ROOT, STOCK, WHOLE, Demo
from demo_tables import OTHERS, VARIANTS, summary

from moss_train.data.bundled import make_prompts

BUNDLED = Path("moss_train/data/bundled")
# Deep enough for a preference model to see at the end of a reply what was expected at its beginning.
MODEL = ["model.num_layers=3", "model.hidden_size=256", "model.initializer_range=0.0625"]
# Right and wrong answers in equal parts: less at random, and too few are wrong to learn from.
SAMPLES, TEMPERATURE = 6, 1.5
# As short as still teaches what the later steps build on; and with --thorough.
SFT_STEPS, PM_EPOCHS = (700, 1000), (2, 3)
GUIDANCE = 2
LEVELS, EXPERT = 5, "expert_dialogues.jsonl"
SYSTEM = f"system='{make_prompts.META.strip()}'"
ASKED = ["thoughts=true", SYSTEM, "max_new_tokens=40"]


def main() -> None:
    """Runs the chain and closes with a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thorough", action="store_true", help="train longer on levels, with a better judge; variants of all models")
    arguments = parser.parse_args()
    started = time.time()
    shutil.rmtree(ROOT / arguments.out, ignore_errors=True)
    os.environ["DS_ACCELERATOR"] = "cpu"
    demo = Demo(arguments.out, arguments.seed, write_texts(ROOT / arguments.out), arguments.thorough)
    learn_chinese(demo)
    fine_tune(demo)
    sample_and_rank(demo)
    train_preference_model(demo)
    train_judge(demo)
    train_on_levels(demo)
    compare(demo)
    make_variants(demo)
    look_back(demo)
    summary(ROOT / demo.run, demo.seed, time.time() - started)


ROWS = ["data.seq_len=512", "train.global_batch_size=4", "train.micro_batch_size=2"]
# Of the same tokens, twice as many steps of half the size teach a model as small as this one more.
SMALL_STEPS = ["data.seq_len=512", "train.global_batch_size=2", "train.micro_batch_size=1", "optim.beta2=0.98"]


def learn_chinese(demo: Demo) -> None:
    """An English model, its vocabulary extended, pretrained further on three kinds of text."""
    run, texts = demo.run, demo.texts
    demo.train(
        "a small model that knows English only, to begin with",
        "sft",
        "base",
        40,
        f"data.train={texts}/dialogues_en.jsonl",
        f"data.valid={texts}/dialogues_dev_en.jsonl",
        "data.loss_on=release",
        "optim.lr=2e-3",
        *ROWS,
        *MODEL,
    )
    demo.one(
        "give it tokens for Chinese: what it says about English stays what it is",
        "extend_vocab",
        f"model={run}/base/export",
        f"out={run}/extended",
        f"text={texts}/zh.jsonl",
        "licence=Apache-2.0",
        "new_tokens=512",
        "strategy=weighted",
        "compare=[mean_of_pieces,random]",
        f"heldout={{zh: {texts}/dev_zh.jsonl, en: {texts}/dev_en.jsonl, code: scripts}}",
    )
    demo.one(
        "prepare a corpus of token shards with that vocabulary: Chinese, English, code",
        "prepare",
        f"tokenizer={run}/extended",
        f"out={run}/corpus",
        f"sources.zh={{path: {texts}/zh.jsonl, language: zh, licence: Apache-2.0}}",
        f"sources.en={{path: {texts}/en.jsonl, language: en, licence: Apache-2.0}}",
        "sources.code={path: moss_train/model, language: code, licence: Apache-2.0, extensions: [py]}",
        "exact_dedup=true",
    )
    demo.one("look into it", "prepare", "inspect", f"{run}/corpus", "--source", "zh", "--length", "60")
    demo.train(
        "go on pretraining on that corpus: mostly Chinese, with English and code replayed",
        "pretrain",
        "pretrain",
        40,
        f"init_from={run}/extended",
        f"data.train={run}/corpus",
        "data.weights={zh: 0.6, en: 0.2, code: 0.2}",
        "optim.schedule=wsd",
        "optim.lr=5e-4",
        evaluate=20,
    )


def fine_tune(demo: Demo) -> None:
    """Fine-tuning on dialogues, and a look at what came of it."""
    export = f"{demo.run}/sft/export"
    demo.train(
        "fine-tune it on bundled dialogues, zh and en, plain and plugin, and on questions with short answers",
        "sft",
        "sft",
        SFT_STEPS[demo.thorough],
        f"init_from={demo.run}/pretrain/export",
        f"data.train={{{BUNDLED}/dialogues_train.jsonl: 0.2, {demo.texts}/{make_prompts.DIALOGUES_FILE}: 0.8}}",
        f"data.valid={BUNDLED}/dialogues_dev.jsonl",
        "optim.lr=2e-3",
        *SMALL_STEPS,
        log=100,
    )
    asked = f"prompts={demo.texts}/questions.txt"
    with demo.side_by_side():
        demo.one("ask the exported model", "generate", f"model={export}", asked, "temperature=0", "max_new_tokens=64")
        demo.step("open the export with stock transformers, without this project", [sys.executable, "-c", STOCK, export])


def sample_and_rank(demo: Demo) -> None:
    """Its own answers to questions that a program can check, the right ones above the wrong ones."""
    for part in ("train", "heldout"):
        answer_and_rank(demo, part, part, SAMPLES, demo.seed)


def answer_and_rank(demo: Demo, name: str, part: str, samples: int, seed: int) -> None:
    """Answers to one file of questions, and comparisons of them."""
    run = demo.run
    demo.two(
        f"let it answer questions that a program can check, some with the calculator: {name} (two ranks)",
        "sample",
        f"model={run}/sft/export",
        f"prompts={BUNDLED}/checked_prompts_{part}.jsonl",
        f"out={run}/responses_{name}.jsonl",
        f"samples={samples}",
        f"temperature={TEMPERATURE}",
        "batch_size=256",
        f"seed={seed}",
        *ASKED,
    )
    ranked = [f"responses={run}/responses_{name}.jsonl", f"out={run}/comparisons_{name}.jsonl"]
    demo.one("right above wrong", "rank", *ranked, "by=checker")


def train_preference_model(demo: Demo) -> None:
    """The preference model, and its rewards."""
    run = demo.run
    title = "train a preference model on that; test it on questions that nothing was trained on"
    prefer(demo, title, "pm", "train", demo.seed, PM_EPOCHS[demo.thorough])
    scored = [f"model={run}/pm/export", f"responses={run}/responses_train.jsonl", f"out={run}/scored_train.jsonl"]
    demo.two("score all the responses (two ranks)", "score", *scored)


def prefer(demo: Demo, title: str, out: str, name: str, seed: int, epochs: int) -> None:
    """Trains a preference model on comparisons."""
    run = demo.run
    demo.two(
        f"{title} (two ranks, ZeRO-3)",
        "pm",
        "+config=tiny_pm",
        f"init_from={run}/sft/export",
        f"run.dir={run}/{out}",
        f"data.train={run}/comparisons_{name}.jsonl",
        f"data.valid={run}/comparisons_heldout.jsonl",
        "data.ties=drop",
        f"train.epochs={epochs}",
        "optim.lr=6e-4",
        "train.save_every=0",
        "train.log_every=50",
        f"run.seed={seed}",
        WHOLE,
    )


def train_judge(demo: Demo) -> None:
    """A second preference model, which will judge: other answers to the same questions, and other random numbers."""
    answer_and_rank(demo, "judge", "train", SAMPLES if demo.thorough else SAMPLES // 2, demo.seed + 1)
    title = "train a second preference model on other answers, to judge what comes of the first"
    prefer(demo, title, "judge", "judge", demo.seed + 1, PM_EPOCHS[demo.thorough] if demo.thorough else 1)


def train_on_levels(demo: Demo) -> None:
    """Levels from the rewards, training on them, and as much training of two other kinds on the same answers."""
    run = demo.run
    demo.one("make levels of the rewards", "tag", f"scored={run}/scored_train.jsonl", f"out={run}/tagged.jsonl", "by=blended")
    steps = 1000 if demo.thorough else 300
    # The dialogues it was fine-tuned on, as the best there is, beside its own answers: of those alone, half of them wrong, it forgets.
    data = f"data.train={{{run}/tagged.jsonl: 0.75, {demo.texts}/{EXPERT}: 0.25}}"
    shared = [f"init_from={run}/sft/export", data, "train.epochs=null", "optim.lr=6e-4", *SMALL_STEPS]
    # More than the preset leaves untagged: in so few steps the model is to learn, too, what it says without a tag, or guidance leads
    # away from nothing.
    tagged = [*shared, "data.tag_dropout=0.2"]
    demo.train("go on with these and its answers, each tagged with its level", "preference", "preference", steps, *tagged, log=100)
    untagged = [*shared, "data.tag_dropout=1"]
    demo.train("what else one could do: go on with the same, untagged", "sft", "untagged", steps, *untagged, log=100)
    best = [*untagged, "data.level_weights=[0,0,0,0,1]"]
    demo.train("what else one could do: go on with the best of it only", "sft", "best_only", steps, *best, log=100)


def compare(demo: Demo) -> None:
    """What tags do to answers to questions that nothing was trained on, beside the alternatives."""
    run = demo.run
    demo.two(
        "do tags steer it? and is that better than what else one could do? (two ranks)",
        "evaluate",
        "suite=control",
        f"model={run}/preference/export",
        f"pm={run}/judge/export",
        f"against={{sft: {run}/sft/export, untagged: {run}/untagged/export, best_only: {run}/best_only/export}}",
        f"best_of={{model: {run}/sft/export, pm: {run}/pm/export, samples: {SAMPLES}}}",
        f"guidance=[{GUIDANCE}]",
        "guidance_from=opposite",
        f"prompts={BUNDLED}/checked_prompts_heldout.jsonl",
        f"out={run}/control",
        "batch_size=256",
        f"seed={demo.seed}",
        *ASKED,
    )
    asked = [f"model={run}/preference/export", f"prompts={demo.texts}/checked.txt", *ASKED, "temperature=0"]
    with demo.side_by_side():
        for tag in ("best", "1"):
            demo.one(f"ask for {'the best' if tag == 'best' else 'the worst'} answers", "generate", *asked, f"tag={tag}")


def make_variants(demo: Demo) -> None:
    """The last language model with weights of 8 and 4 bits, beside itself: texts it finds likely, and answers that are right."""
    run = demo.run
    last = f"{run}/preference/export"
    models = {name: f"{run}/variants/{name}/model" for name in VARIANTS} | {VARIANTS[0]: last}
    with demo.side_by_side():
        quantize(demo, "its weights", last, f"{run}/variants")
        if demo.thorough:
            for name in OTHERS:
                quantize(demo, f"those of {name}", f"{run}/{name}/export", f"{run}/variants/{name}")
    texts = f"data={{zh: {demo.texts}/dev_zh.jsonl, en: {demo.texts}/dev_en.jsonl}}"
    with demo.side_by_side():
        for name, model in models.items():
            out = f"{run}/variants/{name}"
            demo.one(f"{name}: held-out texts", "evaluate", "suite=perplexity", f"model={model}", texts, f"out={out}/texts")
            for tag in ("best", "none", "1"):
                demo.one(
                    f"{name}: held-out questions, {'without a level' if tag == 'none' else f'tag={tag}'}",
                    "sample",
                    f"model={model}",
                    f"prompts={BUNDLED}/checked_prompts_heldout.jsonl",
                    f"out={out}/{tag}.jsonl",
                    f"tag={tag}",
                    "samples=4",
                    "batch_size=256",
                    f"seed={demo.seed}",
                    *ASKED,
                )
    places = [f"{run}/variants/{name}/texts" for name in VARIANTS]
    demo.one("side by side", "evaluate", "compare", *places, "--match", "bits_per_byte")


def quantize(demo: Demo, whose: str, model: str, out: str) -> None:
    """Variants of one model in `out`; a preference model is held against itself on comparisons."""
    heldout = f"{demo.run}/comparisons_heldout.jsonl" if model.endswith("/pm/export") else f"{BUNDLED}/dialogues_dev.jsonl"
    shared = [f"model={model}", f"heldout={heldout}"]
    demo.one(f"{whose} in 8 bits", "quantize", *shared, f"out={out}/int8/model", "bits=8", "method=torchao")
    demo.one(f"{whose} in 4 bits, calibrated on what it was trained on", "quantize", *shared, f"out={out}/int4/model", "bits=4")


def look_back(demo: Demo) -> None:
    """Where the last model comes from, and whether everything is what it was."""
    run = demo.run
    last = f"{run}/variants/int4/model"
    demo.one("where the model comes from", "lineage", "show", last, "--svg", f"{run}/lineage.svg", "--in", f"{run}")
    demo.one("is everything what it was?", "lineage", "verify", f"{run}", "--in", f"{run}")


def write_texts(run: Path) -> Path:
    """Writes the bundled dialogues by language, as dialogues (English) and as plain texts (both), and dialogues of checked questions."""
    folder = run / "texts"
    folder.mkdir(parents=True)
    (dialogues,) = make_prompts.write_dialogues(folder)
    mark_best(dialogues, folder / EXPERT)
    (folder / "questions.txt").write_text("What is 12 + 7?\n法国的首都是哪里？\nWho are you?\n", encoding="utf-8")
    (folder / "checked.txt").write_text("What is the capital of France?\n三加四等于多少？\nMultiply 4 by 5.\n", encoding="utf-8")
    for part, name in (("dialogues_train", ""), ("dialogues_dev", "dev_")):
        lines = (ROOT / BUNDLED / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        for language in ("en", "zh"):
            chosen = [record for record in records if record["category"].endswith(f"_{language}")]
            write_lines(folder / f"{name}{language}.jsonl", [{"text": text_of(record)} for record in chosen])
            if language == "en":
                write_lines(folder / f"dialogues_{name}en.jsonl", chosen)
    return folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder


def mark_best(dialogues: Path, out: Path) -> None:
    """Writes dialogues with the best level at every reply: people wrote them, so none has to be scored."""
    records = [json.loads(line) for line in dialogues.read_text(encoding="utf-8").splitlines()]
    for record in records:
        for turn in record["chat"].values():
            turn["level"] = LEVELS
    write_lines(out, records)


def text_of(record: dict[str, Any]) -> str:
    """What is said in a dialogue, without markers; with the blanks that follow these, for a word is another token behind a blank."""
    said = [turn[field] for turn in record["chat"].values() for field in ("Human", "MOSS")]
    return "\n".join(part.split(":", 1)[1].rsplit("<", 1)[0] for part in said)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes JSONL."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    main()
