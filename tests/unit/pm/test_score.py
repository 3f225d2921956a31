"""A reward belongs to a response and its context: neither neighbours, padding, nor the form of the file change it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJForSequenceClassification

from moss_train.artifacts.config import ExportJobConfig, Layout
from moss_train.artifacts.export import main as export
from moss_train.config import ExportDtype
from moss_train.data.comparisons import Comparison, parse_comparison, parse_responses
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.preference import parse_preference
from moss_train.data.render import render
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError, NonFiniteError, UsageError
from moss_train.model.pm import CodeGenPM
from moss_train.pm.score import Scored, load_scorer, score_dialogues, score_responses, score_turns
from moss_train.pm.score_lines import count, read_line, scored_line
from tests.preference_models import POSITIONS, messages, response_lines, save_pm

Pair = tuple[CodeGenPM, MossTokenizer]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pm(tmp_path_factory.mktemp("pm"), temperature=0.5)


@pytest.fixture(scope="module")
def scorer(directory: Path) -> Pair:
    return load_scorer(directory)


def dialogues() -> list[Dialogue]:
    """Of several lengths, the first the shortest."""
    found = []
    for number, record in enumerate(response_lines(9)):
        parsed = parse_responses(record, f"made:{number}")
        found += [
            Dialogue(parsed.context.id, parsed.context.meta_instruction, (*parsed.context.turns[:-1], turn), None, f"made:{number}")
            for turn in parsed.responses
        ]
    return sorted(found, key=lambda one: len(str(one.turns)))


def ids_of(tokenizer: MossTokenizer, dialogue: Dialogue) -> list[int]:
    rendered = render(dialogue, tokenizer)
    return rendered.input_ids[: rendered.segments[-1].content_end + 1]


def alone(scorer: Pair, dialogue: Dialogue) -> float:
    """By one forward of one row, without any of the code that is tested."""
    ids = ids_of(scorer[1], dialogue)
    assert ids[-1] == scorer[1].eom
    with torch.no_grad():
        return float(scorer[0](torch.tensor([ids]), reward_index=torch.tensor([len(ids) - 1])).rewards[0])


def test_a_reward_does_not_depend_on_neighbours(scorer: Pair) -> None:
    given = dialogues()
    expected = [alone(scorer, one) for one in given]
    assert max(expected) - min(expected) > 0.1
    for batch_tokens in (1, 150, 100_000):
        assert score_dialogues(*scorer, given, batch_tokens=batch_tokens) == pytest.approx(expected, rel=1e-5)
    assert score_dialogues(*scorer, given[::-1], batch_tokens=300) == pytest.approx(expected[::-1], rel=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_reward_does_not_depend_on_padding(scorer: Pair, side: str) -> None:
    model, tokenizer = scorer
    given = dialogues()[:4]
    rows = [ids_of(tokenizer, one) for one in given]
    width = max(map(len, rows)) + 3
    for pad_id in (tokenizer.endoftext, tokenizer.eom, rows[0][-2], 0):
        ids, mask, places = torch.full((4, width), pad_id), torch.zeros((4, width), dtype=torch.int64), []
        for number, row in enumerate(rows):
            start = width - len(row) if side == "left" else 0
            ids[number, start : start + len(row)] = torch.tensor(row)
            mask[number, start : start + len(row)] = 1
            places.append(number * width + start + len(row) - 1)
        with torch.no_grad():
            found = model(ids, reward_index=torch.tensor(places), attention_mask=mask).rewards.tolist()
        assert found == pytest.approx([alone(scorer, one) for one in given], rel=1e-5)


def test_an_export_gives_the_same_rewards(scorer: Pair, directory: Path, tmp_path: Path) -> None:
    given = dialogues()
    expected = [alone(scorer, one) for one in given]
    export(ExportJobConfig(model=str(directory), out=str(tmp_path / "export"), dtype=ExportDtype.fp32))
    reloaded = load_scorer(tmp_path / "export")
    assert reloaded[0].config.moss_temperature == 0.5
    assert score_dialogues(*reloaded, given) == pytest.approx(expected, rel=1e-5)
    export(ExportJobConfig(model=str(directory), out=str(tmp_path / "gptj"), dtype=ExportDtype.fp32, format=Layout.gptj))
    stock = GPTJForSequenceClassification.from_pretrained(tmp_path / "gptj").eval()
    assert stock.config.num_labels == 1
    assert stock.config.moss_temperature == 0.5
    with torch.no_grad():
        found = [float(stock(torch.tensor([ids_of(scorer[1], one)])).logits[0, 0]) for one in given]
    # Its sums run in another order; a reward near zero is what is left of terms of the size of one.
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    with pytest.raises(CheckpointError, match="take the directory that was made from"):
        load_scorer(tmp_path / "gptj")


def test_a_damaged_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    export(ExportJobConfig(model=str(directory), out=str(tmp_path / "export"), dtype=ExportDtype.fp32))
    (tmp_path / "export" / "model-00001-of-00001.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="is not what its"):
        load_scorer(tmp_path / "export")


def test_every_turn_is_scored_as_a_response(scorer: Pair) -> None:
    """Those beyond the model's positions too, whose contexts lose their oldest turns."""
    for turns in (1, 3, 12):
        dialogue = read_line("dialogues", messages(turns), "made:1", "Be brief.\n").dialogues[0]
        (found,) = score_turns(*scorer, [dialogue], batch_tokens=400)
        prefixes = [Dialogue("", dialogue.meta_instruction, dialogue.turns[: turn + 1]) for turn in range(turns)]
        expected = [group[0] for group in score_responses(*scorer, [[one] for one in prefixes], batch_tokens=400)]
        assert [one.reward for one in found] == pytest.approx([one.reward for one in expected], rel=1e-5)
        assert [one[1:] for one in found] == [one[1:] for one in expected]
    assert {one.dropped_turns > 0 for one in found} == {True, False}
    last = next(turn for turn, one in enumerate(found) if one.dropped_turns)
    dropped = found[last].dropped_turns
    shortened = Dialogue("", dialogue.meta_instruction, dialogue.turns[dropped : last + 1])
    assert found[last].reward == pytest.approx(alone(scorer, shortened), rel=1e-5)
    longer = Dialogue("", dialogue.meta_instruction, dialogue.turns[dropped - 1 : last + 1])
    assert len(ids_of(scorer[1], shortened)) <= POSITIONS < len(ids_of(scorer[1], longer))


