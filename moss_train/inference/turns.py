"""Writing a turn: inner thoughts and commands, the tools, then the reply.

    pass 1   ... <|Human|>: question<eoh>\\n<|Inner Thoughts|>:  the model writes to <eot>;  \\n<|Commands|>:  the model writes to <eoc>
    tools    `plugins.Toolbox`
    pass 2   ... <|Results|>: what they found<eor>\\n<|MOSS|>:   the model writes to <eom>

Openings are written here, never by the model, since training puts no loss on them. A segment that the model ends with the wrong control
token is ended with the right one; Commands that are none become `None`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum

from moss_train.data.dialogue import KIND_BY_NAME
from moss_train.data.formats.fields import NONE
from moss_train.errors import UsageError
from moss_train.inference.decoder import Task, Write, Written
from moss_train.inference.plugins import Toolbox, ToolRun, citations_beyond, switched_on
from moss_train.inference.transcript import Transcript

_LEAST_ROOM = 16
"""Ids that a reply must have room for."""


class Style(StrEnum):
    """Which segments a turn has besides the question and the reply."""

    plain = "plain"
    """None, as in the published plain model."""
    empty = "empty"
    """Inner thoughts, commands and results, each None, as in the published data for plain dialogues."""
    thoughts = "thoughts"
    """The model writes its inner thoughts and commands, and the calls in these are run."""


@dataclass(frozen=True)
class Reply:
    """What came of a turn.

    Attributes:
        moss: The reply. thoughts, commands, results: Contents of the other segments, or None where the turn has none.
        finished: Whether the model ended the reply itself.
        repaired: Segments that it ended with the wrong control token.
        dropped_turns: Earlier turns that were left out, because the model does not cover so many tokens.
        citations_beyond: Citations in the reply that point to no result.
        tool_run: What the tools did, and which calls could not be run; None where nothing was called.
        tokens: Written by the model, control tokens included.
        log_probability: Of all the model wrote, in nats, as it was sampled.
    """

    moss: str
    thoughts: str | None
    commands: str | None
    results: str | None
    finished: bool
    repaired: int
    dropped_turns: int
    citations_beyond: int
    tool_run: ToolRun | None
    tokens: int
    log_probability: float


def write_turn(
    transcript: Transcript, style: Style, max_new_tokens: int, positions: int, toolbox: Toolbox | None = None, first_number: int = 1
) -> Task[Reply]:
    """Writes the last turn of a transcript, which holds the question.

    Args:
        transcript: Gets what is written.
        style: The segments of the turn.
        max_new_tokens: Of a segment.
        positions: Tokens that the model covers.
        toolbox: Runs the calls of Commands; those of tools that the meta instruction does not switch on are left out. None: no call is run.
        first_number: Number of the first search result.

    Raises:
        UsageError: Question and meta instruction leave no room for a reply.
    """
    writer = TurnWriter(transcript, max_new_tokens, positions)
    run = None
    if style is Style.empty:
        transcript.put_none()
    elif style is Style.thoughts:
        yield from writer.write("thoughts")
        yield from writer.write("commands")
        commands = transcript.text("commands") or ""
        if toolbox is None:
            transcript.put("results", NONE)
        else:
            run = toolbox.run(commands, switched_on(transcript.meta_instruction), first_number)
            if run.commands_text.strip() != commands.strip():
                transcript.put("commands", run.commands_text)
            transcript.put("results", run.results_text)
            writer.cut_results()
    finished = yield from writer.write("moss")
    reply = transcript.text("moss") or ""
    next_number = run.next_number if run is not None else first_number
    return Reply(
        moss=reply,
        thoughts=transcript.text("thoughts"),
        commands=transcript.text("commands"),
        results=transcript.text("results"),
        finished=finished,
        repaired=writer.repaired,
        dropped_turns=writer.dropped,
        citations_beyond=citations_beyond(reply, next_number),
        tool_run=run if run is not None and (run.calls or run.problems) else None,
        tokens=writer.tokens,
        log_probability=writer.log_probability,
    )


def too_long(tokens: int, positions: int) -> str:
    """What is wrong with a prompt that leaves no room for a reply."""
    return f"the prompt has {tokens} tokens, the model covers {positions}; shorten the message or the meta instruction"


def check_room(transcript: Transcript, style: Style, max_new_tokens: int, positions: int) -> str | None:
    """What is wrong with a transcript whose last question, alone, leaves no room for a reply; or None."""
    alone = transcript.copy()
    del alone.turns[:-1], alone.levels[:-1]
    if style is Style.empty:
        alone.put_none()
    tokens = alone.length("thoughts" if style is Style.thoughts else "moss")
    return too_long(tokens, positions) if positions - tokens < min(_LEAST_ROOM, max_new_tokens) else None


class TurnWriter:
    """Writes segments of the last turn, one after another."""

    def __init__(self, transcript: Transcript, max_new_tokens: int, positions: int):
        self.transcript, self.max_new_tokens, self.positions = transcript, max_new_tokens, positions
        self.repaired = self.dropped = self.tokens = 0
        self.log_probability = 0.0

    def write(self, segment: str) -> Generator[Write, Written, bool]:
        """Has the model write a segment; whether it ended it itself."""
        # Long replies must not push out the dialogue: half of what the model covers is enough room for one.
        room = min(self.max_new_tokens, self.positions // 2)
        self.dropped += self.transcript.shorten(segment, self.positions - room)
        prompts = self.transcript.prompts(segment)
        longest = max(map(len, prompts))
        room = self.positions - longest
        if room < min(_LEAST_ROOM, self.max_new_tokens) and not self.tokens:
            raise UsageError(too_long(longest, self.positions))
        if room < 1:
            # What the model wrote in this turn has used up its positions.
            self.transcript.put(segment, [])
            return False
        stream = f"{len(self.transcript.turns) + self.dropped}:{KIND_BY_NAME[segment].key}"
        written = yield Write(prompts[0], min(room, self.max_new_tokens), stream, *prompts[1:])
        self.transcript.put(segment, written.ids)
        self.tokens += len(written.ids) + (written.stop is not None)
        self.log_probability += written.log_probability
        self.repaired += written.stop is not None and written.stop != self.transcript.end(segment)
        return written.stop is not None

    def cut_results(self) -> None:
        """Shortens results that would leave too little room for the reply."""
        limit = self.positions - min(self.max_new_tokens, self.positions // 4)
        self.dropped += self.transcript.shorten("moss", limit)
        excess = self.transcript.length("moss") - limit
        if excess > 0:
            results = self.transcript.turns[-1]["results"]
            text = self.transcript.tokenizer.decode(results[: max(0, len(results) - excess - 2)]).rstrip("\ufffd")
            self.transcript.put("results", text.rstrip("\n") + "\n")
