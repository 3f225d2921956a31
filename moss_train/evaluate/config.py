"""Settings of evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from moss_train.config import ExportDtype, OnBad, Plugin
from moss_train.inference.config import SpeakerConfig, ToolsConfig
from moss_train.pm.sample_config import SampleConfig


class Task(StrEnum):
    """What is done; each task has a module of its own."""

    transfer = "transfer"
    """Facts told in one language, asked in the other, of a model."""
    pm = "pm"
    """Rewards of a preference model, on comparisons."""
    control = "control"
    """Whether the tags of a model trained on levels steer it, beside other ways to better answers."""
    make_probes = "make_probes"
    """Writes the facts: texts to train on, and what to ask. No model takes part."""
    perplexity = "perplexity"
    """Loss, perplexity and bits per byte of texts, by source and language."""
    dialogue = "dialogue"
    """Loss of dialogues by kind of segment and by turn, and whether what a model writes keeps to the format."""
    plugins = "plugins"
    """Whether tools are called when they should be, with what, and whether the reply uses what they found."""
    hhh = "hhh"
    """Refusals of what should be refused, of what should not, and of what nobody can know."""
    harness = "harness"
    """Tasks of lm-evaluation-harness whose data are on this machine."""


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


SFT = "sft"
"""Of the models in `against`, the name of the one that all conditions are held against, besides the model without a tag."""
_AGAINST = re.compile(r"[A-Za-z0-9][\w.+-]{0,29}", re.ASCII)
"""Names of models in `against`. Those of other conditions hold a blank, or are `none`."""


@dataclass
class BestOfConfig:
    """Best of N, for `suite=control`: of N responses the one to which a preference model gives the largest reward. `model` and `pm` are
    given, or neither, and then there is no such condition."""

    model: str | None = None
    """Model that answers, such as the one that preference-aware training began with."""
    pm: str | None = None
    """Preference model that chooses, such as the one that gave the levels; not the one that judges."""
    samples: int = 4
    """N. Each prompt gets `samples` (of the suite) responses, each the best of N of its own."""


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
    """Model directory: an export, or a Hugging Face CodeGen or published MOSS directory; for `suite=pm` a preference model, for
    `suite=control` one trained on levels."""
    data: Any = None
    """For `suite=pm`: comparisons in any layout, a path or a list of paths; `PATH#N` takes the first N records. For `suite=control`,
    optional: held-out dialogues, whose replies the models should find likely. For `suite=dialogue` and `suite=plugins`: held-out dialogues.
    For `suite=perplexity`: text files, records with a text, or directories of `prepare`; also `{NAME: PATH}`, a source by each name."""
    train: Any = None
    """For `suite=pm`: comparisons that the bag of words, a baseline, learns from; without them it is cross-validated on `data`."""
    batch_tokens: int = 16_384
    """Tokens at once where likelihoods are computed, of several documents, or responses with their contexts."""
    on_bad: OnBad = OnBad.fail
    """Of `data`: tell all bad records and end, or leave them out."""
    max_bad_share: float = 0.01
    """With `skip`, the share of bad records above which it ends nevertheless."""
    probes: str | None = None
    """Directory that `task=make_probes` wrote, or a file of probes."""
    choices: int = 4
    """Answers to choose from, the right one among them; chance is one in so many."""
    ask: Ask = Ask.cloze
    normalize: Normalize = Normalize.prior
    batch_size: int = 64
    """Sentences at once; for `suite=control` replies at once."""
    dtype: ExportDtype = ExportDtype.auto
    """Number format of the weights; `auto` is fp32 on a CPU, else that of `model`; for `suite=pm` it is as in scoring, for `suite=control`
    as in sampling and scoring."""
    allow_pickle: bool = False
    """Accept pickled `.bin` weights; they are read through torch's restricted loader."""

    text_key: str = "text"
    """For `suite=perplexity`: field of a record that holds its text."""
    stride: int | None = None
    """For `suite=perplexity`: tokens that each window of a long document predicts after the first one, which predicts all of its own; by
    default as many as the model has positions. Fewer give each token more context, and take longer."""
    replies: int = 100
    """For `suite=dialogue`: turns that are written anew to see their format, evenly spread over all; 0 for none."""
    tag: str = "auto"
    """How good a reply is asked for, as in generation, for suites that have replies written; `suite=control` asks for all levels."""
    tasks: list[str] = field(default_factory=lambda: ["moss_choice", "moss_text"])
    """For `suite=harness`: names of tasks, of those that come along or lie in `task_path`."""
    task_path: str | None = None
    """For `suite=harness`: a directory with tasks as YAML, in the harness's own form."""
    fewshot: int | None = None
    """For `suite=harness`: examples before each question; by default as the task says."""
    limit: int | None = None
    """For `suite=harness`: the first so many documents of each task."""

    pm: str | None = None
    """For `suite=control`: the preference model that judges; another than the one that gave the levels. So are all keys down to
    `guidance_from`; other suites that have replies written take those from `temperature` to `max_new_tokens`, and `suite=plugins` takes
    `tools`."""
    prompts: str | None = None
    """Questions, as for `scripts/sample.py`; those with a `checker` are checked too. Exactly one of `prompts` and `dialogue` is given. For
    `suite=hhh`, optional: questions with a `kind` (harmful, benign, unknowable) and a `language`, instead of those that come along."""
    dialogue: str | None = None
    """Dialogues whose last replies are written anew."""
    samples: int = SampleConfig.samples
    """Responses to each prompt, in each condition."""
    temperature: float | None = None
    """By default 1 for `suite=control`, as in sampling, and 0, the likeliest token each time, for the others."""
    top_p: float = SampleConfig.top_p
    top_k: int = SampleConfig.top_k
    repetition_penalty: float = SampleConfig.repetition_penalty
    max_new_tokens: int = SampleConfig.max_new_tokens
    """Of each segment."""
    system: str | None = None
    """Meta instruction of the questions; by default, for all models, the one that `model` was trained with most. This and the next two are
    for `suite=hhh` too."""
    thoughts: bool | None = None
    """Let the models write inner thoughts and commands before their replies; by default where `plugins` has any."""
    plugins: list[Plugin] = field(default_factory=list)
    """Switches that are on in the meta instruction."""
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    against: dict[str, str] = field(default_factory=dict)
    """Other models by name, such as {sft: DIR, best_only: DIR}; they answer without a tag. All conditions are held against the one named
    `sft` too."""
    best_of: BestOfConfig = field(default_factory=BestOfConfig)
    guidance: list[float] = field(default_factory=list)
    """Strengths of guidance; with each, every level is asked for again, but for one that `guidance_from` names."""
    guidance_from: str = SampleConfig.guidance_from
    """What they lead away from: `none`, `worst`, a level, or `opposite`."""

    seed: int = 0
    """Names, answers and the order of sentences follow from it; for `suite=control` what is sampled."""
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
        if task is not None:
            found += [f"{key} must be given: {key}={what}" for key, what in _NEEDS.get(task, {}).items() if not getattr(self, key)]
            if task == Task.control:
                found += self._problems_of_control()
            found += [
                f"{key} has no effect on task={task}; leave it out"
                for key, tasks in _ONLY.items()
                if task not in tasks and getattr(self, key) not in (None, {}, [])
            ]
        if task in (Task.dialogue, Task.plugins):
            found += self.speaking().problems()
        elif task == Task.hhh:
            found += self.asking().problems()
        for key in ("data", "train"):
            value = getattr(self, key)
            if key == "data" and task == Task.perplexity and isinstance(value, dict):
                found += [
                    f"data.{name} is {path!r}; expected a path" for name, path in value.items() if not isinstance(path, str) or not path
                ]
            elif not (value is None or isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))):
                found.append(f"{key} is {value!r}; expected a path or a list of paths")
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
            ("replies", 0, None),
            ("stride", 1, None),
            ("fewshot", 0, None),
            ("limit", 1, None),
        ):
            value = getattr(self, key)
            if value is None:
                continue
            if value < least or (most is not None and value > most):
                found.append(f"{key} is {value}; expected {least} {'or more' if most is None else f'to {most}'}")
        if not 0 <= self.max_bad_share <= 1:
            found.append(f"max_bad_share is {self.max_bad_share}; expected a share, from 0 to 1")
        return list(dict.fromkeys(found))

    def _problems_of_control(self) -> list[str]:
        """Of the suite `control`."""
        found = self.sampling(self.model or "", "none").problems()
        for name, directory in self.against.items():
            if not _AGAINST.fullmatch(name) or name == "none":
                found.append(
                    f"against has the name {name!r}; expected up to 30 letters, digits, points, dashes and underscores, not `none`"
                )
            if not directory:
                found.append(f"against.{name} is empty; expected a model directory")
        if bool(self.best_of.model) != bool(self.best_of.pm):
            lacking = "pm" if self.best_of.model else "model"
            found.append(f"best_of.{lacking} must be given with the other one: best_of={{model: DIR, pm: DIR, samples: N}}")
        if self.best_of.samples < 2:
            found.append(f"best_of.samples is {self.best_of.samples}; expected 2 or more")
        elif self.best_of.model and self.temperature == 0:
            found.append("temperature=0 makes all responses equal, so that best_of has nothing to choose from; leave it out")
        found += [problem for one in self.guidance for problem in self.sampling(self.model or "", "best", one).problems()]
        if 1 in self.guidance or len(set(self.guidance)) < len(self.guidance):
            found.append(f"guidance is {self.guidance}; expected each strength once, and not 1, which is none")
        return found

    def sampling(self, model: str, tag: str, guidance: float = 1.0) -> SampleConfig:
        """What a model is asked, and how it answers, as `scripts/sample.py` would take it.

        Args:
            model: Its directory. tag, guidance: As there; 1 is no guidance.
        """
        shared = {name: getattr(self, name) for name in _SAMPLING}
        if self.temperature is None:
            shared["temperature"] = SampleConfig.temperature
        return SampleConfig(model=model, out="-", tag=tag, guidance=guidance, **shared)

    def speaking(self, **more: Any) -> SpeakerConfig:
        """How a model answers in the suites that have one reply written to each question.

        Args:
            more: Settings that differ from those here.
        """
        values = {name: getattr(self, name) for name in _SPEAKING}
        # The likeliest token each time, unless something else is asked for: what is measured is then the model alone.
        values["temperature"] = self.temperature or 0.0
        return SpeakerConfig(model=self.model or "", **values | {"thoughts": True} | more)

    def asking(self) -> SpeakerConfig:
        """How a model answers questions in `suite=hhh`."""
        return self.speaking(thoughts=self.thoughts, plugins=self.plugins, system=self.system)

    @property
    def chosen(self) -> Task | None:
        """The task, by either name."""
        return self.task or self.suite


