"""Guidance: logits of two prompts together, which nothing that happens beside a row changes."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moss_train.config import ExportDtype
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError
from moss_train.inference import memory
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.decoder import Decoder, Task, Write, Written
from moss_train.inference.sampling import Sampling, guide
from moss_train.inference.speaker import Speaker, guidance_levels
from moss_train.inference.transcript import Transcript
from moss_train.inference.turns import Style, check_room, write_turn
from moss_train.model.codegen import CodeGenLM, set_attention
from tests.tagged_models import LEVELS, TEXTS, export_tagged, tagged_model

GUIDANCE = 2.5
CALCULATOR = "- Calculator: enabled. API: Calculate(expression)\n"


@pytest.fixture(scope="module")
def made() -> tuple[CodeGenLM, MossTokenizer]:
    return tagged_model()


@pytest.fixture(scope="module")
def model(made: tuple[CodeGenLM, MossTokenizer]) -> CodeGenLM:
    return made[0]


@pytest.fixture(scope="module")
def tokenizer(made: tuple[CodeGenLM, MossTokenizer]) -> MossTokenizer:
    return made[1]


@pytest.fixture(scope="module")
def directory(made: tuple[CodeGenLM, MossTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tagged(tmp_path_factory.mktemp("tagged") / "export", *made)


def speaker(directory: Path, batch_size: int = 1, share_prompts: bool = False, **settings: Any) -> Speaker:
    return Speaker(SpeakerConfig(**{"model": str(directory), "max_new_tokens": 24, **settings}), batch_size, share_prompts)


def questions(count: int) -> list[Dialogue]:
    """Some with an earlier turn, with and without a level of its own."""
    before = [(), (Turn(" Hi", moss=" Hello"),), (Turn(" Hi", moss=" No.", level=2),)]
    return [
        Dialogue(f"{n}", CALCULATOR, (*before[n % 3], Turn(f" {TEXTS[n % len(TEXTS)]} ({n})")), origin=f"here:{n}") for n in range(count)
    ]


def pairs(tokenizer: MossTokenizer, count: int, level: int = 5, away_from: int | None = None) -> list[list[list[int]]]:
    """Prompts of different lengths, each under a level and away from another or from none."""
    found = []
    for dialogue in questions(count):
        transcript = Transcript(tokenizer, dialogue.meta_instruction, level, (away_from,))
        for turn in dialogue.turns:
            transcript.begin(turn)
        found.append(transcript.prompts("moss"))
    return found


def reply(prompts: list[list[int]], tokens: int = 24) -> Task[Written]:
    """One write."""
    prompt, *away_from = prompts
    return (yield Write(prompt, tokens, "", *away_from))


def turn(prompts: list[list[int]]) -> Task[list[list[int]]]:
    """Three writes, the second after the first, the third with another beginning."""
    first = yield Write(prompts[0], 12, "first", prompts[1])
    after = [[*prompt, *first.ids, 20, 21] for prompt in prompts]
    second = yield Write(after[0], 9, "second", after[1])
    after = [[*prompt[: len(prompt) // 2], 30, *second.ids, 31] for prompt in prompts]
    third = yield Write(after[0], 9, "third", after[1])
    return [first.ids, second.ids, third.ids]


def decoder(model: CodeGenLM, tokenizer: MossTokenizer, batch_size: int, share_prompts: bool = False, **rules: float) -> Decoder:
    sampling = Sampling(**{"temperature": 1.0, "top_p": 0.95, "guidance": GUIDANCE, **rules})  # type: ignore[arg-type]
    forbidden = tokenizer.never_written(model.config.vocab_size)
    return Decoder(model, tokenizer.control_ids.values(), forbidden, sampling, 11, batch_size, share_prompts=share_prompts)


def forward(model: CodeGenLM, ids: list[int]) -> torch.Tensor:
    """Logits after the last id: a whole forward, without a cache."""
    set_attention(model, "sdpa")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0, -1]
    return logits


def naive(model: CodeGenLM, tokenizer: MossTokenizer, prompts: list[list[int]], guidance: float) -> torch.Tensor:
    """Guided logits as the paper has them: two whole forwards, in float64."""
    tagged, away_from = (forward(model, ids).double() for ids in prompts)
    logits = away_from + guidance * (tagged - away_from)
    logits[tokenizer.never_written(model.config.vocab_size)] = -math.inf
    return logits


@pytest.mark.parametrize("away_from", [None, 1])
@pytest.mark.parametrize("guidance", [0.0, 0.5, GUIDANCE])
def test_a_step_has_the_probabilities_of_two_whole_forwards(
    model: CodeGenLM, tokenizer: MossTokenizer, guidance: float, away_from: int | None
) -> None:
    prompts = pairs(tokenizer, 3, away_from=away_from)[2]
    one = decoder(model, tokenizer, 8, top_p=1.0, top_k=0, repetition_penalty=1.0, guidance=guidance)
    expected = naive(model, tokenizer, prompts, guidance).log_softmax(0)
    found: dict[int, float] = {}
    for _, written in one.run((number, reply(prompts, 1)) for number in range(200)):
        found[written.stop if written.stop is not None else written.ids[0]] = written.log_probability
    assert len(found) > 20
    assert all(abs(expected[token].item() - value) < 1e-4 for token, value in found.items())


@pytest.mark.parametrize("away_from", [None, 1])
def test_a_greedy_reply_is_that_of_two_whole_forwards_a_token(model: CodeGenLM, tokenizer: MossTokenizer, away_from: int | None) -> None:
    stops, replies = {tokenizer.endoftext}, set()
    for prompts in pairs(tokenizer, 8, away_from=away_from):
        sampling = Sampling(temperature=0.0, repetition_penalty=1.3, guidance=GUIDANCE)
        written = Decoder(model, stops, tokenizer.never_written(model.config.vocab_size), sampling, 0).one(reply(prompts))
        streams, expected = [list(prompt) for prompt in prompts], []
        while len(expected) < 24 and not stops & set(expected):
            logits = naive(model, tokenizer, streams, GUIDANCE)
            held = list(set(streams[0]))
            logits[held] = torch.where(logits[held] < 0, logits[held] * 1.3, logits[held] / 1.3)
            expected.append(int(logits.argmax()))
            for ids in streams:
                ids.append(expected[-1])
        assert [*written.ids, *([] if written.stop is None else [written.stop])] == expected
        replies.add(tuple(expected))
    assert len(replies) > 3
    assert max(map(len, replies)) == 24


def test_guidance_is_made_in_float32(model: CodeGenLM) -> None:
    tagged, away_from = (torch.tensor([[value, 1.0]], dtype=torch.bfloat16) for value in (1.0078125, 1.0))
    assert guide(tagged, away_from, 1.5).tolist() == [[1.01171875, 1.0]]
    assert torch.equal(guide(tagged, away_from, 0.0), away_from.float())


def test_guidance_of_one_is_no_guidance(directory: Path, model: CodeGenLM, tokenizer: MossTokenizer) -> None:
    without = decoder(model, tokenizer, 3, guidance=1.0)
    assert without.streams == 1
    with pytest.raises(ValueError, match="a write has 2 prompts"):
        without.one(reply(pairs(tokenizer, 1)[0]))
    off = speaker(directory, 3, guidance=1.0, guidance_from="worst")
    plain = speaker(directory, 3)
    numbered = list(enumerate(questions(7)))
    assert dict(off.reply_all(numbered)) == dict(plain.reply_all(numbered))
    assert off.decoder.prompt_tokens == plain.decoder.prompt_tokens == sum(len(off.transcript(one).prompt("moss")) for _, one in numbered)
    assert off.memory == plain.memory


@pytest.mark.parametrize("away_from", ["none", "worst", "2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guidance_of_zero_is_what_is_led_away_from(directory: Path, away_from: str, temperature: float) -> None:
    numbered = list(enumerate(questions(7)))
    guided = dict(speaker(directory, 3, guidance=0.0, guidance_from=away_from, temperature=temperature).reply_all(numbered))
    asked = {"worst": "1"}.get(away_from, away_from)
    assert guided == dict(speaker(directory, 2, tag=asked, temperature=temperature).reply_all(numbered))
    assert guided != dict(speaker(directory, 3, temperature=temperature).reply_all(numbered))


@pytest.mark.parametrize("task", [reply, turn])
@pytest.mark.parametrize("away_from", [None, 1])
def test_neither_batch_size_nor_order_nor_threads_change_a_guided_row(
    model: CodeGenLM, tokenizer: MossTokenizer, task: Any, away_from: int | None
) -> None:
    prompts = pairs(tokenizer, 11, away_from=away_from)
    alone = {number: decoder(model, tokenizer, 1).one(task(one), number) for number, one in enumerate(prompts)}
    assert len({str(result) for result in alone.values()}) > 8
    threads = torch.get_num_threads()
    for batch_size, backwards, used in ((2, False, 1), (5, True, 2), (64, True, 1)):
        numbered = list(enumerate(prompts))
        try:
            torch.set_num_threads(used)
            together = decoder(model, tokenizer, batch_size)
            found = dict(together.run((number, task(one)) for number, one in (numbered[::-1] if backwards else numbered)))
        finally:
            torch.set_num_threads(threads)
        assert together.exact
        assert found == alone, (batch_size, backwards, used)


@pytest.mark.parametrize("task", [reply, turn])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_shared_prompts_are_read_once_and_change_no_bit(model: CodeGenLM, tokenizer: MossTokenizer, task: Any, batch_size: int) -> None:
    samples = 4
    prompts = pairs(tokenizer, 4)
    numbered = [(number * samples + one, two) for number, two in enumerate(prompts) for one in range(samples)]
    anew = decoder(model, tokenizer, batch_size)
    expected = dict(anew.run((number, task(two)) for number, two in numbered))
    shared = decoder(model, tokenizer, batch_size, share_prompts=True)
    assert dict(shared.run((number, task(two)) for number, two in numbered)) == expected
    assert anew.prompt_tokens - shared.prompt_tokens == (samples - 1) * sum(len(one) for two in prompts for one in two)


def test_a_chat_reads_what_is_new_in_both_streams(model: CodeGenLM, tokenizer: MossTokenizer) -> None:
    """And says what it says when it reads all of it."""
    first, second = ([prompt[:30] for prompt in pairs(tokenizer, 1)[0]], [[*prompt[:30], 40, 41, 42] for prompt in pairs(tokenizer, 1)[0]])
    chat = decoder(model, tokenizer, 1, temperature=0.0)
    chat.keep_cache = True
    chat.one(reply(first, 1))
    assert chat.prompt_tokens == 60
    kept = chat.one(reply(second))
    assert chat.prompt_tokens == 60 + 2 * 3
    assert kept.ids == decoder(model, tokenizer, 1, temperature=0.0).one(reply(second)).ids


@pytest.mark.parametrize("away_from", ["none", "worst"])
def test_a_turn_with_tools_has_both_prompts_in_every_write(directory: Path, away_from: str) -> None:
    """What one stream reads is what the other does, tools' results included, but for the tags of turns that have no level of their own."""
    one = speaker(directory, guidance=GUIDANCE, guidance_from=away_from, thoughts=True)
    tags = one.tokenizer.tag_ids
    asked = (Turn(" Hi", moss=" No.", level=2), Turn(" Hi", moss=" Hello"), Turn(" What is 3 + 4?"))
    transcript = one.transcript(Dialogue("1", CALCULATOR, asked, origin="here"))
    task, writes = one.turn(transcript), []
    for text, stop in (("", ""), (" Sum.", "<eot>"), (' Calculate("3+4")', "<eoc>")):
        writes.append(task.send(Written(one.tokenizer.encode(text), one.tokenizer.control_ids[stop], -1.0)) if text else next(task))
    replaced = {"none": [], "worst": [tags[0]]}[away_from]
    for written in writes:
        assert [token for token in written.prompt if token in tags] == [tags[1], tags[4], tags[4]]
        assert written.away_from == [other for token in written.prompt for other in (replaced if token == tags[4] else [token])]
    assert all("Calculate(\"3+4\") => '7'" in one.tokenizer.decode(ids) for ids in writes[2].prompts)


