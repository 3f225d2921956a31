"""The suite `harness`: tasks of lm-evaluation-harness (the extra `eval`) whose data are on this machine.

Two tasks come along (`tasks/`): `moss_choice`, questions with four replies to choose from, and `moss_text`, the text of held-out dialogues.
Others are YAML files in `task_path`, in the harness's own form. Nothing is fetched: tasks whose data lie on a hub are not run, and the
report says so.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moss_train.artifacts import lineage
from moss_train.errors import DataError, MossTrainError, UsageError
from moss_train.evaluate.bars import Bar, draw_bars
from moss_train.evaluate.config import EvaluateConfig
from moss_train.evaluate.figures import Form, Measure
from moss_train.evaluate.output import json_lines
from moss_train.evaluate.suite import Outcome, common_settings, make_table, number, open_speaker, percent, run_suite
from moss_train.evaluate.suite import label as as_label
from moss_train.inference.speaker import Speaker

_log = logging.getLogger("moss_train")

SUITE = "harness"
BUNDLED = Path(__file__).resolve().parent / "tasks"
WITHOUT_NETWORK = ("arc_easy", "arc_challenge", "hellaswag", "winogrande", "piqa", "lambada_openai", "wikitext", "truthfulqa_mc2", "gsm8k",
                   "mmlu", "ceval-valid", "cmmlu", "humaneval")  # fmt: skip
"""Public tasks by which models of this family are compared elsewhere; their data lie on a hub."""
_NOT_RUN = "its data would be fetched from a hub, and nothing is fetched here"
# Metrics of whole texts: name -> (form, whether the log-likelihood is divided by ln 2).
_OF_TEXTS = {"word_perplexity": (Form.exp, False), "byte_perplexity": (Form.exp, False), "bits_per_byte": (Form.mean, True)}


def require_harness() -> None:
    """Refuses to go on without the harness.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise UsageError("suite=harness needs lm-evaluation-harness, which is not installed: pip install 'moss-train[eval]'")


def evaluate_harness(config: EvaluateConfig) -> None:
    """Runs the tasks, reports, and writes the evaluation.

    Raises:
        UsageError: The harness is not installed, a task is not known, or asks for what this suite does not do; `out` cannot be written.
        DataError: The data of a task are not on this machine.
        CheckpointError: The model cannot be loaded.
        NonFiniteError: A loss is not a finite number.
    """
    require_harness()
    with _offline():
        manager = _open_tasks(config)

    def measure() -> tuple[Outcome, Sequence[Any]]:
        speaker = open_speaker(config, tag="none", repetition_penalty=1.0, temperature=0.0)
        found, shortened = run_tasks(speaker, manager, config)
        measures, chances = read_samples(found)
        settings = {**common_settings(speaker), "tasks": sorted(found["samples"]), "fewshot": config.fewshot, "limit": config.limit}
        not_run = {name: _NOT_RUN for name in WITHOUT_NETWORK if name not in found["samples"]}
        details = {
            "results": {name: {key: one for key, one in result.items() if _is_plain(one)} for name, result in found["results"].items()},
            "versions": found["versions"],
            "harness": _version(),
            "chance": chances,
            "shortened": shortened,
            "not_run": not_run,
        }
        sources = [
            lineage.Source(name, lineage.hash_value([sample["doc"] for sample in samples]), len(samples), "evaluation")
            for name, samples in sorted(found["samples"].items())
        ]
        bars = [Bar(name, one.describe(config.seed), chances.get(name)) for name, one in measures.items() if one.form is Form.share]
        files: dict[str, str | bytes] = {"samples.jsonl": json_lines(_lines(found)).encode(errors="replace")}
        if bars:
            files["harness.png"] = draw_bars("shares by task", bars, 1.0)
        outcome = Outcome(SUITE, measures, settings, details, sources=sources, files=files)
        lines = [f"not run, since their data would be fetched from a hub: {', '.join(not_run)}"]
        if shortened:
            lines.append(f"{shortened:,} requests were longer than the model and lost their beginning")
        return outcome, [_table(measures, chances, found, config.seed), *lines]

    run_suite(config, measure)


