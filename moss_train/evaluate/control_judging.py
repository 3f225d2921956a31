"""What is known of a reply: its reward by the judge, whether a checker finds it correct, its length, its calls."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from moss_train.data.comparisons import parse_responses
from moss_train.data.dialogue import Dialogue, Turn
from moss_train.data.formats.calls import scan_commands
from moss_train.errors import OutOfMemoryError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.control_conditions import Condition, release
from moss_train.evaluate.control_measures import Response, refuses
from moss_train.inference.turns import Reply
from moss_train.pm.checkers import check_line, is_correct
from moss_train.pm.ranking import make_line
from moss_train.pm.sample import Prompt, to_line
from moss_train.pm.score import Scored, load_scorer, score_responses

_log = logging.getLogger("moss_train")

_PROMPTS_AT_ONCE = 256
"""Prompts whose responses are rendered together."""


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


def turn_of(prompt: Prompt, reply: Reply) -> Turn:
    """The last turn of a prompt with what was answered."""
    return Turn(prompt.context.turns[-1].human, reply.thoughts, reply.commands, reply.results, reply.moss)


def pick_best(
    config: EvaluateConfig, condition: Condition, prompts: Sequence[Prompt], replies: Sequence[Sequence[Reply]]
) -> list[list[Reply]]:
    """Of every N responses the one with the largest reward by `best_of.pm`, of equal ones the first; one without a reward comes last."""
    judge = Judge(Path(config.best_of.pm or ""), config)
    started = time.perf_counter()
    scored = judge.score(prompts, replies)
    del judge
    release()
    _log.info(f"{condition.name}: chosen in {time.perf_counter() - started:.1f} s")
    found = []
    for some, rewards in zip(replies, scored, strict=True):
        values = [float("-inf") if one.reward is None else one.reward for one in rewards]
        starts = range(0, len(some), condition.best_of)
        found.append([some[max(range(start, start + condition.best_of), key=values.__getitem__)] for start in starts])
    return found


def make_answers(
    prompts: Sequence[Prompt],
    conditions: Sequence[Condition],
    replies: dict[str, list[list[Reply]]],
    scored: Sequence[Sequence[Scored]],
    judge: Judge,
) -> dict[str, list[list[Response]]]:
    """Replies with all that is measured of each.

    Args:
        prompts: P of them. conditions: In order. replies: Of each condition, by prompt.
        scored: By prompt, of all conditions in their order.
        judge: For its tokenizer.
    """
    found: dict[str, list[list[Response]]] = {}
    starts = [0] * len(prompts)
    for condition in conditions:
        own = replies[condition.name]
        encoded = iter(judge.tokenizer.encode_batch([one.moss for some in own for one in some]))
        found[condition.name] = []
        for number, (prompt, some) in enumerate(zip(prompts, own, strict=True)):
            results = scored[number][starts[number] : starts[number] + len(some)]
            starts[number] += len(some)
            verdicts = check(prompt, some)
            responses = [_response(one, result, tuple(next(encoded)), right) for one, result, right in zip(some, results, verdicts)]
            found[condition.name].append(responses)
    return found


def check(prompt: Prompt, replies: list[Reply]) -> list[bool | None]:
    """Whether replies are correct, as the prompt's checker says; None where it has none."""
    if "checker" not in prompt.extra:
        return [None] * len(replies)
    line = make_line(0, prompt.context.origin, parse_responses(to_line(prompt, replies), prompt.context.origin))
    checker = check_line(line, None)
    return [is_correct(line, number, checker) for number in range(len(replies))]


def _response(reply: Reply, scored: Scored, ids: tuple[int, ...], correct: bool | None) -> Response:
    calls, formed = calls_of(reply)
    return Response(
        reward=scored.reward,
        empty=not reply.moss.strip(),
        ids=ids,
        tokens=reply.tokens,
        finished=reply.finished,
        refuses=refuses(reply.moss),
        correct=correct,
        calls=calls,
        calls_formed=formed,
    )


def calls_of(reply: Reply) -> tuple[bool, bool]:
    """Whether a reply has commands, and whether these could be read as calls; where tools are, of tools that are switched on."""
    if reply.tool_run is not None:
        return True, bool(reply.tool_run.calls)
    # Without a toolbox commands stay as they were written; with one, they are None here.
    said = (reply.commands or "").strip().rstrip(".。")
    calls = said not in ("", "None")
    return calls, calls and scan_commands(said) is not None
