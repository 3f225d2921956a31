"""The suite `control` on models that provably obey their tags, or provably do not: what it finds, what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts import lineage
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.moss003 import write_moss003
from tests.forked import forked
from tests.launch import succeeded
from tests.obedient_models import QUESTIONS, WORDS, export_obedient, save_seeing_pm
from tests.preference_models import read_lines, write_lines

SCRIPT = "scripts/evaluate.py"
SAMPLES = 4
FILES = ["control.png", "lineage.json", "report.json", "report.md", "responses.jsonl"]


class Made:
    """Models and files that all tests share."""

    def __init__(self, folder: Path):
        self.tagger, self.judge = save_seeing_pm(folder / "tagger"), save_seeing_pm(folder / "judge", 2.0)
        self.prompts = write_lines(
            folder / "prompts.jsonl",
            [
                {"id": f"q{number}", "prompt": f"{QUESTIONS[number % len(QUESTIONS)]} {number}", "category": ("a", "b")[number % 2]}
                | ({} if number == 7 else {"checker": "exact", "answer": WORDS[-1]})
                for number in range(16)
            ],
        )
        responses = write_lines(
            folder / "responses.jsonl",
            [
                {"context": {"turns": [{"human": f" {question}"}]}, "responses": [{"moss": word, "finish": "stop"} for word in WORDS]}
                for question in QUESTIONS
            ],
        )
        scored, tagged = folder / "scored.jsonl", folder / "tagged.jsonl"
        succeeded(forked(1, "scripts/score.py", f"model={self.tagger}", f"responses={responses}", f"out={scored}"))
        succeeded(forked(1, "scripts/tag.py", f"scored={scored}", f"out={tagged}", "levels=3"))
        self.model = export_obedient(folder / "obeys" / "export", parents=[lineage.parent_of(tagged, "data")])
        # The same but for what the tag does.
        self.deaf = export_obedient(folder / "deaf" / "export", strength=0.0)
        self.sft = export_obedient(folder / "sft" / "export", strength=0.0, levels={})
        said = [Dialogue(f"d{number}", "", (Turn(f" {question}", moss=WORDS[-1]),)) for number, question in enumerate(QUESTIONS)]
        self.dialogues = write_lines(folder / "heldout.jsonl", map(write_moss003, said))

    def arguments(self, out: Path, *more: str, model: Path | None = None, pm: Path | None = None) -> list[str]:
        return [
            "suite=control", f"model={model or self.model}", f"pm={pm or self.judge}", f"prompts={self.prompts}", f"out={out}",
            f"samples={SAMPLES}", "max_new_tokens=4", "system=''", *more,
        ]  # fmt: skip

    def alternatives(self) -> list[str]:
        best_of = f"best_of={{model: {self.sft}, pm: {self.tagger}, samples: 4}}"
        return [f"against={{sft: {self.sft}}}", best_of, "guidance=[3]", f"data={self.dialogues}"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def found(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model that obeys, beside all alternatives."""
    out = tmp_path_factory.mktemp("found") / "out"
    succeeded(forked(1, SCRIPT, *made.arguments(out, *made.alternatives())))
    return out


def report_of(out: Path) -> Any:
    return json.loads((out / "report.json").read_text(encoding="utf-8"))


def test_a_model_that_obeys_is_found_to(found: Path) -> None:
    report = report_of(found)
    levels = ["level 1", "level 2", "level 3"]
    assert list(report["conditions"]) == ["none", *levels, *(f"{one}, guidance 3" for one in levels), "sft", "best of 4"]
    assert report["matrix"]["rows"] == ["none", "level 1", "level 2", "level 3"]
    shares = report["matrix"]["shares"]
    # Of each level the word comes 96 times in 100; one or two responses beside a threshold have the level next to their own.
    assert all(shares[1 + place][place] > 0.8 for place in range(3))
    assert report["agreement"]["share"] > 0.85
    spearman = report["spearman"]["reward"]
    assert spearman["value"] > 0.8
    assert spearman["interval"][0] > 0.7
    assert spearman["within"] > 0.8
    (guided,) = report["guided"]
    assert (guided["guidance"], guided["spearman"]["reward"]["value"] >= spearman["value"]) == (3.0, True)
    wins = {one["name"]: one for one in report["contrasts"]}
    # Where the word is the best, it is so 96 times in 100, and against a word at random it wins 2 in 3 and is equal 1 in 3.
    assert wins["best over worst"]["win"]["rate"] > 0.9
    assert 0.7 < wins["best over none"]["win"]["rate"] < 0.95
    assert wins["best over none"]["equal_length"]["rate"] == wins["best over none"]["win"]["rate"]
    said = "\n".join(report["conclusion"])
    assert "The tag steers, over all responses" in said
    assert "(level 3 over none)" in said
    assert "level 3 wins." in said


