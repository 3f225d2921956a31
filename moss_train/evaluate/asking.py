"""Turns that are written anew in dialogues whose earlier turns stay as they are, with what the model wrote before anything is repaired.

Openings of segments are written by the program, as in generation: training puts no loss on them. What the model may get wrong is how it
ends a segment, and what it writes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from moss_train.data.dialogue import SEGMENT_KINDS, Dialogue, Turn
from moss_train.inference.decoder import Task
from moss_train.inference.speaker import Speaker
from moss_train.inference.transcript import Transcript
from moss_train.inference.turns import Style, TurnWriter, check_room


class End(StrEnum):
    """How the model ended a segment."""

    own = "own"
    """With the segment's own control token."""
    other = "other"
    """With another one."""
    none = "none"
    """Not at all, within the tokens it had."""


@dataclass(frozen=True)
class Segment:
    """What the model wrote between an opening and the end."""

    text: str
    end: End


@dataclass(frozen=True)
class AskedTurn:
    """A turn as the model wrote it.

    Attributes:
        segments: By name, those that it wrote.
        results: Content of Results, or None where the turn has none.
        dropped_turns: Earlier turns that were left out, because the model does not cover so many tokens.
    """

    segments: Mapping[str, Segment]
    results: str | None
    dropped_turns: int


def transcript_of(speaker: Speaker, dialogue: Dialogue, number: int) -> Transcript:
    """A dialogue up to the question of turn `number`, from 0."""
    transcript = speaker.begin(dialogue.meta_instruction)
    for turn in dialogue.turns[:number]:
        transcript.begin(turn)
    transcript.begin(Turn(human=dialogue.turns[number].human, level=dialogue.turns[number].level))
    return transcript


def has_room(speaker: Speaker, transcript: Transcript, gold: Turn) -> bool:
    """Whether the question alone leaves room for a reply."""
    style = Style.thoughts if gold.thoughts is not None else Style.plain
    return check_room(transcript, style, speaker.config.max_new_tokens, speaker.model.config.n_positions) is None


def ask_turn(speaker: Speaker, transcript: Transcript, gold: Turn, results: Callable[[str], str]) -> Task[AskedTurn]:
    """Writes the last turn of a transcript, in the segments that the turn has in the data.

    Args:
        speaker: The model. transcript: Holds the question; gets what is written.
        gold: Which segments there are.
        results: From the content of Commands to that of Results; called where the turn has these.

    Raises:
        UsageError: The question leaves no room for a reply.
    """
    writer = TurnWriter(transcript, speaker.config.max_new_tokens, speaker.model.config.n_positions)
    written: dict[str, Segment] = {}
    found: str | None = None
    for kind in SEGMENT_KINDS:
        if kind.name == "human" or getattr(gold, kind.name) is None:
            continue
        if not kind.by_moss:
            found = results(written["commands"].text if "commands" in written else "")
            transcript.put(kind.name, found)
            writer.cut_results()
            continue
        repaired = writer.repaired
        finished = yield from writer.write(kind.name)
        end = End.none if not finished else End.other if writer.repaired > repaired else End.own
        written[kind.name] = Segment(transcript.text(kind.name) or "", end)
    return AskedTurn(written, found, writer.dropped)
