"""The suite `attention`: causal attention over rows, packed or whole, forward and backward, by head size.

Sides: *eager*, scores of all pairs with a block-diagonal mask, as the published implementation and stock transformers compute it;
torch's `scaled_dot_product_attention` with the same mask, which is what `attn_implementation="sdpa"` gives a packed row in peers; and
this project's backends.

Shape legend: B rows, T tokens of a row, N heads, H head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from moss_train.benchmark.config import BenchmarkConfig
from moss_train.benchmark.outcome import Outcome, Row
from moss_train.benchmark.timing import in_turns
from moss_train.errors import UsageError
from moss_train.model.attention import Documents, attend, resolve_backend

HEAD_DIMS = (64, 80, 256)
_EAGER, _MASKED = "eager, masked", "torch sdpa, masked"
_DOCUMENTS = (0.35, 0.25, 0.15, 0.1, 0.08, 0.07)
"""Shares of a packed row: about what dialogues make of 2,048 tokens."""


def boundaries(rows: int, seq_len: int, packed: bool) -> torch.Tensor:
    """int32 [documents + 1]: each row one document, or several of unequal length."""
    ends = [0]
    for row in range(rows):
        done = 0.0
        for share in _DOCUMENTS[:-1] if packed else ():
            done += share
            ends.append(row * seq_len + int(done * seq_len))
        ends.append((row + 1) * seq_len)
    return torch.tensor(ends, dtype=torch.int32)


def run(config: BenchmarkConfig, device: str) -> Outcome:
    """Every head size, packed and whole, on every backend that runs here."""
    dtype = torch.bfloat16 if config.dtype == "bf16" else torch.float32
    outcome = Outcome("attention", "tokens/s", _EAGER, settings={"rows": config.rows, "seq_len": config.seq_len, "width": 1024})
    outcome.settings |= {"dtype": str(config.dtype), "hidden_size": config.shape.hidden_size}
    for head_dim in HEAD_DIMS:
        for packed in (True, False):
            _measure(config, device, dtype, head_dim, packed, outcome)
    return outcome


def _measure(config: BenchmarkConfig, device: str, dtype: torch.dtype, head_dim: int, packed: bool, outcome: Outcome) -> None:
    rows, seq_len, heads = config.rows, config.seq_len, max(1, config.shape.hidden_size // head_dim)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, seq_len, heads, head_dim, generator=generator).to(device, dtype).requires_grad_() for _ in range(3))
    documents = Documents.from_cu_seqlens(boundaries(rows, seq_len, packed), rows, seq_len, torch.device(device))
    mask = documents.block_diagonal_mask(rows)
    upstream = torch.randn(rows, seq_len, heads, head_dim, generator=generator).to(device, dtype)

    def masked() -> torch.Tensor:
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
        return out.transpose(1, 2)

    forwards: dict[str, Callable[[], torch.Tensor]] = {
        _EAGER: lambda: attend(q, k, v, backend="eager", documents=documents, mask=mask),
        _MASKED: masked,
    }
    for name in ("sdpa", "varlen", "flash_attention_2"):
        try:
            backend, _ = resolve_backend(name, torch.device(device), dtype, head_dim)
        except UsageError as error:
            outcome.not_run.setdefault(name, str(error).partition("here: ")[2].partition(". Use")[0])
            continue
        forwards[f"ours, {name}"] = lambda backend=backend: attend(  # type: ignore[misc]
            q, k, v, backend=backend, documents=documents
        )

    def step(forward: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        def both() -> None:
            for tensor in (q, k, v):
                tensor.grad = None
            forward().backward(upstream)

        return both

    timed = in_turns({name: step(forward) for name, forward in forwards.items()}, config.rounds, device)
    case = f"head size {head_dim}, {'packed' if packed else 'whole rows'}"
    for name in forwards:
        ratio = None if name == _EAGER else timed.ratio(name)
        outcome.rows.append(Row(case, name, rows * seq_len / timed.median(name), ratio, ours=name.startswith("ours")))
    fastest = max((name for name in forwards if name.startswith("ours")), key=lambda name: -timed.median(name))
    outcome.figures[f"{case}: ours over masked sdpa"] = timed.ratio(fastest, over=_MASKED)["median"]
