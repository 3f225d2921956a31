"""The command line refuses what is wrong: all of it, by key, with exit code 2, before torch is loaded."""

from __future__ import annotations

import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from moss_train import cli
from moss_train.cli import decode_keys, drop_local_rank, quote_texts
from moss_train.config import StageConfig
from moss_train.inference.config import GenerateConfig
from moss_train.pretrain.config import PretrainConfig
from moss_train.sft.config import SFTConfig
from tests.launch import python, run, succeeded


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["sft.py", "--local_rank=1", "a=1"], ["sft.py", "a=1"]),
        (["sft.py", "--local_rank", "1", "a=1"], ["sft.py", "a=1"]),
        (["sft.py", "--local-rank=0", "-m", "a=1,2"], ["sft.py", "-m", "a=1,2"]),
        (["sft.py", "a=--local_rank=1"], ["sft.py", "a=--local_rank=1"]),
    ],
)
def test_launchers_local_rank_is_dropped(arguments: list[str], kept: list[str]) -> None:
    drop_local_rank(arguments)
    assert arguments == kept


@pytest.mark.parametrize(
    "text",
    [
        "What is 3 + 4?",
        "法国的首都是哪里？",
        "a=b, (c) [d] {e}",
        "{a: 1}",
        "[a, b]",
        """it's "quoted\"""",
        "back\\slash\\",
        "\\'",
        "'",
        "a: b # c",
        "x\ny",
        "100%",
        "null.",
        "- 1",
    ],
)
def test_texts_need_no_quotes_for_hydra(text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (argument,) = quote_texts([f"prompt={text}"], GenerateConfig)
    assert OverridesParser.create().parse_override(argument).value() == text


def test_only_texts_are_quoted_and_not_twice() -> None:
    arguments = ["optim.lr=1e-4", "model=codegen_tiny", "init_from=null", "run.dir='a,b'", "+config=tiny_sft", "deepspeed=zero3", "-m"]
    assert quote_texts(arguments, SFTConfig) == arguments
    assert quote_texts(["run.dir=a,b"], SFTConfig) == ["run.dir='a,b'"]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.train=dialogues.jsonl#100", "dialogues.jsonl#100"),
        ("data.train=[a.jsonl#100, b/*.jsonl,中文.jsonl]", ["a.jsonl#100", "b/*.jsonl", "中文.jsonl"]),
        ("data.train=my dialogues (1).jsonl", "my dialogues (1).jsonl"),
        ("data.train={a.jsonl: 2}", {"a.jsonl": 2}),
        ("data.valid=null", None),
    ],
)
def test_paths_and_lists_of_paths_need_no_quotes(argument: str, value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (quoted,) = quote_texts([argument], SFTConfig)
    assert OverridesParser.create().parse_override(quoted).value() == value


@pytest.mark.parametrize(
    "mixture",
    [
        {"a.jsonl": 0.7, "b/c-d.jsonl": 2},
        {"a.jsonl#100": 1, "中文 数据.jsonl": 0.5, "~/x/*.jsonl": 3},
        {"100%.jsonl": 1},
        {"C:/data.jsonl": 1},
    ],
)
def test_paths_of_a_mixture_need_no_quotes(mixture: dict[str, float]) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    text = ", ".join(f"{path}: {weight}" for path, weight in mixture.items())
    (quoted,) = quote_texts([f"data.train={{{text}}}"], SFTConfig)
    assert decode_keys(OverridesParser.create().parse_override(quoted).value()) == mixture


@pytest.mark.parametrize("value", ["{a.jsonl: 0}", "{a.jsonl: -1}", "{a.jsonl: x}", "{a.jsonl: null}", "{}", "[]"])
def test_what_is_no_path_or_mixture_is_refused(value: str) -> None:
    result = python("scripts/sft.py", "+config=tiny_sft", f"data.train={value}")
    assert result.returncode == 2
    assert "data.train" in result.stderr
    assert "{path: weight}" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "weights"),
    [
        (["data.weights={zh: 0.8, en: 0.2}"], {"zh": 0.8, "en": 0.2}),
        (["data.weights={zh: 0.8}", "data.weights.code=0.2"], {"zh": 0.8, "code": 0.2}),
        (["data.weights.code=5"], {"zh": 100, "en": 20, "code": 5}),
        (["data.weights={}"], {}),
    ],
)
def test_weights_given_as_a_whole_replace_those_of_a_preset(arguments: list[str], weights: dict[str, float]) -> None:
    schema, program = PretrainConfig, cli.PROGRAMS["pretrain"]
    overrides = cli.quote_texts(["+config=moss_moon_003_base", "init_from=x", "data.train=y", *arguments], schema)
    ConfigStore.instance().store(name="schema", node=schema, provider="moss_train")
    ConfigStore.instance().store(name="hydra_settings", node=cli.HYDRA_SETTINGS, package="_global_", provider="moss_train")
    with initialize_config_dir(str(cli.config_dir(program)), version_base="1.3"):
        raw = compose(program.config_name, overrides)
    cli.replace_whole(raw, schema, overrides)
    assert cli.check(raw, schema).data.weights == weights


