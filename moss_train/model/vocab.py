"""Rows of the embedding and of the output projection for another vocabulary.

Shapes: V rows of the vocabulary, D hidden_size, K new tokens of text.

An old token's row is copied, wherever its id went, so its logit is what it was. A new token of text is made from the rows of the old tokens
that used to spell it; controls, tags and unused rows start from the mean of the old rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

INPUT, OUTPUT, BIAS = "transformer.wte.weight", "lm_head.weight", "lm_head.bias"
STRATEGIES = ("mean_of_pieces", "weighted", "random")
INITIALIZER_RANGE = 0.02
"""Standard deviation that CodeGen's own initialisation draws rows with."""


@dataclass(frozen=True)
class RowPlan:
    """Where each row of the new vocabulary comes from.

    Attributes:
        old_rows: int64 [V]; the old row, -1 where there is none.
        learned: int64 [K]; rows of new tokens of text.
        pieces: int64; the old rows that spell each of them, one after another.
        offsets: int64 [K]; where the pieces of each begin.
        log_shares: float32 [K]; logarithm of the share of a token's first piece that went on to be this token, at most 0.
        used: Ids in use; rows from there on have no token.
    """

    old_rows: torch.Tensor
    learned: torch.Tensor
    pieces: torch.Tensor
    offsets: torch.Tensor
    log_shares: torch.Tensor
    used: int

    @classmethod
    def make(
        cls, old_rows: torch.Tensor, learned: torch.Tensor, pieces: Sequence[Sequence[int]], log_shares: torch.Tensor, used: int
    ) -> RowPlan:
        """From a list of pieces for each new token."""
        lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
        flat = torch.tensor([row for piece in pieces for row in piece], dtype=torch.int64)
        return cls(old_rows, learned, flat, torch.cumsum(lengths, 0) - lengths, log_shares.float(), used)

    @property
    def lengths(self) -> torch.Tensor:
        """int64 [K]; how many pieces each new token has."""
        return torch.diff(self.offsets, append=torch.tensor([len(self.pieces)]))


def extend_parameters(
    parameters: Iterable[tuple[str, torch.Tensor]], plan: RowPlan, strategy: str, seed: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a model for the new vocabulary; all but three pass as they are, one at a time.

    Args:
        parameters: Names and tensors of the old model.
        plan: Rows.
        strategy: One of `STRATEGIES`; see `extend_rows`.
        seed: Of `random`, and of what tells the controls from each other.
    """
    for name, tensor in parameters:
        yield name, extend_rows(name, tensor, plan, strategy, seed) if name in (INPUT, OUTPUT, BIAS) else tensor


def extend_rows(name: str, old: torch.Tensor, plan: RowPlan, strategy: str, seed: int = 0) -> torch.Tensor:
    """One vocabulary-sized tensor with the rows of the plan.

    * `mean_of_pieces`: a new row is the mean of the rows of its pieces, and so is the new bias.
    * `weighted`: what a new token is read as is mostly its last piece (piece k of n weighs k), what it is written as is its first piece,
      and the bias is lowered by how seldom that piece went on to be this token: in the mean the head then gives a new token the
      probability that the old model gave to a text that begins with it.
    * `random`: drawn as CodeGen draws its own rows, N(0, 0.02), with a bias of zero.

    Args:
        name: `INPUT`, `OUTPUT` or `BIAS`.
        old: [V_old, D], or [V_old] for the bias.
        plan: Rows.
        strategy: One of `STRATEGIES`.
        seed: Of the draws.

    Returns:
        [V, D] or [V], in the old number format; computed in float32.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy {strategy!r}: expected one of {', '.join(STRATEGIES)}")
    generator = torch.Generator().manual_seed(seed * 3 + (INPUT, OUTPUT, BIAS).index(name))
    rows = old.new_zeros((len(plan.old_rows), *old.shape[1:]))
    kept = torch.nonzero(plan.old_rows >= 0).squeeze(1)
    sources = old.index_select(0, plan.old_rows[kept])
    rows[kept] = sources

    fresh = torch.nonzero(plan.old_rows < 0).squeeze(1)
    others = fresh[~torch.isin(fresh, plan.learned)]
    if name == BIAS:
        # A row without a token should not be written: no more likely than the least likely of the old ones.
        rows[others] = torch.where(others < plan.used, sources.float().mean(), sources.float().min()).to(old.dtype)
    else:
        noise = torch.randn((len(others), *old.shape[1:]), generator=generator) * INITIALIZER_RANGE
        # Controls and tags are told apart by their noise; unused rows need none.
        noise[others >= plan.used] = 0
        rows[others] = (sources.float().mean(0) + noise).to(old.dtype)

    if strategy == "random":
        if name != BIAS:
            rows[plan.learned] = (torch.randn((len(plan.learned), *old.shape[1:]), generator=generator) * INITIALIZER_RANGE).to(old.dtype)
        return rows
    if len(plan.learned):
        rows[plan.learned] = _from_pieces(name, old, plan, strategy).to(old.dtype)
    return rows


def _from_pieces(name: str, old: torch.Tensor, plan: RowPlan, strategy: str) -> torch.Tensor:
    """[K, D] or [K], float32."""
    table = old.float() if old.dim() == 2 else old.float().unsqueeze(1)
    if strategy == "weighted" and name != INPUT:
        rows = table[plan.pieces[plan.offsets]]
        return rows if name == OUTPUT else rows.squeeze(1) + plan.log_shares
    lengths = plan.lengths
    weights = torch.repeat_interleave(1.0 / lengths, lengths)
    if strategy == "weighted":
        positions = torch.arange(len(plan.pieces)) - torch.repeat_interleave(plan.offsets, lengths) + 1
        weights = positions / torch.repeat_interleave(lengths * (lengths + 1) / 2, lengths)
    rows = torch.nn.functional.embedding_bag(plan.pieces, table, plan.offsets, mode="sum", per_sample_weights=weights)
    return rows if old.dim() == 2 else rows.squeeze(1)
