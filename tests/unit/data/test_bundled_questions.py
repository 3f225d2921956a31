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


def prompts(part: str) -> list[dict[str, object]]:
    lines = (FOLDER / f"checked_prompts_{part}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def asked_in(path: Path) -> set[str]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {turn["Human"].split(": ", 1)[1].rsplit("<", 1)[0] for record in records for turn in record["chat"].values()}


def test_the_files_are_what_the_program_writes(tmp_path: Path) -> None:
    for path in make_prompts.write_files(tmp_path):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes()


def without_opener(text: str) -> str:
    found = [text[len(opener) :] for openers in make_prompts.OPENERS.values() for opener in openers if opener and text.startswith(opener)]
    return found[0] if found else text


def test_nothing_that_is_trained_on_asks_what_is_held_out(tmp_path: Path) -> None:
    trained = {str(one["prompt"]) for one in prompts("train")}
    for path in [FOLDER / "dialogues_train.jsonl", *make_prompts.write_dialogues(tmp_path)]:
        trained |= asked_in(path)
    held_out = [without_opener(str(one["prompt"])) for one in prompts("heldout")]
    assert len(held_out) == len(set(held_out)) > 90
    assert not {without_opener(text) for text in trained} & set(held_out)


def test_the_checker_takes_the_known_reply_and_no_other() -> None:
    found = {cell.turn.human: cell for language in make_prompts.LANGUAGES for cell in make_prompts.cells(language)}
    for record in prompts("heldout"):
        turn = found[without_opener(str(record["prompt"]))].turn
        right = {"thoughts": " ?", "commands": f" {', '.join(turn.commands) or 'None'}", "results": f"\n{''.join(turn.results)}\n"}
        responses = [{**right, "moss": f" {turn.reply}"}, {**right, "moss": " 0?"}]
        line = {"context": {"turns": [{"human": " ?"}]}, "responses": responses, **record}
        assert rank_line(make_line(0, "here", parse_responses(line, "here")), None).ranks == [1, 2]


def test_a_product_has_to_be_calculated() -> None:
    (record, *_) = [one for one in prompts("heldout") if one["checker"] == "calls"]
    moss = f" {record['answer']}."
    responses = [{"thoughts": " ?", "commands": commands, "results": " ?", "moss": moss} for commands in (f" {record['call']}", " None")]
    line = {"context": {"turns": [{"human": " ?"}]}, "responses": responses, **record}
    assert rank_line(make_line(0, "here", parse_responses(line, "here")), None).ranks == [1, 2]