def test_under_a_sweep_commas_separate_values() -> None:
    arguments = ["data.train=a.jsonl,b.jsonl", "data.valid=dev.jsonl#5"]
    assert quote_texts(arguments, SFTConfig, sweep=True) == ["data.train=a.jsonl,b.jsonl", "data.valid='dev.jsonl#5'"]


def test_every_problem_is_told_at_once() -> None:
    result = python(
        "scripts/sft.py",
        "+config=tiny_sft",
        "+foo=1",
        "optim.lrr=3",
        "train.steps=abc",
        "train.epochs=2",
        "model=bad",
        "optim.lr=-1",
        "data.loss_on=xx",
        "+deepspeed.fp16.enabled=true",
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    for expected in [
        "foo: there is no such key",
        "optim.lrr: there is no such key; did you mean optim.lr?",
        "train.steps=abc: train.steps: Value 'abc' of type 'str' could not be converted to Integer",
        "model=bad: there is no such choice; expected one of codegen_16b",
        "optim.lr is -1.0; expected a number above zero",
        "data.loss_on=xx: data.loss_on: Invalid value 'xx', expected one of [generated, reply, release]",
        "deepspeed.fp16 may not be set there; its owner is train.precision",
        "exactly one of train.steps and train.epochs must be set; both are",
    ]:
        assert expected in result.stderr, result.stderr


def test_missing_values_are_named() -> None:
    result = python("scripts/sft.py")
    assert result.returncode == 2
    for expected in ["init_from must be given", "data.train is not set", "exactly one of train.steps and train.epochs"]:
        assert expected in result.stderr, result.stderr


def test_unknown_preset_lists_those_there_are() -> None:
    result = python("scripts/sft.py", "+config=tiny")
    assert result.returncode == 2
    assert "config=tiny: there is no such choice; expected one of" in result.stderr
    assert "tiny_sft" in result.stderr


def test_a_wrong_configuration_is_refused_before_torch_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['sft.py', '+config=tiny_sft', 'optim.lr=-1']\n"
        "import os; os._exit = lambda code: print(code, 'torch' in sys.modules)\n"
        "from moss_train.cli import run; run('sft')"
    )
    assert succeeded(run([sys.executable, "-c", code])).stdout.strip() == "2 False"


def test_the_whole_configuration_can_be_shown() -> None:
    shown = succeeded(python("scripts/sft.py", "+config=moss_moon_003_sft_plugin", "--cfg", "job")).stdout
    for line in ["num_layers: 34", "vocab_size: 107008", "lr: 1.5e-05", "loss_on: generated", "stage: 3", "beta2: 0.999"]:
        assert line in shown


@pytest.mark.parametrize("stage", [0, 4, None])
def test_zero_stages_that_do_not_fit_the_loop_are_refused(stage: int | None) -> None:
    config = StageConfig(deepspeed={"zero_optimization": {"stage": stage}})
    assert any("deepspeed.zero_optimization.stage" in problem for problem in config.problems())
