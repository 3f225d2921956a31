"""Which tag is asked for."""

from __future__ import annotations

import logging

import pytest

from moss_train.data.dialogue import Turn
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError
from moss_train.inference.config import SpeakerConfig
from moss_train.inference.speaker import asked_level
from moss_train.inference.transcript import Transcript


@pytest.fixture(scope="module")
def moss_tokenizer() -> MossTokenizer:
    return MossTokenizer.train(["a b c"], 300)


TAGGED = {"levels": {"1": 10, "2": 10, "5": 10, "10": 1}}


def test_the_best_tag_is_the_best_that_was_trained(moss_tokenizer: MossTokenizer) -> None:
    assert asked_level("auto", TAGGED, moss_tokenizer) == asked_level("best", TAGGED, moss_tokenizer) == 10
    assert asked_level("none", TAGGED, moss_tokenizer) is None
    assert asked_level("2", TAGGED, moss_tokenizer) == 2
    assert asked_level("auto", {}, moss_tokenizer) is None


def test_tags_that_a_model_does_not_know(moss_tokenizer: MossTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match="tag=best: the lineage of the model names no levels"):
        asked_level("best", {}, moss_tokenizer)
    with pytest.raises(UsageError, match=f"the levels 1 to {len(moss_tokenizer.tag_ids)}"):
        asked_level("99", TAGGED, moss_tokenizer)
    with caplog.at_level(logging.WARNING, "moss_train"):
        assert asked_level("3", TAGGED, moss_tokenizer) == 3
    assert "trained with the levels 1, 2, 5, 10" in caplog.text


@pytest.mark.parametrize("tag", ["", "0", "-1", "1.5", "good", "２"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    assert any(problem.startswith(f"tag is {tag!r}") for problem in SpeakerConfig(model="m", tag=tag).problems())
    assert not any(problem.startswith("tag") for problem in SpeakerConfig(model="m", tag="3").problems())


def test_every_turn_has_its_tag(moss_tokenizer: MossTokenizer) -> None:
    tags = moss_tokenizer.tag_ids
    transcript = Transcript(moss_tokenizer, "", level=2)
    transcript.begin(Turn(" a", moss=" b"))
    transcript.begin(Turn(" c", moss=" d", level=1))
    transcript.begin(Turn(" e"))
    assert [one for one in transcript.prompt("moss") if one in tags] == [tags[1], tags[0], tags[1]]
    assert transcript.shorten("moss", len(transcript.prompt("moss")) - 1) == 1
    assert [one for one in transcript.prompt("moss") if one in tags] == [tags[0], tags[1]]
