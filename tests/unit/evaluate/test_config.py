"""What is wrong with a command line is told by key; making probes needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moss_train.cli import PROGRAMS
from moss_train.evaluate.config import EvaluateConfig, Task
from tests.launch import python, run, succeeded


def test_the_job_is_one_of_the_programs() -> None:
    program = PROGRAMS["evaluate"]
    assert program.is_job
    result = succeeded(python("scripts/evaluate.py", "--cfg", "job"))
    assert "normalize: prior" in result.stdout


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"task": None}, "task must be given: task=transfer or pm or make_probes"),
        ({"suite": Task.pm, "model": "m"}, "data must be given: data=FILE"),
        ({"suite": Task.pm, "model": "m", "data": ["a", 3]}, "data is ['a', 3]; expected a path or a list of paths"),
        ({"task": Task.make_probes, "data": "d"}, "data has no effect on task=make_probes; leave it out"),
        (
            {"task": Task.make_probes, "suite": Task.pm},
            "task=make_probes and suite=pm are two names of one key; leave one of them out",
        ),
        ({"task": Task.transfer, "model": "m"}, "probes must be given: probes=DIR"),
        ({"task": Task.make_probes, "model": "m"}, "model has no effect on task=make_probes; leave it out"),
        ({"task": Task.make_probes, "wordings": 6}, "wordings is 6; expected 1 to 5"),
        ({"task": Task.make_probes, "facts": 0}, "facts is 0; expected 1 to 20000"),
        ({"task": Task.make_probes, "sentences": 0}, "sentences is 0; expected 1 or more"),
    ],
)
def test_wrong_values_are_named(values: dict[str, object], problem: str) -> None:
    assert EvaluateConfig(out="x", **values).problems() == [problem]  # type: ignore[arg-type]


def test_every_problem_is_told_at_once() -> None:
    result = python("scripts/evaluate.py", "chocies=3", "batch_size=0")
    assert result.returncode == 2
    for expected in (
        "task must be given: task=transfer or pm or make_probes",
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
