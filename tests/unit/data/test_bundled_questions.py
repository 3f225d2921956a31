"""The bundled questions with checkable answers: reproducible, and fairly split."""

from __future__ import annotations

import json
from pathlib import Path

import moss_train.data.bundled
from moss_train.data.bundled import make_prompts
from moss_train.data.comparisons import parse_responses
from moss_train.pm.checkers import rank_line
from moss_train.pm.ranking import make_line

FOLDER = Path(moss_train.data.bundled.__file__).parent


def prompts(part: str, name: str = "") -> list[dict[str, object]]:
    lines = (FOLDER / f"checked_prompts{name}_{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked_in(path: Path) -> set[str]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {turn["Human"].split(": ", 1)[1].rsplit("<", 1)[0] for record in records for turn in record["chat"].values()}


def test_the_files_are_what_the_program_writes(tmp_path: Path) -> None:
    for path in make_prompts.write_files(tmp_path):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


def test_nothing_that_is_trained_on_asks_what_is_held_out(tmp_path: Path) -> None:
    trained = {str(one["prompt"]) for name in ("", "_calculator") for one in prompts("train", name)}
    for path in [FOLDER / "dialogues_train.jsonl", *make_prompts.write_dialogues(tmp_path)]:
        trained |= asked_in(path)
    held_out = [str(one["prompt"]) for name in ("", "_calculator") for one in prompts("heldout", name)]
    assert len(held_out) == len(set(held_out)) > 100
    assert not trained & set(held_out)


def test_the_checker_takes_the_known_reply_and_no_other() -> None:
    found = {cell.turn.human: cell for language in make_prompts.LANGUAGES for cell in make_prompts.cells(language)}
    for name in ("", "_calculator"):
        for record in prompts("heldout", name):
            right = found[str(record["prompt"])].turn.reply
            line = {"context": {"turns": [{"human": " ?"}]}, "responses": [{"moss": f" {right}"}, {"moss": " 0?"}], **record}
            assert rank_line(make_line(0, "here", parse_responses(line, "here")), None).ranks == [1, 2]
