"""What a set of dialogues consists of, in numbers: one pass, a few integers a dialogue in memory."""

from __future__ import annotations

import re
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_train.data.dialogue import Dialogue
from moss_train.data.outcomes import find_outcomes, invented_value
from moss_train.data.packing import plan_rows
from moss_train.data.records import RecordError
from moss_train.data.render import Rendered, render_each
from moss_train.data.repeats import Repeats, conversation_of, opening_of
from moss_train.data.selection import Selection
from moss_train.data.tokenizer import MossTokenizer

LANGUAGES = ("zh", "en", "other")
NO_CATEGORY = "(none)"
OTHER_CATEGORIES = "(others)"
BATCH = 4
"""Dialogues of a padded batch, for comparison with packed rows."""

_CATEGORIES_COUNTED = 200
"""Different categories that are told apart; more are no categories."""
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-z]")
# A Chinese character says about as much as an English word of five letters: equal parts of both languages have one character in six.
_CHINESE_SHARE = 1 / 6


def language_of(dialogue: Dialogue) -> str:
    """`zh`, `en` or `other`, by what the human and MOSS say."""
    return language_of_text("".join(text for turn in dialogue.turns for text in (turn.human, turn.moss or "")))


def language_of_text(said: str) -> str:
    """`zh`, `en` or `other`, by the share of CJK characters among the letters, then of Latin ones."""
    letters = len(_LETTER.findall(said))
    if letters and len(_CJK.findall(said)) >= _CHINESE_SHARE * letters:
        return "zh"
    return "en" if letters and 2 * len(_LATIN.findall(said)) >= letters else "other"


class Columns(NamedTuple):
    """Numbers of each dialogue that has a token with loss, int32.

    Attributes:
        lengths, supervised, turns: Of the whole dialogue: tokens, tokens with loss, turns.
        kept, kept_supervised, kept_turns: The same of what whole-turn truncation at `seq_len` leaves.
        category: Index in `Survey.categories`. language: Index in `LANGUAGES`.
    """

    lengths: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.int32]
    turns: npt.NDArray[np.int32]
    kept: npt.NDArray[np.int32]
    kept_supervised: npt.NDArray[np.int32]
    kept_turns: npt.NDArray[np.int32]
    category: npt.NDArray[np.int32]
    language: npt.NDArray[np.int32]


class _Traits(NamedTuple):
    origin: str
    category: int
    language: int


class Survey:
    """Numbers about dialogues; `read` fills them.

    Args:
        seq_len: Tokens of a row.
        loss_on: Name of a loss policy.
        on_marker: What to do with markers inside texts.

    Attributes:
        counts: `records`, good or bad; `no_loss`: dialogues without a trained token, which are in no other number here.
        bad: Bad records by code. formats: Dialogues by format. categories: Names, by number.
        tools: Tool -> turns that call it, in which it `failed`, and whose reply `invented` a value then.
        conversations, openings: To find repetition.
    """

    def __init__(self, seq_len: int, loss_on: str = "generated", on_marker: str = "keep"):
        self.seq_len = seq_len
        self._policies = (loss_on, None, on_marker)
        self.counts: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.categories: list[str] = []
        self.tools: dict[str, Counter[str]] = {}
        self.conversations, self.openings = Repeats(), Repeats()
        self._numbers = [array("i") for _ in Columns._fields]

    def read(self, selection: Selection, tokenizer: MossTokenizer) -> None:
        """Takes in the dialogues of a selection; bad records are counted and left out."""
        waiting: deque[_Traits] = deque()

        def note(error: RecordError) -> None:
            self.bad[error.code] += 1

        def dialogues() -> Iterator[Dialogue]:
            for example in selection.examples(note, self.counts):
                self.formats[example.format] += 1
                dialogue = example.dialogue
                self.conversations.add(conversation_of(dialogue), dialogue.origin)
                self.openings.add(opening_of(dialogue), dialogue.origin)
                self._count_tools(dialogue)
                waiting.append(_Traits(dialogue.origin, self._category(dialogue), LANGUAGES.index(language_of(dialogue))))
                yield dialogue

        rendering: Counter[str] = Counter()
        for rendered in render_each(dialogues(), tokenizer, rendering, *self._policies, on_error=note):
            traits = waiting.popleft()
            # Dialogues without loss, and refused ones, are rendered to nothing.
            while traits.origin != rendered.origin:
                traits = waiting.popleft()
            self._add(rendered, traits)
        self.counts["no_loss"] += rendering["dialogues_dropped_no_loss"]

    def columns(self) -> Columns:
        """The numbers of each dialogue so far."""
        return Columns(*(np.array(memoryview(values), dtype=np.int32) for values in self._numbers))

    def _category(self, dialogue: Dialogue) -> int:
        name = dialogue.category or NO_CATEGORY
        if name not in self.categories:
            if len(self.categories) >= _CATEGORIES_COUNTED:
                name = OTHER_CATEGORIES
            if name not in self.categories:
                self.categories.append(name)
        return self.categories.index(name)

    def _count_tools(self, dialogue: Dialogue) -> None:
        for number, turn in enumerate(dialogue.turns):
            outcomes = find_outcomes(turn)
            failed = {outcome.tool for outcome in outcomes if outcome.failed}
            invented = failed and "moss" not in turn.untrained and invented_value(dialogue.turns[:number], turn, outcomes) is not None
            for tool in {outcome.tool for outcome in outcomes}:
                name = tool if tool in self.tools or len(self.tools) < _CATEGORIES_COUNTED else OTHER_CATEGORIES
                counts = self.tools.setdefault(name, Counter())
                counts["turns"] += 1
                counts["failed"] += tool in failed
                counts["invented"] += tool in failed and bool(invented)

    def _add(self, rendered: Rendered, traits: _Traits) -> None:
        ends = {segment.turn: segment.end for segment in rendered.segments if segment.turn >= 0}
        kept_turns = sum(end <= self.seq_len for end in ends.values())
        kept = ends[kept_turns - 1] if kept_turns else 0
        values = (
            len(rendered.input_ids),
            rendered.supervised_tokens,
            len(ends),
            kept,
            sum(rendered.loss_mask[1:kept]),
            kept_turns,
            traits.category,
            traits.language,
        )
        for column, value in zip(self._numbers, values, strict=True):
            column.append(value)


