"""One rank of test_communication: trains a small model for a few steps, and writes what its collectives moved in each.

Arguments: result file; JSON with the DeepSpeed section `zero`, `accumulation`, `recompute`, `precision`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

SHAPE = {"vocab_size": 512, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8}


def watch(moved: list[tuple[str, int, int]]) -> None:
    """Notes of every collective of DeepSpeed's: kind, bytes of the whole tensor, ranks. Scalars (norms, flags) are left out."""
    from deepspeed import comm

    backend = comm.comm.cdb

    def wrap(name: str, kind: str, whole: Any) -> None:
        real = getattr(backend, name)

        def call(*arguments: Any, **named: Any) -> Any:
            size = whole(*arguments, **named)
            ranks = torch.distributed.get_world_size(named.get("group"))
            if size > 64:
                moved.append((kind, size, ranks))
            return real(*arguments, **named)

        setattr(backend, name, call)

    def first(tensor: torch.Tensor, *_: Any, **__: Any) -> int:
        return tensor.nbytes

    def output(output_tensor: torch.Tensor, *_: Any, **__: Any) -> int:
        return output_tensor.nbytes

    def many(tensors: list[torch.Tensor], *_: Any, **__: Any) -> int:
        return sum(tensor.nbytes for tensor in tensors)

    wrap("all_reduce", "all-reduce", first)
    wrap("reduce", "reduce", first)
    wrap("all_gather", "all-gather", many)
    wrap("all_gather_into_tensor", "all-gather", output)
    wrap("reduce_scatter", "reduce-scatter", lambda out, parts, **_: many(parts))
    wrap("reduce_scatter_tensor", "reduce-scatter", lambda output_tensor, input_tensor, **_: input_tensor.nbytes)


def main(out: Path, settings: dict[str, Any]) -> None:
    from transformers import CodeGenConfig

    from moss_train.config import OptimConfig, Precision
    from moss_train.model.codegen import init_model, set_attention
    from moss_train.train import engine

    engine.start()
    section = {"zero_optimization": settings["zero"]}
    config = engine.deepspeed_config(section, Precision(settings["precision"]), 1, settings["accumulation"], 1.0)
    shape = CodeGenConfig(**SHAPE, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False)
    dtype = torch.bfloat16 if settings["precision"] == "bf16" else torch.float32
    with engine.building(config):
        model = init_model(shape, 1, dtype)
    set_attention(model, "sdpa")
    model.set_recompute(settings["recompute"])
    trained = engine.initialize(model, config, OptimConfig())
    steps: list[list[tuple[str, int, int]]] = []
    moved: list[tuple[str, int, int]] = []
    watch(moved)
    ids = torch.arange(64)[None] % 512
    for _step in range(3):
        moved.clear()
        for _ in range(settings["accumulation"]):
            loss = trained(ids, targets=ids, cu_seqlens=torch.tensor([0, 64], dtype=torch.int32)).loss_sum
            trained.backward(loss, scale_wrt_gas=False)
            trained.step()
        steps.append(list(moved))
    if engine.rank() == 0:
        out.write_text(json.dumps(steps))
    engine.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
