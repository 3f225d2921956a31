"""The suite `control`: whether the tags of a model steer it, judged by a preference model that did not give them, beside alternatives.

prompts -> each condition answers (`control_conditions`) -> best of N chooses -> the judge scores all -> figures (`control_measures`)
        -> report.md, report.json, responses.jsonl, control.png, and their record
"""

from __future__ import annotations

import io
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.lineage_graph import name_of
from moss_train.data.comparisons import response_to_json
from moss_train.data.sources import source_of
from moss_train.errors import MossTrainError
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.control_conditions import Condition, answer
from moss_train.evaluate.control_judging import Judge, make_answers, pick_best, turn_of
from moss_train.evaluate.control_likelihood import held_out
from moss_train.evaluate.control_report import Measured, describe, measure, report
from moss_train.evaluate.control_task import Task, read_task
from moss_train.evaluate.heat_map import heat_map
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.inference import together
from moss_train.inference.generate import system_text
from moss_train.inference.speaker import Speaker
from moss_train.inference.turns import Reply
from moss_train.pm.sample import Prompt

_log = logging.getLogger("moss_train")

Done = TypeVar("Done")
_UNKNOWN = "unknown"
"""Category of a prompt that names none."""


@dataclass
class Said:
    """What was answered: by condition, and there by number of the prompt; and how likely the models find the held-out replies."""

    replies: dict[str, dict[int, list[Reply]]] = field(default_factory=dict)
    likelihood: dict[str, dict[str, Any]] = field(default_factory=dict)


def evaluate_control(config: EvaluateConfig) -> None:
    """Answers, judges, reports, and writes the evaluation.

    Raises:
        UsageError: The model knows no levels, the judge is the preference model that gave them, or `out` cannot be written.
        DataError: Prompts or dialogues cannot be read, or a checker lacks what it needs.
        CheckpointError: A model cannot be loaded, or is of the wrong kind.
        NonFiniteError: A reward is not a finite number.
    """
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    started = time.perf_counter()
    if ranks > 1:
        together.join()
    if rank != 0:
        _log.setLevel(logging.WARNING)
    task = _on_all(lambda: read_task(config), ranks)
    said = _gather(_on_all(lambda: _answer_part(config, task, rank, ranks), ranks), rank, ranks)
    if said is None:
        return
    _finish(config, task, said)
    seconds = time.perf_counter() - started
    _log.info(f"{len(task.conditions)} conditions, {len(task.prompts):,} prompts in {seconds:.1f} s -> {config.out}")


def _on_all(do: Callable[[], Done], ranks: int) -> Done:
    """What `do` gives; where it fails on one rank, all of them end."""
    done: list[Done] = []
    error: MossTrainError | None = None
    try:
        done.append(do())
    except MossTrainError as caught:
        error = caught
    together.raise_together(error, ranks)
    return done[0]


def _answer_part(config: EvaluateConfig, task: Task, rank: int, ranks: int) -> Said:
    """The part of a rank: its prompts, and the likelihood in its conditions."""
    said = Said()

    def find_likelihood(speaker: Speaker, condition: Condition) -> None:
        # Of what is chosen or guided, no model gives the probability.
        has_one = task.dialogues and not condition.best_of and condition.guidance == 1
        if has_one and task.conditions.index(condition) % ranks == rank:
            said.likelihood[condition.name] = held_out(speaker, task.dialogues, condition.level, config.batch_tokens)

    said.replies = answer(config, task.conditions, task.prompts, range(rank, len(task.prompts), ranks), find_likelihood)
    return said


def _gather(own: Said, rank: int, ranks: int) -> Said | None:
    """What all ranks have answered, on rank 0; None on the others, which have done their part."""
    if ranks == 1:
        return own
    every: list[Any] = [None] * ranks
    dist.gather_object(own, every if rank == 0 else None)
    dist.destroy_process_group()
    if rank != 0:
        return None
    whole = Said()
    for part in every:
        whole.likelihood |= part.likelihood
        for name, replies in part.replies.items():
            whole.replies.setdefault(name, {}).update(replies)
    return whole


def _finish(config: EvaluateConfig, task: Task, said: Said) -> None:
    """Chooses the best of N, judges, measures, and writes."""
    model, judge_path, prompts = Path(config.model or ""), Path(config.pm or ""), task.prompts
    replies = {name: [found[number] for number in range(len(prompts))] for name, found in said.replies.items()}
    for condition in task.conditions:
        if condition.best_of:
            replies[condition.name] = pick_best(config, condition, prompts, replies[condition.name])
    judge = Judge(judge_path, config)
    # All responses to a prompt together, so that a context that is too long is cut for all of them alike.
    scored = judge.score(
        prompts, [[one for condition in task.conditions for one in replies[condition.name][n]] for n in range(len(prompts))]
    )
    answers = make_answers(prompts, task.conditions, replies, scored, judge)
    measured = measure(answers, task.levels, [_category(one) for one in prompts], config.guidance)
    settings = _settings(config)
    whole = {
        "suite": "control",
        "model": _named(model),
        "judge": _named(judge_path),
        "taggers": task.taggers,
        "models": {one.name: _named(Path(one.model)) for one in task.conditions},
        "settings": settings,
        "prompts": len(prompts),
        "samples": config.samples,
        **report(measured, config.seed),
    }
    for name, found in whole["conditions"].items():
        found["held_out"] = said.likelihood.get(name)
    record = _record(config, task, whole, settings)
    text = describe(whole)
    contents: dict[str, str | bytes] = {
        "report.md": text,
        "report.json": json.dumps(whole, ensure_ascii=False, indent=1) + "\n",
        # A prompt may hold half a surrogate pair, which UTF-8 has no spelling for.
        "responses.jsonl": json_lines(_lines(task, replies, measured)).encode(errors="replace"),
    }
    if whole["matrix"] is not None:
        picture = io.BytesIO()
        heat_map(whole["matrix"], f"{whole['model']['name']}\njudged by {whole['judge']['name']}", picture)
        contents["control.png"] = picture.getvalue()
    write_artefact(Path(config.out), contents, record)
    print(text, end="")


