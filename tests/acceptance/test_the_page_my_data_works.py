"""docs/my-data.md: its commands work as they stand, one after another, and print what it shows."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from moss_train.data.formats import FORMATS, detect, parse
from moss_train.data.lint import EXPLANATIONS
from tests.launch import REPOSITORY, environment

PAGE = REPOSITORY / "docs" / "my-data.md"
# Numbers and bars of a block marked `about`; they may change with the versions of tokenizers and torch.
_ABOUT = re.compile(r"[\d,.%█▏▎▍▌▋▊▉]+")
ELISION = "..."


class Block(NamedTuple):
    """A fenced block: what stands after the fence, and its lines."""

    info: str
    lines: list[str]


def blocks() -> list[Block]:
    """The fenced blocks of the page, in order."""
    text = PAGE.read_text(encoding="utf-8")
    return [Block(match[1].strip(), match[2].splitlines()) for match in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)]


def normal(line: str, about: bool) -> str:
    """A line without what may differ."""
    return " ".join(_ABOUT.sub("#" if about else r"\g<0>", line).split())


def assert_shown(shown: Block, printed: str) -> None:
    """Each line of a `text` block is the beginning of a printed line, in this order; `...` stands for any lines between."""
    about = "about" in shown.info
    lines = iter([normal(line, about) for line in printed.splitlines()])
    for line in shown.lines:
        wanted = normal(line, about)
        if line.strip() != ELISION:
            assert any(found.startswith(wanted) for found in lines), f"{line!r} is not printed, or not in this place; printed:\n{printed}"


def test_the_commands_work_and_print_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    printed = ""
    seconds = {}
    for block in blocks():
        if block.info == "bash":
            started = time.monotonic()
            script = "\n".join(block.lines)
            result = subprocess.run(
                # A block that shows an exit code goes on after a command that fails.
                ["bash", "-uc" if "$?" in script else "-euc", script],
                cwd=tmp_path,
                env=environment(TERM="dumb"),
                capture_output=True,
                text=True,
                timeout=300,
                stdin=subprocess.DEVNULL,
            )
            printed = result.stdout
            seconds[block.lines[0][:60]] = round(time.monotonic() - started, 1)
            assert result.returncode == 0, f"{block.lines}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
            assert "Traceback" not in result.stdout + result.stderr
        elif block.info.startswith("text"):
            assert_shown(block, printed)
    print(seconds)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(reject["origin"], reject["code"]) for reject in rejects] == [
        ("my/support.jsonl:2", "no_reply"),
        ("my/support.jsonl:3", "missing_key"),
    ]
    assert (tmp_path / "stats.png").read_bytes().startswith(b"\x89PNG")
    assert any((tmp_path / "cache").iterdir())


def test_the_page_shows_what_was_expected_to_fail() -> None:
    """The comparison itself: a line that is not printed, and lines in another order, are noticed."""
    assert_shown(Block("text", ["b", "..."]), "a\nb c\nd\n")
    assert_shown(Block("text about", ["rows 12 ██ of 3.5%"]), "rows  7 █ of 99%\n")
    for wrong in (["x"], ["d", "a"], ["a", "a"]):
        with pytest.raises(AssertionError, match="is not printed"):
            assert_shown(Block("text", wrong), "a\nb c\nd\n")


def test_every_format_has_a_row_that_is_read_as_it() -> None:
    rows = {block.info.removeprefix("json "): block.lines for block in blocks() if block.info.startswith("json")}
    assert set(rows) == set(FORMATS)
    for name, lines in rows.items():
        for line in lines:
            assert detect(json.loads(line), "page:1") == name
            assert parse(json.loads(line), "page:1").turns[-1].moss is not None


def test_every_code_is_in_the_tables() -> None:
    """Codes stand as literals where errors are made: RecordError(origin, CODE, ...), JsonProblem(CODE, ...), and `code=`."""
    codes = set(EXPLANATIONS) | {"empty_human", "empty_moss"}
    data = REPOSITORY / "moss_train" / "data"
    # What is wrong with documents, which are no dialogues, is on a page of its own (docs/prepare.md).
    for path in (path for path in data.rglob("*.py") if path.parent != data / "prepare"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
                continue
            place = {"RecordError": 1, "JsonProblem": 0, "PackedFileProblem": 0}.get(call.func.id)
            given = [] if place is None or len(call.args) <= place else [call.args[place]]
            for value in [*given, *(keyword.value for keyword in call.keywords if keyword.arg == "code")]:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    codes.add(value.value)
    assert len(codes) > 40, "codes are found"
    # Those of comparisons are on the page of the preference model.
    text = PAGE.read_text(encoding="utf-8") + (REPOSITORY / "docs" / "pm.md").read_text(encoding="utf-8")
    assert sorted(code for code in codes if f"`{code}`" not in text) == []