def run_tasks(speaker: Speaker, manager: Any, config: EvaluateConfig) -> tuple[dict[str, Any], int]:
    """What the harness gives, and how many requests were longer than the model.

    Args:
        speaker: The model. manager: Of tasks. config: `tasks`, `fewshot`, `limit`, `seed`, `batch_tokens`.

    Raises:
        DataError: The data of a task are not on this machine.
    """
    import lm_eval

    from moss_train.evaluate.harness_model import SpeakerLM

    model = SpeakerLM(speaker, config.batch_tokens)
    with _offline():
        try:
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=list(config.tasks),
                task_manager=manager,
                num_fewshot=config.fewshot,
                limit=config.limit,
                # Intervals are made here, from the samples.
                bootstrap_iters=0,
                random_seed=config.seed,
                numpy_random_seed=config.seed,
                torch_random_seed=config.seed,
                fewshot_random_seed=config.seed,
            )
        except (MossTrainError, MemoryError):
            raise
        except Exception as error:
            # Its own errors, and those of the library that reads the data, are of many kinds.
            told = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise DataError(
                f"tasks={config.tasks}: the harness cannot run them: {type(error).__name__}: {told}. Tasks whose data lie on a hub cannot "
                "be run: nothing is fetched. In a task of your own, data_files are paths from where the command is given"
            ) from error
    return found, model.shortened


def read_samples(found: dict[str, Any]) -> tuple[dict[str, Measure], dict[str, float]]:
    """The figures, out of what the harness noted of each document, and what chance comes to.

    Numbers from 0 to 1 are shares; of texts, log-likelihoods with the words or bytes they are divided by. What else a task reports stands
    in `results` of the report alone.
    """
    measures: dict[str, Measure] = {}
    chances: dict[str, float] = {}
    for task, samples in sorted(found["samples"].items()):
        several = len({sample["filter"] for sample in samples}) > 1
        for sample in samples:
            after = f"/{sample['filter']}" if several else ""
            item = f"{task}:{sample['doc_id']}"
            for metric in sample["metrics"]:
                name, value = f"{SUITE}/{task}/{metric}{after}", sample.get(metric)
                if metric in _OF_TEXTS and isinstance(value, Sequence) and len(value) == 2:
                    form, in_bits = _OF_TEXTS[metric]
                    measure = measures.setdefault(name, Measure(form, "lower"))
                    measure.add(item, -float(value[0]) / (math.log(2) if in_bits else 1), float(value[1]))
                elif _is_number(value) and 0 <= float(value) <= 1:
                    measures.setdefault(name, Measure()).add(item, float(value), 1.0)
        offered = [len(sample["arguments"]) for sample in samples if "acc" in sample["metrics"]]
        if offered:
            chances |= dict.fromkeys(
                (f"{SUITE}/{task}/acc", f"{SUITE}/{task}/acc_norm"), sum(1 / count for count in offered) / len(offered)
            )
    return measures, chances


def _table(measures: dict[str, Measure], chances: dict[str, float], found: dict[str, Any], seed: int) -> Any:
    table = make_table("lm-evaluation-harness; shares in %", ("task", "metric", "documents", "value", "95 %", "chance"))
    for name, one in measures.items():
        _, task, metric = name.split("/", 2)
        shown = percent(one, seed) if one.form is Form.share else number(one, seed, ".5g")
        chance = f"{100 * chances[name]:.1f}" if name in chances else "-"
        table.add_row(as_label(task), metric, f"{len(one.parts):,}", *shown, chance)
    return table


def _open_tasks(config: EvaluateConfig) -> Any:
    """The tasks of the harness that can be named.

    Raises:
        UsageError: One that is asked for is not among them.
    """
    from lm_eval.tasks import TaskManager

    if config.task_path is not None and not Path(config.task_path).is_dir():
        raise UsageError(f"task_path={config.task_path}: no such directory; expected one with tasks as YAML")
    paths = [str(BUNDLED), *([config.task_path] if config.task_path is not None else [])]
    local = TaskManager(include_path=paths, include_defaults=False)
    if all(task in local.all_tasks for task in config.tasks):
        return local
    # Thousands of files are read for these, so only where one is asked for.
    manager = TaskManager(include_path=paths)
    unknown = [task for task in config.tasks if task not in manager.all_tasks]
    if unknown:
        known = ", ".join(sorted(local.all_tasks))
        raise UsageError(f"tasks: {', '.join(unknown)}: there is no such task; on this machine are {known}, and those of the harness")
    return manager


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Lets no library look for anything on a network, and keeps what the harness says to itself out of the way."""
    names = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    if "datasets" in sys.modules:
        # Read when it was imported.
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _lines(found: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What was asked and answered, a document a line."""
    for task, samples in sorted(found["samples"].items()):
        for sample in samples:
            kept = {
                key: sample[key] for key in ("doc_id", "doc", "target", "filter", "filtered_resps", *sample["metrics"]) if key in sample
            }
            yield json.loads(json.dumps({"task": task, **kept}, default=str))


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | bool) or (isinstance(value, float) and math.isfinite(value))