def summarise(survey: Survey) -> dict[str, Any]:
    """The numbers that `data stats --json` prints, but for comparison with validation data."""
    columns = survey.columns()
    return {
        "records": survey.counts["records"],
        "bad": dict(survey.bad.most_common()),
        "no_loss": survey.counts["no_loss"],
        "formats": dict(survey.formats.most_common()),
        "all": _group(columns),
        "categories": _groups(columns, columns.category, survey.categories),
        "languages": _groups(columns, columns.language, LANGUAGES),
        "packing": _packing(columns, survey.seq_len),
        "truncation": _truncation(columns, survey.seq_len),
        "duplicates": {
            "dialogues": survey.conversations.repeated(0)[0],
            "first_messages": survey.openings.repeated(0)[0],
        },
        "tools": {tool: dict(counts) for tool, counts in sorted(survey.tools.items())},
    }


def _groups(columns: Columns, numbers: npt.NDArray[np.int32], names: Sequence[str]) -> dict[str, Any]:
    chosen = ((name, numbers == number) for number, name in enumerate(names))
    found = {name: _group(Columns(*(column[of] for column in columns))) for name, of in chosen if of.any()}
    return dict(sorted(found.items(), key=lambda item: (-item[1]["tokens"], item[0])))


def _group(columns: Columns) -> dict[str, Any]:
    lengths = columns.lengths
    tokens, supervised = _total(lengths), _total(columns.supervised)
    percentiles = np.percentile(lengths, [50, 90, 99], method="inverted_cdf") if len(lengths) else np.zeros(3)
    return {
        "dialogues": len(lengths),
        "turns": _total(columns.turns),
        "tokens": tokens,
        "supervised_tokens": supervised,
        "supervised_share": _share(supervised, tokens),
        "length": {
            "mean": round(tokens / len(lengths), 1) if len(lengths) else 0.0,
            **{name: int(value) for name, value in zip(("p50", "p90", "p99"), percentiles)},
            "max": int(lengths.max(initial=0)),
        },
    }


def _packing(columns: Columns, seq_len: int) -> dict[str, Any]:
    """Rows of training on what is left at `seq_len`, against padding each batch to its longest dialogue."""
    kept = columns.kept[columns.kept_supervised > 0]
    if not len(kept):
        return {"rows": 0, "fill": 0.0, "padded_batches": 0, "padded_fill": 0.0, "positions": 0, "padded_positions": 0}
    rows = len(plan_rows(kept, seq_len).starts) - 1
    inputs = kept.astype(np.int64) - 1
    used = int(inputs.sum())
    shuffled = np.random.default_rng(0).permutation(inputs)
    longest = np.maximum.reduceat(shuffled, np.arange(0, len(shuffled), BATCH))
    sizes = np.minimum(BATCH, len(shuffled) - np.arange(0, len(shuffled), BATCH))
    padded = int((longest * sizes).sum())
    return {
        "rows": rows,
        "fill": _share(used, rows * seq_len),
        "positions": rows * seq_len,
        "padded_batches": len(longest),
        "padded_fill": _share(used, padded),
        "padded_positions": padded,
    }


def _truncation(columns: Columns, seq_len: int) -> dict[str, Any]:
    """What goes when whole turns are dropped from the end of dialogues longer than `seq_len`."""
    left = columns.kept_supervised > 0
    tokens, supervised, turns = _total(columns.lengths), _total(columns.supervised), _total(columns.turns)
    lost = {
        "turns": turns - _total(columns.kept_turns[left]),
        "tokens": tokens - _total(columns.kept[left]),
        "supervised_tokens": supervised - _total(columns.kept_supervised[left]),
    }
    return {
        "longer_dialogues": int((columns.lengths > seq_len).sum()),
        "dropped_dialogues": int((~left).sum()),
        **{f"lost_{name}": value for name, value in lost.items()},
        "lost_supervised_share": _share(lost["supervised_tokens"], supervised),
    }


def _total(values: npt.NDArray[np.int32]) -> int:
    return int(values.sum(dtype=np.int64))


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def compare(train: Survey, valid_conversations: Repeats, valid_openings: Repeats, examples: int) -> dict[str, Any]:
    """How many validation dialogues are in the training data too."""
    dialogues, pairs = valid_conversations.shared_with(train.conversations, examples)
    first_messages, _ = valid_openings.shared_with(train.openings, 0)
    return {
        "dialogues": len(valid_conversations),
        "also_in_train": dialogues,
        "first_message_also_in_train": first_messages,
        "examples": pairs,
    }
