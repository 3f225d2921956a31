"""Public layouts of preferences: what each means as a comparison, and how bad records are named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moss_train.data.comparisons import Comparison, Pair
from moss_train.data.dialogue import meta_instruction
from moss_train.data.formats.preference import parse_preference, read_comparisons, without_ties
from moss_train.data.records import RecordError
from moss_train.errors import DataError, UsageError

OWN = {
    "id": "a",
    "context": {"meta_instruction": "M\n", "turns": [{"human": " Hi", "moss": " Hello"}, {"human": " 2+3?"}]},
    "responses": [{"moss": " 6", "rank": 2}, {"moss": " 5", "rank": 1}],
    "category": "sums",
}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Steal?\n\nAssistant: No.\n\nAsk first.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Steal?\n\nAssistant: Sure",
}
SOLUTIONS = {
    "question": "2+3?",
    "ground_truth": "#### 5",
    "6b": {"is_correct": False, "solution": "6"},
    "6b_verified": {"is_correct": True, "solution": "5"},
    "175b": {"is_correct": True, "solution": "It is 5"},
    "175b_verified": {"is_correct": False, "solution": "six"},
}
BENCH = {"prompt": "法国的首都是哪里？", "chosen": "巴黎。", "rejected": "里昂。", "subset": "facts", "id": 17}
BENCH_2 = {"prompt": "Capital?", "chosen": ["Paris"], "rejected": ["Lyon", "Nice", "Lille"], "subset": "Factuality", "id": "x"}
USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "Hi"), ("assistant", "Hello"), ("assistant", "Go")))
ULTRA = {"prompt": "Hi", "prompt_id": "p1", "chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 8.0}


def replies(comparison: Comparison) -> list[str | None]:
    return [turn.moss for turn in comparison.responses]


def test_our_own_lines() -> None:
    comparison = parse_preference(OWN, "f:1", default_meta="another")
    assert comparison.pairs == (Pair(1, 0),)
    assert (comparison.context.id, comparison.context.meta_instruction, comparison.language) == ("a", "M\n", "en")


def test_transcripts_that_share_all_but_the_last_reply() -> None:
    comparison = parse_preference(HH, "f:1")
    assert [turn.human for turn in comparison.context.turns] == [" Hi", " Steal?"]
    assert (comparison.context.turns[0].moss, comparison.context.turns[0].commands) == (" Hello", " None")
    assert comparison.context.turns[1].moss is None
    assert replies(comparison) == [" No.\n\nAsk first.", " Sure"]
    assert comparison.pairs == (Pair(0, 1),)
    assert comparison.context.meta_instruction == meta_instruction()
    assert comparison.provenance == {"by": "data set", "layout": "hh_rlhf"}


def test_solutions_stand_by_whether_they_are_correct() -> None:
    comparison = parse_preference(SOLUTIONS, "f:1", default_meta="M\n")
    assert replies(comparison) == [" 6", " 5", " It is 5", " six"]
    better = {(pair.better, pair.worse) for pair in comparison.pairs if not pair.tied}
    assert better == {(1, 0), (2, 0), (1, 3), (2, 3)}
    assert {(pair.better, pair.worse) for pair in comparison.pairs if pair.tied} == {(0, 3), (1, 2)}
    assert comparison.context.meta_instruction == "M\n"


def test_a_prompt_with_texts() -> None:
    comparison = parse_preference(BENCH, "f:1")
    assert (comparison.context.id, comparison.category, comparison.language) == ("17", "facts", "zh")
    assert replies(comparison) == [" 巴黎。", " 里昂。"]


def test_a_prompt_with_lists_of_texts_says_nothing_within_a_list() -> None:
    comparison = parse_preference(BENCH_2, "f:1")
    assert replies(comparison) == [" Paris", " Lyon", " Nice", " Lille"]
    assert comparison.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3))


def test_a_prompt_of_messages() -> None:
    prompt = [{"role": "system", "content": "Be kind."}, USER, GOOD, {"role": "user", "content": "2+3?"}]
    comparison = parse_preference({"prompt": prompt, "chosen": "5", "rejected": "6"}, "f:1")
    assert (comparison.context.meta_instruction, len(comparison.context.turns)) == ("Be kind.\n", 2)


@pytest.mark.parametrize(
    "value",
    [
        ULTRA,
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
    ],
    ids=["UltraFeedback", "implicit prompt", "messages", "text"],
)
def test_messages_with_and_without_a_prompt(value: dict[str, Any]) -> None:
    comparison = parse_preference(value, "f:1")
    assert [turn.human for turn in comparison.context.turns] == [" Hi"]
    assert replies(comparison) == [" Hello", " Go"]
    assert comparison.context.id == value.get("prompt_id", "f:1")


def _solved(*correct: Any) -> dict[str, Any]:
    return {"question": "2+3?", **{f"m{n}": {"is_correct": one, "solution": str(n)} for n, one in enumerate(correct)}}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("text", "not_an_object"),
        ({"choosen": "a"}, "unknown_format"),
        ({"question": "a", "answer": "b"}, "unknown_format"),
        ({"chosen": HH["chosen"]}, "missing_side"),
        ({**HH, "rejected": None}, "missing_side"),
        ({**HH, "rejected": "\n\nHuman: Hi"}, "missing_side"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Steal?\n\nAssistant: "}, "empty_response"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: Hey\n\nHuman: Steal?\n\nAssistant: Sure"}, "contexts_differ"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nAssistant: Hello"}, "contexts_differ"),
        ({**HH, "rejected": HH["chosen"]}, "identical_responses"),
        ({**HH, "rejected": "\n\nAssistant: Hi\n\nHuman: Steal?\n\nAssistant: Sure"}, "no_human"),
        ({**HH, "rejected": "\n\nHuman: Hi\n\nHuman: Steal?\n\nAssistant: Sure"}, "two_user_messages"),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "not_a_transcript"),
        ({**HH, "rejected": 3}, "field_not_text"),
        (_solved(True, True, True), "no_preference"),
        (_solved(False, False), "no_preference"),
        (_solved(True), "one_response"),
        (_solved(True, "no"), "bad_rank"),
        ({"question": "a", "m": {"is_correct": True, "solution": " "}, "n": {"is_correct": False, "solution": "b"}}, "empty_response"),
        ({**BENCH, "rejected": []}, "missing_side"),
        ({**BENCH, "rejected": ""}, "empty_response"),
        ({**BENCH_2, "rejected": ["Lyon", 3]}, "field_not_text"),
        ({**BENCH_2, "rejected": ["Lyon", "Paris"]}, "identical_responses"),
        ({**BENCH, "prompt": " "}, "empty_human"),
        ({**BENCH, "prompt": [USER, GOOD]}, "answered_context"),
        ({**ULTRA, "chosen": [USER]}, "missing_side"),
        ({**ULTRA, "chosen": [USER, {**GOOD, "content": ""}]}, "empty_response"),
        ({**ULTRA, "chosen": [{"role": "system", "content": "S"}, USER, GOOD]}, "contexts_differ"),
        ({**ULTRA, "chosen": [{"role": "user", "content": "Bye"}, GOOD]}, "contexts_differ"),
        ({**OWN, "responses": [{"moss": " 5", "rank": 1}]}, "one_response"),
    ],
)
def test_bad_records_are_named(value: Any, code: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_preference(value, "f:1")
    assert caught.value.code == code
    assert str(caught.value).startswith("f:1: ")


def test_files_mix_layouts_and_every_problem_is_counted(tmp_path: Path) -> None:
    tied = {**OWN, "responses": [{"moss": " 5", "rank": 1}, {"moss": " five", "rank": 1}]}
    path = tmp_path / "mixed.jsonl"
    records = [OWN, HH, SOLUTIONS, BENCH, BENCH_2, ULTRA, tied, _solved(True, True), {**BENCH, "rejected": ""}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "{\n", encoding="utf-8")
    found, problems = read_comparisons(str(path), on_bad="skip", max_bad_share=0.5)
    assert len(found) == 7
    assert problems.counts == {"no_preference": 1, "empty_response": 1, "bad_json": 1}
    found, problems = read_comparisons([str(path)], on_bad="skip", max_bad_share=0.5, ties="drop")
    assert len(found) == 6
    assert problems.counts["no_preference"] == 2
    assert not any(pair.tied for comparison in found for pair in comparison.pairs)
    with pytest.raises(DataError, match="no_preference 1"):
        read_comparisons(str(path))
    with pytest.raises(UsageError, match="expected auto or one of comparisons"):
        read_comparisons(str(path), format="hh")
    with pytest.raises(UsageError, match="keep or drop"):
        read_comparisons(str(path), ties="no")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(DataError, match="no records"):
        read_comparisons(str(tmp_path / "empty.jsonl"))


def test_leaving_ties_out_leaves_out_who_is_in_no_other_pair() -> None:
    responses = [{"moss": " a", "rank": 1}, {"moss": " b", "rank": 2}, {"moss": " c", "rank": 2}]
    comparison = parse_preference({**OWN, "responses": responses}, "f:1")
    assert without_ties(comparison).pairs == (Pair(0, 1), Pair(0, 2))


def test_real_transcripts(real_data: Path) -> None:
    counts: Counter[str] = Counter()
    read = 0
    for part in ("train", "dev"):
        found, problems = read_comparisons(str(real_data / "hh-rlhf-harmless" / f"{part}.jsonl"), on_bad="skip")
        counts += problems.counts
        read += len(found)
        assert all(len(comparison.responses) == 2 and comparison.language == "en" for comparison in found)
    # Assistants that speak twice, and replies without text.
    assert counts == {"no_human": 7, "empty_response": 4}
    assert read == 1900 - 11


def test_real_solutions(real_data: Path) -> None:
    found, problems = read_comparisons(str(real_data / "gsm8k" / "model_solutions.jsonl"), on_bad="skip", max_bad_share=0.5)
    assert (len(found), problems.counts) == (591, {"no_preference": 464})
    assert all(any(not pair.tied for pair in comparison.pairs) for comparison in found)
