"""The conditions of the suite `control`, and what is answered in each: a model, with a level asked for or not, and how it decodes.

All conditions are asked the same, and draw from the same random numbers: response j to prompt i is that of `pm.sample`. A model that makes
nothing of its tag so says the same with any. Under a launcher the ranks share the prompts; what is answered does not depend on it.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from moss_train.errors import OutOfMemoryError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.inference.speaker import Speaker
from moss_train.inference.turns import Reply
from moss_train.pm.sample import Prompt, sample

_log = logging.getLogger("moss_train")

NONE = "none"
"""The condition of the model without a tag."""


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


def name_of_level(level: int, guidance: float = 1.0) -> str:
    """The name of the condition in which a level is asked for, with so much guidance."""
    return f"level {level}" if guidance == 1 else f"level {level}, guidance {guidance:g}"


def list_conditions(config: EvaluateConfig, levels: Sequence[int]) -> list[Condition]:
    """All conditions of a configuration, those of one model side by side.

    Args:
        config: Settings. levels: Those the model was trained with, ascending.
    """
    model = config.model or ""
    # Of the level that is led away from, guidance of any strength makes that level again.
    source = str(levels[0]) if config.guidance_from == "worst" else config.guidance_from.lstrip("0")
    led = [level for level in levels if str(level) != source]
    found = [Condition(NONE, model)]
    for one in (1.0, *config.guidance):
        found += [Condition(name_of_level(level, one), model, level, guidance=one) for level in (levels if one == 1 else led)]
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
                speaker.ask_for(condition.level)
                speaker.check(prompt.context for prompt in prompts)
                found[condition.name] = _answer_one(speaker, condition, prompts, numbers, config.samples * max(1, condition.best_of))
                if also is not None:
                    also(speaker, condition)
            del speaker
            release()
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


def release() -> None:
    """Lets go of the memory of a model that is no longer named."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
