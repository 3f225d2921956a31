"""Learning rates at literal steps, and which parameters are decayed."""

from __future__ import annotations

import pytest
import torch

from moss_train.config import CooldownShape, Decay, OptimConfig, Schedule
from moss_train.errors import ConfigError
from moss_train.train.optim import freeze, is_decayed, learning_rate


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Schedule.cosine, 0, 0.1),
        (Schedule.cosine, 9, 1.0),
        # 50 of the 100 equal parts from the warm-up's end to the step after the last: half way down.
        (Schedule.cosine, 59, 0.5),
        (Schedule.linear, 59, 0.5),
        (Schedule.linear, 108, 0.01),
        (Schedule.linear, 109, 0.0),
        (Schedule.constant, 108, 1.0),
    ],
)
def test_learning_rate_at_literal_steps(schedule: Schedule, step: int, expected: float) -> None:
    config = OptimConfig(lr=1.0, schedule=schedule, warmup=10)
    assert learning_rate(config, step, 109) == pytest.approx(expected, abs=1e-12)


def test_warmup_as_a_share_and_a_floor() -> None:
    config = OptimConfig(lr=2.0, warmup=0.05, min_lr_ratio=0.1)
    assert learning_rate(config, 4, 100) == pytest.approx(2.0)
    assert learning_rate(config, 100, 100) == pytest.approx(0.2)


def test_without_warmup_the_first_step_is_already_on_the_schedule() -> None:
    assert learning_rate(OptimConfig(lr=1.0, schedule=Schedule.linear, warmup=0), 0, 4) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("shape", "half_way"), [(CooldownShape.linear, 0.5), (CooldownShape.cosine, 0.5), (CooldownShape.sqrt, 1 - 0.5**0.5)]
)
def test_wsd_is_constant_and_then_falls(shape: CooldownShape, half_way: float) -> None:
    config = OptimConfig(lr=1.0, schedule=Schedule.wsd, warmup=10, cooldown=19, cooldown_shape=shape)
    rates = [learning_rate(config, step, 100) for step in range(101)]
    assert rates[9:81] == [1.0] * 72
    # 10 of the 20 equal parts from the end of the constant part to the step after the last.
    assert rates[90] == pytest.approx(half_way)
    assert rates[99] > rates[100] == 0.0
    assert rates[80:] == sorted(rates[80:], reverse=True)


def test_a_wsd_run_made_longer_is_the_same_until_the_old_cooldown() -> None:
    config = OptimConfig(lr=1.0, schedule=Schedule.wsd, warmup=10, cooldown=0.2, min_lr_ratio=0.1)
    short, long = ([learning_rate(config, step, total) for step in range(80)] for total in (100, 1000))
    assert short == long
    assert learning_rate(config, 99, 100) < learning_rate(config, 99, 1000) == 1.0


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("warmup", [0.0, 0.05, 7.0])
def test_in_tokens_a_schedule_is_what_it_is_in_steps_and_another_batch_size_does_not_bend_it(schedule: Schedule, warmup: float) -> None:
    config = OptimConfig(lr=1.0, schedule=schedule, warmup=warmup)
    tokens = 2**21
    for step in range(100):
        assert learning_rate(config, step * tokens, 100 * tokens, tokens) == pytest.approx(learning_rate(config, step, 100), abs=1e-12)
    # Half the batch at twice the steps: at the same tokens nearly the same rate.
    if warmup < 1:
        for step in range(10, 99):
            halved = learning_rate(config, step * tokens, 100 * tokens, tokens // 2)
            assert halved == pytest.approx(learning_rate(config, step, 100), abs=0.06)


@pytest.mark.parametrize(
    ("name", "dimensions", "matrices", "release"),
    [
        ("transformer.h.0.attn.qkv_proj.weight", 2, True, True),
        ("transformer.h.0.ln_1.weight", 1, False, True),
        ("transformer.h.0.ln_1.bias", 1, False, False),
        ("lm_head.bias", 1, False, False),
        ("transformer.wte.weight", 2, True, True),
    ],
)
def test_which_parameters_are_decayed(name: str, dimensions: int, matrices: bool, release: bool) -> None:
    assert is_decayed(name, dimensions, Decay.matrices) is matrices
    assert is_decayed(name, dimensions, Decay.release) is release


def test_patterns_freeze_by_name() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("wte", "h", "lm_head")})
    assert freeze(model.named_parameters(), ["wte.*", "lm_head.bias"]) == 3
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["h.weight", "h.bias", "lm_head.weight"]


def test_a_pattern_that_matches_nothing_and_a_model_without_trained_parameters_are_refused() -> None:
    model = torch.nn.ModuleDict({"wte": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError) as caught:
        freeze(model.named_parameters(), ["*", "transformer.*"])
    assert "'transformer.*', which matches no parameter; there are, for example, wte.weight and wte.bias" in str(caught.value)
    assert "leaves nothing to train" in str(caught.value)
    assert all(parameter.requires_grad for parameter in model.parameters())
