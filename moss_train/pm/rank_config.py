"""Settings of ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum


class By(StrEnum):
    """Who ranks."""

    checker = "checker"
    """A program that verifies answers."""
    judge = "judge"
    """A model behind an OpenAI-compatible endpoint."""
    person = "person"
    """Whoever sits at the terminal."""


class Checker(StrEnum):
    """What makes a reply correct; `moss_train.pm.checkers` says it exactly."""

    number = "number"
    """Its last number equals `answer` of the line."""
    exact = "exact"
    """It is `answer`, or one of `answers`, but for case, blanks and marks around it."""
    contains = "contains"
    """It has one of these in it."""
    calls = "calls"
    """Its Commands make the call under `call` of the line, and the reply says the result."""


@dataclass
class JudgeConfig:
    """The model that judges."""

    url: str | None = None
    """Of an OpenAI-compatible interface, such as https://api.openai.com/v1; `/chat/completions` is added."""
    model: str | None = None
    key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is written nowhere. By default none is sent."""
    template: str | None = None
    """A file with the question that is asked, with {context}, {first} and {second}; the answer wanted is [[A]], [[B]] or [[C]] (equal)."""
    temperature: float = 0.0
    max_tokens: int = 1024
    """Of an answer."""
    concurrency: int = 4
    """Lines that are judged at the same time."""
    retries: int = 4
    """After a request that failed for a time (429, 5xx, no connection), and after an answer that is no verdict."""
    backoff_seconds: float = 1.0
    """Before the first repetition of a failed request; doubled for each one after it, up to a minute."""
    timeout_seconds: float = 120.0
    """Of a request."""
    allow: list[str] = field(default_factory=list)
    """Endpoints that are not on the public internet, or on another port than 80 and 443, as `host:port`."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [
            f"judge.{key} must be given for by=judge: {what}"
            for key, what in (("url", "the endpoint"), ("model", "its name there"))
            if not getattr(self, key)
        ]
        for key, least in (("max_tokens", 1), ("concurrency", 1), ("retries", 0)):
            if getattr(self, key) < least:
                found.append(f"judge.{key} is {getattr(self, key)}; expected {least} or more")
        for key in ("temperature", "backoff_seconds"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) >= 0):
                found.append(f"judge.{key} is {getattr(self, key)}; expected zero or more")
        if not (math.isfinite(self.timeout_seconds) and self.timeout_seconds > 0):
            found.append(f"judge.timeout_seconds is {self.timeout_seconds}; expected a number above zero")
        return found


@dataclass
class RankConfig:
    """What `scripts/rank.py` takes."""

    responses: str = "???"
    """A file of contexts with their responses; `FILE#N` takes the first N lines."""
    out: str = "???"
    """The file of comparisons to write. What is ranked so far is in OUT.partial, and the same command goes on from there."""
    by: By | None = None
    """Must be given."""
    checker: Checker | None = None
    """For by=checker; by default the one under `checker` of each line."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    person: str | None = None
    """For by=person: who that is, for the record."""
    seed: int = 0
    """Of the order in which a person sees the responses."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        if self.by is None:
            found.append(f"by must be given: by={' or '.join(By)}")
        if self.by == By.judge:
            found += self.judge.problems()
        elif self.judge.url is not None or self.judge.model is not None:
            found.append("judge.* has an effect on by=judge only; leave it out")
        if self.checker is not None and self.by != By.checker:
            found.append("checker has an effect on by=checker only; leave it out")
        if self.by == By.person and not (self.person or "").strip():
            found.append("person must be given for by=person: a name that the record keeps")
        if self.person is not None and self.by != By.person:
            found.append("person has an effect on by=person only; leave it out")
        return found
