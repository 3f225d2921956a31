"""What weights mean, and which of them are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from moss_train.config import ModelConfig, RunConfig
from moss_train.data.corpus import Corpus, CorpusSource
from moss_train.errors import ConfigError
from moss_train.pretrain.config import CorpusDataConfig, PhaseConfig, PlanPretrainConfig, PretrainConfig, PretrainTrainConfig, WeighBy
from moss_train.pretrain.weights import Entry, objective_weights, token_shares


def entry(name: str, language: str, documents: int, tokens: int, path: str = "corpora/mix") -> Entry:
    source = CorpusSource(name, language, None, documents, tokens, 1, "f", (), {})
    return Entry(name, path, "train", Corpus(Path(path), "t", 10, 9, {name: source}, {}, "i"), source)


SOURCES = [
    entry("web", "zh", 100, 6_000),
    entry("books", "zh", 2, 2_000),
    entry("wiki", "en", 50, 5_000, "corpora/en"),
    entry("code", "code", 10, 1_000),
]


def shares(weights: dict[str, float], weigh_by: WeighBy = WeighBy.tokens, by_path: bool = False) -> list[float]:
    """Shares that sum to one."""
    found = token_shares(SOURCES, weights, weigh_by, "data.weights", by_path)
    return [one / sum(found) for one in found]


def test_without_weights_tokens_count_alike() -> None:
    assert shares({}) == pytest.approx([6 / 14, 2 / 14, 5 / 14, 1 / 14])


def test_a_language_is_divided_over_its_sources() -> None:
    assert shares({"zh": 0.8, "en": 0.1, "code": 0.1}) == pytest.approx([0.6, 0.2, 0.1, 0.1])
    assert shares({"web": 1, "en": 1}) == pytest.approx([0.5, 0, 0.5, 0])


def test_a_corpus_is_divided_over_its_sources() -> None:
    assert shares({"corpora/mix": 9, "corpora/en": 1}, by_path=True) == pytest.approx([0.6, 0.2, 0.1, 0.1])


def test_documents_are_weighted_by_their_mean_length() -> None:
    # As many documents of each: tokens as their mean lengths, 60 and 100.
    assert shares({"web": 1, "wiki": 1}, WeighBy.documents) == pytest.approx([60 / 160, 0, 100 / 160, 0])
    # 102 documents of zh for 50 of en: the zh ones are drawn as they are.
    of_language = shares({"zh": 102, "en": 50}, WeighBy.documents)
    assert of_language == pytest.approx([6_000 / 13_000, 2_000 / 13_000, 5_000 / 13_000, 0])


def test_epochs_are_passes_over_each_source() -> None:
    assert shares({"zh": 1, "code": 4}, WeighBy.epochs) == pytest.approx([0.5, 2 / 12, 0, 4 / 12])


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"fr": 1.0}, "data.weights has 'fr', which is neither a source (web, books, wiki, code) nor a language (zh, en, code)"),
        ({"zh": 1.0, "web": 1.0}, "gives web a weight twice: as 'zh' and as 'web'"),
        ({"zh": 0.0, "en": 0.0}, "leaves nothing to train on"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(weights: dict[str, float], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        token_shares(SOURCES, weights, WeighBy.tokens, "data.weights")
    assert problem in str(caught.value)


def test_a_weight_of_zero_may_name_what_is_not_there() -> None:
    assert shares({"fr": 0, "en": 1}) == pytest.approx([0, 0, 1, 0])


def test_objective_weights_are_apart_from_shares() -> None:
    assert objective_weights(SOURCES, {"zh": 0.5, "code": 2}) == [0.5, 0.5, 1.0, 2.0]
    for weights, problem in (
        ({"fr": 0.5}, "neither a source nor a language"),
        ({"zh": 0, "en": 0, "code": 0}, "no token that counts"),
        ({"zh": 1, "web": 0.5}, "gives web a weight twice: as 'zh' and as 'web'"),
    ):
        with pytest.raises(ConfigError, match=problem):
            objective_weights(SOURCES, weights)


def config(**data: object) -> CorpusDataConfig:
    return CorpusDataConfig(**{"train": "corpora/mix", **data})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"train": None}, "data.train is not set"),
        ({"train": {"a": -1}}, "data.train is {'a': -1}"),
        ({"train": {"a": 0.0}}, "data.train sums to nothing"),
        ({"weights": {"zh": 0.0, "en": 0.0}}, "data.weights sums to nothing ({'zh': 0.0, 'en': 0.0})"),
        ({"weights": {"zh": float("nan")}}, "data.weights is {'zh': nan}; expected numbers of zero or more"),
        ({"weights": {"zh": -1.0}}, "expected numbers of zero or more"),
        ({"phases": [PhaseConfig(1e6, {"zh": 0.0})]}, "data.phases[0].weights sums to nothing"),
        ({"phases": [PhaseConfig(1e6, {})]}, "data.phases[0].weights is empty"),
        ({"phases": [PhaseConfig(None, {"zh": 1}), PhaseConfig(1e6, {"zh": 1})]}, "only the last phase goes on to the end"),
        ({"phases": [PhaseConfig(-5, {"zh": 1})]}, "data.phases[0].tokens is -5"),
        ({"phases": [PhaseConfig(float("inf"), {"zh": 1})]}, "data.phases[0].tokens is inf"),
        ({"phases": [PhaseConfig(1e6, {"zh": 1})], "weights": {"zh": 1}}, "data.weights and data.phases both give weights"),
        ({"train": {"a": 1}, "weights": {"zh": 1}}, "data.weights and data.train both give weights"),
        ({"max_epochs": 0}, "data.max_epochs is 0"),
        ({"loss_weights": {"zh": -1}}, "data.loss_weights is"),
        ({"valid": 5}, "data.valid is 5"),
        ({"holdout": 1.0}, "data.holdout is 1.0"),
        ({"valid_tokens": 0}, "data.valid_tokens is 0"),
        ({"seq_len": 4}, "data.seq_len is 4"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in config(**given).problems()), config(**given).problems()


def test_good_settings_have_no_problem() -> None:
    assert config(weights={"zh": 0.7, "en": 0.3}, loss_weights={"zh": 0.0}, max_epochs=None).problems() == []
    assert config(train=["a", "b"], valid="c", phases=[PhaseConfig(1e6, {"zh": 1}), PhaseConfig(None, {"en": 1})]).problems() == []


def test_phases_that_all_end_say_how_long_the_run_is() -> None:
    data = config(phases=[PhaseConfig(1e6, {"zh": 1}), PhaseConfig(2e6, {"en": 1})])
    assert PretrainConfig(init_from="model", data=data).train.tokens == 3e6
    open_ended = config(phases=[PhaseConfig(1e6, {"zh": 1}), PhaseConfig(None, {"en": 1})])
    assert any("train.steps, train.epochs and train.tokens" in one for one in PretrainConfig(init_from="m", data=open_ended).problems())


def test_a_plan_refuses_what_the_run_would_refuse_but_needs_no_data() -> None:
    shape = ModelConfig(num_layers=2, num_heads=4, hidden_size=32, rotary_dim=4)
    train = PretrainTrainConfig(steps=10)

    def problems(**data: object) -> list[str]:
        run = RunConfig(dir="run")
        given = {"run": run, "init_from": None, "model": shape, "train": train, "deepspeed": {"zero_optimization": {"stage": 1}}}
        return PlanPretrainConfig(**given, data=config(train=None, **data)).problems()  # type: ignore[arg-type]

    assert problems() == []
    assert any("data.seq_len is 0" in one for one in problems(seq_len=0))
    assert any("longer than model.max_positions" in one for one in problems(seq_len=4096))
    assert any("data.weights is {'zh': -1}" in one for one in problems(weights={"zh": -1}))
