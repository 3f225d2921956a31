"""What the weights of a configuration mean: shares of the tokens, and what a token counts, for every source of the corpora."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moss_train.data.corpus import Corpus, CorpusSource
from moss_train.errors import ConfigError
from moss_train.pretrain.config import WeighBy


@dataclass(frozen=True)
class Entry:
    """A source of one of the corpora.

    Attributes:
        name: Unique in the run. path: Of its corpus, as given. role: `train` or `valid`.
    """

    name: str
    path: str
    role: str
    corpus: Corpus
    source: CorpusSource

    @property
    def language(self) -> str:
        return self.source.language


def token_shares(entries: Sequence[Entry], weights: Mapping[str, float], weigh_by: WeighBy, key: str, by_path: bool = False) -> list[float]:
    """The share of the tokens that each source gets.

    Args:
        entries: The sources.
        weights: By name, language or path; empty: every source in proportion to its tokens.
        weigh_by: What they count.
        key: Where they were given, for messages.
        by_path: Whether their keys are paths of corpora.

    Returns:
        Of each source, in a common scale; 0 where it is not named.

    Raises:
        ConfigError: A key names nothing, a source is named twice, or nothing is left.
    """
    if not weights:
        return [float(one.source.tokens) for one in entries]
    shares = [0.0] * len(entries)
    named: dict[int, str] = {}
    problems = []
    for name, weight in weights.items():
        members = _members(entries, name, by_path)
        if not members and weight:
            known = ", ".join(dict.fromkeys(one.path if by_path else one.name for one in entries))
            languages = ", ".join(dict.fromkeys(one.language for one in entries))
            problems.append(f"{key} has {name!r}, which is neither a source ({known}) nor a language ({languages}) of data.train")
        for member in members:
            if member in named:
                problems.append(f"{key} gives {entries[member].name} a weight twice: as {named[member]!r} and as {name!r}")
            named[member] = name
            source = entries[member].source
            if weigh_by is WeighBy.epochs:
                shares[member] = weight * source.tokens
            elif weigh_by is WeighBy.documents:
                # Documents of the members in proportion to how many they have, each of its mean length.
                shares[member] = weight * source.documents / _total(entries, members, "documents") * source.tokens / source.documents
            else:
                shares[member] = weight * source.tokens / _total(entries, members, "tokens")
    if not problems and sum(shares) <= 0:
        problems.append(f"{key} leaves nothing to train on: {dict(weights)}; give at least one source a weight above zero")
    if problems:
        raise ConfigError(problems)
    return shares


def _members(entries: Sequence[Entry], name: str, by_path: bool) -> list[int]:
    if by_path:
        return [place for place, one in enumerate(entries) if one.path == name]
    named = [place for place, one in enumerate(entries) if one.name == name]
    return named or [place for place, one in enumerate(entries) if one.language == name]


def _total(entries: Sequence[Entry], members: Sequence[int], what: str) -> int:
    return sum(getattr(entries[member].source, what) for member in members)


def objective_weights(entries: Sequence[Entry], weights: Mapping[str, float]) -> list[float]:
    """What a token of each source counts in the loss.

    Raises:
        ConfigError: A key names nothing, a source is named twice, or nothing is left that counts.
    """
    found = [1.0] * len(entries)
    named: dict[int, str] = {}
    problems = []
    for name, weight in weights.items():
        members = _members(entries, name, by_path=False)
        if not members and weight != 1:
            problems.append(f"data.loss_weights has {name!r}, which is neither a source nor a language of the mixture")
        for member in members:
            if member in named:
                problems.append(f"data.loss_weights gives {entries[member].name} a weight twice: as {named[member]!r} and as {name!r}")
            named[member] = name
            found[member] = float(weight)
    if not problems and not any(found):
        problems.append(f"data.loss_weights leaves no token that counts: {dict(weights)}")
    if problems:
        raise ConfigError(problems)
    return found
