"""How likely a model finds sentences that differ in their answer.

The tokens of a sentence are those of the whole of it, as in training: with a vocabulary that has tokens across the border between what asks
and the answer, any other cut would show the model what it never saw. So what is compared is the sum over all tokens after the beginning
that the sentences of one frame share, to their ends: of the answer, and of what closes it, without which a word is not yet known to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, NonFiniteError, OutOfMemoryError
from moss_train.evaluate.probes import ANSWER_SLOT
from moss_train.model.codegen import CodeGenLM
from moss_train.model.loss import IGNORE_INDEX


class Frame(NamedTuple):
    """A sentence with a slot for its answer.

    Attributes:
        text: With the slot `{answer}`.
        pool: All answers that the slot may have; what they share at their beginning is not scored.
    """

    text: str
    pool: tuple[str, ...]


class Scored(NamedTuple):
    """A sentence as ids.

    Attributes:
        ids: Without `<|endoftext|>` in front.
        begin: The first of them that is scored.
    """

    ids: list[int]
    begin: int


def encode_frame(tokenizer: MossTokenizer, frame: Frame) -> dict[str, Scored]:
    """The sentences of a frame by their answer."""
    every = tokenizer.encode_batch([frame.text.replace(ANSWER_SLOT, answer) for answer in frame.pool])
    begin = _shared(every)
    return {answer: Scored(ids, begin) for answer, ids in zip(frame.pool, every, strict=True)}


def _shared(every: list[list[int]]) -> int:
    """How many ids all begin with."""
    return next((place for place, ids in enumerate(zip(*every)) if len(set(ids)) > 1), min(map(len, every)))


def score(
    model: CodeGenLM, tokenizer: MossTokenizer, wanted: Iterable[tuple[Frame, str]], batch_size: int
) -> dict[tuple[Frame, str], float]:
    """Log-probability, in nats, of each answer in its frame and of what follows it; each pair is computed once.

    On a CPU it is the same with any batch size but for rounding.

    Args:
        model: In evaluation mode. tokenizer: Its tokenizer.
        wanted: Frames and answers. batch_size: Sentences at once.

    Raises:
        DataError: A sentence is longer than the model's context.
        NonFiniteError: The model gives no number.
    """
    encoded: dict[Frame, dict[str, Scored]] = {}
    pairs = list(dict.fromkeys(wanted))
    for frame, _ in pairs:
        if frame not in encoded:
            encoded[frame] = encode_frame(tokenizer, frame)
    sentences = [encoded[frame][answer] for frame, answer in pairs]
    for (frame, answer), sentence in zip(pairs, sentences, strict=True):
        if len(sentence.ids) > model.config.n_positions:
            text = frame.text.replace(ANSWER_SLOT, answer)
            raise DataError(f"{len(sentence.ids)} tokens, the model has {model.config.n_positions} positions: {text[:80]!r}")
    # Sentences of about one length together: little is padded.
    order = sorted(range(len(pairs)), key=lambda number: (len(sentences[number].ids), number))
    found: dict[tuple[Frame, str], float] = {}
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        try:
            values = _score_batch(model, tokenizer.endoftext, [sentences[number] for number in part])
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_size (now {batch_size}) takes less.") from error
        for number, value in zip(part, values, strict=True):
            if value != value or value in (float("inf"), float("-inf")):
                frame, answer = pairs[number]
                raise NonFiniteError(
                    f"the model gives {value} for {frame.text.replace(ANSWER_SLOT, answer)[:80]!r}; its weights are damaged"
                )
            found[pairs[number]] = value
    return {pair: found[pair] for pair in pairs}


def _score_batch(model: CodeGenLM, first: int, sentences: Sequence[Scored]) -> list[float]:
    """Sums of log-probabilities of one batch. Rows are filled at their ends, which nothing before them attends to."""
    longest = max(len(sentence.ids) for sentence in sentences)
    input_ids = torch.full((len(sentences), longest), first)
    targets = torch.full((len(sentences), longest), IGNORE_INDEX)
    for row, (ids, begin) in enumerate(sentences):
        input_ids[row, 1 : len(ids)] = torch.tensor(ids[:-1], dtype=torch.long)
        targets[row, begin : len(ids)] = torch.tensor(ids[begin:], dtype=torch.long)
    with torch.inference_mode():
        out = model(input_ids.to(model.device), targets=targets.to(model.device))
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    # Token after token in one order, whatever else is in the batch.
    sums.index_add_(0, out.token_index.cpu() // longest, -out.token_loss.double().cpu())
    return [float(value) for value in sums]