def test_answers_that_are_checked(found: Path) -> None:
    conditions = report_of(found)["conditions"]
    right = {name: one["correct"]["share"] for name, one in conditions.items()}
    assert conditions["none"]["correct"]["responses"] == 15 * SAMPLES
    assert set(conditions["none"]["correct"]["by_category"]) == {"a", "b"}
    # One word in three; the third one; and one of four: 1 - (2/3)^4.
    assert 0.15 < right["none"] < 0.5
    assert right["level 1"] < 0.1
    assert right["level 3"] > 0.85
    assert 0.6 < right["best of 4"] < 0.95
    assert right["level 3, guidance 3"] >= right["level 3"]
    # The models without a tag are the same here, and so are their random numbers.
    assert right["sft"] == right["none"]
    assert conditions["sft"]["over_none"]["win"]["rate"] == 0.5
    assert "over_sft" not in conditions["sft"]
    assert conditions["level 3"]["over_sft"] == conditions["level 3"]["over_none"]


def test_side_effects(found: Path) -> None:
    conditions = report_of(found)["conditions"]
    for one in conditions.values():
        assert (one["responses"], one["empty"], one["not_read"]) == (16 * SAMPLES, 0, 0)
        assert one["length"]["mean"] == 1
        assert one["tokens"]["mean"] == 2
        assert one["finished"]["share"] == 1
        assert (one["refused"]["share"], one["calls"]["share"]) == (0, 0)
        assert one["distinct_2"] is None
    assert conditions["none"]["distinct_1"] == 3 / (16 * SAMPLES)
    # Replies are a word, and the end and its newline, which are certain: the word has 1/3, 96 and 2 in 100.
    assert conditions["none"]["held_out"]["log_probability"] == pytest.approx(-math.log(3) / 3, abs=1e-3)
    assert conditions["none"]["held_out"]["perplexity"] == pytest.approx(3 ** (1 / 3), abs=1e-3)
    assert conditions["none"]["held_out"]["tokens"] == 3 * len(QUESTIONS)
    assert conditions["level 3"]["held_out"]["log_probability"] == pytest.approx(math.log(0.965) / 3, abs=2e-3)
    assert conditions["level 1"]["held_out"]["log_probability"] == pytest.approx(math.log(0.0174) / 3, abs=2e-2)
    assert conditions["best of 4"]["held_out"] is None
    assert conditions["level 3, guidance 3"]["held_out"] is None


def test_every_response_is_written(found: Path) -> None:
    lines = read_lines(found / "responses.jsonl")
    assert len(lines) == 16 * 9 * SAMPLES
    first = lines[0]
    assert {"id": "q0", "prompt": "Hi 0", "condition": "none", "sample": 0, "finish": "stop", "length": 1}.items() <= first.items()
    assert [line["correct"] for line in lines if line["id"] == "q7"] == [None] * 9 * SAMPLES
    assert all(line["correct"] == (line["moss"] == WORDS[-1]) for line in lines if line["id"] != "q7")
    # Equal replies to one prompt have equal rewards, and the reward is larger for a later word.
    rewards = {(line["id"], line["moss"]): line["reward"] for line in lines}
    assert all(line["reward"] == rewards[line["id"], line["moss"]] for line in lines)
    assert all(rewards["q0", WORDS[0]] < rewards["q0", word] for word in WORDS[1:])


