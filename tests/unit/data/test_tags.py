"""Tags: where they stand, that they carry no loss, that no text can make one, and that training and inference agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_train.data.dialogue import Dialogue, Turn, tagged_segment
from moss_train.data.formats.moss003 import parse_moss003, write_moss003
from moss_train.data.records import RecordError
from moss_train.data.render import LOSS_POLICIES, render, render_prompt
from moss_train.data.tags import drop_tags, weigh_levels
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.inference.transcript import Transcript

PLUGIN = Turn(" 2+3?", " sum", " C(2)", "\n5\n", " 5", level=2)
PLAIN = Turn(" hi", moss=" yo", level=1)
DIALOGUE = Dialogue("1", "Be.\n", (PLUGIN, PLAIN, Turn(" bye", moss=" bye")), origin="tiny.jsonl:1")


def spell(ids: list[int], tokenizer: MossTokenizer) -> str:
    """Ids as one character each: the number of a tag, a dot for a control, else the byte's character."""
    tags = {token: f"{number}" for number, token in enumerate(tokenizer.tag_ids[:9], 1)}
    return "".join(tags.get(one) or ("." if one in tokenizer.special_ids else tokenizer.token_bytes(one).decode("latin-1")) for one in ids)


@pytest.mark.parametrize("policy", LOSS_POLICIES)
def test_a_tag_stands_before_all_that_moss_writes_in_a_turn(byte_tokenizer: MossTokenizer, policy: str) -> None:
    rendered = render(DIALOGUE, byte_tokenizer, policy)
    wanted = (
        "Be.\n<|Human|>: 2+3?.\n2<|Inner Thoughts|>: sum.\n<|Commands|>: C(2).\n<|Results|>:\n5\n.\n<|MOSS|>: 5.\n"
        "<|Human|>: hi.\n1<|MOSS|>: yo.\n<|Human|>: bye.\n<|MOSS|>: bye.\n"
    )
    assert spell(rendered.input_ids, byte_tokenizer) == wanted
    tags = set(byte_tokenizer.tag_ids)
    assert sum(one in tags for one in rendered.input_ids) == 2
    assert not any(mark for one, mark in zip(rendered.input_ids, rendered.loss_mask) if one in tags)
    without = render(replace(DIALOGUE, turns=tuple(replace(turn, level=None) for turn in DIALOGUE.turns)), byte_tokenizer, policy)
    kept = [(one, mark) for one, mark in zip(rendered.input_ids, rendered.loss_mask) if one not in tags]
    assert kept == list(zip(without.input_ids, without.loss_mask))


@pytest.mark.parametrize("written", [["thoughts", "commands", "moss"], ["moss"]])
def test_inference_puts_tags_where_training_does(byte_tokenizer: MossTokenizer, written: list[str]) -> None:
    turn = PLUGIN if len(written) > 1 else PLAIN
    whole = Dialogue("1", "Be.\n", (PLAIN, PLUGIN, turn), origin="here")
    trained = render(whole, byte_tokenizer)
    last = [segment for segment in trained.segments if segment.turn == 2]
    transcript = Transcript(byte_tokenizer, whole.meta_instruction)
    # Results of earlier turns are left out of prompts: none are in the first two.
    for before in (PLAIN, replace(PLUGIN, results=" None")):
        transcript.begin(before)
    transcript.begin(Turn(turn.human, level=turn.level))
    so_far = Dialogue("1", "Be.\n", (PLAIN, replace(PLUGIN, results=" None"), Turn(turn.human, level=turn.level)), origin="here")
    trained = render(replace(whole, turns=(*so_far.turns[:2], turn)), byte_tokenizer)
    last = [segment for segment in trained.segments if segment.turn == 2]
    for name in written:
        (segment,) = [one for one in last if one.kind == name]
        prompt = trained.input_ids[: segment.content_start]
        assert transcript.prompt(name) == prompt
        assert render_prompt(so_far, byte_tokenizer, name) == prompt
        for kind in ("thoughts", "commands", "results") if name != "moss" else ():
            if kind == name or (name == "commands" and kind == "results"):
                content = getattr(turn, kind)
                transcript.put(kind, content)
                so_far = replace(so_far, turns=(*so_far.turns[:2], replace(so_far.turns[2], **{kind: content})))