def test_what_has_no_reply_or_does_not_fit_has_no_reward(scorer: Pair) -> None:
    turns = (Turn(" a", moss=" b"), Turn(" c", moss=" "), Turn(" long" * 200, moss=" d"), Turn(" e", moss=" f"), Turn(" g"))
    (found,) = score_turns(*scorer, [Dialogue("", "Be brief.\n", turns)], batch_tokens=400)
    assert [one.problem for one in found] == [None, "no_reply", "too_long", None, "no_reply"]
    assert [one.reward is None for one in found] == [False, True, True, False, True]
    assert found[3].dropped_turns == 3
    group = [Dialogue("", "", (Turn(" a", moss=" b"), Turn(" c", moss=text))) for text in (" d", "", " long" * 200, " e" * 60)]
    (scored,) = score_responses(*scorer, [group], batch_tokens=400)
    assert [one.problem for one in scored] == [None, "no_reply", "too_long", None]
    assert score_responses(*scorer, [], batch_tokens=1) == []
    with pytest.raises(UsageError, match="seq_len is 1000, the model has 160 positions"):
        score_responses(*scorer, [group], batch_tokens=400, seq_len=1000)


def test_levels_are_not_read(scorer: Pair) -> None:
    """What a reply was tagged with, by this model or another, says nothing about how good it is; the tokenizer need not know it."""
    plain = (Turn(" a", moss=" b"), Turn(" c", " think", " None", " None", " d"))
    tagged = tuple(replace(turn, level=level) for turn, level in zip(plain, (99, 2)))
    by_turn = [score_turns(*scorer, [Dialogue("", "", turns)], batch_tokens=400) for turns in (plain, tagged)]
    by_response = [score_responses(*scorer, [[Dialogue("", "", turns)]], batch_tokens=400) for turns in (plain, tagged)]
    assert by_turn[0] == by_turn[1]
    assert by_response[0] == by_response[1]


