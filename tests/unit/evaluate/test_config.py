"""What is wrong with a command line is told by key; making probes needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moss_train.cli import PROGRAMS
from moss_train.evaluate.config import BestOfConfig, EvaluateConfig, Task
from moss_train.pm.sample_config import SampleConfig
from tests.launch import python, run, succeeded

CONTROL = {"suite": Task.control, "model": "m", "pm": "p", "prompts": "q"}


def test_the_job_is_one_of_the_programs() -> None:
    program = PROGRAMS["evaluate"]
    assert program.is_job
    result = succeeded(python("scripts/evaluate.py", "--cfg", "job"))
    assert "normalize: prior" in result.stdout


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"task": None}, f"task must be given: task={' or '.join(Task)}"),
        ({"suite": Task.pm, "model": "m"}, "data must be given: data=FILE"),
        ({"suite": Task.pm, "model": "m", "data": ["a", 3]}, "data is ['a', 3]; expected a path or a list of paths"),
        ({"task": Task.make_probes, "data": "d"}, "data has no effect on task=make_probes; leave it out"),
        (
            {"task": Task.make_probes, "suite": Task.pm},
            "task=make_probes and suite=pm are two names of one key; leave one of them out",
        ),
        ({"task": Task.transfer, "model": "m"}, "probes must be given: probes=DIR"),
        ({"task": Task.make_probes, "model": "m"}, "model has no effect on task=make_probes; leave it out"),
        ({"suite": Task.control, "prompts": "q", "pm": "p"}, "model must be given: model=DIR"),
        ({**CONTROL, "pm": None}, "pm must be given: pm=DIR"),
        ({**CONTROL, "prompts": None}, "exactly one of prompts=FILE and dialogue=FILE must be given; found none of them"),
        ({**CONTROL, "samples": 0}, "samples is 0; expected 1 or more"),
        ({**CONTROL, "top_p": 2.0}, "top_p is 2.0; expected a number above 0 and up to 1"),
        ({**CONTROL, "batch_size": 0}, "batch_size is 0; expected 1 or more"),
        ({**CONTROL, "probes": "p"}, "probes has no effect on task=control; leave it out"),
        ({**CONTROL, "train": "t"}, "train has no effect on task=control; leave it out"),
        (
            {**CONTROL, "against": {"level 1": "d"}},
            "against has the name 'level 1'; expected up to 30 letters, digits, points, dashes and underscores, not `none`",
        ),
        (
            {**CONTROL, "against": {"none": "d"}},
            "against has the name 'none'; expected up to 30 letters, digits, points, dashes and underscores, not `none`",
        ),
        ({**CONTROL, "against": {"sft": ""}}, "against.sft is empty; expected a model directory"),
        (
            {**CONTROL, "best_of": BestOfConfig(model="m")},
            "best_of.pm must be given with the other one: best_of={model: DIR, pm: DIR, samples: N}",
        ),
        ({**CONTROL, "best_of": BestOfConfig("m", "p", 1)}, "best_of.samples is 1; expected 2 or more"),
        (
            {**CONTROL, "best_of": BestOfConfig("m", "p"), "temperature": 0.0, "samples": 1},
            "temperature=0 makes all responses equal, so that best_of has nothing to choose from; leave it out",
        ),
        ({**CONTROL, "guidance": [2.0, 2.0]}, "guidance is [2.0, 2.0]; expected each strength once, and not 1, which is none"),
        ({**CONTROL, "guidance": [1.0]}, "guidance is [1.0]; expected each strength once, and not 1, which is none"),
        ({**CONTROL, "guidance": [-1.0]}, "guidance is -1.0; expected a finite number, zero or more (1 is off)"),
        ({"suite": Task.pm, "model": "m", "data": "d", "guidance": [2.0]}, "guidance has no effect on task=pm; leave it out"),
        ({"suite": Task.pm, "model": "m", "data": "d", "pm": "p"}, "pm has no effect on task=pm; leave it out"),
        ({"task": Task.make_probes, "wordings": 6}, "wordings is 6; expected 1 to 5"),
        ({"task": Task.make_probes, "facts": 0}, "facts is 0; expected 1 to 20000"),
        ({"task": Task.make_probes, "sentences": 0}, "sentences is 0; expected 1 or more"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], problem: str) -> None:
    assert EvaluateConfig(out="x", **values).problems() == [problem]  # type: ignore[arg-type]


def test_what_is_sampled_is_what_sampling_samples_by_default() -> None:
    given = EvaluateConfig(out="o", **CONTROL).sampling("m", "2", 1.5)  # type: ignore[arg-type]
    assert given == SampleConfig(model="m", out="-", prompts="q", tag="2", guidance=1.5, batch_size=EvaluateConfig.batch_size)


@pytest.mark.parametrize("given", [["against={sft: runs/a b/export, more: c#1}"], ["against.sft=runs/a b/export", "against.more=c#1"]])
def test_alternatives_are_named_on_the_command_line(given: list[str]) -> None:
    shown = succeeded(
        python("scripts/evaluate.py", "suite=control", "model=m", "pm=p", "prompts=q", "out=o", *given, "--cfg", "job")
    ).stdout
    assert "against:\n  sft: runs/a b/export\n  more: c#1\n" in shown


def test_every_problem_is_told_at_once() -> None:
    result = python("scripts/evaluate.py", "chocies=3", "batch_size=0")
    assert result.returncode == 2
    for expected in (
        f"task must be given: task={' or '.join(Task)}",
        "out must be given",
        "chocies: there is no such key; did you mean choices?",
        "batch_size is 0; expected 1 or more",
    ):
        assert expected in result.stderr, result.stderr


def test_making_probes_loads_no_torch(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.argv = ['evaluate.py', 'task=make_probes', 'facts=9', 'out={tmp_path}/probes']\n"
        "from moss_train.cli import run; run('evaluate'); print('torch' in sys.modules)"
    )
    assert succeeded(run([sys.executable, "-c", code])).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"suite": Task.perplexity, "model": "m"}, "data must be given: data=PATH"),
        ({"suite": Task.perplexity, "model": "m", "data": {"zh": 3}}, "data.zh is 3; expected a path"),
        ({"suite": Task.plugins, "model": "m", "data": {"zh": "a"}}, "data is {'zh': 'a'}; expected a path or a list of paths"),
        ({"suite": Task.perplexity, "model": "m", "data": "d", "stride": 0}, "stride is 0; expected 1 or more"),
        ({"suite": Task.dialogue, "model": "m", "data": "d", "stride": 8}, "stride has no effect on task=dialogue; leave it out"),
        ({"suite": Task.plugins, "model": "m", "data": "d", "top_p": 2.0}, "top_p is 2.0; expected a number above 0 and up to 1"),
        ({"suite": Task.hhh, "model": "m", "data": "d"}, "data has no effect on task=hhh; leave it out"),
        ({"suite": Task.harness, "model": "m", "tasks": []}, "tasks must be given: tasks=[NAME,...]"),
    ],
)
def test_wrong_values_of_the_suites_are_named(values: dict[str, object], problem: str) -> None:
    assert EvaluateConfig(out="x", **values).problems() == [problem]  # type: ignore[arg-type]


def test_replies_are_the_likeliest_unless_asked_otherwise() -> None:
    config = EvaluateConfig(out="o", suite=Task.plugins, model="m", data="d")
    assert config.speaking().temperature == 0
    assert config.sampling("m", "none").temperature == SampleConfig.temperature
    assert (
        EvaluateConfig(out="o", temperature=0.5).speaking().temperature
        == EvaluateConfig(out="o", temperature=0.5).sampling("m", "none").temperature
    )


@pytest.mark.parametrize("given", ["data={zh: runs/a b.jsonl#10, code: src/}", "data={zh: 'runs/a b.jsonl#10', code: src/}"])
def test_sources_are_named_on_the_command_line(given: str) -> None:
    shown = succeeded(python("scripts/evaluate.py", "suite=perplexity", "model=m", "out=o", given, "--cfg", "job")).stdout
    assert "data:\n  zh: runs/a b.jsonl#10\n  code: src/\n" in shown
