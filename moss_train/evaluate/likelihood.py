"""How likely a model finds tokens: windows of documents, many at once, none of which attends to another.

Rolling windows. A document longer than the model is read in windows, so that each of its tokens is predicted exactly once. With P positions
and stride S (1 to P), and `<|endoftext|>` before the first token of the document, which is how every training sees one begin:

    first window   inputs <|endoftext|> t0 ... t(P-2)     predicts t0 ... t(P-1)
    each later one the P inputs that end before the last of the next S tokens; predicts these S alone (fewer at the end of the document,
                   and the inputs are P nevertheless, so that the last tokens have the most context)

S = P, the default, is one pass over the text; it is what `loglikelihood_rolling` of lm-evaluation-harness is defined as. A smaller S gives
every token at least P - S tokens of context, for P / S times the work.

Shape legend: T tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from moss_train.errors import NonFiniteError
from moss_train.inference.speaker import Speaker
from moss_train.model.codegen import set_attention
from moss_train.model.loss import IGNORE_INDEX


class Window(NamedTuple):
    """Ids of which the model predicts the last ones.

    Attributes:
        inputs: What it reads.
        targets: What it should say after each of the last inputs; at least one, and no more than there are inputs.
    """

    inputs: list[int]
    targets: list[int]


class Losses(NamedTuple):
    """What a model makes of the targets of a window.

    Attributes:
        nats: float64, minus the log-probability of each.
        likeliest: bool, whether it is the most probable token.
    """

    nats: npt.NDArray[np.float64]
    likeliest: npt.NDArray[np.bool_]


def rolling_windows(ids: list[int], first: int, positions: int, stride: int | None = None) -> Iterator[Window]:
    """The windows of a document; the rule is in the module.

    Args:
        ids: Of the document; may be none.
        first: The id before them.
        positions: Inputs of a window.
        stride: Tokens that each window predicts after the first one; by default `positions`.
    """
    stride = min(stride or positions, positions)
    end = min(positions, len(ids))
    if ids:
        yield Window([first, *ids[: end - 1]], ids[:end])
    while end < len(ids):
        start, end = end, min(end + stride, len(ids))
        yield Window(ids[end - positions - 1 : end - 1], ids[start:end])


def score_windows(speaker: Speaker, windows: Iterable[Window], batch_tokens: int) -> Iterator[Losses]:
    """The losses of windows, in order, each a document of its own.

    On a CPU they are the same with any `batch_tokens` but for rounding.

    Args:
        speaker: The model. windows: What it reads. batch_tokens: Inputs at once; a longer window stands alone.

    Raises:
        NonFiniteError: The model gives no number.
    """
    batch: list[Window] = []
    held = 0
    for window in windows:
        if batch and held + len(window.inputs) > batch_tokens:
            yield from _score(speaker, batch)
            batch, held = [], 0
        batch.append(window)
        held += len(window.inputs)
    if batch:
        yield from _score(speaker, batch)


def _score(speaker: Speaker, batch: list[Window]) -> list[Losses]:
    """One batch: windows side by side in one row of T tokens."""
    lengths = [len(window.inputs) for window in batch]
    targets = [[IGNORE_INDEX] * (len(window.inputs) - len(window.targets)) + window.targets for window in batch]
    positions = [torch.arange(length) for length in lengths]
    device = speaker.model.device
    set_attention(speaker.model, speaker.decoder.attention)
    with torch.inference_mode():
        out = speaker.model(
            torch.tensor([id for window in batch for id in window.inputs])[None].to(device),
            targets=torch.tensor([id for one in targets for id in one])[None].to(device),
            position_ids=torch.cat(positions)[None].to(device),
            cu_seqlens=torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
        )
    nats, likeliest = out.token_loss.double().cpu().numpy(), out.token_correct.cpu().numpy()
    if not np.isfinite(nats).all():
        raise NonFiniteError(
            f"{speaker.config.model}: a loss is not finite; with half precision try dtype=bf16 or dtype=fp32, else the weights are damaged"
        )
    ends = np.cumsum([len(window.targets) for window in batch])[:-1]
    return [Losses(*pair) for pair in zip(np.split(nats, ends), np.split(likeliest, ends), strict=True)]
