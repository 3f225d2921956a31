"""The family and the captures of docs/lineage.md: converted data, a training from nothing, a second one on its export, a copy in fp16.

python -m tests.programs.capture_lineage    # trains for a minute, draws docs/images/lineage.svg anew, and prints what the page shows
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from moss_train.artifacts import lineage_tool
from moss_train.data import tool
from tests.forked import forked
from tests.launch import REPOSITORY, succeeded
from tests.small_runs import BUNDLED

PAGE = REPOSITORY / "docs" / "lineage.md"
COMMON = (
    "+config=tiny_sft",
    "data.holdout=0.1",
    "data.seq_len=512",
    "train.eval_every=0",
    "train.eval_at_start=false",
    "train.log_every=10",
    "tokenizer.train_vocab_size=1024",
)


@dataclass(frozen=True)
class Runs:
    """Where everything is.

    Attributes:
        root: Of the family; its runs were started in it. data, more: Converted files.
        base: A run from random weights on the first. chat: A run on the second that starts from its export, tracked offline.
        common: Arguments that both share. shown: What the second one said.
    """

    root: Path
    data: Path
    more: Path
    base: Path
    chat: Path
    common: list[str]
    shown: str


def make(root: Path) -> Runs:
    """Trains the family below an empty directory."""
    data, more = root / "dialogues.jsonl", root / "more.jsonl"
    for source, out in ((f"{BUNDLED}#200", data), (str(BUNDLED.with_name("dialogues_dev.jsonl")), more)):
        with contextlib.redirect_stdout(io.StringIO()):
            assert tool.main(["convert", source, str(out), "--to", "messages", "--licence", "Apache-2.0"]) == 0
    common = [*COMMON, f"data.cache={root / 'cache'}"]
    succeeded(forked(1, "scripts/sft.py", *common, "data.train=dialogues.jsonl", "run.dir=runs/base", "train.steps=20", cwd=root))
    second = ("data.train=more.jsonl", "init_from=runs/base/export", "run.dir=runs/chat", "train.steps=10")
    shown = succeeded(forked(2, "scripts/sft.py", *common, *second, "tracking=wandb", "tracking.wandb=offline", cwd=root)).stdout
    succeeded(forked(1, "scripts/export.py", "model=runs/chat/export", "out=runs/chat/export-fp16", "dtype=fp16", cwd=root))
    return Runs(root, data, more, root / "runs" / "base", root / "runs" / "chat", common, shown)


COMMANDS = (
    "python scripts/lineage.py show runs/chat/export",
    "python scripts/lineage.py verify runs/chat/export",
    "python scripts/lineage.py children dialogues.jsonl runs/",
    "python scripts/lineage.py diff runs/base/export runs/chat/export",
)


def captures(runs: Runs) -> dict[str, str]:
    """What each command prints."""
    found = {}
    before = Path.cwd()
    os.chdir(runs.root)
    try:
        for command in COMMANDS:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                assert lineage_tool.main(command.split()[2:]) == 0
            found[command] = "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"
    finally:
        os.chdir(before)
    return found


def main() -> None:
    """Makes the captures anew, in the page too."""
    with tempfile.TemporaryDirectory() as folder:
        runs = make(Path(folder))
        page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
        for command, text in captures(runs).items():
            block = f"```console\n$ {command}\n{text}```"
            page = re.sub(rf"```console\n\$ {re.escape(command)}\n.*?```", lambda _, block=block: block, page, flags=re.DOTALL)
            print(block)
        assert lineage_tool.main(["show", str(runs.chat / "export"), "--svg", str(PAGE.parent / "images" / "lineage.svg")]) == 0
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
