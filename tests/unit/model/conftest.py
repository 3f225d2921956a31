"""Small models for the tests of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CodeGenConfig

from moss_train.model.codegen import CodeGenLM, init_model


@pytest.fixture
def make_config() -> Callable[..., CodeGenConfig]:
    """Configuration of 4 heads of the given size; any key can be set."""

    def make(head_dim: int = 16, **changes: Any) -> CodeGenConfig:
        values: dict[str, Any] = {
            "vocab_size": 307, "n_positions": 128, "n_ctx": 128, "n_embd": 4 * head_dim, "n_layer": 2, "n_head": 4,
            "rotary_dim": min(64, head_dim // 2), "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.05,
        }  # fmt: skip
        return CodeGenConfig(**{**values, **changes})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., CodeGenConfig]) -> Callable[..., CodeGenLM]:
    """Seeded model of `make_config`, with biases and LayerNorms away from their special initial values."""

    def make(head_dim: int = 16, dtype: torch.dtype = torch.float32, **changes: Any) -> CodeGenLM:
        model = init_model(make_config(head_dim, **changes), seed=7, dtype=torch.float32)
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "ln_" in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.to(dtype)

    return make
