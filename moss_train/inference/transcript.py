"""A dialogue in the making, as ids.

What the model wrote is kept as the ids it wrote: encoding its text anew could give others. What people and tools say is encoded apart, as
in training, so no text of theirs can become a control token.
"""

from __future__ import annotations

import copy

from moss_train.data.dialogue import SEGMENT_KINDS, Turn, tagged_segment
from moss_train.data.formats.fields import NONE
from moss_train.data.tokenizer import MossTokenizer


class Transcript:
    """The turns so far, the last of which may be unfinished.

    Args:
        tokenizer: That of the model.
        meta_instruction: What stands before the first turn.
        level: Of turns that have none of their own: what is asked for.
        away_from: With guidance, the one level that stands in the place of `level` in the prompt that is led away from. Turns with a level
            of their own have it in both.
    """

    def __init__(self, tokenizer: MossTokenizer, meta_instruction: str, level: int | None = None, away_from: tuple[int | None, ...] = ()):
        self.tokenizer = tokenizer
        self.asked = (level, *away_from)
        self.meta_instruction = meta_instruction
        self._meta = tokenizer.encode(meta_instruction)
        self._openings = {kind.name: tokenizer.encode(kind.opening) for kind in SEGMENT_KINDS}
        self._ends = {kind.name: [tokenizer.control_ids[kind.control], tokenizer.newline] for kind in SEGMENT_KINDS}
        self._none = tokenizer.encode(NONE)
        self.turns: list[dict[str, list[int]]] = []
        self.levels: list[int | None] = []
        """The turns' own."""

    def begin(self, turn: Turn) -> None:
        """Adds a turn, with what it holds so far."""
        contents = {kind.name: getattr(turn, kind.name) for kind in SEGMENT_KINDS}
        self.turns.append({name: self.tokenizer.encode(text) for name, text in contents.items() if text is not None})
        self.levels.append(turn.level)

    def copy(self) -> Transcript:
        """Another with the same turns, to which nothing that is done to this one happens."""
        copied = copy.copy(self)
        copied.turns, copied.levels = [dict(turn) for turn in self.turns], list(self.levels)
        return copied

    def put(self, segment: str, content: str | list[int]) -> None:
        """Gives a segment of the last turn its content: text, or the ids that the model wrote."""
        self.turns[-1][segment] = self.tokenizer.encode(content) if isinstance(content, str) else content

    def put_none(self) -> None:
        """Fills the segments before the reply of the last turn, as in data that has them in every turn."""
        for segment in ("thoughts", "commands", "results"):
            self.turns[-1][segment] = self._none

    def text(self, segment: str) -> str | None:
        """Content of a segment of the last turn, or None."""
        ids = self.turns[-1].get(segment)
        return None if ids is None else self.tokenizer.decode(ids)

    def prompt(self, segment: str) -> list[int]:
        """All ids so far, and the opening of the segment that is to be written next.

        Results of earlier turns are left out (`None`), as the published service did: they are long, and the replies say what they were for.
        """
        return self._prompt(segment, self.asked[0])

    def prompts(self, segment: str) -> list[list[int]]:
        """The prompt, and with guidance the one that is led away from: the same but for the tags of turns without a level of their own."""
        return [self._prompt(segment, level) for level in self.asked]

    def length(self, segment: str) -> int:
        """Ids of the longest prompt."""
        return max(map(len, self.prompts(segment)))

    def _prompt(self, segment: str, asked: int | None) -> list[int]:
        ids = list(self._meta)
        for number, (turn, own) in enumerate(zip(self.turns, self.levels, strict=True)):
            last = number == len(self.turns) - 1
            level = asked if own is None else own
            tagged = None if level is None else tagged_segment(turn, segment if last else None)
            for kind in SEGMENT_KINDS:
                if kind.name == tagged and level is not None:
                    ids.append(self.tokenizer.tag_of(level))
                content = turn.get(kind.name)
                if content is None:
                    continue
                if kind.name == "results" and not last:
                    content = self._none
                ids += self._openings[kind.name] + content + self._ends[kind.name]
        return ids + self._openings[segment]

    def end(self, segment: str) -> int:
        """The control token that ends a segment."""
        return self._ends[segment][0]

    def shorten(self, segment: str, limit: int) -> int:
        """Leaves out the oldest turns until no prompt has more than `limit` ids; the number of those left out. The last turn stays."""
        dropped = 0
        while len(self.turns) > 1 and self.length(segment) > limit:
            self.turns.pop(0)
            self.levels.pop(0)
            dropped += 1
        return dropped
