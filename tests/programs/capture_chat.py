"""Draws the picture of docs/generate.md: a chat with a model, as it looks in the terminal.

python -m tests.programs.capture_chat MODEL_DIR "message" "message" ...
"""

from __future__ import annotations

import io
import json
import sys
from importlib import resources

from rich.console import Console

from moss_train.inference.config import GenerateConfig
from moss_train.inference.generate import system_text
from moss_train.inference.speaker import Speaker
from moss_train.inference.terminal import chat
from tests.launch import REPOSITORY


def bundled_system() -> str:
    """The meta instruction of the first bundled dialogue that calls the calculator."""
    path = resources.files("moss_train.data.bundled") / "dialogues_dev.jsonl"
    records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    text: str = next(record["meta_instruction"] for record in records if record["category"] == "calculator_en")
    return text


def main() -> None:
    """Types the messages, and writes docs/images/chat.svg."""
    directory, *messages = sys.argv[1:]
    # The meta instruction of the bundled dialogues, which the model was trained with, its tools switched on.
    system = bundled_system()
    config = GenerateConfig(model=directory, chat=True, temperature=0.0, thoughts=True, system=system)
    sys.stdin = io.StringIO("\n".join(messages) + "\n")
    console = Console(record=True, width=92, force_terminal=True, highlight=False)
    chat(Speaker(config, 1), system_text(config), console)
    console.save_svg(str(REPOSITORY / "docs" / "images" / "chat.svg"), title="python scripts/generate.py model=DIR chat=true")


if __name__ == "__main__":
    main()
