"""Whether an export, opened again by stock transformers, computes what the model did.

A fixed prompt goes through the model's own blocks while the parameters pass by on their way to the files, and then through the stock class
filled from the files. Both take a layer at a time, in float32, so neither needs more memory than a layer, or the embeddings as stored.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from moss_train.artifacts.layouts import STOCK_CLASSES, class_name
from moss_train.errors import CheckpointError
from moss_train.model.block import Block
from moss_train.model.rotary import build_rotary_table
from moss_train.model.shapes import PM, REWARD_HEAD, head_of

_HEAD_ROWS = 8192
TOLERANCE = 1e-4
"""Largest difference of logits, as a share of the largest logit: two orders of sums in float32 through tens of layers."""


class Tracer:
    """The model's logits for prompts, from its parameters one after another in any order.

    Args:
        model_config: The model's `CodeGenConfig`.
        ids: The prompt, or several; these are read side by side.
    """

    def __init__(self, model_config: Any, ids: list[int] | list[list[int]]):
        rows = [ids] if isinstance(ids[0], int) else ids
        self.config = model_config
        self._lengths = torch.tensor([len(row) for row in rows])
        # What fills a row up stands behind its tokens, which do not see it.
        self.ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        self._held: dict[str, torch.Tensor] = {}
        self._hidden: torch.Tensor | None = None
        self._layer = 0
        with torch.device("meta"):
            self._names = list(Block(model_config, 0).state_dict())
        self._last = {"transformer.ln_f.weight", "transformer.ln_f.bias", *head_parameters(model_config)}
        self.logits: torch.Tensor | None = None
        """float32 [T, V], when every parameter has passed; of a preference model the reward after every token, [T, 1]. The tokens of
        several prompts stand one after another."""

    def feed(self, name: str, tensor: torch.Tensor) -> None:
        """Takes in a parameter, and goes as far as the parameters so far allow."""
        if name == "transformer.wte.weight":
            self._hidden = tensor[self.ids].float()
        else:
            self._held[name] = tensor.detach()
        with torch.no_grad():
            while self._hidden is not None and self._layer < self.config.n_layer and self._block_is_whole():
                self._hidden = self._run_block()
                self._layer += 1
            if self._layer == self.config.n_layer and set(self._held) == self._last and self._hidden is not None:
                shape = (self.config.n_embd,)
                weight, bias = (self._held[f"transformer.ln_f.{part}"].float() for part in ("weight", "bias"))
                normed = nn.functional.layer_norm(self._hidden, shape, weight, bias, self.config.layer_norm_epsilon)
                real = torch.arange(normed.shape[1]) < self._lengths[:, None]
                self.logits = project(normed[real], *(self._held[name] for name in head_parameters(self.config)))
                self._held.clear()

    def _prefix(self) -> str:
        return f"transformer.h.{self._layer}."

    def _block_is_whole(self) -> bool:
        return all(self._prefix() + name in self._held for name in self._names)

    def _run_block(self) -> torch.Tensor:
        assert self._hidden is not None
        with torch.device("meta"):
            block = Block(self.config, 0)
        state = {name: self._held.pop(self._prefix() + name).float() for name in self._names}
        block.load_state_dict(state, assign=True)
        table = build_rotary_table(self.config.n_positions, self.config.rotary_dim)
        sin, cos = table[torch.arange(self.ids.shape[1])][None, :, None, :].chunk(2, dim=-1)
        hidden: torch.Tensor = block.eval()(self._hidden, sin=sin, cos=cos, backend="eager")
        return hidden


def reopened_logits(directory: Path, ids: list[int], layout: str) -> torch.Tensor:
    """float32 [T, V]: what the stock class makes of the files of an export.

    Args:
        directory: With config.json and safetensors.
        ids: The prompt.
        layout: Of the export.

    Raises:
        CheckpointError: Its configuration names another class, or a parameter of the stock class is not in the files.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    named = [class_name(config, layout)]
    if config.architectures != named:
        raise CheckpointError(f"{directory}: config.json names {config.architectures}, expected {named}")
    files = _Files(directory)
    layers = config.n_layer
    single = copy.deepcopy(config)
    # Of embeddings and head, which are applied apart, as little as can be.
    single.n_layer, single.vocab_size, single.use_cache, single.dtype = 1, 1, False, torch.float32
    single.bos_token_id = single.eos_token_id = single.pad_token_id = None
    model = getattr(transformers, STOCK_CLASSES[layout])(single).eval()
    trunk, last_norm = model.transformer, model.transformer.ln_f
    hidden = files.get("transformer.wte.weight")[torch.tensor(ids)].float()[None]
    # The stock trunk with one layer and no last norm is that layer, masks and positions included.
    trunk.ln_f = nn.Identity()
    with torch.no_grad():
        for layer in range(layers):
            for name, parameter in trunk.h[0].named_parameters():
                parameter.copy_(files.get(f"transformer.h.{layer}.{name}"))
            hidden = trunk(inputs_embeds=hidden).last_hidden_state
        last_norm.load_state_dict({name: files.get(f"transformer.ln_f.{name}").float() for name in ("weight", "bias")})
        return project(last_norm(hidden)[0], *(files.get(name) for name in head_parameters(config)))


def head_parameters(config: Any) -> tuple[str, ...]:
    """Weight and, where there is one, bias of what sits on the trunk."""
    return (REWARD_HEAD,) if head_of(config) == PM else ("lm_head.weight", "lm_head.bias")


def project(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """float32 [T, V]: the output projection of float32 [T, D], widened some rows of the weight at a time."""
    if bias is None:
        return nn.functional.linear(hidden, weight.float())
    parts = zip(weight.split(_HEAD_ROWS), bias.split(_HEAD_ROWS))
    return torch.cat([nn.functional.linear(hidden, rows.float(), part.float()) for rows, part in parts], dim=-1)


class _Files:
    """Tensors of the sharded safetensors of a directory, by name."""

    def __init__(self, directory: Path):
        self.directory = directory
        index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
        self.weight_map: dict[str, str] = index["weight_map"]

    def get(self, name: str) -> torch.Tensor:
        if name not in self.weight_map:
            raise CheckpointError(f"{self.directory}: {name} is not among the weights")
        with safe_open(self.directory / self.weight_map[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def compare(expected: torch.Tensor, found: torch.Tensor, directory: Path) -> float:
    """The largest difference of two sets of logits, as a share of the largest logit.

    Raises:
        CheckpointError: It is more than rounding.
    """
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-6))
    # Written this way round, so that what is not a number fails.
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{directory}: opened again, the export gives logits that differ from the model's by {difference:.1e} of the largest; "
            f"expected at most {TOLERANCE:.0e}. It is not kept; the disk or the memory may be damaged"
        )
    return difference
