"""The wheel, installed away from the checkout, trains from another directory: it carries the configuration and the bundled dialogues."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.launch import REPOSITORY, losses, run, succeeded


def test_wheel_trains_from_another_directory(tmp_path: Path) -> None:
    succeeded(run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(REPOSITORY)]))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    # The libraries of this environment, without the editable install among them; the wheel itself is installed for real.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(environment / "bin" / "python"),
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
    ]
    succeeded(run([*pip, str(wheel)]))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = str(environment / "bin" / "moss-train")
    quick = ("train.steps=2", "train.eval_at_start=false", "train.eval_every=0", "data.seq_len=512")
    shown = succeeded(run([command, "sft", "+config=tiny_sft", *quick], cwd=elsewhere))
    assert "exported to runs/tiny_sft/export" in shown.stdout
    assert len(losses(elsewhere / "runs" / "tiny_sft")) == 2
    succeeded(run([command, "generate", "model=runs/tiny_sft/export", "prompt=Hello", "max_new_tokens=4"], cwd=elsewhere))
    where = subprocess.run(
        [str(environment / "bin" / "python"), "-c", "import moss_train; print(moss_train.__file__)"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(site))
    assert run([command], cwd=elsewhere).returncode == 2
    assert "usage: moss-train" in run([command, "--help"], cwd=elsewhere).stdout
