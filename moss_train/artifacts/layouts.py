"""Names and shapes that other programs know the model by.

`codegen` is the model's own. `gptj` is the same function in the layout of GPT-J, which more servers read: query, value and key rows,
which CodeGen keeps in four blocks of one matrix, become three matrices; everything else keeps its name. Nothing is computed, so nothing is
rounded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from moss_train.model.pm import PM_ARCHITECTURE
from moss_train.model.shapes import PM, QKV_BLOCKS, head_of

STOCK_CLASSES = {"codegen": "CodeGenForCausalLM", "gptj": "GPTJForCausalLM"}
PM_CLASSES = {"codegen": PM_ARCHITECTURE, "gptj": "GPTJForSequenceClassification"}
_JOINT = ".attn.qkv_proj.weight"


def class_name(config: Any, layout: str) -> str:
    """What `architectures` names: the stock class, or, of a preference model, ours, since transformers has none with CodeGen's names."""
    return (PM_CLASSES if head_of(config) == PM else STOCK_CLASSES)[layout]


def rename(name: str, tensor: torch.Tensor, layout: str) -> list[tuple[str, torch.Tensor]]:
    """A parameter of the model as the parameters of a layout.

    Args:
        name: As in CodeGen.
        tensor: Its values.
        layout: `codegen` or `gptj`.
    """
    if layout == "codegen" or not name.endswith(_JOINT):
        return [(name, tensor)]
    hidden_size = tensor.shape[1]
    # [4 blocks, (q, v, k), rows, D]: the order is that of the published code.
    query, value, key = tensor.view(QKV_BLOCKS, 3, -1, hidden_size).unbind(1)
    stem = name.removesuffix("qkv_proj.weight")
    return [
        (f"{stem}{part}_proj.weight", rows.reshape(hidden_size, hidden_size)) for part, rows in (("q", query), ("k", key), ("v", value))
    ]


def layout_config(model_config: Any, layout: str) -> Any:
    """The configuration of a layout.

    Args:
        model_config: The model's `CodeGenConfig`.
        layout: `codegen` or `gptj`.
    """
    from transformers import GPTJConfig

    if layout == "codegen":
        config = copy.deepcopy(model_config)
    else:
        kept = (
            "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner", "activation_function", "resid_pdrop",
            "embd_pdrop", "attn_pdrop", "layer_norm_epsilon", "initializer_range", "use_cache", "tie_word_embeddings",
        )  # fmt: skip
        config = GPTJConfig(**{key: getattr(model_config, key) for key in kept})
        if head_of(model_config) == PM:
            config.moss_head, config.num_labels = PM, 1
            if getattr(model_config, "moss_temperature", None) is not None:
                config.moss_temperature = model_config.moss_temperature
    config.architectures = [class_name(config, layout)]
    return config
