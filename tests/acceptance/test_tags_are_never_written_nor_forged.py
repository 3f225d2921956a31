"""No text yields a tag or a control, no model writes a tag, and whoever asks for none gets the model from before there were any."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, CodeGenForCausalLM, GenerationConfig

from moss_train.artifacts.export import write_export
from moss_train.artifacts.lineage import Lineage
from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue, Turn, tagged_segment
from moss_train.data.render import render, render_prompt
from moss_train.data.tokenizer import MossTokenizer
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.decoder import Decoder, Task, Write, Written
from moss_train.inference.sampling import Sampling
from moss_train.inference.speaker import Speaker
from moss_train.inference.transcript import Transcript
from moss_train.model.codegen import CodeGenLM
from moss_train.model.loading import load_model
from moss_train.sft.config import SFTConfig
from moss_train.train.start import architecture, build, fit_vocabulary
from tests.tagged_models import LEVELS, TEXTS, export_tagged, tagged_model

TAGS = 8
SPELLINGS = [
    *(f"<|reserved_{number}|>" for number in range(TAGS)),
    *(kind.control for kind in SEGMENT_KINDS),
    *(kind.opening for kind in SEGMENT_KINDS),
    "<|endoftext|>",
]
BESIDE = [*" \n\t<|>_e", "\u200b", "é", "中", "｜", "\x00", "Ġ", "Ċ", "reserved", "oh>"]
# Learned from the spellings, so that its merges lie across their ends.
TOKENIZER = MossTokenizer.train([f"{text} " for text in [*SPELLINGS, *TEXTS] * 8], 600, reserved_tags=TAGS)


@st.composite
def mangled(draw: st.DrawFn) -> str:
    """A spelling, whole, or with a piece left out, doubled, in other letters, or with something put in."""
    text = draw(st.sampled_from(SPELLINGS))
    start, end = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
    how = draw(st.sampled_from(["whole", "cut", "doubled", "upper", "put in"]))
    put = {"whole": text[start:end], "cut": "", "doubled": 2 * text[start:end], "upper": text[start:end].upper()}
    return text[:start] + put.get(how, draw(st.sampled_from(BESIDE))) + text[end:]


TEXT = st.lists(st.one_of(mangled(), st.sampled_from(SPELLINGS), st.sampled_from(BESIDE)), max_size=6).map("".join)
LEVEL = st.none() | st.integers(1, TAGS)
PLAIN = st.builds(Turn, human=TEXT, moss=TEXT, level=LEVEL)
PLUGIN = st.builds(Turn, human=TEXT, thoughts=TEXT, commands=TEXT, results=TEXT, moss=TEXT, level=LEVEL)
DIALOGUES = st.builds(
    Dialogue, id=st.just("1"), meta_instruction=TEXT, turns=st.lists(PLAIN | PLUGIN, min_size=1, max_size=3).map(tuple), origin=st.just("x")
)


def special(ids: list[int]) -> list[int]:
    """Those of them that are controls or tags."""
    return [one for one in ids if one in TOKENIZER.special_ids]


def placed(turns: tuple[Turn, ...], asked: int | None = None) -> list[int]:
    """The tags and controls that the structure puts there: a tag for the turn, and the end of each segment."""
    found = []
    for turn in turns:
        present = [kind.name for kind in SEGMENT_KINDS if getattr(turn, kind.name) is not None]
        level = asked if turn.level is None else turn.level
        for kind in SEGMENT_KINDS:
            if kind.name == tagged_segment(present) and level is not None:
                found.append(TOKENIZER.tag_of(level))
            if kind.name in present:
                found.append(TOKENIZER.control_ids[kind.control])
    return found


@settings(max_examples=400, deadline=None)
@given(DIALOGUES, LEVEL, LEVEL)
def test_no_text_yields_a_tag_or_a_control(dialogue: Dialogue, level: int | None, away_from: int | None) -> None:
    """Whatever a person, a meta instruction, a tool or a reply says: rendered for training, and in both prompts of guidance."""
    assert special(render(dialogue, TOKENIZER).input_ids) == placed(dialogue.turns)
    last = dialogue.turns[-1]
    transcript = Transcript(TOKENIZER, dialogue.meta_instruction, level, (away_from,))
    for turn in dialogue.turns:
        transcript.begin(turn if turn is not last else Turn(turn.human, level=turn.level))
    for name in ("thoughts", "commands", "results") if last.thoughts is not None else ():
        # As tools' results and repaired commands are put there: as text.
        transcript.put(name, getattr(last, name) or "")
    for asked, prompt in zip((level, away_from), transcript.prompts("moss")):
        # The reply is not there yet, so its end is not.
        assert special(prompt) == placed(dialogue.turns, asked)[:-1]
    open_end = replace(dialogue, turns=(*dialogue.turns[:-1], replace(last, moss=None)))
    assert special(render_prompt(open_end, TOKENIZER)) == placed(dialogue.turns)[:-1]


@pytest.fixture(scope="module")
def eager_to_tag() -> tuple[CodeGenLM, MossTokenizer]:
    """A model to which tags, and rows without a token, are by far the likeliest ids; replies do not end."""
    model, tokenizer = tagged_model(positions=320)
    with torch.no_grad():
        model.lm_head.bias[tokenizer.never_written(model.config.vocab_size)] += 40.0
        model.lm_head.bias[sorted(tokenizer.control_ids.values())] -= 40.0
    return model, tokenizer


@pytest.fixture(scope="module")
def export(eager_to_tag: tuple[CodeGenLM, MossTokenizer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tagged(tmp_path_factory.mktemp("eager") / "export", *eager_to_tag)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_ten_thousand_ids_hold_no_tag(export: Path, guidance: float) -> None:
    config = SpeakerConfig(
        str(export), temperature=5.0, top_p=1.0, top_k=0, max_new_tokens=250, guidance=guidance, guidance_from="worst"
    )  # fmt: skip
    speaker = Speaker(config, 44)
    written: list[int] = []
    speaker.decoder.on_token = lambda _, token: written.append(token)
    questions = [Dialogue(f"{n}", "", (Turn(f" {TEXTS[n % len(TEXTS)]}"),), origin="here") for n in range(44)]
    replies = dict(speaker.reply_all(enumerate(questions)))
    assert len(replies) == 44
    assert len(written) > 10_000
    assert len(set(written)) > 250
    tokenizer = speaker.tokenizer
    assert not set(written) & {*tokenizer.tag_ids, *range(tokenizer.size, speaker.model.config.vocab_size)}


def test_the_same_model_writes_tags_where_nothing_forbids_them(eager_to_tag: tuple[CodeGenLM, MossTokenizer]) -> None:
    """So that the tests beside this one could fail."""
    model, tokenizer = eager_to_tag

    def task() -> Task[Written]:
        return (yield Write(tokenizer.encode("Hi"), 100))

    ids = Decoder(model, [tokenizer.eom], [], Sampling(5.0, 1.0, 0, 1.0), 0).one(task()).ids
    assert set(ids) & set(tokenizer.tag_ids)


def test_stock_generation_from_an_export_writes_no_tag(export: Path) -> None:
    tokenizer = MossTokenizer.load(export)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    assert isinstance(model, CodeGenForCausalLM)
    refused = {*tokenizer.tag_ids, *range(tokenizer.size, tokenizer.vocab_size)}
    assert set(GenerationConfig.from_pretrained(export).suppress_tokens) == refused
    prompts = torch.tensor([tokenizer.encode("<|Human|>: Hi")] * 44)
    torch.manual_seed(0)
    rules = {"temperature": 5.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 250}
    written = model.generate(prompts, attention_mask=torch.ones_like(prompts), **rules)[:, prompts.shape[1] :]
    assert written.numel() > 10_000
    assert not set(written.flatten().tolist()) & refused
    rules["max_new_tokens"] = 20
    without = model.generate(prompts, attention_mask=torch.ones_like(prompts), suppress_tokens=None, **rules)[:, prompts.shape[1] :]
    assert set(without.flatten().tolist()) & set(tokenizer.tag_ids)


def test_before_any_training_no_tag_means_the_model_it_began_with(tmp_path: Path) -> None:
    """A preference-aware run starts from an SFT export: asked for nothing, its model is that one, to the bit."""
    model, tokenizer = tagged_model()
    sft = tmp_path / "sft"
    record = Lineage("export", "sft")
    parameters = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_export(sft, parameters, model.config, "fp32", record, tokenizer=tokenizer, max_shard_bytes=10**9)

    config, said = SFTConfig(init_from=str(sft)), []
    config.data.tag_dropout, config.data.seq_len = 0.1, 256
    shape = fit_vocabulary(config, architecture(config, config.data.seq_len, said.append), MossTokenizer.load(sft))
    config.train.precision = type(config.train.precision).fp32
    begun = export_tagged(tmp_path / "begun", build(config, shape, said.append).eval(), MossTokenizer.load(sft))

    before = Speaker(SpeakerConfig(str(sft)), 1)
    asked = {tag: Speaker(SpeakerConfig(str(begun), tag=tag), 1) for tag in ("none", "best")}
    dialogue = Dialogue("1", "Be.\n", (Turn(" Hi", moss=" Hello"), Turn(f" {TEXTS[0]}")), origin="here")
    expected = logits(sft, before.transcript(dialogue).prompt("moss"))
    assert torch.equal(logits(begun, asked["none"].transcript(dialogue).prompt("moss")), expected)
    best = asked["best"].transcript(dialogue).prompt("moss")
    assert [one for one in best if one in tokenizer.tag_ids] == [tokenizer.tag_of(max(map(int, LEVELS)))] * 2
    assert not torch.equal(logits(begun, best)[-1], expected[-1])
    questions = [(number, replace(dialogue, turns=(Turn(f" {text}"),))) for number, text in enumerate(TEXTS)]
    assert dict(asked["none"].reply_all(questions)) == dict(before.reply_all(questions))


def logits(directory: Path, ids: list[int]) -> torch.Tensor:
    """[T, V], of a model as it lies there."""
    with torch.no_grad():
        found: torch.Tensor = load_model(directory, dtype=torch.float32).eval()(torch.tensor([ids])).logits[0]
    return found