def test_a_guided_turn_with_tools_does_not_depend_on_the_batch(directory: Path) -> None:
    numbered = list(enumerate(questions(7)))
    settings = {"guidance": GUIDANCE, "guidance_from": "worst", "thoughts": True, "temperature": 1.0}
    alone = dict(speaker(directory, **settings).reply_all(numbered))
    assert dict(speaker(directory, 5, **settings).reply_all(numbered)) == alone
    assert all(one.thoughts is not None and one.commands is not None for one in alone.values())
    settings["guidance"] = 0.0
    assert dict(speaker(directory, 5, **settings).reply_all(numbered)) == dict(
        speaker(directory, 2, tag="1", thoughts=True, temperature=1.0).reply_all(numbered)
    )


@pytest.mark.parametrize(("level", "away_from"), [(5, None), (None, 5), (5, 1)])
def test_both_prompts_lose_the_same_turns(tokenizer: MossTokenizer, level: int | None, away_from: int | None) -> None:
    """For every number of positions around the place where a turn more or less fits, whichever prompt is the longer one."""
    dropped = set()
    for positions in range(120, 300, 2):
        transcript = Transcript(tokenizer, "Be.\n", level, (away_from,))
        for number in range(5):
            transcript.begin(Turn(f" {number} a question", moss=" an answer"))
        transcript.begin(Turn(" and the last"))
        task = write_turn(transcript, Style.plain, 40, positions)
        write = next(task)
        assert write.away_from is not None
        without = [[token for token in ids if token not in tokenizer.tag_ids] for ids in write.prompts]
        assert without[0] == without[1]
        longest = max(map(len, write.prompts))
        assert longest + 40 <= positions
        dropped.add(6 - len(transcript.turns))
    assert len(dropped) > 2


