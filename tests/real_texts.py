"""Real prose in two languages and real code, each in a part to learn from and a held-out part."""

from __future__ import annotations

import json
import random
import sysconfig
from pathlib import Path

import regex

from moss_train.data.dialogue import read_dialogues

HAN = regex.compile(r"\p{Han}")


def write_texts(data: Path, out: Path) -> dict[str, dict[str, Path]]:
    """JSONL files with a field `text`: `zh` and `en`, the prose of real dialogues, a document each; `code`, the modules of Python's
    standard library without their tests. By name and part (`train`, `dev`).

    Dialogues keep the split they come with; of the code a tenth, drawn with a fixed seed, is held out.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for part in ("train", "dev"):
        dialogues, _ = read_dialogues(str(data / "moss-003-sft-sample" / f"{part}.jsonl"))
        for dialogue in dialogues:
            text = "\n".join(content for turn in dialogue.turns for content in (turn.human, turn.moss) if content)
            han = len(HAN.findall(text))
            if han == 0 or han > len(text) / 5:
                found.setdefault(("en" if han == 0 else "zh", part), []).append(text)
    library = Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in sorted(library.rglob("*.py")):
        if not {"test", "tests", "site-packages", "idle_test"} & set(path.relative_to(library).parts):
            modules.append(path.read_text(encoding="utf-8", errors="strict"))
    random.Random(0).shuffle(modules)
    found["code", "dev"], found["code", "train"] = modules[: len(modules) // 10], modules[len(modules) // 10 :]
    paths: dict[str, dict[str, Path]] = {}
    out.mkdir(parents=True, exist_ok=True)
    for (name, part), texts in found.items():
        path = out / f"{name}_{part}.jsonl"
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
        paths.setdefault(name, {})[part] = path
    return paths


def read(path: Path) -> list[str]:
    """The texts of one of the files."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
