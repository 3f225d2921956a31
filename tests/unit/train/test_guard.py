"""The loss-spike guard."""

from __future__ import annotations

import random

import pytest

from moss_train.errors import NonFiniteError
from moss_train.train.guard import MOST_IN_A_ROW, WINDOW, SpikeGuard


def filled(guard: SpikeGuard, seed: int = 1) -> SpikeGuard:
    """A guard that has seen a window of losses around 2."""
    generator = random.Random(seed)
    for step in range(1, WINDOW + 1):
        assert not guard.is_spike(step, generator.gauss(2.0, 0.1))
    return guard


def test_it_does_not_judge_before_its_window_is_full() -> None:
    guard = SpikeGuard()
    for step in range(1, WINDOW):
        assert not guard.is_spike(step, 1.0 if step % 2 else 1e6)


def test_a_spike_is_noted_and_does_not_enter_the_window() -> None:
    guard = filled(SpikeGuard())
    before = list(guard.recent)
    assert guard.is_spike(200, 3.0)
    assert guard.recent == before
    assert guard.skipped == [200]
    assert not guard.is_spike(201, 2.3)


def test_a_falling_loss_is_no_spike() -> None:
    guard = SpikeGuard()
    assert not any(guard.is_spike(step, 10.0 * 0.99**step) for step in range(1, 600))


def test_the_threshold_is_six_deviations() -> None:
    guard = SpikeGuard()
    for step in range(1, WINDOW + 1):
        guard.is_spike(step, 2.0 + (0.1 if step % 2 else -0.1))
    assert not SpikeGuard(6.0, list(guard.recent)).is_spike(200, 2.59)
    assert SpikeGuard(6.0, list(guard.recent)).is_spike(200, 2.61)


def test_many_in_a_row_end_the_run() -> None:
    guard = filled(SpikeGuard())
    for step in range(200, 200 + MOST_IN_A_ROW - 1):
        assert guard.is_spike(step, 50.0)
    with pytest.raises(NonFiniteError, match="the run has diverged"):
        guard.is_spike(200 + MOST_IN_A_ROW - 1, 50.0)


def test_many_apart_do_not() -> None:
    guard = filled(SpikeGuard())
    for step in range(200, 200 + 4 * MOST_IN_A_ROW, 2):
        assert guard.is_spike(step, 50.0)
        assert not guard.is_spike(step + 1, 2.0)


def test_it_can_be_turned_off() -> None:
    assert not filled(SpikeGuard(0.0)).is_spike(200, 1e9)


def test_a_guard_made_of_a_checkpoint_decides_the_same() -> None:
    guard = filled(SpikeGuard(), seed=5)
    copy = SpikeGuard(6.0, list(guard.recent), list(guard.skipped))
    losses = [random.Random(9).uniform(1.5, 3.5) for _ in range(50)]
    assert [guard.is_spike(300 + i, loss) for i, loss in enumerate(losses[:5])] == [
        copy.is_spike(300 + i, loss) for i, loss in enumerate(losses[:5])
    ]
