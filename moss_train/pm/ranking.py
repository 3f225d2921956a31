"""What is ranked, and what ranking gives, whoever does it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moss_train.data.comparisons import Responses, response_to_json

RANKED = "ranked"


@dataclass(frozen=True)
class Line:
    """A line of responses.

    Attributes:
        index: Of the line among the records, from 0.
        origin: `file:line`.
        groups: Numbers of its responses that have text, equal ones together.
    """

    index: int
    origin: str
    parsed: Responses
    groups: tuple[tuple[int, ...], ...]

    @property
    def heads(self) -> list[int]:
        """One response of each group."""
        return [group[0] for group in self.groups]

    def reply(self, number: int) -> str:
        """The text of a response."""
        return str(self.parsed.responses[number].moss or "").strip()

    def raw(self, number: int) -> dict[str, Any]:
        """A response as it stands in the line."""
        return dict(self.parsed.record["responses"][number])

    def spread(self, ranks: Sequence[int | None]) -> list[int | None]:
        """Ranks of the groups as ranks of all responses; one without text has none."""
        found: list[int | None] = [None] * len(self.parsed.responses)
        for group, rank in zip(self.groups, ranks, strict=True):
            for number in group:
                found[number] = rank
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of a line.

    Attributes:
        name: `RANKED`, or why it is left out.
        ranks: Of each response, 1 for the best; None where it was not ranked.
        provenance: How they came about.
        counts: What else is counted over all lines, such as abstentions.
    """

    name: str
    ranks: list[int | None] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the file of what is ranked so far."""
        return asdict(self)


def make_line(index: int, origin: str, parsed: Responses) -> Line:
    """A line, with its equal responses found."""
    groups: dict[Hashable, list[int]] = {}
    for number, turn in enumerate(parsed.responses):
        if (turn.moss or "").strip():
            groups.setdefault(tuple(response_to_json(turn).items()), []).append(number)
    return Line(index, origin, parsed, tuple(map(tuple, groups.values())))


def ranks_of(standings: Sequence[Any]) -> list[int | None]:
    """Ranks from standings, of which larger is better: 1, 2, ... without gaps; equal ones share a rank, and None has none."""
    levels = sorted({one for one in standings if one is not None}, reverse=True)
    return [None if one is None else levels.index(one) + 1 for one in standings]
