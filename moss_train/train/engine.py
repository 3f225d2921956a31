"""The one engine: DeepSpeed, with or without a GPU. The only importer of deepspeed.

Order matters here: the process group first, then the object which tells transformers that parameters are partitioned (kept alive for as
long as models are built), then the model, then `initialize`. Built in another order, every rank holds the whole model and nothing says so.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moss_train.config import OptimConfig, Precision
from moss_train.cores import threads_per_rank
from moss_train.errors import ConfigError
from moss_train.ports import free_port
from moss_train.train.build_locks import remove_stale_build_locks
from moss_train.train.config import is_auto
from moss_train.train.optim import parameter_groups
from moss_train.train.resident import give_back, load_libraries, map_large_blocks
from moss_train.train.shards import MOMENTS, flat_tensors, optimizer_state, shards

_log = logging.getLogger(__name__)

TIMEOUT_MINUTES = 30
_TOLD_AT_ONCE = 2**20
"""Characters of one value in torch's store, which refuses more than 8 MiB."""
_TIMEOUT = [timedelta(minutes=TIMEOUT_MINUTES)]
"""Longest time in a collective; the last one counts."""
_BACKGROUND_GROUP: list[Any] = []
_HF_DEEPSPEED_CONFIG: list[Any] = []
"""Keeps transformers' weak reference to the DeepSpeed configuration alive while models are built."""


def start(timeout_seconds: float = 0.0) -> None:
    """Joins the process group: that of the launcher (deepspeed, torchrun, Slurm), or one of a single rank. Safe to call again.

    Args:
        timeout_seconds: Longest time a rank waits in a collective; at least half an hour.
    """
    if dist.is_initialized():
        return
    # ninja compiles DeepSpeed's operators; it is installed beside this interpreter, which need not be on PATH.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if not on_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(threads_per_rank())
        map_large_blocks()
    if "RANK" not in os.environ:
        os.environ.update(
            RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port())
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # The other ranks of this machine wait for the same locks.
        remove_stale_build_locks()
    deepspeed = _deepspeed()
    # Its reduction through shared memory is for inference alone, and is compiled on the first run of a machine: half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    load_libraries()
    if on_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    timeout = timedelta(seconds=max(60 * TIMEOUT_MINUTES, timeout_seconds))
    _TIMEOUT.append(timeout)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu() else "gloo", timeout=timeout, verbose=False)
    dist.barrier()


def stop() -> None:
    """Leaves the process group together with the other ranks; a plain exit can abort inside gloo."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
        _BACKGROUND_GROUP.clear()


def rank() -> int:
    """This process's number among all ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def on_gpu() -> bool:
    """Whether this run computes on CUDA devices; DS_ACCELERATOR=cpu keeps it off those that are there."""
    return torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"


def device() -> torch.device:
    """Where this rank computes."""
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu() else torch.device("cpu")


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums each of `values` over ranks, in float64: token counts of a long run do not fit float32 exactly."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather(value: Any) -> list[Any]:
    """Every rank's `value`, in the order of ranks, on every rank. A collective."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def background_group() -> Any:
    """A gloo process group of all ranks, for threads beside training: collectives of two threads on one group would mix. Made once, by a
    collective of the main threads; None on one rank."""
    if world_size() > 1 and not _BACKGROUND_GROUP:
        _BACKGROUND_GROUP.append(dist.new_group(backend="gloo", timeout=_TIMEOUT[-1]))
    return _BACKGROUND_GROUP[0] if _BACKGROUND_GROUP else None


def tell(key: str, value: str) -> None:
    """Writes a word for the other ranks, for `heard`. No collective: a rank that waits for it can be waited for in turn for any time."""
    store = dist.distributed_c10d._get_default_store()
    parts = [value[start : start + _TOLD_AT_ONCE] for start in range(0, len(value), _TOLD_AT_ONCE)]
    for number, part in enumerate(parts):
        store.set(f"moss_train/{key}/{number}", part)
    store.set(f"moss_train/{key}", str(len(parts)))


def is_told(key: str) -> bool:
    """Whether some rank has written the word."""
    return bool(dist.distributed_c10d._get_default_store().check([f"moss_train/{key}"]))


def heard(key: str) -> str | None:
    """The word that some rank has written, or None so far."""
    if not is_told(key):
        return None
    store = dist.distributed_c10d._get_default_store()
    count = int(store.get(f"moss_train/{key}"))
    return "".join(store.get(f"moss_train/{key}/{number}").decode() for number in range(count))


def barrier() -> None:
    """Waits for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def check_section(section: dict[str, Any]) -> None:
    """Refuses what DeepSpeed would refuse in its zero_optimization section, by key, before anything is built.

    Raises:
        ConfigError: With every wrong key.
    """
    _deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    zero = section.get("zero_optimization", {})
    # What stands beside `stage: auto` must do for any stage.
    zero = {**zero, "stage": 3} if is_auto(section) else zero
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        where = "deepspeed.zero_optimization"
        problems = [
            f"{'.'.join(map(str, (where, *problem['loc'])))}: {problem['msg']}; found {problem['input']!r}" for problem in error.errors()
        ]
        raise ConfigError(problems) from error


def deepspeed_config(
    section: dict[str, Any], precision: Precision, micro_batch_size: int, accumulation: int, clip: float
) -> dict[str, Any]:
    """The full DeepSpeed configuration: the user's section and what `train` and `optim` own."""
    return {
        "data_types": {"grad_accum_dtype": "fp32"},
        **section,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "bf16": {"enabled": precision is Precision.bf16},
        # The loop prints; DeepSpeed's own lines every ten steps would come between.
        "steps_per_print": 2**31,
        # The optimizer is ours, whatever offloading is chosen.
        "zero_force_ds_cpu_optimizer": False,
    }


