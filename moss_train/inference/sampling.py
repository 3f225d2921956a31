"""Choosing the next token of many rows at once, each with random numbers of its own.

The order of the rules is that of transformers' generation: guidance, repetition penalty, forbidden ids, temperature, top-k, top-p. A draw
is a function of the seed, the row's number and the position of the token, so it does not depend on which rows are written together.

Shape legend: B rows, V vocabulary, K candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moss_train.errors import NonFiniteError

_NOT_FINITE = "the model gives logits that are not finite; with half precision try dtype=bf16 or dtype=fp32"
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: The fewest tokens whose probability reaches this are kept. 1 keeps all.
        top_k: The likeliest so many tokens are kept. 0 keeps all.
        repetition_penalty: Divides positive logits of tokens that the row holds already, prompt included, and multiplies negative ones
            (Keskar et al. 2019). 1 is off.
        guidance: How far logits go from those of another prompt to those of the row's own, see `guide`. 1 is off.
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 40
    repetition_penalty: float = 1.02
    guidance: float = 1.0


def row_key(seed: int, row: int, stream: str = "") -> int:
    """Key of a row's random numbers: 64 bits that follow from the seed, the row's number and what of the row is written."""
    digest = hashlib.sha256(f"{seed}:{row}:{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def uniform(key: int, position: int) -> float:
    """Number `position` of the sequence of a key: uniform on [0, 1), 53 bits.

    splitmix64 (Steele, Lea, Flood 2014) at a place of its sequence, so no state is kept.
    """
    value = (key + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    value ^= value >> 31
    return (value >> 11) / 2**53


def guide(logits: torch.Tensor, away_from: torch.Tensor, guidance: float) -> torch.Tensor:
    """Logits that go from those of one prompt towards those of another, and with a guidance above 1 beyond them.

    away_from + guidance * (logits - away_from), so that p is proportional to p_away^(1 - guidance) * p^guidance: classifier-free guidance
    (Ho and Salimans 2022, eq. 6) of a language model (Sanchez et al. 2023, eq. 7). It is made of logits, not of log-probabilities. These
    differ by one number for all tokens of a row, which no later rule sees but the repetition penalty, to which the sign of a logit
    matters: so guidance 0 is the prompt that is led away from, and 1 the other one, in that rule too.

    Args:
        logits: [B, V], any floating type, after the prompt with what is asked for.
        away_from: [B, V], after the other prompt.
        guidance: Zero or more.

    Returns:
        float32 [B, V].
    """
    away_from = away_from.float()
    # Each operation rounds once, wherever an element stands: one that multiplies and adds may round differently at the end of a row.
    return (logits.float() - away_from).mul_(guidance).add_(away_from)


def choose(
    logits: torch.Tensor, held: torch.Tensor, forbidden: torch.Tensor, draws: Sequence[float], sampling: Sampling
) -> tuple[list[int], list[float]]:
    """One token for each row.

    Args:
        logits: [B, V], any floating type.
        held: bool [B, V], tokens that each row holds already.
        forbidden: bool [V] or [B, V], tokens that may not be written.
        draws: B numbers on [0, 1).
        sampling: The rules.

    Returns:
        Ids, and the log-probability of each in nats, after all rules; both of length B.

    Raises:
        NonFiniteError: The logits of a row are not numbers.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        scores = torch.where(held, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores.masked_fill(forbidden, float("-inf"))
    if sampling.temperature == 0:
        best, ids = scores.max(-1)
        if not bool(best.isfinite().all()):
            raise NonFiniteError(_NOT_FINITE)
        return ids.tolist(), [0.0] * len(scores)
    candidates: torch.Tensor | None = None
    if sampling.top_k == 0 and sampling.top_p == 1:
        # Nothing is left out, so nothing needs to be put in order: sorting a vocabulary takes longer than a small model does.
        probabilities = torch.softmax(scores.double() / sampling.temperature, dim=-1)
    else:
        probabilities, candidates = _likeliest(scores, sampling)
    total = probabilities.cumsum(-1)
    if not bool(total[:, -1].isfinite().all()):
        raise NonFiniteError(_NOT_FINITE)
    target = torch.tensor(draws, dtype=torch.float64, device=total.device)[:, None] * total[:, -1:]
    # The first place where the sum is above the target is one of a token that may be written: a sum does not grow at others.
    place = torch.searchsorted(total, target, right=True)
    if bool((place == total.shape[-1]).any()):
        # A draw next to 1, rounded to the whole.
        last = total.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1, keepdim=True)
        place = torch.minimum(place, last)
    chosen = (probabilities.gather(-1, place) / total[:, -1:])[:, 0].log().tolist()
    return (place if candidates is None else candidates.gather(-1, place))[:, 0].tolist(), chosen


def _likeliest(scores: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [B, K], float64, that do not sum to 1, and ids [B, K] of the tokens that top-k and top-p keep; likeliest first."""
    kept = scores.shape[-1] if sampling.top_k == 0 else min(sampling.top_k, scores.shape[-1])
    # Of equal scores the lower id comes first: `topk` and unstable sorts promise no order.
    values, candidates = scores.topk(kept, dim=-1)
    ids_in_order = candidates.argsort(dim=-1, stable=True)
    values, candidates = values.gather(-1, ids_in_order), candidates.gather(-1, ids_in_order)
    by_score = values.argsort(dim=-1, descending=True, stable=True)
    values, candidates = values.gather(-1, by_score), candidates.gather(-1, by_score)
    probabilities = torch.softmax(values.double() / sampling.temperature, dim=-1)
    before = probabilities.cumsum(-1) - probabilities
    # A token stays while those before it do not reach top_p; the first one always does.
    return probabilities.masked_fill((before >= sampling.top_p) & (before > 0), 0.0), candidates
