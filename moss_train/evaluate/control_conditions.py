"""The conditions of the suite `control`, and what is answered in each: a model, with a level asked for or not, and how it decodes.

All conditions are asked the same, and draw from the same random numbers: response j to prompt i is that of `pm.sample`. A model that makes
nothing of its tag so says the same with any. Under a launcher the ranks share the prompts; what is answered does not depend on it.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from moss_train.data.comparisons import RESPONSE_SEGMENTS
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.errors import OutOfMemoryError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.inference.speaker import Speaker
from moss_train.inference.turns import Reply
from moss_train.pm.sample import Prompt, sample
from moss_train.pm.score import Scored, load_scorer, score_responses

_log = logging.getLogger("moss_train")

NONE = "none"
"""The condition of the model without a tag."""
_PROMPTS_AT_ONCE = 256
"""Prompts whose responses are rendered together."""


@dataclass(frozen=True)
class Condition:
    """One way to be answered.

    Attributes:
        name: In reports.
        model: Directory.
        level: The level that is asked for, or None: no tag.
        guidance: Strength; 1 is none.
        best_of: N, where the best of N responses is taken by a preference model; 0: the one response is.
    """

    name: str
    model: str
    level: int | None = None
    guidance: float = 1.0
    best_of: int = 0


def name_of_level(level: int) -> str:
    """The name of the condition in which a level is asked for."""
    return f"level {level}"


def list_conditions(config: EvaluateConfig, levels: Sequence[int]) -> list[Condition]:
    """All conditions of a configuration, those of one model side by side.

    Args:
        config: Settings. levels: Those the model was trained with, ascending.
    """
    model, best = config.model or "", levels[-1]
    found = [Condition(NONE, model), *(Condition(name_of_level(level), model, level) for level in levels)]
    found += [Condition(f"{name_of_level(best)}, guidance {one:g}", model, best, guidance=one) for one in config.guidance]
    found += [Condition(name, directory) for name, directory in config.against.items()]
    if config.best_of.model:
        found.append(Condition(f"best of {config.best_of.samples}", config.best_of.model, best_of=config.best_of.samples))
    return found


def by_speaker(conditions: Sequence[Condition]) -> list[list[Condition]]:
    """The conditions that one loaded model serves together, in the order of the first of each."""
    keys = [(str(Path(one.model).resolve()), one.guidance) for one in conditions]
    order = sorted(range(len(conditions)), key=lambda number: (keys.index(keys[number]), number))
    return [[conditions[number] for number in group] for _, group in groupby(order, key=lambda number: keys[number])]


def answer(
    config: EvaluateConfig,
    conditions: Sequence[Condition],
    prompts: Sequence[Prompt],
    numbers: Sequence[int],
    also: Callable[[Speaker, Condition], None] | None = None,
) -> dict[str, dict[int, list[Reply]]]:
    """Responses to prompts: of each condition, by number of the prompt. With best of N, all of those to choose from, N for each sample.

    Args:
        config: Settings. conditions: As `list_conditions` gives them. prompts: Asked of all.
        numbers: Of the prompts that are answered here.
        also: Called with the model of each condition when it has answered.

    Raises:
        CheckpointError: A model cannot be loaded.
        DataError: A prompt leaves no room for a reply.
        UsageError: A level has no tag in the tokenizer.
    """
    found: dict[str, dict[int, list[Reply]]] = {}
    try:
        for group in by_speaker(conditions):
            first = group[0]
            # An alternative may know levels too: it is asked for none.
            settings = config.sampling(first.model, NONE if first.level is None else str(first.level), first.guidance)
            draws = max(config.samples * max(1, one.best_of) for one in group)
            speaker = Speaker(settings, min(config.batch_size, max(1, len(numbers)) * draws), share_prompts=draws > 1)
            for condition in group:
                speaker.level = condition.level
                speaker.check(prompt.context for prompt in prompts)
                found[condition.name] = _answer_one(speaker, condition, prompts, numbers, config.samples * max(1, condition.best_of))
                if also is not None:
                    also(speaker, condition)
            del speaker
            _release()
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_size or number format takes less.") from error
    return found


def _answer_one(
    speaker: Speaker, condition: Condition, prompts: Sequence[Prompt], numbers: Sequence[int], draws: int
) -> dict[int, list[Reply]]:
    started = time.perf_counter()
    replies = dict(sample(speaker, list(prompts), list(numbers), draws))
    tokens = sum(reply.tokens for some in replies.values() for reply in some)
    seconds = time.perf_counter() - started
    _log.info(f"{condition.name}: {len(numbers) * draws:,} responses, {tokens:,} tokens in {seconds:.1f} s")
    return replies


def turn_of(prompt: Prompt, reply: Reply) -> Turn:
    """The last turn of a prompt with what was answered."""
    return Turn(prompt.context.turns[-1].human, reply.thoughts, reply.commands, reply.results, reply.moss)


class Judge:
    """Rewards of replies by a preference model. Equal responses to one prompt are read once, so that their rewards are equal to the bit.

    Args:
        directory: A preference model. config: Settings.

    Raises:
        CheckpointError: It cannot be loaded, or is a language model.

    Attributes:
        tokenizer: Its tokenizer.
    """

    def __init__(self, directory: Path, config: EvaluateConfig):
        self._batch_tokens = config.batch_tokens
        self._model, self.tokenizer = load_scorer(
            directory, config.dtype.value, unverified=config.unverified, allow_pickle=config.allow_pickle
        )

    def score(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]]) -> list[list[Scored]]:
        """What came of each reply, by prompt.

        Args:
            prompts: P of them. replies: To each. Of a context that is too long the oldest turns go, for all replies to it alike.

        Raises:
            NonFiniteError: A reward is not a finite number.
        """
        found: list[list[Scored]] = []
        try:
            for start in range(0, len(prompts), _PROMPTS_AT_ONCE):
                part = slice(start, start + _PROMPTS_AT_ONCE)
                found += self._score(prompts[part], replies[part])
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(f"{str(error).splitlines()[0]} A smaller batch_tokens or number format takes less.") from error
        return found

    def _score(self, prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]]) -> Iterator[list[Scored]]:
        distinct = [list(dict.fromkeys(turn_of(prompt, one) for one in some)) for prompt, some in zip(prompts, replies, strict=True)]
        groups = [[_with_turn(prompt.context, turn) for turn in turns] for prompt, turns in zip(prompts, distinct, strict=True)]
        scored = score_responses(self._model, self.tokenizer, groups, batch_tokens=self._batch_tokens)
        for prompt, some, turns, results in zip(prompts, replies, distinct, scored, strict=True):
            known = dict(zip(turns, results, strict=True))
            yield [known[turn_of(prompt, one)] for one in some]


def _with_turn(context: Dialogue, turn: Turn) -> Dialogue:
    """As `scripts/score.py` reads a response: earlier replies have no level there."""
    return replace(context, turns=(*(replace(one, level=None) for one in context.turns[:-1]), turn))


def pick_best(
    config: EvaluateConfig, condition: Condition, prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]]
) -> list[list[Reply]]:
    """Of every N responses the one with the largest reward by `best_of.pm`, of equal ones the first; one without a reward comes last."""
    judge = Judge(Path(config.best_of.pm or ""), config)
    started = time.perf_counter()
    scored = judge.score(prompts, replies)
    del judge
    _release()
    _log.info(f"{condition.name}: chosen in {time.perf_counter() - started:.1f} s")
    found = []
    for some, rewards in zip(replies, scored, strict=True):
        values = [float("-inf") if one.reward is None else one.reward for one in rewards]
        starts = range(0, len(some), condition.best_of)
        found.append([some[max(range(start, start + condition.best_of), key=values.__getitem__)] for start in starts])
    return found


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def segments_of(reply: Reply) -> dict[str, Any]:
    """The contents of a reply, by segment, of those that it has."""
    return {name: text for name in RESPONSE_SEGMENTS if (text := getattr(reply, name)) is not None}
