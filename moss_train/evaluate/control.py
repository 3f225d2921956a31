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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from moss_train.artifacts import lineage, lineage_kinds
from moss_train.artifacts.lineage_graph import name_of
from moss_train.data.comparisons import parse_responses
from moss_train.data.dialogue import Dialogue
from moss_train.data.formats import parse
from moss_train.data.formats.calls import scan_commands
from moss_train.data.records import PROBLEMS_SHOWN, ProblemList, RecordError, read_records
from moss_train.data.sources import source_of
from moss_train.errors import CheckpointError, DataError, MossTrainError, UsageError
from moss_train.evaluate.config import EvaluateConfig, paths_of
from moss_train.evaluate.control_conditions import Condition, Judge, answer, list_conditions, pick_best, segments_of
from moss_train.evaluate.control_likelihood import held_out
from moss_train.evaluate.control_measures import Response, refuses
from moss_train.evaluate.control_report import Measured, describe, measure, report
from moss_train.evaluate.control_taggers import forms_of, refuse_tagger, taggers_of
from moss_train.evaluate.heat_map import heat_map
from moss_train.evaluate.output import json_lines, write_artefact
from moss_train.inference import together
from moss_train.inference.generate import system_text
from moss_train.inference.speaker import Speaker, training_details
from moss_train.inference.turns import Reply
from moss_train.model.loading import read_model_config
from moss_train.model.shapes import LM, head_of
from moss_train.pm.checkers import check_line, is_correct
from moss_train.pm.ranking import make_line
from moss_train.pm.sample import Prompt, read_prompts, to_line
from moss_train.pm.score import Scored

_log = logging.getLogger("moss_train")

Done = TypeVar("Done")
_UNKNOWN = "unknown"
"""Category of a prompt that names none."""


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


def read_task(config: EvaluateConfig) -> Task:
    """Reads what is asked, and refuses what cannot work, before any time is spent."""
    model = Path(config.model or "")
    levels = levels_of_model(model)
    check_kinds(config)
    taggers = check_judge(config)
    # All models are asked the same: what `system` is by default follows from the one that is evaluated.
    prompts = read_prompts(config.sampling(str(model), "none"))
    check_checkers(prompts)
    return Task(levels, list_conditions(config, levels), taggers, prompts, *read_dialogues(config))


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
    measured = measure(answers, task.levels, [_category(one) for one in prompts])
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


# ---------------------------------------------------------------------- what is refused before any time is spent


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


def read_dialogues(config: EvaluateConfig) -> tuple[list[Dialogue], list[tuple[str, int]]]:
    """The held-out dialogues of `data`, and how many each path has.

    Raises:
        DataError: They cannot be read, some are bad, or a path has none.
    """
    default_meta = training_details(Path(config.model or "")).get("meta_instruction")
    problems = ProblemList(config.on_bad.value, config.max_bad_share, "on_bad")
    found: list[Dialogue] = []
    parts = []
    for spec in paths_of(config.data):
        before = len(found)
        for record in read_records(spec, problems.add):
            try:
                found.append(parse(record.value, record.origin, default_meta=default_meta))
            except RecordError as error:
                problems.add(error)
        parts.append((spec, len(found) - before))
    problems.finish(len(found))
    if empty := [spec for spec, count in parts if not count]:
        raise DataError(f"data: {', '.join(empty)} holds no dialogues")
    return found, parts


# ---------------------------------------------------------------------- what is known of a response


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
                        **segments_of(reply),
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
        "taken_from": "prompts" if config.dialogue is None else "dialogue",
        "system": system_text(sampling) if config.dialogue is None else None,
        "thoughts": sampling.writes_thoughts,
        "tools": asdict(config.tools) if sampling.writes_thoughts else None,
        "guidance": list(config.guidance),
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
    values |= {f"control/{one['name'].replace(' ', '_')}": one["win"]["rate"] for one in whole["contrasts"]}
    for name, found in whole["conditions"].items():
        if found["correct"] is not None:
            values[f"control/correct/{name.replace(' ', '_')}"] = found["correct"]["share"]
    return {name: value for name, value in values.items() if value is not None}