_NEEDS: dict[Task, dict[str, str]] = {
    Task.transfer: {"model": "DIR", "probes": "DIR"},
    Task.pm: {"model": "DIR", "data": "FILE"},
    Task.control: {"model": "DIR", "pm": "DIR"},
    Task.perplexity: {"model": "DIR", "data": "PATH"},
    Task.dialogue: {"model": "DIR", "data": "FILE"},
    Task.plugins: {"model": "DIR", "data": "FILE"},
    Task.hhh: {"model": "DIR"},
    Task.harness: {"model": "DIR", "tasks": "[NAME,...]"},
}
_ONLY: dict[str, tuple[Task, ...]] = {
    "model": tuple(task for task in Task if task != Task.make_probes),
    "probes": (Task.transfer,),
    "data": (Task.pm, Task.control, Task.perplexity, Task.dialogue, Task.plugins),
    "train": (Task.pm,),
    "pm": (Task.control,),
    "prompts": (Task.control, Task.hhh),
    "dialogue": (Task.control,),
    "against": (Task.control,),
    "guidance": (Task.control,),
    "stride": (Task.perplexity,),
    "task_path": (Task.harness,),
    "fewshot": (Task.harness,),
    "limit": (Task.harness,),
}
"""The tasks on which a key has an effect, of keys that say nothing by default."""
_SAMPLING = (
    "prompts",
    "dialogue",
    "samples",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_new_tokens",
    "system",
    "thoughts",
    "plugins",
    "tools",
    "batch_size",
    "guidance_from",
    "seed",
    "dtype",
    "unverified",
    "allow_pickle",
)
"""Keys of sampling that `suite=control` takes."""
_SPEAKING = (
    "tag",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_new_tokens",
    "tools",
    "batch_size",
    "seed",
    "dtype",
    "unverified",
    "allow_pickle",
)
"""Keys of generation that suites with replies take."""


def paths_of(value: Any) -> list[str]:
    """A path or a list of paths as a list."""
    return [] if value is None else [value] if isinstance(value, str) else list(value)