def test_the_segment_that_a_tag_precedes() -> None:
    assert tagged_segment(["human", "thoughts", "commands", "results", "moss"]) == "thoughts"
    assert tagged_segment(["human", "moss"]) == "moss"
    assert tagged_segment(["human"], "thoughts") == "thoughts"
    assert tagged_segment(["human", "thoughts"], "moss") == "thoughts"
    assert tagged_segment(["human", "results"]) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"ab <|>_é中", "<|reserved_tag_0|>", "<eom>", "<|MOSS|>:", "\n"]), max_size=12).map("".join))
def test_no_text_yields_a_tag(byte_tokenizer: MossTokenizer, text: str) -> None:
    spelled = [byte_tokenizer.decode([tag], skip_controls=False) for tag in byte_tokenizer.tag_ids]
    turn = Turn(f" x{text}{spelled[0]}", moss=f" {text}{spelled[-1]}x")
    rendered = render(Dialogue("1", text, (turn,), origin="here"), byte_tokenizer)
    assert not set(rendered.input_ids) & set(byte_tokenizer.tag_ids)


def test_levels_are_part_of_a_record() -> None:
    record = write_moss003(DIALOGUE)
    assert [record["chat"][f"turn_{number}"].get("level") for number in (1, 2, 3)] == [2, 1, None]
    assert parse_moss003(record, DIALOGUE.origin).turns == DIALOGUE.turns
    for bad in (0, "5", True, 1.5):
        record["chat"]["turn_1"]["level"] = bad
        with pytest.raises(RecordError, match="bad_level"):
            parse_moss003(record, "here")


def test_a_level_without_a_tag_is_refused(byte_tokenizer: MossTokenizer) -> None:
    levels = len(byte_tokenizer.tag_ids)
    with pytest.raises(RecordError, match=f"no_tag: turn 2 has level {levels + 1}; the tokenizer has tags for the levels 1 to {levels}"):
        render(replace(DIALOGUE, turns=(PLUGIN, replace(PLAIN, level=levels + 1))), byte_tokenizer)
    with pytest.raises(DataError, match="level 0 has no tag"):
        byte_tokenizer.tag_of(0)


def test_tags_are_left_out_at_the_rate_asked_for() -> None:
    many = [replace(DIALOGUE, id=f"{number}") for number in range(2000)]
    dropped = [drop_tags(one, 0.1, 3) for one in many]
    left = [[turn.level for turn in one.turns] for one in dropped]
    # Two tags each; 4,000 draws at 0.1 have a standard deviation of 19.
    assert 320 < sum(before is not None and after is None for one in left for before, after in zip([2, 1], one)) < 480
    assert any(one[0] is None and one[1] == 1 for one in left)
    assert [one.turns for one in dropped] == [drop_tags(replace(one, origin="elsewhere:9"), 0.1, 3).turns for one in many]
    assert [one.turns for one in dropped] != [drop_tags(one, 0.1, 4).turns for one in many]
    assert drop_tags(DIALOGUE, 0.0, 3) is DIALOGUE


def test_replies_of_a_level_carry_loss_at_the_rate_asked_for(byte_tokenizer: MossTokenizer) -> None:
    many = [replace(DIALOGUE, id=f"{number}") for number in range(2000)]
    weighed = [weigh_levels(one, [0.25, 1.0], 3) for one in many]
    silent = [[bool(turn.untrained) for turn in one.turns] for one in weighed]
    # The second turn has level 1: 2,000 draws at 0.75 have a standard deviation of 19. The third has no level.
    assert 1420 < sum(one[1] for one in silent) < 1580
    assert not any(one[0] or one[2] for one in silent)
    assert [turn.level for turn in weighed[0].turns] == [2, 1, None]
    assert [one.turns for one in weighed] == [weigh_levels(replace(one, origin="elsewhere:9"), [0.25, 1.0], 3).turns for one in many]
    # Which tags are left out is drawn apart.
    untagged = [drop_tags(one, 0.5, 3).turns[1].level is None for one in many]
    assert 0.4 < sum(one[1] == out for one, out in zip(silent, untagged)) / 2000 < 0.6
    quiet = render(weigh_levels(DIALOGUE, [0.0], 3), byte_tokenizer)
    loud = render(DIALOGUE, byte_tokenizer)
    assert quiet.input_ids == loud.input_ids
    lost = [index for index, (a, b) in enumerate(zip(loud.loss_mask, quiet.loss_mask)) if a != b]
    assert spell([loud.input_ids[index] for index in lost], byte_tokenizer) == " yo.\n"
