"""What benchmarks are made of: turns, ratios, memory apart, tables; and that the sides of each suite do equal work."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from moss_train.benchmark import attention, loss, main, train
from moss_train.benchmark.config import BenchmarkConfig, ShapeConfig, Suite
from moss_train.benchmark.outcome import Outcome, Row, describe, draw
from moss_train.benchmark.timing import FailedError, Timed, apart, in_turns, peak_growth
from moss_train.config import Precision
from moss_train.model.codegen import CodeGenLM

SMALL = BenchmarkConfig(
    shape=ShapeConfig(hidden_size=128, num_layers=2, head_dim=32, vocab_size=512),
    seq_len=64,
    rows=2,
    loss_vocab_size=3000,
    loss_tokens=96,
    rounds=2,
    dtype=Precision.fp32,
)


def test_sides_take_turns_and_the_order_is_turned_around() -> None:
    called: list[str] = []
    timed = in_turns({name: lambda name=name: called.append(name) for name in "ab"}, rounds=3)  # type: ignore[misc]
    assert "".join(called) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in timed.seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_within_each_round() -> None:
    """The machine slows down to a third; who is twice as fast stays so."""
    timed = Timed({"base": [2.0, 4.0, 6.0], "ours": [1.0, 2.0, 3.0]})
    assert timed.ratio("ours") == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert timed.ratio("base", over="ours")["median"] == 0.5
    assert in_turns({"slow": lambda: time.sleep(0.05), "fast": lambda: None}, 1).ratio("fast")["median"] > 10


def growth_by(mebibytes: int) -> int:
    """What is measured of a tensor of that size."""
    return peak_growth(lambda: torch.ones(mebibytes * 2**20 // 4), "cpu")


def test_memory_is_measured_at_its_highest() -> None:
    # Apart, as suites do: in a process that has freed as much before, there may be nothing to grow by.
    assert 60 * 2**20 < apart(f"{__name__}:growth_by", {"mebibytes": 64}) < 80 * 2**20
    shape = {"tokens": 96, "hidden_size": 64, "vocab_size": 60_000, "dtype": "float32"}
    plain, ours = (apart("moss_train.benchmark.loss:measure_peak", {"side": side, "device": "cpu", **shape}) for side in ("plain", "ours"))
    # Logits and their gradient, 22 MiB each, beside the weight's gradient of 15.
    assert plain > 50 * 2**20
    assert plain > ours


def test_what_fails_apart_is_told() -> None:
    with pytest.raises(FailedError, match="KeyError: 'nonsense'"):
        apart("moss_train.benchmark.loss:measure_peak", {"side": "nonsense", "device": "cpu", "tokens": 1, "hidden_size": 1,
                                                          "vocab_size": 2, "dtype": "float32"})  # fmt: skip


def test_all_losses_are_the_same_and_so_are_their_gradients() -> None:
    given = loss.make(50, 16, 200, "float32", "cpu")
    found = {side: loss.step(side, given) for side in loss.LOSSES if loss.obstacle(side, "cpu") is None}
    assert {"plain", "ours"} <= set(found)
    assert list(found.values()) == pytest.approx([found["plain"]] * len(found), rel=1e-6)
    assert loss.largest_difference("cpu") < 1e-5


def test_the_suite_loss() -> None:
    outcome = loss.run(SMALL, "cpu")
    sides = [row.side for row in outcome.rows]
    assert sides[:2] == ["plain", "ours"]
    assert "Liger" in outcome.not_run
    assert outcome.rows[0].ratio is None
    assert outcome.rows[1].ours
    assert {"time over plain", "peak memory over plain"} <= set(outcome.figures)


def test_both_sides_of_training_begin_with_the_same_loss_and_take_the_same_step() -> None:
    ours = train.make_side(True, vars(SMALL.shape), 2, 64, "float32", "cpu")
    stock = train.make_side(False, vars(SMALL.shape), 2, 64, "float32", "cpu", ours.model.state_dict())
    expected, found = train.check_losses(stock, ours, "float32")
    assert found == pytest.approx(expected, rel=1e-5)
    for side in (ours, stock):
        side.step()
    expected_after, found_after = train.check_losses(stock, ours, "float32")
    assert found_after == pytest.approx(expected_after, rel=1e-5)
    assert found_after < found
    with torch.no_grad():
        stock.model.lm_head.bias += torch.arange(512.0)
    with pytest.raises(AssertionError, match="do not compute the same"):
        train.check_losses(stock, ours, "float32")


def test_flops_are_those_of_the_matrices_and_of_causal_attention() -> None:
    shape = SMALL.shape
    model = CodeGenLM(train.model_config(shape, 64))
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "wte" not in name)
    # 2 FLOPs a product, 3 passes; scores and their use: 2 products of H for each head and pair, half of the pairs.
    attention_flops = 3 * shape.num_layers * 2 * 2 * shape.hidden_size * 64 * 64 / 2
    assert train.flops_per_step(shape, 1, 64) == 3 * 2 * 64 * matrices + attention_flops


def test_the_suite_attention() -> None:
    outcome = attention.run(SMALL, "cpu")
    assert len(outcome.rows) == 2 * len(attention.HEAD_DIMS) * 3
    assert set(outcome.not_run) == {"varlen", "flash_attention_2"}
    ends = attention.boundaries(2, 64, packed=True).tolist()
    assert ends == sorted(set(ends))
    assert {0, 64, 128} <= set(ends)


def test_what_is_measured_is_kept_until_settings_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "HEAD_DIMS", (32,))
    config = BenchmarkConfig(**{**vars(SMALL), "suite": [Suite.attention], "out": str(tmp_path)})
    main.main(config)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"attention.json", "attention.md", "attention.png"}
    whole = json.loads(files["attention.json"])
    assert torch.__version__.startswith(whole["machine"]["versions"]["torch"].partition("+")[0])
    assert whole["machine"]["cores"] >= 1
    main.main(config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    config.rounds = 1
    main.main(config)
    assert (tmp_path / "attention.json").read_bytes() != files["attention.json"]


def test_the_table_and_the_picture() -> None:
    ratio = {"median": 2.0, "min": 1.5, "max": 2.5}
    rows = [Row("case", "stock", 1234.5), Row("case", "ours", 2469.0, ratio, 3 * 2**20, ours=True), Row("case", "absent", None, note="why")]
    outcome = Outcome("train", "tokens/s", "stock", rows, {"share": 0.5}, {"peer": "not installed"})
    text = describe(outcome)
    assert "| case | ours   |    2,469 | 2.00 (1.50 to 2.50) |                3 |" in text
    assert "- share: 0.5" in text
    assert "- not run: peer: not installed" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert draw(outcome).startswith(b"\x89PNG")
    alone = describe(Outcome("startup", "seconds", "", [Row("", "import", 0.01)]))
    assert "times" not in alone


def test_wrong_settings_are_named() -> None:
    config = BenchmarkConfig(rounds=0, suite=[Suite.loss, Suite.loss], shape=ShapeConfig(hidden_size=100))
    found = "\n".join(config.problems())
    assert "rounds is 0" in found
    assert "expected each once" in found
    assert "shape.hidden_size is 100; expected a multiple of 4 x shape.head_dim = 256" in found
