"""Settings of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from moss_train.config import ExportDtype


class Task(StrEnum):
    """What is done; each task has a module of its own."""

    transfer = "transfer"
    """Facts told in one language, asked in the other, of a model."""
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
    """What `scripts/evaluate.py` takes. `task` decides which of the keys have a meaning."""

    task: Task | None = None
    """Must be given."""
    out: str = "???"
    """Directory to write; must not exist."""
    unverified: bool = False
    """Take a model, or probes, although they are not what their lineage.json says."""

    model: str | None = None
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory."""
    probes: str | None = None
    """Directory that `task=make_probes` wrote, or a file of probes."""
    choices: int = 4
    """Answers to choose from, the right one among them; chance is one in so many."""
    ask: Ask = Ask.cloze
    normalize: Normalize = Normalize.prior
    batch_size: int = 64
    """Sentences at once."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` is fp32 on a CPU, else that of `model`."""
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
        if self.task is None:
            found.append(f"task must be given: task={' or '.join(Task)}")
        if self.task == Task.transfer:
            found += [f"{key} must be given: {key}=DIR" for key in ("model", "probes") if getattr(self, key) is None]
        if self.task == Task.make_probes:
            found += [
                f"{key} has no effect on task=make_probes; leave it out" for key in ("model", "probes") if getattr(self, key) is not None
            ]
        for key, least, most in (
            ("choices", 2, 8),
            ("batch_size", 1, None),
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
        return found
