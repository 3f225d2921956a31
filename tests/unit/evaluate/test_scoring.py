"""Scores are those of a plain computation, one sentence at a time."""

from __future__ import annotations

import pytest
import torch

from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, NonFiniteError
from moss_train.evaluate.planting import Planting, plant
from moss_train.evaluate.scoring import Frame, encode_frame, score
from moss_train.model.codegen import CodeGenLM
from tests.planted import new_model, settings, tokenizer_of

POOL = ("blue", "green", "red")


@pytest.fixture(scope="module")
def planting() -> Planting:
    return plant(settings())


@pytest.fixture(scope="module")
def tokenizer(planting: Planting) -> MossTokenizer:
    return tokenizer_of(planting)


@pytest.fixture(scope="module")
def model(tokenizer: MossTokenizer) -> CodeGenLM:
    made = new_model(tokenizer)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter *= 5
    return made.eval()


def requests(planting: Planting) -> list[tuple[Frame, str]]:
    """Of all probes, each of its answers."""
    found = []
    for probe in planting.probes:
        pool = tuple(sorted([probe["answer"], *probe["distractors"]]))
        found += [(Frame(probe["cloze"][0].replace("{name}", probe["name"]), pool), answer) for answer in pool]
    return found


def plainly(model: CodeGenLM, tokenizer: MossTokenizer, frame: Frame, answer: str) -> float:
    """A sentence alone, from its logits."""
    every = [tokenizer.encode(frame.text.replace("{answer}", one)) for one in frame.pool]
    shared = 0
    while len({tuple(ids[: shared + 1]) for ids in every}) == 1:
        shared += 1
    ids = [tokenizer.endoftext, *tokenizer.encode(frame.text.replace("{answer}", answer))]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(logits[place - 1, ids[place]]) for place in range(1 + shared, len(ids)))


def test_scores_are_those_of_one_sentence_at_a_time(model: CodeGenLM, tokenizer: MossTokenizer, planting: Planting) -> None:
    wanted = requests(planting)[::13]
    found = score(model, tokenizer, wanted, 7)
    assert list(found) == wanted
    assert max(found.values()) - min(found.values()) > 5
    for (frame, answer), value in found.items():
        assert value == pytest.approx(plainly(model, tokenizer, frame, answer), abs=1e-3)


def test_scores_do_not_depend_on_the_batch(model: CodeGenLM, tokenizer: MossTokenizer, planting: Planting) -> None:
    wanted = requests(planting)[:120]
    whole = score(model, tokenizer, wanted, 64)
    for batch_size in (1, 5, 1000):
        assert score(model, tokenizer, wanted, batch_size) == pytest.approx(whole, abs=1e-3)


def test_a_border_inside_a_token_is_scored_alike_for_all_answers() -> None:
    """Where the end of what asks is one token with some answers, all are scored from before it."""
    tokenizer = MossTokenizer.train(["国旗是红色。"] * 50 + ["蓝色", "绿色"], 330, reserved_tags=0)
    frame = Frame("国旗是{answer}。", ("红色", "绿色", "蓝色"))
    encoded = encode_frame(tokenizer, frame)
    assert len({sentence.begin for sentence in encoded.values()}) == 1
    for answer, sentence in encoded.items():
        scored = tokenizer.decode(sentence.ids)[len(tokenizer.decode(sentence.ids[: sentence.begin])) :]
        assert scored.endswith(f"{answer}。")


def test_a_sentence_past_the_context_is_refused(model: CodeGenLM, tokenizer: MossTokenizer) -> None:
    with pytest.raises(DataError, match="the model has 96 positions"):
        score(model, tokenizer, [(Frame("x" * 500 + " {answer}", POOL), "red")], 4)


def test_a_model_that_gives_no_number_is_refused(tokenizer: MossTokenizer) -> None:
    broken = new_model(tokenizer).eval()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="its weights are damaged"):
        score(broken, tokenizer, [(Frame("The flag is {answer}.", POOL), "red")], 4)
