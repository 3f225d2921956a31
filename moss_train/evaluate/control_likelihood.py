"""How likely a model finds fixed replies, with the tag of a condition before each of them.

Levels that the dialogues carry are not shown: the replies are the same in all conditions, and only what is asked for differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from moss_train.data.dialogue import Dialogue
from moss_train.data.packing import Example, build_row
from moss_train.data.render import Rendered, render_all
from moss_train.errors import DataError, NonFiniteError
from moss_train.inference.speaker import Speaker
from moss_train.model.codegen import set_attention


def held_out(speaker: Speaker, dialogues: Sequence[Dialogue], level: int | None, batch_tokens: int) -> dict[str, Any]:
    """The mean log-probability of a token of the replies, their ends included, and the perplexity.

    Args:
        speaker: The model.
        dialogues: Turns from the end that do not fit are left out.
        level: Whose tag stands in every turn; None: no tag.
        batch_tokens: At once.

    Returns:
        `log_probability` in nats, `perplexity`, `tokens`, `dialogues`.

    Raises:
        DataError: Not one reply fits.
        NonFiniteError: The model gives no number.
    """
    asked = [replace(one, turns=tuple(replace(turn, level=level) for turn in one.turns)) for one in dialogues]
    # A document of n ids has n - 1 positions.
    rendered, _ = render_all(asked, speaker.tokenizer, "reply", speaker.model.config.n_positions + 1)
    if not rendered:
        raise DataError(f"data: none of {len(dialogues)} dialogues fits into the {speaker.model.config.n_positions} positions of the model")
    set_attention(speaker.model, speaker.decoder.attention)
    loss, tokens = 0.0, 0
    for batch in _batches(rendered, batch_tokens):
        row = build_row([Example(one.input_ids, one.loss_mask) for one in batch], sum(len(one.input_ids) for one in batch))
        ends = torch.tensor([0, *row.doc_lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        device = speaker.model.device
        with torch.inference_mode():
            out = speaker.model(
                torch.from_numpy(row.input_ids)[None].to(device),
                targets=torch.from_numpy(row.targets)[None].to(device),
                position_ids=torch.from_numpy(row.position_ids)[None].to(device),
                cu_seqlens=ends,
            )
        loss += float(out.token_loss.double().sum())
        tokens += len(out.token_loss)
    mean = loss / tokens
    if not math.isfinite(mean):
        raise NonFiniteError(f"{speaker.config.model}: the mean loss of held-out replies is {mean}; its weights are damaged")
    # Beyond what a float holds, the perplexity says no more than the mean.
    perplexity = math.exp(mean) if mean < 700 else None
    return {"log_probability": -mean, "perplexity": perplexity, "tokens": tokens, "dialogues": len(rendered)}


def _batches(rendered: Sequence[Rendered], batch_tokens: int) -> list[list[Rendered]]:
    """As many at once as have no more than `batch_tokens`, or one."""
    found: list[list[Rendered]] = []
    held = 0
    for one in rendered:
        if not found or held + len(one.input_ids) > batch_tokens:
            found.append([])
            held = 0
        found[-1].append(one)
        held += len(one.input_ids)
    return found
