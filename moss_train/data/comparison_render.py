"""Comparisons to ids: contexts shortened where they must be, every response up to the token that ends it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from moss_train.data.comparison_rows import RenderedComparison
from moss_train.data.comparisons import Comparison, Pair, context_from_json, context_to_json, response_to_json
from moss_train.data.dialogue import Turn
from moss_train.data.records import OnError, RecordError
from moss_train.data.render import Rendered, Segment, render_all
from moss_train.data.survey import language_of
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import UsageError

_CHUNK = 256
ON_LONG = ("drop_turns", "truncate", "drop")


def render_comparisons(
    comparisons: Iterator[Comparison],
    tokenizer: MossTokenizer,
    seq_len: int,
    on_error: OnError,
    on_long: str = "drop_turns",
    on_marker: str = "keep",
    max_responses: int | None = None,
) -> Iterator[RenderedComparison]:
    """Comparisons as ids, in order; those that cannot be are told to `on_error` and left out.

    Args:
        comparisons: To be rendered.
        tokenizer: Gives the ids.
        seq_len: Most tokens of a response with its context.
        on_error: Told of each that is left out: `too_long`, `equal_after_truncation`, `too_many_responses`.
        on_long: `drop_turns`: the oldest turns of the context go, of all responses alike, until every response fits. `truncate`: as that,
            and where the last turn alone is too long, the ends of replies go. `drop`: the comparison goes.
        on_marker: As in `render`.
        max_responses: Most responses of a comparison.
    """
    if on_long not in ON_LONG:
        raise UsageError(f"on_long={on_long!r}: expected one of {', '.join(ON_LONG)}")
    while chunk := list(islice(comparisons, _CHUNK)):
        dialogues = [comparison.dialogue(number) for comparison in chunk for number in range(len(comparison.responses))]
        rendered, _ = render_all(dialogues, tokenizer, "generated", on_marker=on_marker)
        start = 0
        for comparison in chunk:
            mine = rendered[start : start + len(comparison.responses)]
            start += len(mine)
            try:
                if max_responses is not None and len(mine) > max_responses:
                    problem = f"{len(mine)} responses; data.max_responses is {max_responses}."
                    raise RecordError(comparison.context.origin, "too_many_responses", problem)
                yield _fit(comparison, mine, seq_len, on_long)
            except RecordError as error:
                on_error(error)


def _fit(comparison: Comparison, rendered: Sequence[Rendered], seq_len: int, on_long: str) -> RenderedComparison:
    """A comparison whose responses have at most `seq_len` ids each."""
    origin = comparison.context.origin
    ends = [one.segments[-1].content_end for one in rendered]
    longest = max(ends) + 1
    last_start = min(one.start for one in rendered[0].segments if one.turn == len(comparison.context.turns) - 1)
    # What goes is part of every response's ids alike: the context comes before what differs.
    meta_end, cut, _ = cut_context(rendered[0].segments, longest, longest if on_long == "drop" else seq_len)
    if longest - cut > seq_len and on_long != "truncate":
        problem = f"a response with its context has {longest} tokens, data.seq_len is {seq_len} (data.on_long={on_long})."
        raise RecordError(origin, "too_long", problem)
    documents, marks, replies = [], [], []
    for one, end in zip(rendered, ends):
        last = one.segments[-1]
        written = [mark and place >= last_start for place, mark in enumerate(one.loss_mask[: end + 1])]
        ids, kept = one.input_ids[:meta_end] + one.input_ids[meta_end + cut : end + 1], written[:meta_end] + written[meta_end + cut :]
        excess = max(0, len(ids) - seq_len)
        if excess >= last.content_end - last.content_start:
            raise RecordError(origin, "too_long", f"a response's turn leaves no room for its reply in {seq_len} tokens (data.seq_len).")
        if excess:
            ids, kept = ids[: -1 - excess] + ids[-1:], kept[: -1 - excess] + kept[-1:]
        documents.append(ids)
        marks.append(kept)
        replies.append(last.content_end - last.content_start - excess)
    if len({tuple(ids) for ids in documents}) < len(documents):
        problem = f"two responses are equal in the {seq_len} tokens that are kept of each (data.seq_len)."
        raise RecordError(origin, "equal_after_truncation", problem)
    return RenderedComparison(documents, marks, replies, comparison.pairs, best_of(comparison), line_of(comparison))


def cut_context(segments: Sequence[Segment], longest: int, seq_len: int) -> tuple[int, int, int]:
    """What of a context goes, so that a response fits: its oldest turns, all but the one that asks where it must be.

    Args:
        segments: Of the context with a response, which is the last turn.
        longest: Tokens of the context with its longest response, up to the token that ends the reply. seq_len: Most of them.

    Returns:
        Where the meta instruction, which stays, ends; the tokens that go behind it, too few where even the last turn is too long; the
        turns that these are.
    """
    meta_end = next((one.end for one in segments if one.turn == -1), 0)
    starts = [min(one.start for one in segments if one.turn == turn) - meta_end for turn in range(segments[-1].turn + 1)]
    turns = next((turn for turn, start in enumerate(starts) if longest - start <= seq_len), len(starts) - 1)
    return meta_end, starts[turns], turns


def best_of(comparison: Comparison) -> int:
    """Number of the response that is better than others most often, and worse least often; the first of several."""
    score = [0] * len(comparison.responses)
    for pair in comparison.pairs:
        if not pair.tied:
            score[pair.better] += 1
            score[pair.worse] -= 1
    return score.index(max(score))


def line_of(comparison: Comparison) -> dict[str, object]:
    """A comparison in words, with the place it came from."""
    return {
        "id": comparison.context.id,
        "origin": comparison.context.origin,
        "context": context_to_json(comparison.context),
        "responses": [response_to_json(turn) for turn in comparison.responses],
        "pairs": [list(pair) for pair in comparison.pairs],
        "language": comparison.language or language_of(comparison.dialogue(0)),
        "category": comparison.category,
    }


def comparison_of(line: dict[str, Any]) -> Comparison:
    """The comparison that `line_of` wrote down."""
    context = context_from_json(line["context"], line["origin"], line["id"], line["category"])
    human = context.turns[-1].human
    responses = tuple(Turn(human=human, **one) for one in line["responses"])
    pairs = tuple(Pair(better, worse, strength, tied) for better, worse, strength, tied in line["pairs"])
    return Comparison(context, responses, pairs, line["language"], line["category"])
