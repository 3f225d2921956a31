"""Rewards of replies by a preference model, each read at the token that ends the reply, as in training.

A reward depends on a reply and what was said before it alone: documents in a row do not see each other. Its last bits may depend on what
else is in the row, since kernels choose the order of sums by the number of rows; so the same documents in the same order, with the same
`batch_tokens`, give the same bits. Levels that a dialogue has already are not read: a reward would follow what it is to judge.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from moss_train.artifacts import lineage_verify
from moss_train.artifacts.export import DTYPES
from moss_train.data.comparison_render import cut_context
from moss_train.data.comparison_rows import pack_documents
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.render import Rendered, render_all
from moss_train.data.tags import without_tags
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import CheckpointError, NonFiniteError, UsageError
from moss_train.inference.speaker import device_of_rank, fitting_dtype
from moss_train.model.attention import resolve_backend
from moss_train.model.codegen import set_attention
from moss_train.model.loading import load_pm, stored_dtype
from moss_train.model.pm import CodeGenPM

_log = logging.getLogger("moss_train")

NO_REPLY, TOO_LONG = "no_reply", "too_long"


class Scored(NamedTuple):
    """What came of a reply.

    Attributes:
        reward: A float32; None where there is none.
        reply_tokens: Tokens of the reply, 0 where it was not read.
        dropped_turns: Oldest turns of the context that were left out.
        problem: Why there is no reward: `no_reply`, or `too_long`, where its turn alone does not fit.
    """

    reward: float | None
    reply_tokens: int = 0
    dropped_turns: int = 0
    problem: str | None = None


class Document(NamedTuple):
    """Ids of a dialogue, and the places in it at which a reward is read.

    Attributes:
        ids: As in training.
        places: Of tokens that end replies.
        origin: `file:line`, for messages.
    """

    ids: list[int]
    places: list[int]
    origin: str = "dialogue"


def load_scorer(
    directory: Path, dtype: str = "auto", *, attention: str = "auto", unverified: bool = False, allow_pickle: bool = False
) -> tuple[CodeGenPM, MossTokenizer]:
    """A preference model, ready on the device of this rank, and its tokenizer.

    Args:
        directory: An export, or a checkpoint.
        dtype: fp32, bf16, fp16, or `auto`: as it is stored, or float32 where a processor can only pretend to multiply that.
        attention: A backend, or `auto`.
        unverified: Take it although it is not what its record says.
        allow_pickle: Whether `.bin` files may be opened.

    Raises:
        CheckpointError: It cannot be loaded, is a language model, or its tokenizer does not fit it.
    """
    if not unverified:
        lineage_verify.require(directory, "model", "unverified=true", _log.debug, reads=False)
    device = device_of_rank()
    kept = DTYPES.get(dtype) or fitting_dtype(stored_dtype(directory, allow_pickle), device)
    model = load_pm(directory, kept, allow_pickle)
    tokenizer = MossTokenizer.load(directory)
    if tokenizer.size > model.config.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer uses {tokenizer.size} ids, the model has {model.config.vocab_size} rows; they do not match"
        )
    backend, _ = resolve_backend(attention, device, kept, model.config.n_embd // model.config.n_head)
    set_attention(model, backend)
    return model.to(device).eval(), tokenizer


def score_dialogues(
    model: CodeGenPM, tokenizer: MossTokenizer, dialogues: Sequence[Dialogue], *, batch_tokens: int = 16_384, seq_len: int | None = None
) -> list[float | None]:
    """The reward of the last reply of each dialogue; None where there is no reply, or its turn alone does not fit."""
    found = score_responses(model, tokenizer, [[one] for one in dialogues], batch_tokens=batch_tokens, seq_len=seq_len)
    return [scored.reward for (scored,) in found]


def score_responses(
    model: CodeGenPM, tokenizer: MossTokenizer, groups: Sequence[Sequence[Dialogue]], *, batch_tokens: int, seq_len: int | None = None
) -> list[list[Scored]]:
    """The rewards of responses.

    Args:
        model, tokenizer: As `load_scorer` gives them.
        groups: Dialogues that differ in the last reply alone. Of a context that is too long, the oldest turns go for all of a group alike,
            so that its rewards can be compared.
        batch_tokens: At once.
        seq_len: Most tokens of a response with its context; None: the model's positions.

    Raises:
        NonFiniteError: A reward is not a finite number; with the origin.
    """
    limit = _limit(model, seq_len)
    answered = [dialogue for group in groups for dialogue in group if has_reply(dialogue.turns[-1])]
    rendered = iter(_render(answered, tokenizer))
    plans = []
    for group in groups:
        plans.append(_plan_group([next(rendered) if has_reply(dialogue.turns[-1]) else None for dialogue in group], limit))
    documents = [one[0] for plan in plans for one in plan if one[0] is not None]
    rewards = iter(score_documents(model, documents, batch_tokens, tokenizer.endoftext))
    return [[scored if document is None else scored._replace(reward=next(rewards)[0]) for document, scored in plan] for plan in plans]


def score_turns(
    model: CodeGenPM, tokenizer: MossTokenizer, dialogues: Sequence[Dialogue], *, batch_tokens: int, seq_len: int | None = None
) -> list[list[Scored]]:
    """The reward of every turn's reply, with what was said before it as its context.

    The replies of a dialogue are read in one pass, as far as it fits; later ones each have a document of their own.

    Args:
        model, tokenizer, batch_tokens, seq_len: As for `score_responses`.
        dialogues: The last turn of each may lack a reply.
    """
    limit = _limit(model, seq_len)
    plans = [_plan_turns(dialogue, one, limit) for dialogue, one in zip(dialogues, _render(dialogues, tokenizer), strict=True)]
    documents = [document for mine, _ in plans for document in mine]
    rewards = iter(score_documents(model, documents, batch_tokens, tokenizer.endoftext))
    found = []
    for mine, turns in plans:
        own = iter([reward for _ in mine for reward in next(rewards)])
        found.append([scored if scored.problem else scored._replace(reward=next(own)) for scored in turns])
    return found


def _render(dialogues: Sequence[Dialogue], tokenizer: MossTokenizer) -> list[Rendered]:
    return render_all(map(without_tags, dialogues), tokenizer)[0]


def has_reply(turn: Turn) -> bool:
    """Whether MOSS said anything in it."""
    return bool((turn.moss or "").strip())


def _limit(model: CodeGenPM, seq_len: int | None) -> int:
    positions = int(model.config.n_positions)
    if seq_len is not None and seq_len > positions:
        raise UsageError(f"seq_len is {seq_len}, the model has {positions} positions; expected no more than these")
    return seq_len or positions


def _plan_group(group: Sequence[Rendered | None], limit: int) -> list[tuple[Document | None, Scored]]:
    """Of each response its document, or None where there is none, and what is known of it before it is read."""
    ends = [0 if one is None else one.segments[-1].content_end + 1 for one in group]
    lasts = [0 if one is None else min(part.start for part in one.segments if part.turn == one.segments[-1].turn) for one in group]
    metas = [0 if one is None else next((part.end for part in one.segments if part.turn == -1), 0) for one in group]
    fits = [one is not None and meta + end - last <= limit for one, meta, end, last in zip(group, metas, ends, lasts)]
    longest = max((end for end, fitting in zip(ends, fits) if fitting), default=0)
    found: list[tuple[Document | None, Scored]] = []
    for one, end, fitting in zip(group, ends, fits):
        if one is None or not fitting:
            found.append((None, Scored(None, problem=NO_REPLY if one is None else TOO_LONG)))
            continue
        meta, cut, dropped = cut_context(one.segments, longest, limit)
        ids = one.input_ids[:meta] + one.input_ids[meta + cut : end]
        reply = one.segments[-1]
        found.append((Document(ids, [len(ids) - 1], one.origin), Scored(None, reply.content_end - reply.content_start, dropped)))
    return found


def _plan_turns(dialogue: Dialogue, rendered: Rendered, limit: int) -> tuple[list[Document], list[Scored]]:
    """The documents of a dialogue, and of each turn what is known before these are read; rewards come in the order of turns."""
    replies = {part.turn: number for number, part in enumerate(rendered.segments) if part.kind == "moss"}
    whole = Document([], [], rendered.origin)
    more: list[Document] = []
    turns: list[Scored] = []
    for turn, said in enumerate(dialogue.turns):
        if not has_reply(said):
            turns.append(Scored(None, problem=NO_REPLY))
            continue
        reply = rendered.segments[replies[turn]]
        end, tokens = reply.content_end + 1, reply.content_end - reply.content_start
        if end <= limit:
            whole.ids[:] = rendered.input_ids[:end]
            whole.places.append(end - 1)
            turns.append(Scored(None, tokens))
            continue
        meta, cut, dropped = cut_context(rendered.segments[: replies[turn] + 1], end, limit)
        if end - cut > limit:
            turns.append(Scored(None, problem=TOO_LONG))
            continue
        ids = rendered.input_ids[:meta] + rendered.input_ids[meta + cut : end]
        more.append(Document(ids, [len(ids) - 1], rendered.origin))
        turns.append(Scored(None, tokens, dropped))
    return ([whole] if whole.places else []) + more, turns


def score_documents(model: CodeGenPM, documents: Sequence[Document], batch_tokens: int, pad_id: int) -> list[list[float]]:
    """The rewards at the places of each document, read in their order: as many at once as have no more than `batch_tokens`, or one.

    Raises:
        NonFiniteError: One is not a finite number; with the origin.
    """
    found: list[list[float]] = []
    batch: list[Document] = []
    tokens = 0
    for document in documents:
        if batch and tokens + len(document.ids) > batch_tokens:
            found += _score_batch(model, batch, pad_id)
            batch, tokens = [], 0
        batch.append(document)
        tokens += len(document.ids)
    return found + (_score_batch(model, batch, pad_id) if batch else [])


@torch.inference_mode()
def _score_batch(model: CodeGenPM, documents: Sequence[Document], pad_id: int) -> list[list[float]]:
    """In one packed row."""
    places, start = [], 0
    for document in documents:
        places += [start + place for place in document.places]
        start += len(document.ids)
    packed = pack_documents([document.ids for document in documents], pad_id)
    # The boundaries stay on the CPU, where attention reads them.
    moved = {name: tensor if name == "cu_seqlens" else tensor.to(model.device) for name, tensor in packed.items()}
    rewards = iter(model(reward_index=torch.tensor(places, device=model.device), **moved).rewards.tolist())
    found = []
    for document in documents:
        found.append([next(rewards) for _ in document.places])
        if not all(map(math.isfinite, found[-1])):
            raise NonFiniteError(
                f"{document.origin}: rewards {found[-1]}; expected finite numbers. The weights are damaged, or their values are too large "
                "for their number format: try dtype=fp32"
            )
    return found
