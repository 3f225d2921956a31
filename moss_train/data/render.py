"""Rendering: a dialogue becomes ids and loss mask together, segment by segment.

Nothing is searched for and nothing is encoded twice. Openings and terminators are encoded once for a tokenizer; contents are encoded apart,
as plain text, so that no content can hold a control token. What a content may still hold is the *spelling* of a role marker such as
`<|MOSS|>:`; markers are ordinary tokens also where they are meant. A policy names what happens then:

    keep   (default) it stays as text. Safe for training: a segment begins only after a control and a newline, which no content can produce.
    space  a blank is put after its first character (`< |MOSS|>`, `< eom>`), for data that passes through tools which parse text.
    error  the dialogue is refused.

Loss policies say which parts of which segments carry loss (the meta instruction never does):

    generated  content and terminator of all that MOSS writes: Inner Thoughts, Commands, MOSS. Inference writes the openings itself.
    reply      content and terminator of the MOSS segment only.
    release    what the published training did: everything but the content of Results.

A turn with a level has a tag, one reserved id, before the opening of the first segment that MOSS writes in it (`tagged_segment`). Tags
never carry loss: a model is told them.

Segments that a record itself takes out of training (`Turn.untrained`) carry no loss under any of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import NamedTuple

from moss_train.data.dialogue import KIND_BY_NAME, SEGMENT_KINDS, Dialogue, tagged_segment
from moss_train.data.records import OnError, RecordError
from moss_train.data.tokenizer import CONTROL_TOKENS, ENDOFTEXT, MossTokenizer
from moss_train.errors import DataError, UsageError

OPENING, CONTENT, TERMINATOR = "opening", "content", "terminator"
_WRITTEN = frozenset({CONTENT, TERMINATOR})
_ALL = frozenset({OPENING, CONTENT, TERMINATOR})
META = "meta"

# policy -> kind of segment -> parts with loss
LOSS_POLICIES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "generated": {kind.name: _WRITTEN if kind.by_moss else frozenset() for kind in SEGMENT_KINDS},
    "reply": {kind.name: _WRITTEN if kind.name == "moss" else frozenset() for kind in SEGMENT_KINDS},
    "release": {kind.name: frozenset({OPENING, TERMINATOR}) if kind.name == "results" else _ALL for kind in SEGMENT_KINDS},
}
MARKER_POLICIES = ("keep", "space", "error")
# What happens to a dialogue that is too long: whole turns go from its end, it goes, or it is refused.
LENGTH_POLICIES = ("drop_turns", "drop", "error")
_MARKER = re.compile("|".join(re.escape(text) for text in [*(kind.opening[:-1] for kind in SEGMENT_KINDS), *CONTROL_TOKENS, ENDOFTEXT]))
# Dialogues rendered together: enough to keep all cores encoding, little enough to hold in memory.
_CHUNK = 2048


class Segment(NamedTuple):
    """Where one segment lies in the ids of a dialogue.

    Attributes:
        kind: A name of `SEGMENT_KINDS`, or `meta`.
        turn: From 0; -1 for the meta instruction.
        start, end: The whole segment. content_start, content_end: Its content; a tag and the opening lie before it, the terminator after.
        trained: Whether its content carries loss. (With `release`, opening and terminator of Results do although its content does not.)
    """

    kind: str
    turn: int
    start: int
    end: int
    content_start: int
    content_end: int
    trained: bool


@dataclass(frozen=True)
class Rendered:
    """A dialogue as ids, with a mark for each id that carries loss, and the segments it consists of."""

    input_ids: list[int]
    loss_mask: list[bool]
    segments: list[Segment]
    origin: str = "dialogue"

    @property
    def supervised_tokens(self) -> int:
        """Tokens that are predicted and carry loss; the first id is never predicted."""
        return sum(self.loss_mask[1:])


class _Part(NamedTuple):
    """One segment before it has a place: its kind, turn and text, whether the record lets it carry loss, and the level of its tag."""

    kind: str
    turn: int
    text: str
    trainable: bool = True
    level: int | None = None


def render(dialogue: Dialogue, tokenizer: MossTokenizer, loss_on: str = "generated", on_marker: str = "keep") -> Rendered:
    """Ids, loss mask and segments of a whole dialogue.

    Args:
        dialogue: The dialogue.
        tokenizer: Any tokenizer with the control tokens.
        loss_on: Name of a loss policy.
        on_marker: What to do with role markers and control spellings inside contents.

    Raises:
        DataError: The dialogue cannot be rendered faithfully; the message names its origin.
    """
    parts = _parts(dialogue, on_marker, len(tokenizer.tag_ids))
    return _Writer(tokenizer, loss_on).write(parts, _encode({part.text for part in parts}, tokenizer), dialogue.origin)


def render_prompt(dialogue: Dialogue, tokenizer: MossTokenizer, next_kind: str = "moss", on_marker: str = "keep") -> list[int]:
    """Ids of a dialogue as far as it goes, and the opening after which the model writes.

    Args:
        dialogue: Its last turn holds what has been said so far (see `open_end` of `parse_moss003`).
        tokenizer: As for `render`.
        next_kind: The segment to be written next: `moss`, `thoughts` or `commands`.
        on_marker: As for `render`.
    """
    if not KIND_BY_NAME[next_kind].by_moss:
        raise UsageError(f"next_kind={next_kind!r} is not written by MOSS; expected thoughts, commands or moss.")
    rendered = render(dialogue, tokenizer, "reply", on_marker).input_ids
    last = dialogue.turns[-1]
    present = [kind.name for kind in SEGMENT_KINDS if getattr(last, kind.name) is not None]
    tag = [tokenizer.tag_of(last.level)] if last.level is not None and tagged_segment(present, next_kind) not in present else []
    return rendered + tag + tokenizer.encode(KIND_BY_NAME[next_kind].opening)


def fit_turns(
    dialogue: Dialogue, tokenizer: MossTokenizer, loss_on: str, max_tokens: int | None, on_marker: str = "keep"
) -> tuple[Rendered | None, Counter[str]]:
    """Render a dialogue in at most `max_tokens` ids, whole turns dropped from the end; None where nothing trainable is left.

    Returns:
        The rendered dialogue, and what happened as counts (see `render_all`).
    """
    rendered, counts = render_all([dialogue], tokenizer, loss_on, max_tokens, on_marker)
    return (rendered[0] if rendered else None), counts


def render_all(
    dialogues: Iterable[Dialogue],
    tokenizer: MossTokenizer,
    loss_on: str = "generated",
    max_tokens: int | None = None,
    on_marker: str = "keep",
    on_long: str = "drop_turns",
) -> tuple[list[Rendered], Counter[str]]:
    """Render many dialogues, each in at most `max_tokens` ids; see `render_each`."""
    counts: Counter[str] = Counter()
    return list(render_each(dialogues, tokenizer, counts, loss_on, max_tokens, on_marker, on_long)), counts


def render_each(
    dialogues: Iterable[Dialogue],
    tokenizer: MossTokenizer,
    counts: Counter[str],
    loss_on: str = "generated",
    max_tokens: int | None = None,
    on_marker: str = "keep",
    on_long: str = "drop_turns",
    on_error: OnError | None = None,
) -> Iterator[Rendered]:
    """Render dialogues one after another, in order, encoding many at a time.

    Args:
        dialogues: What to render.
        tokenizer: As for `render`.
        counts: Added to: `dialogues`, `dialogues_rendered`, `dialogues_shortened`, `dialogues_dropped_first_turn_too_long`,
            `dialogues_dropped_too_long`, `dialogues_dropped_no_loss`, `turns`, `turns_dropped_too_long` (of shortened and dropped
            dialogues), `tokens`, `tokens_dropped`, `supervised_tokens`, `supervised_tokens_dropped`.
        loss_on: Name of a loss policy.
        max_tokens: Longest dialogue, in ids; None: no limit.
        on_marker: What to do with markers inside contents.
        on_long: What to do with a longer dialogue: `drop_turns` from its end, `drop` it, or `error`.
        on_error: Called with each dialogue that a policy refuses, which is then left out; by default the first one is raised.
    """
    if on_long not in LENGTH_POLICIES:
        raise UsageError(f"on_long={on_long!r}: expected one of {', '.join(LENGTH_POLICIES)}.")
    writer = _Writer(tokenizer, loss_on)
    for chunk in _chunks(dialogues, _CHUNK):
        parts_of: list[tuple[Dialogue, list[_Part]]] = []
        for dialogue in chunk:
            try:
                parts_of.append((dialogue, _parts(dialogue, on_marker, len(tokenizer.tag_ids))))
            except RecordError as error:
                if on_error is None:
                    raise
                on_error(error)
        # Distinct texts only: the meta instruction, " None" and the like recur in thousands of dialogues.
        encoded = _encode(dict.fromkeys(part.text for _, parts in parts_of for part in parts), tokenizer)
        for dialogue, parts in parts_of:
            whole = writer.write(parts, encoded, dialogue.origin)
            if on_long == "error" and max_tokens is not None and len(whole.input_ids) > max_tokens:
                problem = f"{len(whole.input_ids)} tokens, more than the {max_tokens} of data.seq_len; shorten it, or set data.on_long."
                too_long = RecordError(dialogue.origin, "too_long", problem)
                if on_error is None:
                    raise too_long
                on_error(too_long)
                continue
            fitted, happened = _fit(whole, max_tokens, len(dialogue.turns), on_long)
            counts.update(happened)
            if fitted is not None:
                yield fitted


def _chunks(dialogues: Iterable[Dialogue], size: int) -> Iterator[list[Dialogue]]:
    iterator = iter(dialogues)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _fit(whole: Rendered, max_tokens: int | None, turns: int, on_long: str) -> tuple[Rendered | None, Counter[str]]:
    """Keep the turns that fit (the published rule: stop before the first turn that would exceed the limit)."""
    end_of_turn = {segment.turn: segment.end for segment in whole.segments}
    limit = len(whole.input_ids) if max_tokens is None else max_tokens
    kept_turns = sum(end <= limit for turn, end in end_of_turn.items() if turn >= 0)
    if kept_turns < turns and on_long == "drop":
        kept_turns = 0
    counts = Counter(dialogues=1, turns=turns, turns_dropped_too_long=turns - kept_turns)
    if kept_turns == 0:
        counts["dialogues_dropped_too_long" if on_long == "drop" else "dialogues_dropped_first_turn_too_long"] += 1
        kept = None
    elif kept_turns == turns:
        kept = whole
    else:
        counts["dialogues_shortened"] += 1
        end = end_of_turn[kept_turns - 1]
        segments = [segment for segment in whole.segments if segment.turn < kept_turns]
        kept = Rendered(whole.input_ids[:end], whole.loss_mask[:end], segments, whole.origin)
    if kept is not None and kept.supervised_tokens == 0:
        counts["dialogues_dropped_no_loss"] += 1
        kept = None
    tokens, supervised = (len(kept.input_ids), kept.supervised_tokens) if kept is not None else (0, 0)
    counts["dialogues_rendered"] += kept is not None
    counts["tokens"] += tokens
    counts["tokens_dropped"] += len(whole.input_ids) - tokens
    counts["supervised_tokens"] += supervised
    counts["supervised_tokens_dropped"] += whole.supervised_tokens - supervised
    return kept, +counts


def _parts(dialogue: Dialogue, on_marker: str, tags: int) -> list[_Part]:
    """The segments of a dialogue in order, as text, the marker policy applied. `tags`: Levels that have a tag."""
    if on_marker not in MARKER_POLICIES:
        raise UsageError(f"on_marker={on_marker!r}: expected one of {', '.join(MARKER_POLICIES)}.")
    if not dialogue.turns:
        raise RecordError(dialogue.origin, "no_chat", "the dialogue has no turns.")
    parts = [_Part(META, -1, dialogue.meta_instruction)] if dialogue.meta_instruction else []
    for number, turn in enumerate(dialogue.turns):
        contents = {kind.name: text for kind in SEGMENT_KINDS if (text := getattr(turn, kind.name)) is not None}
        if turn.level is not None and not 1 <= turn.level <= tags:
            problem = f"turn {number + 1} has level {turn.level}; the tokenizer has tags for the levels 1 to {tags}."
            raise RecordError(dialogue.origin, "no_tag", problem)
        tagged = tagged_segment(contents)
        for name, text in contents.items():
            parts.append(_Part(name, number, text, name not in turn.untrained, turn.level if name == tagged else None))
    if on_marker == "keep":
        return parts
    for index, part in enumerate(parts):
        match = _MARKER.search(part.text)
        if match is None:
            continue
        if on_marker == "error":
            problem = f"turn {part.turn + 1}, {part.kind}: the text holds {match[0]!r}; remove it, or set data.on_marker to keep or space."
            raise RecordError(dialogue.origin, "marker_in_text", problem)
        parts[index] = part._replace(text=_MARKER.sub(lambda found: f"{found[0][0]} {found[0][1:]}", part.text))
    return parts


def _encode(texts: Iterable[str], tokenizer: MossTokenizer) -> dict[str, list[int]]:
    """Ids of each distinct text, checked: they decode back to it, and none is a control."""
    texts = list(texts)
    encoded = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    for text, decoded in zip(texts, tokenizer.decode_batch(list(encoded.values())), strict=True):
        if text != decoded:
            raise DataError(f"the tokenizer does not give back the text {text[:60]!r}; it cannot be used for training.")
    if not tokenizer.special_ids.isdisjoint(chain.from_iterable(encoded.values())):
        raise DataError("the tokenizer produced a control id from plain text; it cannot be used for training.")
    return encoded


class _Writer:
    """Puts segments side by side, and checks the result against the table."""

    def __init__(self, tokenizer: MossTokenizer, loss_on: str):
        if loss_on not in LOSS_POLICIES:
            raise UsageError(f"loss_on={loss_on!r}: expected one of {', '.join(LOSS_POLICIES)}.")
        self.special_ids = tokenizer.special_ids
        self.tag_of = tokenizer.tag_of
        self.policy = {META: frozenset[str](), **LOSS_POLICIES[loss_on]}
        # kind -> ids of opening and of terminator
        self.frames: dict[str, tuple[list[int], list[int]]] = {META: ([], [])}
        for kind in SEGMENT_KINDS:
            self.frames[kind.name] = (tokenizer.encode(kind.opening), [tokenizer.control_ids[kind.control], tokenizer.newline])

    def _trained(self, part: _Part) -> frozenset[str]:
        """Which parts of a segment carry loss."""
        return self.policy[part.kind] if part.trainable else frozenset()

    def _tag(self, part: _Part) -> list[int]:
        return [] if part.level is None else [self.tag_of(part.level)]

    def write(self, parts: Sequence[_Part], encoded: Mapping[str, list[int]], origin: str) -> Rendered:
        """Ids and mask of segments whose contents are encoded already."""
        ids: list[int] = []
        mask: list[bool] = []
        segments: list[Segment] = []
        for part in parts:
            trained = self._trained(part)
            opening, terminator = self.frames[part.kind]
            start = len(ids)
            tag = self._tag(part)
            ids += tag
            mask += [False] * len(tag)
            places = []
            for name, piece in ((OPENING, opening), (CONTENT, encoded[part.text]), (TERMINATOR, terminator)):
                ids += piece
                mask += [name in trained] * len(piece)
                places.append(len(ids))
            segments.append(Segment(part.kind, part.turn, start, places[2], places[0], places[1], CONTENT in trained))
        rendered = Rendered(ids, mask, segments, origin)
        self.check(rendered, parts, encoded)
        return rendered

    def check(self, rendered: Rendered, parts: Sequence[_Part], encoded: Mapping[str, list[int]]) -> None:
        """Refuse a row that is not what the table says. That contents decode back to their text has been checked where they were encoded.

        Raises:
            DataError: Naming the origin, the segment and the promise that does not hold.
        """
        ids, mask, origin = rendered.input_ids, rendered.loss_mask, rendered.origin

        def demand(holds: bool, promise: str) -> None:
            if not holds:
                raise DataError(f"{origin}: rendering went wrong: {promise}. Please report this with the record.")

        demand(len(ids) == len(mask), f"{len(ids)} ids but {len(mask)} loss marks")
        demand(len(rendered.segments) == len(parts), "a segment is missing")
        position = 0
        for part, segment in zip(parts, rendered.segments, strict=True):
            where = f"turn {segment.turn + 1}, {segment.kind}"
            _, _, start, end, content_start, content_end, _ = segment
            opening, terminator = self.frames[part.kind]
            trained = self._trained(part)
            demand((segment.kind, segment.turn) == (part.kind, part.turn) and start == position, f"{where} does not follow its predecessor")
            tag = self._tag(part)
            opening_start = start + len(tag)
            demand(ids[start:opening_start] == tag and not any(mask[start:opening_start]), f"{where} does not begin with its tag")
            demand(ids[opening_start:content_start] == opening, f"{where} does not begin with its opening")
            demand(ids[content_start:content_end] == encoded[part.text], f"{where} does not hold its content")
            demand(ids[content_end:end] == terminator, f"{where} does not end with its terminator")
            demand(self.special_ids.isdisjoint(ids[content_start:content_end]), f"{where} has a control token in its content")
            for name, low, high in (
                (OPENING, opening_start, content_start),
                (CONTENT, content_start, content_end),
                (TERMINATOR, content_end, end),
            ):
                demand(mask[low:high] == [name in trained] * (high - low), f"the {name} of {where} has the wrong loss")
            position = end
        demand(position == len(ids), "the segments do not cover all ids")
