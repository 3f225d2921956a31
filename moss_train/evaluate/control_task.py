"""What the suite `control` is asked to do: read, and whatever cannot work refused, before any time is spent."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moss_train.data.comparisons import parse_responses
from moss_train.data.dialogue import Dialogue
from moss_train.data.records import PROBLEMS_SHOWN, RecordError
from moss_train.errors import CheckpointError, DataError, UsageError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.control_conditions import Condition, list_conditions
from moss_train.evaluate.control_taggers import forms_of, refuse_tagger, taggers_of
from moss_train.evaluate.dialogue_data import read_parts
from moss_train.inference.speaker import training_details
from moss_train.model.loading import read_model_config
from moss_train.model.shapes import LM, head_of
from moss_train.pm.checkers import check_line
from moss_train.pm.ranking import make_line
from moss_train.pm.sample import Prompt, read_prompts, to_line

_log = logging.getLogger("moss_train")


@dataclass(frozen=True)
class Task:
    """What is to be done, as all ranks know it before any time is spent.

    Attributes:
        levels: Of the model, ascending. conditions: All of them. taggers: Ids of the preference models that gave the levels.
        prompts: Asked in every condition. dialogues: Held-out ones. data_parts: Their paths, and how many each has.
    """

    levels: list[int]
    conditions: list[Condition]
    taggers: list[str]
    prompts: list[Prompt]
    dialogues: list[Dialogue]
    data_parts: list[tuple[str, int]]


def read_task(config: EvaluateConfig) -> Task:
    """Reads what is asked, and refuses what cannot work, before any time is spent."""
    model = Path(config.model or "")
    levels = levels_of_model(model)
    check_kinds(config)
    taggers = check_judge(config)
    # All models are asked the same: what `system` is by default follows from the one that is evaluated.
    prompts = read_prompts(config.sampling(str(model), "none"))
    check_checkers(prompts)
    return Task(levels, list_conditions(config, levels), taggers, prompts, *read_parts(config)[:2])


def levels_of_model(model: Path) -> list[int]:
    """The levels that a model was trained with, ascending.

    Raises:
        UsageError: Its lineage names none.
        CheckpointError: There is no such directory.
    """
    read_model_config(model)
    levels = sorted(int(level) for level in training_details(model).get("levels") or ())
    if not levels:
        raise UsageError(
            f"model={model}: its lineage names no levels that it was trained with, so there is no tag to ask for. Expected an export of "
            "scripts/preference.py"
        )
    return levels


def check_judge(config: EvaluateConfig) -> list[str]:
    """Refuses a judge that gave the levels, or that chooses the best of N; returns the ids of the preference models that gave them.

    Raises:
        UsageError: It is one of them.
    """
    taggers = taggers_of(Path(config.model or ""))
    judge = Path(config.pm or "")
    if not taggers:
        _log.warning(
            f"the lineage of {config.model} does not lead to a preference model that gave its levels; see that pm={judge} is another one"
        )
    refuse_tagger(judge, taggers, "pm", "gave the levels")
    if config.best_of.pm:
        refuse_tagger(judge, sorted(forms_of(Path(config.best_of.pm))), "pm", f"chooses in best_of, pm={config.best_of.pm}")
    return taggers


def check_kinds(config: EvaluateConfig) -> None:
    """Refuses a language model where a preference model is expected, and the other way round.

    Raises:
        CheckpointError: One is of the wrong kind, or missing.
    """
    language = {"model": config.model, "best_of.model": config.best_of.model}
    language |= {f"against.{name}": directory for name, directory in config.against.items()}
    for key, directory in language.items():
        if directory and head_of(read_model_config(directory)) != LM:
            raise CheckpointError(f"{key}={directory} is a preference model; expected a language model, which answers")
    for key, directory in {"pm": config.pm, "best_of.pm": config.best_of.pm}.items():
        if directory and head_of(read_model_config(directory)) == LM:
            raise CheckpointError(f"{key}={directory} is a language model: it has no reward head; expected an export of scripts/pm.py")


def check_checkers(prompts: Sequence[Prompt]) -> None:
    """Refuses prompts whose checker is none, or lacks what it needs.

    Raises:
        DataError: With all of them.
    """
    problems = []
    for number, prompt in enumerate(prompts):
        if "checker" in prompt.extra:
            origin = prompt.context.origin
            try:
                check_line(make_line(number, origin, parse_responses({**to_line(prompt, []), "responses": [{}]}, origin)), None)
            except RecordError as error:
                problems.append(str(error))
    if problems:
        more = [f"... and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
        raise DataError("\n".join([*problems[:PROBLEMS_SHOWN], *more]))
