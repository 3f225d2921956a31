"""One rank of test_zero3_model: makes and loads models partitioned, and writes what came out as safetensors.

Arguments: folder with `model` (safetensors), `moss` (pickle shards) and `batch.safetensors`; folder for the results.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import load_file, save_file
from transformers import CodeGenConfig
from transformers.integrations import HfDeepSpeedConfig

from moss_train.model.codegen import CodeGenLM, CodeGenModel, init_model, set_attention
from moss_train.model.loading import load_model
from moss_train.model.rotary import build_rotary_table
from moss_train.train import engine

ZERO3: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_force_ds_cpu_optimizer": False,
}


def gather(model: CodeGenLM) -> dict[str, torch.Tensor]:
    """The whole state, on every rank."""
    state = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone().contiguous()
    return state


def check(model: CodeGenLM, world: int, dtype: torch.dtype) -> None:
    """Every parameter is partitioned over the ranks, and the rotary table is exact."""
    for name, parameter in model.named_parameters():
        assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // world), name
        assert parameter.ds_tensor.dtype == dtype, name
    table = model.transformer.rotary_table
    assert table.dtype == torch.float32
    assert torch.equal(table.cpu(), build_rotary_table(model.config.n_positions, model.config.rotary_dim))


def start_engine(model: CodeGenLM, config: dict[str, Any]) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def main(source: Path, out: Path) -> None:
    engine.start()
    rank, world = engine.rank(), engine.world_size()
    batch = load_file(source / "batch.safetensors")
    results: dict[str, dict[str, torch.Tensor]] = {}

    low_settings = {**ZERO3, "bf16": {"enabled": True}}
    low_alive = HfDeepSpeedConfig(low_settings)
    for name, allow_pickle in (("model", False), ("moss", True)):
        low = load_model(source / name, torch.bfloat16, allow_pickle=allow_pickle)
        check(low, world, torch.bfloat16)
        results[f"bfloat16-{name}"] = gather(low)
    with deepspeed.zero.Init(config_dict_or_path=low_settings):
        trunk = CodeGenModel(low.config)
    assert trunk.wte.weight.ds_tensor.dtype == torch.bfloat16
    assert torch.equal(trunk.rotary_table, build_rotary_table(low.config.n_positions, low.config.rotary_dim))
    trained = start_engine(low, low_settings)
    check(trained.module, world, torch.bfloat16)
    del low_alive, low, trained

    alive = HfDeepSpeedConfig(ZERO3)
    config = CodeGenConfig.from_pretrained(source / "model")
    new = init_model(config, seed=11, dtype=torch.float32)
    check(new, world, torch.float32)
    results["init"] = gather(new)
    del new

    model = load_model(source / "model", torch.float32)
    check(model, world, torch.float32)
    results["load"] = gather(model)
    trained = start_engine(model, ZERO3)
    check(trained.module, world, torch.float32)
    results["logits"] = {}
    for backend in ("eager", "sdpa"):
        set_attention(model, backend)
        with torch.no_grad():
            results["logits"][backend] = trained(batch["input_ids"], cu_seqlens=batch["cu_seqlens"]).logits
    weight = int((batch["targets"] != -100).sum())
    for recompute in (False, True):
        model.set_recompute(recompute)
        # The last rank has a micro-batch without any target; on one rank two micro-batches do the same.
        batches = [batch["targets"], torch.full_like(batch["targets"], -100)]
        for targets in batches[rank::world]:
            loss_sum = trained(batch["input_ids"], targets=targets, cu_seqlens=batch["cu_seqlens"]).loss_sum
            trained.backward(loss_sum * world / weight, scale_wrt_gas=False)
        results[f"gradients-recompute-{recompute}"] = {n: safe_get_full_grad(p).clone() for n, p in model.named_parameters()}
        trained.zero_grad()
        trained.optimizer.zero_grad()
    if rank == 0:
        for name, tensors in results.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}.safetensors")
        (out / "done.json").write_text(json.dumps({"world": world}))
    del alive
    engine.stop()


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--local_rank")]
    main(Path(arguments[0]), Path(arguments[1]))
