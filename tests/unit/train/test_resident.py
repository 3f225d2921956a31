"""What a run loads when it starts."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import os, sys
from moss_train.train.resident import load_libraries
load_libraries()
import deepspeed.runtime.zero.muon.muon_optimizer
print("torch._inductor.compile_fx" in sys.modules, os.environ.get("TORCHDYNAMO_DISABLE"))
import torch
print(torch.compile(torch.sin, backend="eager") is torch.sin)
"""


def test_a_run_starts_without_loading_the_compiler_and_can_still_compile() -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    environment.pop("TORCHDYNAMO_DISABLE", None)
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split()[-3:] == ["False", "None", "False"]