def test_the_record_names_all_that_took_part(made: Made, found: Path) -> None:
    assert sorted(path.name for path in found.iterdir()) == FILES
    assert (found / "control.png").read_bytes().startswith(b"\x89PNG")
    record = lineage.load(found)
    assert record is not None
    assert (record.lineage.kind, record.lineage.stage) == ("evaluation", "evaluate")
    assert [(one.role, one.id) for one in record.lineage.parents] == [
        ("model", lineage.parent_of(made.model, "model").id),
        ("judge", lineage.foreign_id(made.judge)),
        ("against", lineage.parent_of(made.sft, "against").id),
        ("chooser", lineage.foreign_id(made.tagger)),
    ]
    assert [(one.name, one.role, one.records) for one in record.lineage.data] == [
        ("prompts.jsonl", "evaluation", 16),
        ("heldout.jsonl", "held_out", len(QUESTIONS)),
    ]
    report = report_of(found)
    assert record.lineage.metrics["control/best_over_none"] == report["contrasts"][0]["win"]["rate"]
    assert lineage.foreign_id(made.tagger) in report["taggers"]
    assert report["settings"]["guidance"] == [3.0]
    shown = (found / "report.md").read_text(encoding="utf-8")
    assert "| level 3, guidance 3 |" in shown
    assert report["conclusion"][0] in shown


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_same_settings_give_the_same_bytes(made: Made, found: Path, tmp_path: Path, ranks: int) -> None:
    out = tmp_path / "out"
    succeeded(forked(ranks, SCRIPT, *made.arguments(out, *made.alternatives(), f"batch_size={5 * ranks}")))
    for name in FILES:
        if name != "lineage.json":
            assert (out / name).read_bytes() == (found / name).read_bytes(), name


def test_a_model_that_does_not_hear_its_tag_is_found_not_to(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = succeeded(forked(1, SCRIPT, *made.arguments(out, model=made.deaf)))
    report = report_of(out)
    # The random numbers are the same, so are the replies, to the last one.
    assert report["agreement"]["share"] == pytest.approx(1 / 3)
    assert report["spearman"]["reward"]["value"] == 0
    assert [one["win"]["rate"] for one in report["contrasts"]] == [0.5] * 3
    assert "That the tag steers cannot be told" in ended.stdout
    assert "does not lead to a preference model that gave its levels" in ended.stderr


def test_dialogues_are_answered_too(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [one for one in made.arguments(out) if not one.startswith(("prompts=", "system="))]
    succeeded(forked(1, SCRIPT, *arguments, f"dialogue={made.dialogues}"))
    report = report_of(out)
    assert report["prompts"] == len(QUESTIONS)
    assert report["conditions"]["none"]["correct"] is None
    assert report["settings"]["taken_from"] == "dialogue"


def test_what_cannot_be_measured_is_refused_before_anything_is_answered(made: Made, tmp_path: Path) -> None:
    out, missing = tmp_path / "out", tmp_path / "missing"
    no_words = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Hi", "checker": "exact"}, {"prompt": "Hi", "checker": "spell"}])
    for code, told, arguments in [
        (2, "its lineage names no levels that it was trained with", made.arguments(out, model=made.sft)),
        (2, "is the preference model that gave the levels", made.arguments(out, pm=made.tagger)),
        (2, "that chooses in best_of", made.arguments(out, f"best_of={{model: {made.sft}, pm: {made.judge}}}")),
        (4, "is a language model: it has no reward head", made.arguments(out, pm=made.sft)),
        (4, "against.sft=", made.arguments(out, f"against={{sft: {made.judge}}}")),
        (4, "config.json", made.arguments(out, f"against.sft={missing}")),
        (3, "missing", [*made.arguments(out), f"prompts={missing}.jsonl"]),
        (3, "unknown_checker", [*made.arguments(out), f"prompts={no_words}"]),
        (2, "exactly one of prompts=FILE and dialogue=FILE must be given", [*made.arguments(out), f"dialogue={made.dialogues}"]),
    ]:
        refused = forked(1, SCRIPT, *arguments)
        assert (refused.returncode, told in refused.stderr) == (code, True), refused.stderr
        assert "responses," not in refused.stderr
        assert not out.exists()
    assert all(f":{number}: " in forked(2, SCRIPT, *made.arguments(out), f"prompts={no_words}").stderr for number in (1, 2))
    out.mkdir()
    refused = forked(1, SCRIPT, *made.arguments(out))
    assert refused.returncode == 2
    assert "exists; a finished artefact is never changed" in refused.stderr
