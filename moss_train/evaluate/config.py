"""Settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from moss_train.config import ExportDtype, OnBad


class Task(StrEnum):
    """What is done; each task has a module of its own."""

    transfer = "transfer"
    """Facts told in one language, asked in the other, of a model."""
    pm = "pm"
    """Rewards of a preference model, on comparisons."""
    make_probes = "make_probes"
    """Writes the facts: texts to train on, and what to ask. No model takes part."""


class Ask(StrEnum):
    """How a fact is asked."""

    cloze = "cloze"
    """As a sentence that the answer completes: what a model trained on plain text can do."""
    question = "question"
    """As a question, with its answer on the next line."""


class Normalize(StrEnum):
    """What makes the log-probabilities of different answers comparable; `moss_train.evaluate.transfer` says it exactly."""

    prior = "prior"
    """Less what the answer has where the sentence is about something never told."""
    bytes = "bytes"
    """Per byte of the answer."""
    none = "none"


@dataclass
class EvaluateConfig:
    """What `scripts/evaluate.py` takes. `task`, or `suite`, decides which of the keys have a meaning."""

    task: Task | None = None
    """One of `task` and `suite` must be given."""
    suite: Task | None = None
    """Another name of `task`."""
    out: str = "???"
    """Directory to write; must not exist."""
    unverified: bool = False
    """Take a model, or probes, although they are not what their lineage.json says."""

    model: str | None = None
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory; for `suite=pm` a preference model."""
    data: Any = None
    """For `suite=pm`: comparisons in any layout, a path or a list of paths; `PATH#N` takes the first N records."""
    train: Any = None
    """For `suite=pm`: comparisons that the bag of words, a baseline, learns from; without them it is cross-validated on `data`."""
    batch_tokens: int = 16_384
    """For `suite=pm`: tokens at once, of several responses with their contexts."""
    on_bad: OnBad = OnBad.fail
    """For `suite=pm`: tell all bad records and end, or leave them out."""
    max_bad_share: float = 0.01
    """With `skip`, the share of bad records above which it ends nevertheless."""
    probes: str | None = None
    """Directory that `task=make_probes` wrote, or a file of probes."""
    choices: int = 4
    """Answers to choose from, the right one among them; chance is one in so many."""
    ask: Ask = Ask.cloze
    normalize: Normalize = Normalize.prior
    batch_size: int = 64
    """Sentences at once."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` is fp32 on a CPU, else that of `model`; for `suite=pm` it is as in scoring."""
    allow_pickle: bool = False
    """Accept pickled `.bin` weights; they are read through torch's restricted loader."""

    seed: int = 0
    """Names, answers and the order of sentences follow from it."""
    facts: int = 200
    """Of each group: told in Chinese only, told in English only, told nowhere."""
    wordings: int = 5
    """Ways in which each fact is told, five at most."""
    repetitions: int = 4
    """Times that each wording of a fact occurs."""
    sentences: int = 3
    """In a document, each about something else."""
    glossary: bool = False
    """Write a glossary too: word pairs, and sentences in both languages about things that are not asked for."""
    parallel: int = 200
    """Facts of the glossary that are told in both languages."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = []
        task = self.chosen
        if task is None:
            found.append(f"task must be given: task={' or '.join(Task)}")
        if self.task is not None and self.suite is not None and self.task != self.suite:
            found.append(f"task={self.task} and suite={self.suite} are two names of one key; leave one of them out")
        if task == Task.pm:
            found += [f"{key} must be given: {key}={what}" for key, what in _PM_NEEDS.items() if not getattr(self, key)]
        for key in ("data", "train"):
            value = getattr(self, key)
            if value is not None and task not in (Task.pm, None):
                found.append(f"{key} has no effect on task={task}; leave it out")
            elif not (value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))):
                found.append(f"{key} is {value!r}; expected a path or a list of paths")
        if task == Task.transfer:
            found += [f"{key} must be given: {key}=DIR" for key in ("model", "probes") if getattr(self, key) is None]
        if task == Task.make_probes:
            found += [
                f"{key} has no effect on task=make_probes; leave it out" for key in ("model", "probes") if getattr(self, key) is not None
            ]
        for key, least, most in (
            ("choices", 2, 8),
            ("batch_size", 1, None),
            ("batch_tokens", 1, None),
            ("seed", 0, None),
            ("facts", 1, 20_000),
            ("wordings", 1, 5),
            ("repetitions", 1, None),
            ("sentences", 1, None),
            ("parallel", 0, 20_000),
        ):
            value = getattr(self, key)
            if value < least or (most is not None and value > most):
                found.append(f"{key} is {value}; expected {least} {'or more' if most is None else f'to {most}'}")
        if not 0 <= self.max_bad_share <= 1:
            found.append(f"max_bad_share is {self.max_bad_share}; expected a share, from 0 to 1")
        return found

    @property
    def chosen(self) -> Task | None:
        """The task, by either name."""
        return self.task or self.suite


_PM_NEEDS = {"model": "DIR", "data": "FILE"}


def paths_of(value: Any) -> list[str]:
    """A path or a list of paths as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
