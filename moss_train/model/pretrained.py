"""What the models of every stage share as `PreTrainedModel`: initial weights, and the trunk's settings.

Initial values follow from the seed and the names of parameters, so that they are the same on any number of ranks.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import CodeGenConfig, PreTrainedModel
from transformers import initialization as init
from transformers.integrations import is_deepspeed_zero3_enabled

from moss_train.errors import UsageError
from moss_train.model.rotary import build_rotary_table

_INIT_BLOCK = 2**22
"""Values that one generator draws; another number gives other initial weights."""

_INIT_SEED: ContextVar[int | None] = ContextVar("init_seed", default=None)


class CodeGenPreTrained(PreTrainedModel):
    """A trunk, `transformer`, with a head on it.

    The attention backend is chosen with `codegen.set_attention` only. transformers' own `attn_implementation` is not read: a configuration
    object remembers it from the model it was last used for.
    """

    config_class = CodeGenConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {}
    # Masks that older implementations kept among their weights.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"\.attn\.(causal_mask|bias|masked_bias)$"]

    transformer: Any

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embeddings."""
        self.transformer.wte = value

    def set_recompute(self, enabled: bool, blocks: int | None = None) -> None:
        """Keep only the input of a block and compute it again in the backward pass: a third more arithmetic, far less memory.

        Args:
            enabled: Whether to. blocks: Of how many, the first ones, whose backward pass is the last; by default of all.

        Raises:
            UsageError: There are not as many.
        """
        layers = len(self.transformer.h)
        if blocks is not None and not 1 <= blocks <= layers:
            raise UsageError(f"model.recompute_blocks is {blocks}; expected 1 to {layers}, the blocks of this model, or null for all")
        self.transformer.recompute = (layers if blocks is None else blocks) if enabled else 0

    def _init_weights(self, module: nn.Module) -> None:
        """Weights N(0, initializer_range), biases 0, LayerNorm 1 and 0; rebuilds the rotary table, which may come from the meta device.

        The weights of a head that gives one number are N(0, 1 / (D + 1)) (Stiennon et al. 2020, appendix B): rewards begin near variance 1.

        Under `seeded_initialization` the values of a parameter are a function of the seed and its name, else of torch's generator.
        """
        if "rotary_table" in module._buffers:
            init.copy_(module.rotary_table, build_rotary_table(self.config.n_positions, self.config.rotary_dim))
        is_scalar = getattr(module, "out_features", None) == 1
        std = 1 / math.sqrt(self.config.n_embd + 1) if is_scalar else self.config.initializer_range
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                init.zeros_(parameter)
            elif isinstance(module, nn.LayerNorm):
                init.ones_(parameter)
            elif (seed := _INIT_SEED.get()) is None or parameter.device.type == "meta":
                init.normal_(parameter, mean=0.0, std=std)
            elif not getattr(parameter, "_is_hf_initialized", False):
                full_name = f"{self._name_of(module)}.{name}"
                init.copy_(parameter, _seeded_normal(parameter.shape, std, seed, full_name))

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, candidate in self.named_modules() if candidate is module)


def _seeded_normal(shape: torch.Size, std: float, seed: int, name: str) -> torch.Tensor:
    """float32 values N(0, std) on the CPU that depend on the seed and the name only.

    Blocks have generators of their own, so that threads share the work: one thread would take minutes for 16 billion values.
    """
    values = torch.empty(shape, dtype=torch.float32, device="cpu")

    def fill(block: int, part: torch.Tensor) -> None:
        digest = hashlib.sha256(f"{seed}:{name}:{block}".encode()).digest()
        part.normal_(0.0, std, generator=torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little", signed=True)))

    blocks = values.view(-1).split(_INIT_BLOCK)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(len(blocks)), blocks))
    return values


@contextlib.contextmanager
def seeded_initialization(seed: int) -> Iterator[None]:
    """Inside, a new model's weights follow from the seed and the parameter names, on any number of ranks and in any precision."""
    token = _INIT_SEED.set(seed)
    try:
        yield
    finally:
        _INIT_SEED.reset(token)


def require_process_group() -> None:
    """Refuse to build a partitioned model before the ranks know of one another: DeepSpeed would partition it for a world of one."""
    if is_deepspeed_zero3_enabled() and not torch.distributed.is_initialized():
        raise RuntimeError("ZeRO-3: initialise the process group before a model is built or loaded, else it is partitioned for one rank")