# ---------------------------------------------------------------------- what is written


def _lines(task: Task, replies: dict[str, list[list[Reply]]], measured: Measured) -> list[dict[str, Any]]:
    """Every response on a line, prompt by prompt, so that what was said in all conditions stands together."""
    found = []
    for number, prompt in enumerate(task.prompts):
        for condition in task.conditions:
            for sample, (reply, response) in enumerate(
                zip(replies[condition.name][number], measured.answers[condition.name][number], strict=True)
            ):
                found.append(
                    {
                        "id": prompt.context.id,
                        "origin": prompt.context.origin,
                        "prompt": prompt.context.turns[-1].human.strip(),
                        "condition": condition.name,
                        "sample": sample,
                        **response_to_json(turn_of(task.prompts[number], reply)),
                        "finish": "stop" if reply.finished else "length",
                        "tokens": reply.tokens,
                        "length": len(response.ids),
                        "reward": response.reward,
                        "measured_level": measured.level_of(response),
                        "correct": response.correct,
                        "refuses": response.refuses,
                    }
                )
    return found


def _settings(config: EvaluateConfig) -> dict[str, Any]:
    """All that the figures follow from, besides the models and the prompts. The batch size is not among them."""
    names = ("samples", "seed", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "batch_tokens")
    sampling = config.sampling(config.model or "", "none")
    settings: dict[str, Any] = {name: getattr(config, name) for name in names} | {
        "temperature": sampling.temperature,
        "taken_from": "prompts" if config.dialogue is None else "dialogue",
        "system": system_text(sampling) if config.dialogue is None else None,
        "thoughts": sampling.writes_thoughts,
        "tools": asdict(config.tools) if sampling.writes_thoughts else None,
        "guidance": list(config.guidance),
        "guidance_from": config.guidance_from if config.guidance else None,
        "best_of": config.best_of.samples if config.best_of.model else None,
        "dtype": config.dtype.value,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    cleaned: dict[str, Any] = lineage.without_secrets(settings)
    return cleaned


def _named(directory: Path) -> dict[str, str]:
    return {"name": name_of(directory), "id": lineage.parent_of(directory, "model").id}


def _category(prompt: Prompt) -> str:
    category = prompt.extra.get("category") or prompt.context.category
    return str(category) if category else _UNKNOWN


def _record(config: EvaluateConfig, task: Task, whole: dict[str, Any], settings: dict[str, Any]) -> lineage.Lineage:
    """The record: its parents are all models that took part, and the files where these have records."""
    sources, parents = [], [lineage.parent_of(Path(config.pm or ""), "judge")]
    parents += [lineage.parent_of(Path(directory), "against") for directory in config.against.values()]
    if config.best_of.model and config.best_of.pm:
        parents += [lineage.parent_of(Path(config.best_of.model), "against"), lineage.parent_of(Path(config.best_of.pm), "chooser")]
    for spec, records, role in [
        (config.prompts or config.dialogue or "", len(task.prompts), "evaluation"),
        *((*part, "held_out") for part in task.data_parts),
    ]:
        source, recorded = source_of(spec, records, role)
        sources.append(source)
        parents += [lineage.Parent("data", one.id, one.name, one.path) for one in recorded]
    details = {"suite": "control", "conditions": [one.name for one in task.conditions], "levels": whole["levels"], "scale": whole["scale"]}
    record = lineage_kinds.evaluation(
        lineage.parent_of(Path(config.model or ""), "model"), sources, _metrics(whole), {**details, **settings}
    )
    unique = {(one.role, one.id): one for one in (*record.parents, *parents)}
    record.parents = list(unique.values())
    return record


def _metrics(whole: dict[str, Any]) -> dict[str, float]:
    values = {"control/spearman": whole["spearman"]["reward"]["value"], "control/spearman_within": whole["spearman"]["reward"]["within"]}
    for one in whole["guided"]:
        values[f"control/spearman/guidance_{one['guidance']:g}"] = one["spearman"]["reward"]["value"]
    values |= {f"control/{one['name'].replace(' ', '_')}": one["win"]["rate"] for one in whole["contrasts"]}
    for name, found in whole["conditions"].items():
        if found["correct"] is not None:
            values[f"control/correct/{name.replace(' ', '_')}"] = found["correct"]["share"]
    return {name: value for name, value in values.items() if value is not None}
