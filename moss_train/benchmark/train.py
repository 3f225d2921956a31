"""The suite `train`: an optimizer step of pretraining, beside what a user would otherwise write with transformers.

Sides: *stock*, `CodeGenForCausalLM` with `labels`, forward and backward row batch by row batch, torch's AdamW; *ours*, `CodeGenLM`, the
same batches, the same AdamW. Equal weights, shape, number format, batch and optimizer; both must give the same loss first. The rows are
whole documents, so nothing is won by packing: that is the suite `sft`.

How near that is to what the machine can do is told by the rate of its matrix products, measured between the rounds: a product as large as
those of the MLP, in the same number format. Model FLOPs are those of the forward and backward pass, 6 for each weight of a matrix and
token, and of attention, causal and so counted once: 6 x T x D for each token and layer (PaLM, arXiv 2204.02311, appendix B, halved).

Shape legend: B rows, T tokens of a row, D hidden_size, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import CodeGenConfig, CodeGenForCausalLM

from moss_train.benchmark import sft_sides
from moss_train.benchmark.config import BenchmarkConfig, ShapeConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import FailedError, apart, in_turns, peak_growth, synchronize
from moss_train.model.codegen import init_model

_STOCK, _OURS = "stock transformers", "ours"
_TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-3}
"""Largest relative difference of the two losses."""


def model_config(shape: ShapeConfig, seq_len: int) -> CodeGenConfig:
    """That of the suite `sft`, of a shape."""
    return sft_sides.model_config(shape.vocab_size, seq_len, shape.hidden_size, shape.num_layers, shape.head_dim)


def flops_per_step(shape: ShapeConfig, rows: int, seq_len: int) -> float:
    """Model FLOPs of forward and backward over B rows of T tokens; see the top of this file."""
    matrices = 12 * shape.hidden_size**2 * shape.num_layers + shape.hidden_size * shape.vocab_size
    attention = shape.num_layers * seq_len * shape.hidden_size
    return 6.0 * rows * seq_len * (matrices + attention)


class Side:
    """A model and its optimizer, an optimizer step a call.

    Args:
        ours: Whose model. config: Its shape. dtype: Of weights and gradients. batch: int64 [B, T], taken again in every step.
        weights: To begin with, by name; by default the model's own.
    """

    def __init__(self, ours: bool, config: CodeGenConfig, dtype: torch.dtype, batch: torch.Tensor, weights: Any = None):
        self.ours, self.batch = ours, batch
        model = init_model(config, 0, dtype) if ours else CodeGenForCausalLM._from_config(config, dtype=dtype).train()
        if weights is not None:
            model.load_state_dict(weights, strict=False)
        if not ours:
            sft_sides.repair_stock_rotary(model, config, batch.device)
        self.model = model.to(batch.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        # The target of each position is the token after it; the last one has none.
        self.targets = torch.cat((batch[:, 1:], torch.full_like(batch[:, :1], -100)), dim=1)

    def loss(self) -> torch.Tensor:
        """The mean loss in nats."""
        if self.ours:
            return self.model(self.batch, targets=self.targets).loss_sum / (self.batch.numel() - len(self.batch))
        return self.model(input_ids=self.batch, labels=self.batch).loss

    def step(self) -> None:
        """Forward, backward, update."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_batch(shape: ShapeConfig, rows: int, seq_len: int, device: str) -> torch.Tensor:
    """Random tokens, int64 [B, T]."""
    return torch.randint(shape.vocab_size, (rows, seq_len), generator=torch.Generator().manual_seed(0)).to(device)


def make_side(ours: bool, shape: dict[str, int], rows: int, seq_len: int, dtype: str, device: str, weights: Any = None) -> Side:
    """A side from plain values."""
    given = ShapeConfig(**shape)
    return Side(ours, model_config(given, seq_len), getattr(torch, dtype), make_batch(given, rows, seq_len, device), weights)


def measure_peak(**given: Any) -> int:
    """Bytes by which memory grows over two steps, from before the model was built."""
    kept = []

    def train() -> None:
        kept.append(make_side(**given))
        for _ in range(2):
            kept[0].step()

    return peak_growth(train, given["device"])


def matmul_flops(rows: int, hidden_size: int, dtype: torch.dtype, device: str, seconds: float = 0.5) -> float:
    """FLOPs a second of [rows, D] x [D, 4 D]: the best of repeated products over about `seconds`."""
    x = torch.randn(rows, hidden_size, device=device).to(dtype)
    weight = torch.randn(4 * hidden_size, hidden_size, device=device).to(dtype)
    best, until = 0.0, time.perf_counter() + seconds
    torch.nn.functional.linear(x, weight)
    while time.perf_counter() < until:
        synchronize(device)
        started = time.perf_counter()
        for _ in range(4):
            torch.nn.functional.linear(x, weight)
        synchronize(device)
        best = max(best, 4 * 8 * rows * hidden_size**2 / (time.perf_counter() - started))
    return best


def check_losses(stock: Side, ours: Side, dtype: str) -> tuple[float, float]:
    """Both losses in nats; refuses sides that do not do the same."""
    with torch.no_grad():
        expected, found = float(stock.loss()), float(ours.loss())
    if abs(found - expected) > _TOLERANCE[dtype] * expected:
        raise AssertionError(f"the sides do not compute the same: the loss is {expected} by stock transformers and {found} by ours")
    return expected, found


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Speed of both sides, their peak memory, and the share of the machine's matrix products."""
    dtype = "bfloat16" if config.dtype == "bf16" else "float32"
    given = {"shape": vars(config.shape), "rows": config.rows, "seq_len": config.seq_len, "dtype": dtype, "device": device}
    outcome = Outcome("train", "tokens/s", _STOCK, settings=given)
    ours = make_side(True, **given)  # type: ignore[arg-type]
    stock = make_side(False, **given, weights=ours.model.state_dict())  # type: ignore[arg-type]
    losses = check_losses(stock, ours, dtype)
    rates: list[float] = []
    tokens, flops = config.rows * config.seq_len, flops_per_step(config.shape, config.rows, config.seq_len)

    def probe() -> None:
        rates.append(matmul_flops(tokens, config.shape.hidden_size, getattr(torch, dtype), device))

    sides: dict[str, Callable[[], Any]] = {_STOCK: stock.step, _OURS: ours.step, "matrix products": probe}
    timed = in_turns(sides, config.rounds, device)
    del ours, stock
    case = f"{config.rows} x {config.seq_len}, {config.shape.num_layers} layers of {config.shape.hidden_size}, {config.dtype}"
    for side in (_STOCK, _OURS):
        try:
            peak: int | None = int(apart("moss_train.benchmark.train:measure_peak", {"ours": side == _OURS, **given}))
        except FailedError as error:
            peak, outcome.not_run[f"memory of {side}"] = None, str(error)
        ratio = None if side == _STOCK else timed.ratio(side)
        outcome.rows.append(Row(case, side, tokens / timed.median(side), ratio, peak, side == _OURS))
    # Round by round, since the machine's speed drifts: the first probe was the warm-up.
    shares = [flops / seconds / rate for seconds, rate in zip(timed.seconds[_OURS], rates[1:], strict=True)]
    outcome.figures = {
        "ours over stock": timed.ratio(_OURS)["median"],
        "matrix products, TFLOPS": statistics.median(rates[1:]) / 1e12,
        "model TFLOPS, ours": flops / timed.median(_OURS) / 1e12,
        "model FLOPs over matrix products": statistics.median(shares),
        "loss, stock": losses[0],
        "loss, ours": losses[1],
    }
    return outcome
