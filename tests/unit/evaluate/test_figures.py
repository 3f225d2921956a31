"""Figures by item: values, intervals, and differences between two models."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moss_train.evaluate.figures import Form, Measure, by_item, difference


def filled(pairs: list[tuple[float, float]], form: Form = Form.share) -> Measure:
    measure = Measure(form)
    for number, (part, weight) in enumerate(pairs):
        measure.add(str(number), part, weight)
    return measure


def test_a_share_of_trials_has_the_interval_of_wilson() -> None:
    found = filled([(1, 1)] * 8 + [(0, 1)] * 2).describe()
    assert found["value"] == 0.8
    assert found["interval_by"] == "wilson"
    assert found["interval"] == pytest.approx([0.490, 0.943], abs=1e-3)
    assert (found["items"], found["weight"]) == (10, 10)


def test_turns_of_a_dialogue_are_one_item() -> None:
    measure = Measure()
    for turn in range(10):
        measure.add("dialogue", turn < 8, 1)
    measure.add("other", 1, 2)
    assert measure.parts == {"dialogue": (8, 10), "other": (1, 2)}
    assert measure.value == 9 / 12
    assert measure.describe()["interval_by"] == "bootstrap"


def test_nothing_has_no_value() -> None:
    measure = Measure()
    measure.add("a", 1, 0)
    assert measure.describe()["value"] is None
    assert measure.describe()["interval"] is None


def test_a_perplexity_is_the_exponential_of_the_mean() -> None:
    pairs = [(20.0, 10.0), (60.0, 20.0), (10.0, 10.0)]
    loss, perplexity = filled(pairs, Form.mean), filled(pairs, Form.exp)
    assert perplexity.value == pytest.approx(math.exp(90 / 40))
    assert perplexity.describe()["interval"] == pytest.approx([math.exp(bound) for bound in loss.describe()["interval"]])
    assert filled([(9e9, 1.0)], Form.exp).value is None
    # Of one document nothing is known of how others differ from it.
    assert filled([(20.0, 10.0)], Form.mean).describe()["interval"] is None


def test_differences_are_of_the_same_items() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(1, 9, 200)
    first = filled([(value * 10, 10) for value in hard], Form.mean)
    other = filled([((value + 0.1) * 10, 10) for value in hard], Form.mean)
    found = difference(first, other)
    assert found is not None
    assert found["value"] == pytest.approx(0.1)
    # Documents differ by far more than the models: side by side the intervals overlap, item by item the difference is certain.
    assert found["interval"] == pytest.approx([0.1, 0.1], abs=1e-6)
    low, high = first.describe()["interval"]
    assert high - low > 0.3
    assert difference(first, Measure(Form.mean)) is None


def test_parts_by_item_are_written() -> None:
    assert by_item({"a": filled([(1, 2)]), "b": filled([(3, 4), (0, 1)])}) == {"0": {"a": [1, 2], "b": [3, 4]}, "1": {"b": [0, 1]}}
