"""Real text, two ranks: a small model of English and code learns Chinese, with and without replay of what it knew.

    python -m tests.acceptance.test_chinese_is_learned_while_the_rest_is_kept --data ../shared/data --image docs/images/replay.png

prints the table of docs/pretrain.md and draws its curves. The programs are those a user calls, one after another.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import pytest

from tests.campaigns import record
from tests.codegen_base import write_vocabulary
from tests.launch import deepspeed, metrics, python, succeeded
from tests.real_texts import read, write_texts

MERGES, NEW_TOKENS = 8000, 4096
MARGIN = 1.05
"""With replay, bits per byte of English and code stay below this times what they were before Chinese came."""
LANGUAGES = ("zh", "en", "code")
Curves = dict[str, dict[str, list[tuple[int, float]]]]
"""Run -> language -> (tokens seen, bits per byte of held-out text)."""


def learn(data: Path, folder: Path, steps: int) -> Curves:
    """A base model of English and code; its vocabulary extended; then Chinese, with replay and without."""
    texts = write_texts(data, folder / "texts")
    write_vocabulary(folder / "vocabulary", read(texts["en"]["train"]) + read(texts["code"]["train"])[::4], MERGES)
    common = [
        "+config=tiny_pretrain",
        "data.bundled=false",
        "data.holdout=0",
        "data.valid_tokens=40000",
        f"data.cache={folder / 'cache'}",
        "train.global_batch_size=16",
        "train.micro_batch_size=8",
        "train.eval_every=40",
        "train.save_every=0",
        "train.log_every=20",
        "optim.lr=2e-3",
    ]

    def prepare(name: str, tokenizer: Path, part: str, languages: tuple[str, ...]) -> Path:
        out = folder / f"{name}_{part}"
        sources = [f"sources.{one}={{path: {texts[one][part]}, language: {one}}}" for one in languages]
        succeeded(python("scripts/prepare.py", f"tokenizer={tokenizer}", f"out={out}", *sources))
        return out

    def pretrain(name: str, corpora: str, tokenizer: Path, languages: tuple[str, ...], *arguments: str) -> Path:
        train, valid = (folder / f"{corpora}_{part}" for part in ("train", "dev"))
        for part, path in (("train", train), ("dev", valid)):
            if not path.exists():
                prepare(corpora, tokenizer, part, languages)
        run_dir = folder / name
        given = [f"run.dir={run_dir}", f"data.train={train}", f"data.valid={valid}", *arguments]
        succeeded(deepspeed(2, "scripts/pretrain.py", *common, *given, timeout=3000))
        return run_dir

    base = pretrain("base", "old", folder / "vocabulary", ("en", "code"), f"train.steps={2 * steps}", "data.weights={en: 0.5, code: 0.5}")
    extend = [f"model={base / 'export'}", f"out={folder / 'extended'}", f"text={texts['zh']['train']}", f"new_tokens={NEW_TOKENS}"]
    succeeded(python("scripts/extend_vocab.py", *extend, "strategy=weighted"))
    start = [f"init_from={folder / 'extended'}", f"train.steps={steps}", "optim.lr=1e-3", "optim.schedule=wsd", "optim.min_lr_ratio=0.1"]
    mixtures = {"with replay": "{zh: 0.6, en: 0.2, code: 0.2}", "without replay": "{zh: 1}"}
    curves: Curves = {}
    for name, weights in mixtures.items():
        run_dir = pretrain(name.replace(" ", "_"), "new", folder / "extended", LANGUAGES, *start, f"data.weights={weights}")
        events = [event for event in metrics(run_dir) if "eval/valid/loss" in event]
        curves[name] = {
            language: [(event["tokens_seen"], event[f"eval/valid/bits_per_byte/{language}"]) for event in events] for language in LANGUAGES
        }
    return curves


@pytest.mark.slow
def test_replay_keeps_english_and_code_while_chinese_is_learned(real_data: Path, tmp_path: Path) -> None:
    curves = learn(real_data, tmp_path, steps=200)
    record("replay", curves)
    for name, by_language in curves.items():
        first, last = by_language["zh"][0][1], by_language["zh"][-1][1]
        assert last < 0.8 * first, name
    for language in ("en", "code"):
        kept, lost = (curves[name][language] for name in ("with replay", "without replay"))
        assert kept[-1][1] < MARGIN * kept[0][1]
        assert lost[-1][1] > MARGIN * lost[0][1]
        assert kept[0] == lost[0]


def draw(curves: Curves, image: Path) -> None:
    """A picture a language, a curve a run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(LANGUAGES), figsize=(12, 3.6), constrained_layout=True)
    titles = {"zh": "Chinese (dialogues)", "en": "English (dialogues)", "code": "code (Python's library)"}
    for axis, language in zip(axes, LANGUAGES):
        for (name, by_language), style in zip(curves.items(), ("-", "--")):
            tokens, bits = zip(*by_language[language])
            axis.plot([one / 1e6 for one in tokens], bits, style, label=name, marker=".", color="#1f5a96" if style == "-" else "#b4442c")
        axis.axhline(by_language[language][0][1], color="grey", linewidth=0.8, label="before Chinese came")
        axis.set_title(titles[language])
        axis.set_xlabel("million tokens")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("bits per byte, held-out text")
    axes[1].legend()
    figure.savefig(image, dpi=110)


def main() -> None:
    """Prints a table, and draws."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp())
    curves = learn(arguments.data, folder.absolute(), arguments.steps)
    print("| | tokens | zh | en | code |\n|---|---|---|---|---|")
    for name, by_language in curves.items():
        for place, label in ((0, "start"), (-1, name)):
            values = " | ".join(f"{by_language[language][place][1]:.3f}" for language in LANGUAGES)
            print(f"| {label} | {by_language['zh'][place][0]:,} | {values} |")
    (folder / "curves.json").write_text(json.dumps(curves))
    if arguments.image:
        draw(curves, arguments.image)


if __name__ == "__main__":
    main()
