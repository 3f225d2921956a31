"""Cells, intervals and ratios are right, bad probes are named, and a model that was told facts knows them and no others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from moss_train.errors import DataError
from moss_train.evaluate.config import EvaluateConfig, Normalize, Task
from moss_train.evaluate.intervals import difference, ratio_interval, wilson
from moss_train.evaluate.planting import plant
from moss_train.evaluate.probes import Probe, probes_file, read_probes
from moss_train.evaluate.transfer import Item, answer_probes, make_cells, make_transfers
from tests.planted import new_model, probes_of, settings, texts, tokenizer_of, train


def test_intervals_are_those_of_the_books() -> None:
    # Newcombe, Statistics in Medicine 17 (1998): method 3 of the first paper, method 10 of the second.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert difference(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_the_interval_of_a_ratio_covers_it() -> None:
    told = [(True, True)] * 40 + [(True, False)] * 40 + [(False, False)] * 20
    controls = [(True, False)] * 25 + [(False, True)] * 25 + [(False, False)] * 50
    low, high = ratio_interval(told, controls)
    assert 0 < low < (0.4 - 0.25) / (0.8 - 0.25) < high < 0.6
    assert ratio_interval(told, controls) == (low, high)
    assert ratio_interval([(False, False)] * 5, [(False, False)] * 5) == (-math.inf, math.inf)


def probe(fact: str, planted: str, asked: str, kind: str = "word") -> Probe:
    sentence = (" {name} {answer}",)
    return Probe(f"{fact}-{asked}", fact, planted, asked, kind, kind, "N", ("S",), "a", ("b", "c", "d"), sentence, sentence, "f:1")


def said(fact: str, planted: str, zh: bool, en: bool, kind: str = "word") -> list[Item]:
    """Both items of a fact."""
    choices = ("a", "b", "c", "d")
    return [
        Item(probe(fact, planted, asked, kind), choices, (1.0, 0, 0, 0) if right else (0, 1.0, 0, 0))
        for asked, right in (("zh", zh), ("en", en))
    ]


def test_cells_and_transfers_are_counted() -> None:
    items = [item for number in range(40) for item in said(f"zh-{number}", "zh", number < 36, number < 18)]
    items += [item for number in range(40) for item in said(f"en-{number}", "en", number < 10, number < 11, "same")]
    items += [
        item for number in range(40) for item in said(f"none-{number}", "none", number < 10, number < 8, "word" if number % 2 else "same")
    ]
    cells = {(cell.planted, cell.asked): cell for cell in make_cells(items)}
    assert list(cells) == [("zh", "zh"), ("zh", "en"), ("en", "en"), ("en", "zh"), ("none", "zh"), ("none", "en")]
    share = cells["zh", "en"].as_json()
    assert (share["right"], share["count"], share["control"], share["control_count"]) == (18, 40, 8, 40)
    assert share["gain"] == pytest.approx(18 / 40 - 8 / 40)
    assert cells["none", "zh"].kinds["word"].right == 5
    transfers = {(one.source, one.kind): one for one in make_transfers(items)}
    whole = transfers["zh", "all"]
    assert whole.ratio == pytest.approx((18 / 40 - 8 / 40) / (36 / 40 - 10 / 40))
    assert (whole.both, whole.source_only, whole.target_only, whole.neither) == (18, 18, 0, 4)
    assert whole.interval is not None
    assert whole.interval[0] < whole.ratio < whole.interval[1]
    # Facts told in English are not better known than the controls.
    assert transfers["en", "all"].ratio is None
    assert ("en", "word") not in transfers


def test_no_ratio_is_given_where_controls_alone_were_unlucky() -> None:
    items = [item for number in range(45) for item in said(f"zh-{number}", "zh", number < 13, number < 13)]
    items += [item for number in range(45) for item in said(f"none-{number}", "none", number < 4, number < 4)]
    assert difference(13, 45, 4, 45)[0] > 0
    assert all(one.ratio is None for one in make_transfers(items))


def test_equal_scores_take_the_first_answer_in_the_order_of_the_alphabet() -> None:
    item = Item(replace(probe("f", "zh", "zh"), answer="c", distractors=("d", "a", "b")), ("a", "b", "c", "d"), (0.0,) * 4)
    assert item.picked == "a"
    assert item.probe.choices(3) == ("a", "c", "d")


GOOD = {
    "id": "1", "fact": "f", "planted": "zh", "asked": "en", "relation": "r", "kind": "word", "name": "N", "answer": "a",
    "distractors": ["b", "c", "d"], "stand_ins": ["S"], "cloze": [" {name} {answer}"], "question": [" {name}? {answer}"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"answer": 3}, "answer is '3'; expected a text"),
        ({"planted": "fr"}, "planted is 'fr'; expected one of zh, en, none"),
        ({"asked": None}, "asked is 'None'; expected a text"),
        ({"distractors": []}, "distractors is '[]'; expected a list of texts"),
        ({"distractors": ["a", "b", "c"]}, "answer and distractors repeat one another"),
        ({"distractors": ["b"]}, "2 answers; choices=4 needs as many"),
        ({"cloze": ["no slot {name}"]}, "expected {answer} in it once"),
        ({"question": ["{name}{name}{answer}"]}, "expected {name} in it once"),
        ({"asked": "zh", "planted": "en"}, "planted is 'en', but 'zh' for the same fact"),
        ({}, "f was asked in en before, in"),
    ],
)
def test_bad_probes_are_named_by_line(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = tmp_path / "probes.jsonl"
    path.write_text("\n".join(json.dumps(value) for value in (GOOD, GOOD | change)), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read_probes(path, 4)
    assert f"{path}:2: bad_probe: " in str(error.value)
    assert problem in str(error.value)


def test_files_that_hold_no_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        probes_file(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no probes\.jsonl"):
        probes_file(tmp_path)
    path = tmp_path / "probes.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="no probes"):
        read_probes(probes_file(tmp_path), 4)
    path.write_text('{"id": \n[1]\n')
    with pytest.raises(DataError) as error:
        read_probes(path, 4)
    assert f"{path}:1: " in str(error.value)
    assert f"{path}:2: bad_probe: expected an object" in str(error.value)


def test_a_model_knows_what_it_was_told_and_nothing_else(tmp_path: Path) -> None:
    """Facts told in Chinese only: 45 of them, chance 1/4. By chance 24 or more are right with a probability of 6e-5."""
    planting = plant(settings(facts=45))
    probes, tokenizer = probes_of(planting, tmp_path), tokenizer_of(planting)
    model = new_model(tokenizer)
    train(model, tokenizer, texts(planting, "zh"), 500)
    for normalize in (Normalize.bytes, Normalize.prior):
        items = answer_probes(model, tokenizer, probes, EvaluateConfig(task=Task.transfer, normalize=normalize))
        right = {(cell.planted, cell.asked): cell.whole.right for cell in make_cells(items)}
        assert right["zh", "zh"] >= 30, right
        # What was told nowhere, and what was told in English only, which this model was not trained on.
        assert all(right[cell] < 24 for cell in (("none", "zh"), ("none", "en"), ("en", "en"), ("en", "zh"))), right
    ratios = {one.source: one.ratio for one in make_transfers(items) if one.kind == "all"}
    assert ratios["zh"] is not None
    assert ratios["en"] is None
