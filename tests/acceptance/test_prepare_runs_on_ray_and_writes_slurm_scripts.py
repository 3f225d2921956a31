"""The same corpus comes out of processes of this machine, of Ray, and of Slurm's jobs.

Ray runs on this machine, really. Slurm's scripts are looked at as text, and run by a stand-in for sbatch, which runs a job's tasks at once.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from moss_train.data.corpus import open_corpus
from moss_train.data.corpus_check import check_corpus
from moss_train.data.prepare.plan import WORK
from tests.corpora import digests, documents, write_jsonl, write_tokenizer
from tests.launch import BIN, REPOSITORY, environment, python, succeeded

SBATCH = f"""#!{sys.executable}
# Runs the tasks of a job at once, as Slurm would with no queue, and prints its number.
import os, pathlib, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
first, last = re.search(r"#SBATCH --array=(\\d+)-(\\d+)", text).groups()
for task in range(int(first), int(last) + 1):
    environment = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NODELIST": "here", "RUN_OFFSET": "0"}}
    subprocess.run(["bash", script], env=environment, check=True, stdout=sys.stderr)
state = pathlib.Path(sys.argv[0]).with_name("jobs")
number = len(state.read_text().splitlines()) + 1 if state.exists() else 1
with state.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print(number if "--parsable" in sys.argv else f"Submitted batch job {{number}}")
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tokenizer(folder / "tokenizer")
    texts = documents("zh", 40)
    write_jsonl(folder / "zh.jsonl", [*texts, texts[3]])
    return folder


def arguments(inputs: Path, out: Path, *more: str) -> list[str]:
    source = f"sources.zh={{path: {inputs / 'zh.jsonl'}, language: zh, licence: CC0-1.0}}"
    return [f"tokenizer={inputs / 'tokenizer'}", f"out={out}", source, "shard_mb=0.006", "exact_dedup=true", *more]


@pytest.fixture(scope="module")
def here(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What processes of this machine make."""
    out = tmp_path_factory.mktemp("here") / "corpus"
    succeeded(python("scripts/prepare.py", *arguments(inputs, out)))
    return digests(out)


def test_ray_makes_the_same(inputs: Path, here: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = tmp_path / "corpus"
    extra = ["executor=ray", "workers=2", "ray.mem_per_cpu_gb=0.2"]
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    succeeded(python("scripts/prepare.py", *arguments(inputs, out, *extra), PYTHONPATH=paths, RAY_USAGE_STATS_ENABLED="0"))
    assert digests(out) == here
    assert list(check_corpus(open_corpus(out))) == []


def test_slurm_scripts_say_what_is_run_and_what_it_waits_for(inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    extra = [
        "executor=slurm", "slurm.partition=cpu", "slurm.time=01:30:00", "slurm.setup=source /shared/venv/bin/activate",
        "slurm.submit=false", "workers=7", "slurm.mem_per_cpu_gb=3",
    ]  # fmt: skip
    said = succeeded(python("scripts/prepare.py", *arguments(inputs, out, *extra)))
    assert "4 jobs written" in said.stderr
    folder = out / WORK / "slurm"
    scripts = sorted(folder.glob("*.slurm"))
    assert [path.stem for path in scripts] == [
        "00-prepare-exact-signatures", "01-prepare-exact-repeats", "02-prepare-shards", "03-prepare-finish",
    ]  # fmt: skip
    shards = scripts[2].read_text()
    tasks = len(json.loads((out / WORK / "plan.json").read_text())["tasks"])
    for line in (
        "#SBATCH --partition=cpu", "#SBATCH --time=01:30:00", "#SBATCH --mem-per-cpu=3G", f"#SBATCH --array=0-{tasks - 1}%7",
        "source /shared/venv/bin/activate", f"launch_pickled_pipeline {out / WORK / 'stages' / 'shards' / 'executor.pik'}",
    ):  # fmt: skip
        assert line in shards
    commands = (folder / "submit.sh").read_text().splitlines()[2:]
    for number, command in enumerate(commands):
        waits = f" --dependency=afterok:$JOB{number - 1} " if number else " --export=ALL,RUN_OFFSET=0 "
        assert command.startswith(f"JOB{number}=$(sbatch --parsable ")
        assert waits in command


@pytest.mark.parametrize("submits", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["submitted", "submitted by hand"])
def test_slurm_jobs_make_the_same(inputs: Path, here: dict[str, str], tmp_path: Path, submits: bool) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_ins = {
        "sbatch": SBATCH,
        "srun": '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = "-n" ] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho here\n",
    }
    for name, content in stand_ins.items():
        (bin_folder / name).write_text(content)
        (bin_folder / name).chmod(stat.S_IRWXU)
    out = tmp_path / "corpus"
    paths = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    settings = {"PATH": os.pathsep.join([str(bin_folder), str(BIN), os.environ["PATH"]]), "PYTHONPATH": paths}
    extra = ["executor=slurm", "slurm.partition=cpu", f"slurm.submit={str(submits).lower()}"]
    whole = environment() | settings
    command = [sys.executable, str(REPOSITORY / "scripts/prepare.py"), *arguments(inputs, out, *extra)]
    result = subprocess.run(command, env=whole, capture_output=True, text=True, timeout=300, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-3000:]
    if not submits:
        by_hand = subprocess.run(["sh", str(out / WORK / "slurm" / "submit.sh")], env=whole, capture_output=True, text=True, timeout=300)
        assert by_hand.returncode == 0, by_hand.stderr[-3000:]
    assert digests(out) == here


def test_without_sbatch_it_is_said(inputs: Path, tmp_path: Path) -> None:
    result = python("scripts/prepare.py", *arguments(inputs, tmp_path / "corpus", "executor=slurm", "slurm.partition=cpu"))
    assert result.returncode == 2
    assert "sbatch is not found" in result.stderr
    missing = python("scripts/prepare.py", *arguments(inputs, tmp_path / "corpus", "executor=slurm"))
    assert missing.returncode == 2
    assert "slurm.partition must be given" in missing.stderr