def test_the_context_of_a_group_is_shortened_alike(scorer: Pair) -> None:
    context = tuple(Turn(" question" * 3, moss=" answer" * 3) for _ in range(3))
    group = [Dialogue("", "", (*context, Turn(" last", moss=text))) for text in (" yes", " no" * 30)]
    (scored,) = score_responses(*scorer, [group], batch_tokens=400, seq_len=120)
    assert scored[0].dropped_turns == scored[1].dropped_turns > 0
    ((single,),) = score_responses(*scorer, [group[:1]], batch_tokens=400, seq_len=120)
    assert single.dropped_turns < scored[0].dropped_turns


def test_what_is_not_a_number_names_its_origin(directory: Path) -> None:
    model, tokenizer = load_scorer(directory)
    with torch.no_grad():
        model.score.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"made\.jsonl:7: rewards \[nan\]; expected finite numbers"):
        score_dialogues(model, tokenizer, [Dialogue("", "", (Turn(" a", moss=" b"),), origin="made.jsonl:7")])


def written(kind: str, record: Any, rewards: list[float | None]) -> dict[str, Any]:
    line = read_line(kind, record, "made.jsonl:1", None)
    return scored_line(kind, line, [Scored(reward, problem=None if reward is not None else "too_long") for reward in rewards])


def test_lines_of_responses_stay_as_they_were() -> None:
    record = response_lines(3)[2]
    found = written("responses", record, [0.5, None, 1.5])
    assert [one.pop("reward") for one in found["responses"]] == [0.5, None, 1.5]
    assert found.pop("score_notes") == {"too_long": 1}
    assert found == record


def test_our_comparisons_keep_what_was_not_ranked() -> None:
    record = response_lines(3)[2]
    for response, rank in zip(record["responses"], (2, None, 1)):
        response["rank"] = rank
    found = written("comparisons", record, [0.5, 1.0, 1.5])
    assert [(one["rank"], one["reward"]) for one in found["responses"]] == [(2, 0.5), (None, 1.0), (1, 1.5)]
    # Scored again, the new rewards take the place of the old ones.
    again = written("comparisons", found, [1.0, 2.0, 3.0])
    assert [one["reward"] for one in again["responses"]] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"question": "q", "m": {"solution": "a", "is_correct": True}, "n": {"solution": "b", "is_correct": False}},
        {"question": "q", **{name: {"solution": name, "is_correct": name == "b"} for name in "abcd"}, "id": "x"},
    ],
)
def test_other_comparisons_become_our_lines(record: dict[str, Any]) -> None:
    before = parse_preference(record, "made.jsonl:1")
    found = written("comparisons", record, [float(number) for number in range(len(before.responses))])
    after = parse_comparison(found, "made.jsonl:1")
    assert isinstance(after, Comparison)
    assert (after.responses, after.context) == (before.responses, before.context)
    assert Counter(after.pairs) == Counter(before.pairs)
    assert (after.language, after.provenance) == (before.language, before.provenance)


def test_pairs_that_no_ranks_say_are_written_as_pairs() -> None:
    """Nothing is known of two rejected texts."""
    found = written("comparisons", {"prompt": "q", "chosen": "a", "rejected": ["b", "c"]}, [3.0, 2.0, 1.0])
    assert [one[:2] for one in found["pairs"]] == [[0, 1], [0, 2]]
    assert all("rank" not in one for one in found["responses"])
    assert len(parse_responses(found, "x").responses) == 3


def test_a_dialogue_is_kept_beside_its_rewards() -> None:
    record = messages(3)
    found = written("dialogues", record, [0.1, None, 0.3])
    assert found["dialogue"] == record
    assert found["rewards"] == [0.1, None, 0.3]
    assert found["origin"] == "made.jsonl:1"
    assert count([found, written("responses", response_lines(1)[0], [1.0])]) == {"scored": 3, "too_long": 1}
