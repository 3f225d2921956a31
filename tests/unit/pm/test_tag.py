"""Tagging: scored lines become dialogues with levels, the scale is frozen, and the record says where it comes from."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moss_train.artifacts import lineage
from moss_train.data.dialogue import BY_MOSS
from moss_train.data.formats import parse
from moss_train.data.paths import find_files
from moss_train.errors import CheckpointError, DataError, UsageError
from moss_train.pm.levels import LevelsBy
from moss_train.pm.tag import main
from moss_train.pm.tag_config import TagConfig


def line(number: int, rewards: list[float | None], **more: Any) -> dict[str, Any]:
    turns = [{"human": " Hi", "moss": " Hello"}, {"human": f" {number}?"}]
    responses = [{"moss": f" {reward}", "reward": reward, "finish": "stop"} for reward in rewards]
    return {"id": f"{number}", "context": {"meta_instruction": "Be.\n", "turns": turns}, "responses": responses, **more}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
    return path


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    return write(tmp_path / "scored.jsonl", [line(number, [float(4 * number + k) for k in range(4)]) for number in range(5)])


def read(path: Path) -> list[Any]:
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]


def test_every_response_becomes_a_dialogue_with_its_level(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(scored), out=str(out)))
    dialogues = [parse(one, "here") for one in read(out)]
    assert [one.turns[-1].level for one in dialogues] == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4 + [5] * 4
    assert dialogues[5].turns[-1].human == " 1?"
    assert dialogues[5].turns[-1].moss == " 5.0"
    # What came before was not rewarded: it is not learned, and it has no tag.
    assert all(one.turns[0].untrained == BY_MOSS and one.turns[0].level is None for one in dialogues)
    report = json.loads(Path(f"{out}.tagging.json").read_text())
    assert report["counts"] == {f"level_{level}": 4 for level in range(1, 6)}
    assert report["responses_per_context"] == {"4": 5}
    record, tagging = lineage.read(out), lineage.read(Path(f"{out}.tagging.json"))
    assert record is not None
    assert tagging is not None
    assert [parent["id"] for parent in record["parents"] if parent["role"] == "tagger"] == [tagging["id"]]


def test_another_round_is_measured_with_the_same_scale(scored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    main(TagConfig(scored=str(scored), out=str(first)))
    better = write(tmp_path / "better.jsonl", [line(number, [18.0, 19.0, 30.0, None]) for number in range(3)])
    tagging = f"{first}.tagging.json"
    with caplog.at_level(logging.INFO, "moss_train"):
        main(TagConfig(scored=str(better), out=str(second), frozen=tagging, previous=tagging))
    assert f"by the levels of {tagging}: level_1 20.0% -> 0.0%," in caplog.text
    assert "level_5 20.0% -> 100.0%; mean level 3.00 -> 5.00" in caplog.text
    assert Counter(parse(one, "here").turns[-1].level for one in read(second)) == {5: 9}
    report = json.loads(Path(f"{second}.tagging.json").read_text())
    assert report["scale"] == json.loads(Path(tagging).read_text())["scale"]
    assert report["counts"] == {"level_1": 0, "level_2": 0, "level_3": 0, "level_4": 0, "level_5": 9, "no_reward": 3}
    assert report["frozen_counts"] == {f"level_{level}": 4 for level in range(1, 6)}
    assert report["changed"] == {"compared": 9, "changed": 0}
    recorded = lineage.read(second)
    assert recorded is not None
    # What decides about levels is said once: by the scale.
    assert recorded["details"]["settings"].keys() == {"scored", "out", "frozen", "previous", "unfinished"}
    of_tagging = lineage.read(Path(f"{second}.tagging.json"))
    assert of_tagging is not None
    assert [(parent["role"], parent["name"]) for parent in of_tagging["parents"]] == [("source", "first.jsonl.tagging.json")]
    third = tmp_path / "third.jsonl"
    main(TagConfig(scored=str(scored), out=str(third), by=LevelsBy.thresholds, levels=2, thresholds=[9.5], previous=tagging))
    # Level 1 stays for the first four; 2 becomes 1 for four, and 2 for none of the rest.
    assert json.loads(Path(f"{third}.tagging.json").read_text())["changed"] == {"compared": 20, "changed": 16}


def scored_by(folder: Path, model: str, lines: list[dict[str, Any]]) -> Path:
    """A scored file whose record names a preference model."""
    path = write(folder / f"by_{model}.jsonl", lines)
    lineage.write(path, lineage.Lineage("data", "score", [lineage.Parent("tagger", f"sha256:{model}", "export")]))
    return path


def test_levels_are_not_frozen_from_another_preference_model(tmp_path: Path) -> None:
    lines = [line(number, [float(4 * number + k) for k in range(4)]) for number in range(5)]
    first, second, unknown = scored_by(tmp_path, "aa", lines), scored_by(tmp_path, "bb", lines), write(tmp_path / "lost.jsonl", lines)
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(first), out=str(out)))
    tagging = f"{out}.tagging.json"
    assert json.loads(Path(tagging).read_text())["preference_model"] == ["sha256:aa"]
    for option in ("frozen", "previous"):
        with pytest.raises(UsageError, match=f"{option}=.* by the preference model sha256:aa, .* sha256:bb: .*leave out {option}"):
            main(TagConfig(scored=str(second), out=str(tmp_path / "no.jsonl"), **{option: tagging}))
    for number, scored in enumerate((first, unknown)):
        main(TagConfig(scored=str(scored), out=str(tmp_path / f"again-{number}.jsonl"), frozen=tagging))


def test_a_frozen_record_that_was_changed_is_refused(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(scored), out=str(out)))
    tagging = Path(f"{out}.tagging.json")
    report = json.loads(tagging.read_text())
    report["scale"]["thresholds"][0] += 1.0
    tagging.write_text(json.dumps(report, indent=1) + "\n")
    config = TagConfig(scored=str(scored), out=str(tmp_path / "second.jsonl"), frozen=str(tagging))
    with pytest.raises(CheckpointError, match=r"frozen=(.|\n)*tagged\.jsonl\.tagging\.json is changed"):
        main(config)
    assert not Path(config.out).exists()
    # Without its record it is one that somebody wrote, and is taken as it is.
    lineage.record_path(tagging).unlink()
    main(config)
    again = json.loads(Path(f"{config.out}.tagging.json").read_text())
    assert again["scale"] == report["scale"]


def test_the_record_of_a_tagging_is_no_data(scored: Path, tmp_path: Path) -> None:
    (tmp_path / "round1").mkdir()
    main(TagConfig(scored=str(scored), out=str(tmp_path / "round1" / "tagged.jsonl")))
    assert find_files(str(tmp_path / "round1")) == find_files(str(tmp_path / "round1" / "*")) == [tmp_path / "round1" / "tagged.jsonl"]


def dialogue_record(*replies: str | None) -> dict[str, Any]:
    turns: dict[str, dict[str, str]] = {}
    for number, reply in enumerate(replies, 1):
        turns[f"turn_{number}"] = {"Human": f"<|Human|>: {number}?<eoh>\n"}
        if reply is not None:
            turns[f"turn_{number}"]["MOSS"] = f"<|MOSS|>:{reply}<eom>\n"
    return {"conversation_id": "1", "meta_instruction": "", "num_turns": len(turns), "chat": turns}


def test_the_turns_of_a_dialogue_are_no_responses_to_one_context(tmp_path: Path) -> None:
    """Blended levels are those of all replies alone, for no other reply was given in the same place."""
    pool = [[0.0, 5.0], [1.0, 6.0], [2.0, 7.0], [3.0, 8.0]]
    lines = [{"id": "1", "origin": "x:1", "dialogue": dialogue_record(" a", " b"), "rewards": rewards} for rewards in pool]
    scored = write(tmp_path / "scored.jsonl", lines)
    for by, within in ((LevelsBy.blended, 1.0), (LevelsBy.quantiles, 0.5)):
        out = tmp_path / f"{by}.jsonl"
        main(TagConfig(scored=str(scored), out=str(out), by=by, within=within, levels=4))
        assert [[turn.level for turn in parse(one, "here").turns] for one in read(out)] == [[1, 3], [1, 3], [2, 4], [2, 4]]
        assert json.loads(Path(f"{out}.tagging.json").read_text())["responses_per_context"] == {"1": 8}


def test_a_dialogue_that_ends_with_a_question_keeps_the_replies_before_it(tmp_path: Path) -> None:
    given: list[tuple[dict[str, Any], list[float | None]]] = [
        (dialogue_record(" a", " b", None), [0.0, 2.0, None]),
        (dialogue_record(None), [None]),
        (dialogue_record(" c"), [1.0]),
    ]
    scored = write(tmp_path / "scored.jsonl", [{"id": "1", "origin": "x", "dialogue": one, "rewards": of} for one, of in given])
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(scored), out=str(out), levels=3))
    levels = [[turn.level for turn in parse(one, "here").turns] for one in read(out)]
    assert levels == [[1, 3], [2]]
    counts = json.loads(Path(f"{out}.tagging.json").read_text())["counts"]
    assert counts == {"level_1": 1, "level_2": 1, "level_3": 1, "no_reward": 2}


def test_what_training_could_not_read_is_left_out_and_counted(tmp_path: Path) -> None:
    """A model may spell the control token that ends a reply; written after that, it would stand there twice."""
    lines = [line(number, [float(number), float(number + 10)]) for number in range(4)]
    lines[0]["responses"][1]["moss"] = " ten <eom>"
    lines[1]["responses"][1]["moss"] = " "
    lines[2]["responses"][1]["moss"] = " <eom> is how a reply ends"
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(write(tmp_path / "scored.jsonl", lines)), out=str(out), levels=2))
    assert [parse(one, "here").turns[-1].level for one in read(out)] == [1, 1, 1, 2, 2, 2]
    counts = json.loads(Path(f"{out}.tagging.json").read_text())["counts"]
    assert counts == {"level_1": 3, "level_2": 3, "doubled_terminator": 1, "empty_moss": 1}


def test_whole_dialogues_get_a_level_at_every_reply(tmp_path: Path) -> None:
    record = dialogue_record(" b", " d")
    scored = write(
        tmp_path / "scored.jsonl",
        [
            {"id": "1", "origin": "x:1", "dialogue": record, "rewards": [1.0, None]},
            {"id": "1", "origin": "x:1", "dialogue": record, "rewards": [0.0, 2.0]},
        ],
    )
    out = tmp_path / "tagged.jsonl"
    main(TagConfig(scored=str(scored), out=str(out), levels=3))
    assert [[turn.level for turn in parse(one, "here").turns] for one in read(out)] == [[2, None], [1, 3]]


def test_responses_that_were_cut_off_are_left_out(tmp_path: Path) -> None:
    lines = [line(number, [float(number), float(number + 10)]) for number in range(4)]
    lines[0]["responses"][1]["finish"] = "length"
    scored = write(tmp_path / "scored.jsonl", lines)
    main(TagConfig(scored=str(scored), out=str(tmp_path / "without.jsonl"), levels=2))
    main(TagConfig(scored=str(scored), out=str(tmp_path / "with.jsonl"), levels=2, unfinished=True))
    assert len(read(tmp_path / "without.jsonl")) == 7
    assert len(read(tmp_path / "with.jsonl")) == 8


def test_what_cannot_be_tagged_is_told(scored: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.jsonl")
    unscored = write(tmp_path / "unscored.jsonl", [{"context": {"turns": [{"human": " ?"}]}, "responses": [{"moss": " !"}]}])
    with pytest.raises(DataError, match=r"1 bad of 1 lines(.|\n)*not_scored"):
        main(TagConfig(scored=str(unscored), out=out))
    with pytest.raises(UsageError, match="no record of a tagging"):
        main(TagConfig(scored=str(scored), out=out, frozen=str(scored)))
    equal = write(tmp_path / "equal.jsonl", [line(0, [1.0, 1.0])])
    with pytest.raises(DataError, match="1 different rewards among 2 do not make 5 levels"):
        main(TagConfig(scored=str(equal), out=out))
    assert not Path(out).exists()
    main(TagConfig(scored=str(scored), out=out))
    with pytest.raises(UsageError, match="exists"):
        main(TagConfig(scored=str(scored), out=out))


def test_a_run_that_was_killed_before_the_dialogues_were_there_is_done_again(scored: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    main(TagConfig(scored=str(scored), out=str(out)))
    whole, tagging = out.read_bytes(), Path(f"{out}.tagging.json").read_bytes()
    out.unlink()
    with pytest.raises(UsageError, match="says something else"):
        main(TagConfig(scored=str(scored), out=str(out), levels=4))
    main(TagConfig(scored=str(scored), out=str(out)))
    assert (out.read_bytes(), Path(f"{out}.tagging.json").read_bytes()) == (whole, tagging)


def test_settings_that_contradict_each_other() -> None:
    def problems(**values: Any) -> list[str]:
        return TagConfig(scored="a", out="b", **values).problems()

    assert problems() == []
    assert problems(by=LevelsBy.thresholds, levels=3, thresholds=[0.0, 1.0]) == []
    for values in (
        {"levels": 1},
        {"thresholds": [1.0]},
        {"by": LevelsBy.thresholds},
        {"by": LevelsBy.thresholds, "levels": 3, "thresholds": [1.0, 0.0]},
        {"within": 2.0},
        {"abstain": -1.0},
        {"frozen": "c", "levels": 4},
    ):
        assert problems(**values)