def test_room_is_that_of_the_longest_prompt(tokenizer: MossTokenizer) -> None:
    untagged, guided = Transcript(tokenizer, "Be."), Transcript(tokenizer, "Be.", None, (5,))
    for transcript in (untagged, guided):
        transcript.begin(Turn(" a question"))
    positions = len(untagged.prompt("moss")) + 16
    assert check_room(untagged, Style.plain, 40, positions) is None
    assert check_room(guided, Style.plain, 40, positions) is not None
    assert check_room(guided, Style.plain, 40, positions + 1) is None


def test_what_a_copy_of_a_transcript_holds_stays(tokenizer: MossTokenizer) -> None:
    transcript = Transcript(tokenizer, "Be.", 5, (1,))
    transcript.begin(Turn(" a question", moss=" no"))
    kept, prompts = transcript.copy(), transcript.prompts("moss")
    transcript.put("moss", " yes")
    transcript.begin(Turn(" another", level=2))
    assert kept.prompts("moss") == prompts
    assert kept.levels == [None]


@pytest.mark.parametrize("share_prompts", [False, True])
@pytest.mark.parametrize("guidance", [1.0, GUIDANCE])
def test_the_keys_of_both_streams_are_predicted(
    directory: Path, guidance: float, share_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "moss_train")
    one = speaker(directory, 5, share_prompts, guidance=guidance, max_new_tokens=2)
    # Said before the weights are read; how many rows products are made of comes later, and can only add to it.
    first = next(record.message for record in caplog.records if record.message.startswith("memory:"))
    assert f"keys and values of {-(-5 * one.decoder.streams // 4) * 4 + share_prompts * one.decoder.streams} x" in first
    config = one.model.config
    prompt = [9] * (config.n_positions - 2)
    streams = [prompt] * one.decoder.streams
    one.decoder.one(reply(streams, 2))
    assert one.decoder.cache.bytes == one.memory.cache == memory.predict(config, torch.float32, one.decoder.cache.slots).cache
    assert one.decoder.cache.slots >= 5 * len(streams) + share_prompts * len(streams)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"guidance": -0.5}, "guidance is -0.5; expected a finite number, zero or more (1 is off)"),
        ({"guidance": math.nan}, "guidance is nan; expected a finite number, zero or more (1 is off)"),
        ({"guidance": math.inf}, "guidance is inf; expected a finite number, zero or more (1 is off)"),
        ({"guidance_from": "bad"}, "guidance_from is 'bad'; expected none, worst, opposite, or the number of a level, 1 being the worst"),
        ({"guidance_from": "0"}, "guidance_from is '0'; expected none, worst, opposite, or the number of a level, 1 being the worst"),
        (
            {"guidance": 1.5, "tag": "none"},
            "guidance is 1.5, but tag=none asks for no level to be led to; give a tag, or guidance=1",
        ),
        (
            {"guidance": 1.5, "tag": "2", "guidance_from": "02"},
            "guidance is 1.5, but tag=2 and guidance_from=02 are the same level; give two, or guidance=1",
        ),
    ],
)
def test_what_is_no_guidance_is_refused(settings: dict[str, Any], problem: str) -> None:
    assert SpeakerConfig(model="m", **settings).problems() == [problem]