@contextlib.contextmanager
def building(config: dict[str, Any]) -> Iterator[None]:
    """Models built inside are partitioned over ranks as they are made, where `config` says ZeRO-3."""
    if config["zero_optimization"]["stage"] != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    _HF_DEEPSPEED_CONFIG[:] = [HfDeepSpeedConfig(config)]
    try:
        yield
    finally:
        _HF_DEEPSPEED_CONFIG.clear()


def initialize(model: torch.nn.Module, config: dict[str, Any], optim: OptimConfig) -> Any:
    """The DeepSpeed engine around `model`, with torch's AdamW, or DeepSpeed's CPU one where optimizer state is offloaded."""
    deepspeed = _deepspeed()
    groups = parameter_groups(model.named_parameters(), optim)
    settings: dict[str, Any] = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    offloaded = (config["zero_optimization"].get("offload_optimizer") or {}).get("device", "none") != "none"
    if offloaded:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer: torch.optim.Optimizer = DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    else:
        optimizer = torch.optim.AdamW(groups, fused=True, **settings)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def full_parameters(engine: Any, master_weights: bool = False) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Each parameter whole, one after another, by name: on rank 0 a CPU tensor, elsewhere None.

    A collective: every rank must run it to the end.

    Args:
        engine: From `initialize`.
        master_weights: Give the optimizer's float32 values instead of the model's, which are their rounding.
    """
    deepspeed = _deepspeed()
    from deepspeed.utils import safe_get_full_fp32_param

    for name, parameter in engine.module.named_parameters():
        whole = safe_get_full_fp32_param(parameter) if master_weights and parameter.requires_grad else None
        if whole is None:
            with deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.detach().to("cpu", copy=True) if rank() == 0 else None
        yield name, whole.detach().cpu() if whole is not None and rank() == 0 else None


def full_state(engine: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every trained parameter's float32 values and moments, whole, as (name, kind, tensor) with the kinds `param` and `MOMENTS`.

    The tensor is where the engine computes; it does not change before the next step, and is not to be changed. A collective: every rank
    must run it to the end.
    """
    _deepspeed()
    if world_size() == 1:
        # There is nothing to gather, and a copy costs as much as half of the hashing.
        yield from _own_state(engine)
        return
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    optimizer = engine.optimizer
    for flat in flat_tensors(engine):
        optimizer_state(engine, flat)
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # ZeRO-1 and 2 link states to parameters after the first group's first update, and leave the other groups without.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield name, "param", safe_get_full_fp32_param(parameter)
            for kind in MOMENTS:
                yield name, kind, safe_get_full_optimizer_state(parameter, kind)


def _own_state(engine: Any) -> Iterator[tuple[str, str, torch.Tensor]]:
    """`full_state` of one rank, which holds everything."""
    for shard in shards(engine):
        if shard.flat is None or shard.count != math.prod(shard.shape):
            raise RuntimeError(f"the only rank holds {shard.count} of {math.prod(shard.shape)} elements of {shard.name}")
        held = slice(shard.offset, shard.offset + shard.count)
        yield shard.name, "param", shard.flat.data[held].view(shard.shape)
        for kind in MOMENTS:
            yield shard.name, kind, optimizer_state(engine, shard.flat)[kind][held].view(shard.shape)


def computed_by(engine: Any) -> dict[str, Any]:
    """What a run must share with another to be its equal bit for bit, beside configuration and data."""
    return {
        "world_size": world_size(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if on_gpu() else "cpu",
        "micro_batch_size": engine.train_micro_batch_size_per_gpu(),
        "zero_stage": engine.zero_optimization_stage(),
        "optimizer": type(engine.optimizer.optimizer).__name__,
        "model_dtype": str(next(engine.module.parameters()).dtype).removeprefix("torch."),
        "attention": getattr(getattr(engine.module, "transformer", None), "attention", None),
        "torch": torch.__version__,
        "deepspeed": _deepspeed().__version__,
    }


def seed_step(seed: int, step: int) -> None:
    """Seeds torch from the run's seed, the step and the rank, so that what is random in a step needs nothing from the steps before."""
    digest = hashlib.sha256(f"moss_train step rng v1\n{seed}\n{step}\n{rank()}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def release(engine: Any) -> None:
    """Frees what an engine holds, so that the next job of a sweep starts with the memory of the first.

    `engine.destroy()` leaves hooks and closures that point from parameters to optimizer state and back; under ZeRO-3 they kept the whole
    model, 300 MB a job for 33 M parameters. Everything the engine owns is dropped by hand.
    """
    model, optimizer = engine.module, engine.optimizer
    engine.destroy()
    _forget_hpz_groups()
    for parameter in model.parameters():
        for name in [name for name in vars(parameter) if name.startswith(("ds_", "_"))]:
            with contextlib.suppress(AttributeError):
                delattr(parameter, name)
        parameter.data = torch.empty(0)
        parameter.grad = None
    inner = getattr(optimizer, "optimizer", None)
    if inner is not None:
        inner.state.clear()
        inner.param_groups.clear()
    vars(optimizer).clear()
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module._backward_hooks.clear()
    vars(engine).clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back()


def _forget_hpz_groups() -> None:
    """Lets the next engine of this process make hpZ's groups: DeepSpeed keeps them in a global that it refuses to set twice."""
    _deepspeed()
    from deepspeed.utils import groups

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


def _deepspeed() -> Any:
    """deepspeed, imported late: it takes seconds and prints."""
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    import deepspeed

    # Names that DeepSpeed calls and torch 2.13 is about to rename: nothing a user could act on, once per rank and collective.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # It logs at INFO from every rank; the loop says what matters.
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
