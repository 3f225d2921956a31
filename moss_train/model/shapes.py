"""What a configuration says about the model's parameters, without building it."""

from __future__ import annotations

import math
from typing import Any

from transformers import CodeGenConfig
from transformers.activations import ACT2FN

QKV_BLOCKS = 4
"""Blocks of `qkv_proj`, "mp_num" in the published code."""

LM, PM, PM_AND_LM = "lm", "pm", "pm_lm"
"""What sits on the trunk, as `moss_head` in config.json (absent: `lm`): the output projection, the head of a preference model, or both, as
while a preference model is trained with a language model's loss."""
REWARD_HEAD = "score.weight"
"""[1, D]. It has no bias: only differences of rewards mean anything. GPT-J's stock class for sequences has the same name for it."""


def head_of(config: Any) -> str:
    """Which head a configuration has: LM, PM or PM_AND_LM."""
    return str(getattr(config, "moss_head", LM) or LM)


def config_problems(config: CodeGenConfig) -> list[str]:
    """What this model cannot be built with, a sentence each; empty when all is well."""
    problems = []
    if config.n_head % QKV_BLOCKS:
        problems.append(f"n_head is {config.n_head}, expected a multiple of {QKV_BLOCKS} (the blocks of qkv_proj)")
    if config.n_embd % config.n_head:
        problems.append(f"n_embd is {config.n_embd}, expected a multiple of n_head {config.n_head}")
    elif not 0 < config.rotary_dim <= config.n_embd // config.n_head or config.rotary_dim % 2:
        problems.append(f"rotary_dim is {config.rotary_dim}, expected an even number from 2 to head_dim {config.n_embd // config.n_head}")
    if config.activation_function not in ACT2FN:
        problems.append(f"activation_function is {config.activation_function!r}, which transformers does not know; CodeGen has gelu_new")
    if config.tie_word_embeddings:
        problems.append("tie_word_embeddings is true; this family has an output projection of its own: untie it and write lm_head.weight")
    if head_of(config) not in (LM, PM, PM_AND_LM):
        problems.append(f"moss_head is {head_of(config)!r}, expected {LM}, {PM} or {PM_AND_LM}")
    return problems


def parameter_shapes(config: CodeGenConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter, without building the model."""
    hidden, inner, vocab = config.n_embd, config.n_inner or 4 * config.n_embd, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, hidden)}
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}."
        shapes[block + "ln_1.weight"] = shapes[block + "ln_1.bias"] = (hidden,)
        shapes[block + "attn.qkv_proj.weight"] = (3 * hidden, hidden)
        shapes[block + "attn.out_proj.weight"] = (hidden, hidden)
        shapes[block + "mlp.fc_in.weight"], shapes[block + "mlp.fc_in.bias"] = (inner, hidden), (inner,)
        shapes[block + "mlp.fc_out.weight"], shapes[block + "mlp.fc_out.bias"] = (hidden, inner), (hidden,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    if head_of(config) != PM:
        shapes["lm_head.weight"], shapes["lm_head.bias"] = (vocab, hidden), (vocab,)
    if head_of(config) != LM:
        shapes[REWARD_HEAD] = (1, hidden)
    return shapes


def count_parameters(config: CodeGenConfig) -> int:
    """Parameters of the model in closed form: 16,717,980,160 for MOSS (L=34, D=6144, V=107008)."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())