def test_guidance_that_is_possible_is_no_problem() -> None:
    for settings in ({"guidance": 0.0}, {"guidance": 1.5, "guidance_from": "worst"}, {"tag": "none"}, {"tag": "2", "guidance_from": "2"}):
        assert SpeakerConfig(model="m", **settings).problems() == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "level", "details", "told"),
    [
        ({}, None, {}, "no tag is asked for, since the lineage of the model names no levels"),
        ({"guidance_from": "worst"}, 3, {}, "guidance_from=worst: the lineage of the model names no levels"),
        ({"guidance_from": "opposite"}, 3, {}, "guidance_from=opposite: the lineage of the model names no levels"),
        ({"guidance_from": "9"}, 5, {"levels": LEVELS}, "guidance_from=9: the tokenizer has tags for the levels 1 to 8"),
        ({"guidance_from": "5"}, 5, {"levels": LEVELS}, "tag=auto and guidance_from=5 are both level 5 of this model"),
        ({"guidance_from": "worst", "tag": "1"}, 1, {"levels": LEVELS}, "tag=1 and guidance_from=worst are both level 1"),
        ({"guidance_from": "worst"}, 4, {"levels": {"4": 10}}, "tag=auto and guidance_from=worst are both level 4"),
    ],
)
def test_a_model_without_two_prompts_is_refused(
    tokenizer: MossTokenizer, settings: dict[str, Any], level: int | None, details: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        guidance_levels(SpeakerConfig(model="m", guidance=1.5, **settings), level, details, tokenizer)
    assert guidance_levels(SpeakerConfig(model="m", **settings), level, details, tokenizer) == ()


@pytest.mark.parametrize(
    ("level", "known", "away_from"),
    [(1, "12345", 5), (2, "12345", 5), (3, "12345", None), (4, "12345", 1), (5, "12345", 1), (2, "14", 4), (4, "4", None)],
)
def test_the_opposite_is_the_end_that_is_farther_off(tokenizer: MossTokenizer, level: int, known: str, away_from: int | None) -> None:
    config = SpeakerConfig(model="m", guidance=1.5, guidance_from="opposite")
    assert guidance_levels(config, level, {"levels": dict.fromkeys(known, 1)}, tokenizer) == (away_from,)


def test_a_speaker_that_asks_for_another_level_leads_away_from_another(made: tuple[CodeGenLM, MossTokenizer], tmp_path: Path) -> None:
    tagged = export_tagged(tmp_path / "tagged", *made, levels=LEVELS)
    one = speaker(tagged, 5, guidance=1.5, guidance_from="opposite")
    assert one.away_from == (1,)
    one.ask_for(1)
    assert (one.level, one.away_from) == (1, (5,))
    with pytest.raises(UsageError, match="no tag is asked for"):
        one.ask_for(None)


def test_a_model_is_refused_before_its_weights_are_read(made: tuple[CodeGenLM, MossTokenizer], tmp_path: Path) -> None:
    untagged = export_tagged(tmp_path / "untagged", *made, levels={})
    for weights in untagged.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(UsageError, match=r"guidance=1\.5: no tag is asked for"):
        speaker(untagged, guidance=1.5, dtype=ExportDtype.fp32, unverified=True)


def test_prompts_that_a_model_has_not_seen_are_told(tokenizer: MossTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "moss_train"):
        config = SpeakerConfig(model="m", guidance=1.5)
        assert guidance_levels(config, 5, {"levels": LEVELS, "tag_dropout": 0.1}, tokenizer) == (None,)
        assert not caplog.records
        assert guidance_levels(config, 5, {"levels": LEVELS, "tag_dropout": 0.0}, tokenizer) == (None,)
        config = SpeakerConfig(model="m", guidance=1.5, guidance_from="3")
        assert guidance_levels(config, 5, {"levels": LEVELS}, tokenizer) == (3,)
    assert [record.message for record in caplog.records] == [
        "guidance=1.5: the model was trained with data.tag_dropout=0; it may not know prompts without a tag",
        "guidance_from=3: the model was trained with the levels 1, 2, 5; this tag says nothing to it",
    ]
