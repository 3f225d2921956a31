"""The SFT program under every way to start it, from its real preset."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from moss_train.ports import free_port
from tests.forked import forked
from tests.launch import BIN, deepspeed, losses, metrics, python, run, succeeded

QUICK = ("+config=tiny_sft", "train.steps=3", "train.eval_every=0", "train.eval_at_start=false", "data.seq_len=512")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of one run, which several tests look at."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    arguments = ("+config=tiny_sft", "train.steps=12", "train.eval_every=5", "train.eval_at_start=true", "data.seq_len=512")
    succeeded(forked(1, "scripts/sft.py", *arguments, f"run.dir={run_dir}"))
    return run_dir


def finished(run_dir: Path) -> list[float]:
    """The losses of a run that left everything it promises."""
    assert json.loads((run_dir / "status.json").read_text())["exit_code"] == 0
    for name in ("config.yaml", "metrics.jsonl", "train.log", "plots/loss.png", "export/config.json", "export/lineage.json"):
        assert (run_dir / name).is_file(), name
    found = losses(run_dir)
    assert len(found) == 3
    return found


def test_every_launcher_trains_the_same_and_leaves_no_process(tmp_path: Path) -> None:
    """Plain `deepspeed scripts/sft.py` (one rank, with its --local_rank), `deepspeed` with two ranks, and torchrun."""
    buffers = set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*"))
    plain = [str(BIN / "deepspeed"), "--master_port", str(free_port()), "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/plain"]
    shown = succeeded(run(plain)).stdout
    for said in (
        "step 3/3 | loss",
        "tok/s",
        "ETA",
        f"exported to {tmp_path}/plain/export",
        f"scripts/generate.py model={tmp_path}/plain/export",
    ):
        assert said in shown
    compiled = tmp_path / "compiled"
    succeeded(deepspeed(2, "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/deepspeed", TORCH_EXTENSIONS_DIR=str(compiled)))
    assert not list(compiled.rglob("*.so")), "nothing has to be compiled to train on a CPU"
    torchrun = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]
    succeeded(run([*torchrun, "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/torchrun"]))
    assert finished(tmp_path / "deepspeed") == pytest.approx(finished(tmp_path / "plain"), abs=1e-3)
    assert finished(tmp_path / "torchrun") == finished(tmp_path / "deepspeed")
    assert set(Path("/dev/shm").glob("deepspeed_allreduce_buffer_*")) <= buffers, "shared memory is left behind"
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in processes.splitlines() if str(tmp_path) in line]


def test_every_step_is_in_metrics(trained: Path) -> None:
    events = metrics(trained)
    steps = [event for event in events if "train/loss" in event]
    assert [event["step"] for event in steps] == list(range(1, 13))
    needed = {
        "tokens_seen",
        "train/loss",
        "train/accuracy",
        "train/grad_norm",
        "train/lr",
        "train/supervised_tokens",
        "perf/tokens_per_second",
    }
    assert all(needed <= event.keys() for event in steps)
    assert [event["step"] for event in events if "eval/valid/loss" in event] == [0, 5, 10, 12]
    assert steps[-1]["tokens_seen"] > steps[0]["tokens_seen"] > 0


def test_an_earlier_run_is_moved_aside(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    succeeded(
        forked(
            1,
            "scripts/sft.py",
            *QUICK,
            f"run.dir={tmp_path}/run",
            "export.enabled=false",
            "train.steps=1",
            "run.seed=2",
            "run.resume=never",
        )
    )
    seeds = [yaml.safe_load((tmp_path / name / "config.yaml").read_text())["run"]["seed"] for name in ("run.1", "run")]
    assert seeds == [42, 2]
    assert (tmp_path / "run.1" / "export" / "lineage.json").is_file()


def test_sweep_in_one_process_runs_one_job_a_directory(tmp_path: Path) -> None:
    """Under `python`; two ranks under `deepspeed` are in the acceptance tests."""
    succeeded(python("scripts/sft.py", *QUICK, "-m", f"run.dir={tmp_path}/sweep", "optim.lr=1e-3,3e-3", "export.enabled=false"))
    rates = [yaml.safe_load((tmp_path / "sweep" / str(job) / "config.yaml").read_text())["optim"]["lr"] for job in range(2)]
    assert rates == [1e-3, 3e-3]
    curves = [losses(tmp_path / "sweep" / str(job)) for job in range(2)]
    assert curves[0][0] == curves[1][0]
    assert curves[0][2] != curves[1][2]


def test_indivisible_batch_shows_the_three_numbers(tmp_path: Path) -> None:
    result = forked(2, "scripts/sft.py", *QUICK, f"run.dir={tmp_path}/run", "train.global_batch_size=6", "train.micro_batch_size=2")
    assert result.returncode == 2, result.stderr[-2000:]
    assert "global batch 6, micro-batch 2, ranks 2" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 2


def test_wrong_configuration_is_exit_2_through_the_launcher() -> None:
    result = deepspeed(2, "scripts/sft.py", "+config=tiny_sft", "optim.lr=-1")
    assert result.returncode == 2
    assert result.stderr.count("optim.lr is -1.0") == 1
    assert "Traceback" not in result.stderr


def test_bad_data_is_exit_3_before_a_model_is_built(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"chat": {"turn_1": {"Human": "<|Human|>: a<eoh>\\n", "MOSS": "<|MOSS|>: b<eom>\\n"}}}\n{"chat": 3}\n{oops\n')
    result = forked(2, "scripts/sft.py", "+config=tiny_sft", f"data.train={bad}", f"run.dir={tmp_path}/run")
    assert result.returncode == 3, result.stderr[-2000:]
    assert f"{bad}:2: no_chat" in result.stderr
    assert f"{bad}:3: " in result.stderr
    assert "parameters |" not in result.stdout
    assert "Traceback" not in result.stderr


def test_missing_model_is_exit_4(tmp_path: Path) -> None:
    result = forked(1, "scripts/sft.py", *QUICK, f"init_from={tmp_path}/nothing", f"run.dir={tmp_path}/run")
    assert result.returncode == 4
    assert f"{tmp_path}/nothing" in result.stderr
    assert "Traceback" not in result.stderr


def test_wandb_offline_records_the_run_and_no_key_is_written(tmp_path: Path) -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    arguments = (*QUICK, f"run.dir={tmp_path}/run", "tracking=wandb", "tracking.wandb=offline", "export.enabled=false")
    succeeded(forked(1, "scripts/sft.py", *arguments, WANDB_API_KEY=key))
    finished_run = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(finished_run) == 1
    assert finished_run[0].stat().st_size > 0
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_wandb_being_away_does_not_stop_the_run(tmp_path: Path) -> None:
    """Online, with a server that refuses connections."""
    arguments = (*QUICK, f"run.dir={tmp_path}/run", "tracking=wandb", "export.enabled=false")
    away = {
        "WANDB_BASE_URL": f"http://127.0.0.1:{free_port()}",
        "WANDB_API_KEY": "0" * 40,
        "WANDB_INIT_TIMEOUT": "5",
        "WANDB_HTTP_TIMEOUT": "3",
        "WANDB_LOGIN_TIMEOUT": "3",
    }
    result = succeeded(forked(1, "scripts/sft.py", *arguments, **away))
    assert "the run goes on" in result.stdout
    assert len(losses(tmp_path / "run")) == 3


def test_starting_from_an_export(trained: Path, tmp_path: Path) -> None:
    second_run = tmp_path / "second"
    shown = succeeded(forked(2, "scripts/sft.py", *QUICK, f"run.dir={second_run}", f"init_from={trained}/export", "model.num_layers=3"))
    assert "these have no effect: model.num_layers=3 (there: 2)" in shown.stdout
    # It goes on where the first one stopped, with its tokenizer.
    assert losses(second_run)[0] < losses(trained)[0] - 1
    first, second = (json.loads((run_dir / "export" / "lineage.json").read_text()) for run_dir in (trained, second_run))
    assert [parent["role"] for parent in second["parents"]] == ["source", "init", "data", "data"]
    assert second["parents"][1]["id"] == first["id"]
    checkpoint = json.loads((second_run / "checkpoints" / "step-00000003" / "lineage.json").read_text())
    assert checkpoint["id"] == second["parents"][0]["id"]
    assert (trained / "export/tokenizer.json").read_bytes() == (second_run / "export/tokenizer.json").read_bytes()


def test_generate_answers_from_an_export(trained: Path, tmp_path: Path) -> None:
    dialogue = tmp_path / "dialogue.jsonl"
    dialogue.write_text('{"chat": {"turn_1": {"Human": "<|Human|>: 你好<eoh>\\n"}}}\n')
    model = f"model={trained}/export"
    first = succeeded(forked(1, "scripts/generate.py", model, 'prompt=What\'s "3 + 4", a=b?', "max_new_tokens=8"))
    again = succeeded(forked(1, "scripts/generate.py", model, 'prompt=What\'s "3 + 4", a=b?', "max_new_tokens=8"))
    assert first.stdout == again.stdout
    assert "你好" in succeeded(forked(1, "scripts/generate.py", model, f"dialogue={dialogue}", "max_new_tokens=8")).stdout
    assert forked(1, "scripts/generate.py", model).returncode == 2
