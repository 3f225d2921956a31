"""A variant opened again, in a process of its own: `python -m moss_train.artifacts.quantize_check JOB.json`.

A language model is opened by the stock class, as its users will; that every weight was found and that the rotary table is the right one is
checked there, because a quantised reload has been seen to leave either uninitialised without an error. What it computes for the held-out
texts is written for `quantize.py` to compare: log-probabilities, or the rewards of a preference model.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moss_train.errors import CheckpointError

PROBLEM = "problem"


@dataclass(frozen=True)
class CheckJob:
    """What is to be done; everything in JSON.

    Attributes:
        model: The variant. out: Stem of two files: `.json` with what was found, `.safetensors` with what was computed.
        rows: Ids. device: cpu or cuda. is_pm: Whether it is a preference model.
    """

    model: str
    out: str
    rows: list[list[int]]
    device: str
    is_pm: bool

    def write(self, path: Path) -> None:
        """As the file that the process takes."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def open_stock(directory: Path, device: str, dtype: str = "wide") -> Any:
    """A quantised language model by the stock class, in evaluation mode.

    Args:
        directory: The variant. device: cpu or cuda.
        dtype: `auto`, as it is stored; `wide`, float32 on a CPU, whose kernels take it: in bfloat16 a comparison would show its rounding.

    Raises:
        CheckpointError: A weight is missing, or the rotary table is wrong.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from moss_train.model.rotary import build_rotary_table

    kept: Any = "auto" if dtype == "auto" else torch.bfloat16 if device == "cuda" else torch.float32
    where = {"device_map": {"": "cuda:0"}} if device == "cuda" else {}
    model, report = AutoModelForCausalLM.from_pretrained(directory, dtype=kept, output_loading_info=True, local_files_only=True, **where)
    wrong = {kind: sorted(map(str, found)) for kind, found in report.items() if found}
    if wrong:
        raise CheckpointError(f"opened by stock transformers, not every weight of the variant was found: {wrong}")
    table = build_rotary_table(model.config.n_positions, model.config.rotary_dim)
    for number, block in enumerate(model.transformer.h):
        found = block.attn.embed_positions
        if found.shape != table.shape or not torch.equal(found.float().cpu(), table):
            raise CheckpointError(f"opened by stock transformers, the rotary table of layer {number} is not the computed one")
    return model.eval()


def _language_model(job: CheckJob) -> tuple[Any, dict[str, Any]]:
    import torch

    model = open_stock(Path(job.model), job.device)
    with torch.inference_mode():
        rows = [model(torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in job.rows]
    reader = f"stock transformers, {type(model.transformer.h[0].mlp.fc_in).__name__}"
    del model
    # In its own number format, as it is used, and not the one that is compared in.
    return torch.cat(rows), {"reader": reader, "memory": open_stock(Path(job.model), job.device, "auto").get_memory_footprint()}


def _preference_model(job: CheckJob) -> tuple[Any, dict[str, Any]]:
    import torch

    from moss_train.model.loading import load_pm

    model = load_pm(job.model, torch.float32).to(job.device)
    with torch.inference_mode():
        rewards = [model(torch.tensor([row], device=job.device), reward_index=torch.tensor([len(row) - 1])).rewards for row in job.rows]
    memory = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return torch.cat(rewards).float().cpu(), {"reader": "moss_train, PackedLinear", "memory": memory}


def main(arguments: list[str]) -> None:
    """Does the job that a file describes."""
    from safetensors.torch import save_file

    raw: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    job = CheckJob(**raw)
    try:
        values, found = (_preference_model if job.is_pm else _language_model)(job)
    except CheckpointError as error:
        Path(f"{job.out}.json").write_text(json.dumps({PROBLEM: str(error)}), encoding="utf-8")
        return
    save_file({"values": values.contiguous()}, f"{job.out}.safetensors")
    found["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(f"{job.out}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
