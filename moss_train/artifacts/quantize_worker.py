"""Quantising itself, in a process of its own: `python -m moss_train.artifacts.quantize_worker JOB.json`.

Apart, because the library patches transformers and torch when it is imported, and because its memory is then given back; and on the stock
class, whose arithmetic the readers have too. What it writes is put in order by `quantize.py`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TORCHAO, GPTQ = "torchao", "gptq"
CLIP_SEARCH = 2.4
"""Scales are chosen to make the error's norm of this order least, instead of always reaching the largest weight (the library's `mse`).
Measured on a trained model of 3.5 M parameters: a tenth less divergence, a few seconds more."""


@dataclass(frozen=True)
class Job:
    """What is to be done; everything in JSON.

    Attributes:
        model: A directory that the stock class opens. out: For what the library writes. scratch: For layers that wait on disk.
        rows: Ids to calibrate on.
        device: cpu or cuda.
    """

    method: str
    model: str
    out: str
    scratch: str
    rows: list[list[int]]
    bits: int
    group_size: int
    damp: float
    device: str

    def write(self, path: Path) -> None:
        """As the file that the process takes."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def quantize_gptq(job: Job) -> None:
    """GPTQ, a layer after another."""
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    data = [{"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)} for row in job.rows]
    settings = QuantizeConfig(
        bits=job.bits,
        group_size=job.group_size,
        sym=True,
        desc_act=False,
        damp_percent=job.damp,
        mse=CLIP_SEARCH,
        device="cuda:0" if job.device == "cuda" else "cpu",
        offload_to_disk_path=job.scratch,
    )
    # `device` is not given here too: the library refuses it twice.
    model = GPTQModel.load(job.model, settings)
    # Rows are not padded to one another: padding would count as text in the second moments.
    model.quantize(data, batch_size=1)
    model.save(job.out)


def quantize_torchao(job: Job) -> None:
    """Rounding, a scale for each row."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    # In bfloat16, which is what its kernels take.
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, device_map=job.device, quantization_config=config, local_files_only=True
    )
    model.save_pretrained(job.out)


def environment() -> dict[str, str]:
    """The environment of the process, which must be set before the library is imported."""
    # It runs in another folder, and must find this package where it is not installed.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    made = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path}
    if len(os.sched_getaffinity(0)) <= 2:
        # With the default of half the cores it finds fewer threads than it asks for, and ends.
        made.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    return made


def main(arguments: list[str]) -> None:
    """Does the job that a file describes."""
    raw: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    job = Job(**raw)
    {GPTQ: quantize_gptq, TORCHAO: quantize_torchao}[job.method](job)


if __name__ == "__main__":
    main(sys.argv[1:])
