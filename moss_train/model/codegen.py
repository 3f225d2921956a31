"""The decoder of the MOSS family, once, for every stage: CodeGen (GPT-J shaped), with the parameter names of transformers' CodeGen.

Each block has one LayerNorm and two branches, attention and MLP, that are added to the residual in this order: attention + mlp +
residual. The query, value and key rows of `qkv_proj` lie in 4 blocks, each ordered q, v, k (the layout of the TPU cores it was first
trained on). The first `rotary_dim` entries of each head of q and k are rotated in interleaved pairs. The output projection has a bias and
is not tied. Source: salesforce/CodeGen `codegen1/jaxformer/hf/codegen/modeling_codegen.py`; OpenMOSS/MOSS `models/modeling_moss.py`.

Shape legend: B batch (rows), T tokens of a row, S keys (past and present), D hidden_size, N heads, H head_dim, R rotary_dim, V vocabulary,
M supervised tokens.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import CodeGenConfig, GenerationMixin
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from moss_train.errors import UsageError
from moss_train.model.attention import BACKENDS, Documents, causal_mask, check_dropout, resolve_backend
from moss_train.model.block import Block
from moss_train.model.linear import Linear, linear
from moss_train.model.loss import IGNORE_INDEX, HeadLoss, linear_cross_entropy
from moss_train.model.objective import LossOutput, Rows, loss_metrics
from moss_train.model.pretrained import CodeGenPreTrained, require_process_group, seeded_initialization
from moss_train.model.rotary import build_rotary_table
from moss_train.model.shapes import config_problems, count_parameters, parameter_shapes

__all__ = [
    "Block",
    "CodeGenLM",
    "CodeGenModel",
    "LMHead",
    "LossOutput",
    "count_parameters",
    "init_model",
    "parameter_shapes",
    "set_attention",
]

STOCK_ARCHITECTURE = "CodeGenForCausalLM"
"""The class that other programs load an export with."""


class CodeGenModel(nn.Module):
    """Token embeddings, the blocks and the last LayerNorm: the trunk that every head sits on.

    Attributes:
        attention: Name of the backend that was asked for; see `set_attention`.
        recompute: How many blocks, the first ones, keep only their input for the backward pass.
    """

    rotary_table: torch.Tensor

    def __init__(self, config: CodeGenConfig):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([Block(config, layer) for layer in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.register_buffer("rotary_table", build_rotary_table(config.n_positions, config.rotary_dim), persistent=False)
        self.attention = "auto"
        self.recompute = 0

    def _apply(self, fn: Any, recurse: bool = True) -> CodeGenModel:
        """Keep the rotary table in float32 through `.to(bfloat16)`, `.half()` and the like; devices are followed."""
        super()._apply(fn, recurse)
        if self.rotary_table.dtype != torch.float32:
            table = build_rotary_table(self.config.n_positions, self.config.rotary_dim)
            self.rotary_table = table.to(self.rotary_table.device)
        return self

    def _look_up_rotation(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sines and cosines of positions [B or 1, T], each float32 [B or 1, T, 1, R/2]."""
        if self.rotary_table.device != position_ids.device:
            self.rotary_table = self.rotary_table.to(position_ids.device)
        sin, cos = self.rotary_table[position_ids][:, :, None, :].chunk(2, dim=-1)
        return sin, cos

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Hidden states after the last LayerNorm.

        Args:
            input_ids: int64 [B, T].
            cu_seqlens: int32 [documents + 1] on the CPU for packed rows; not together with a mask or a cache.
            position_ids: int64 [B, T]; by default counted in each document, or over the real tokens of `attention_mask`.
            attention_mask: [B, S], zero at padding, or [B, 1, T, S]; for generation.
            past_key_values: Key cache.

        Returns:
            [B, T, D].
        """
        rows, seq_len = input_ids.shape
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        hidden_states = self.drop(self.wte(input_ids))
        device, head_dim = input_ids.device, self.config.n_embd // self.config.n_head
        backend, _ = resolve_backend(self.attention, device, hidden_states.dtype, head_dim)
        check_dropout(backend, self.config.attn_pdrop if self.training else 0.0)
        documents: Documents | None = None
        mask: torch.Tensor | None = None
        if cu_seqlens is not None:
            if attention_mask is not None or past_key_values is not None:
                raise ValueError("cu_seqlens packs whole documents: it cannot be combined with attention_mask or past_key_values")
            documents = Documents.from_cu_seqlens(cu_seqlens, rows, seq_len, device)
            longest = documents.max_length
            mask = documents.block_diagonal_mask(rows) if backend == "eager" else None
            position_ids = documents.position_ids(rows) if position_ids is None else position_ids
        else:
            longest = past + seq_len
            mask = causal_mask(attention_mask, seq_len, longest, device)
            if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_(min=0)[:, -seq_len:].to(device)
            elif position_ids is None:
                position_ids = torch.arange(past, past + seq_len, device=device)[None]
        if longest > self.config.n_positions:
            raise UsageError(
                f"a document of {longest} tokens is longer than the {self.config.n_positions} positions of the model (n_positions)"
            )
        sin, cos = self._look_up_rotation(position_ids)
        context: dict[str, Any] = {"sin": sin, "cos": cos, "backend": backend, "documents": documents, "attention_mask": mask}
        recompute = self.recompute if self.training and torch.is_grad_enabled() and past_key_values is None else 0
        for layer, block in enumerate(self.h):
            if layer < recompute:
                hidden_states = checkpoint(block, hidden_states, use_reentrant=False, preserve_rng_state=self._has_dropout, **context)
            else:
                hidden_states = block(hidden_states, past_key_values=past_key_values, **context)
        return self.ln_f(hidden_states)

    @property
    def _has_dropout(self) -> bool:
        return self.config.attn_pdrop > 0 or self.config.resid_pdrop > 0


class LMHead(Linear):
    """Output projection with bias; with targets, the loss, inside this forward because ZeRO-3 gathers the weight only here."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        targets: torch.Tensor | None = None,
        row_weights: torch.Tensor | None = None,
        z_loss: float = 0.0,
        token_weights: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[HeadLoss, torch.Tensor]:
        """Logits, or the loss.

        Args:
            hidden_states: [B, T, D].
            targets: int64 [B, T], already shifted, `IGNORE_INDEX` where not supervised; or None.
            row_weights: float32 [B], weight of a row's tokens in loss_sum; by default 1 each.
            z_loss: Coefficient of the z-loss in loss_sum.
            token_weights: float32 [B, T], instead of row_weights.

        Returns:
            Without targets the logits [B, T, V] in the type of the weights. With them the losses and token_index [M]; tokens without a
            target never reach the matrix product.
        """
        if targets is None:
            return linear(hidden_states, self.weight, self.bias)
        flat = targets.reshape(-1)
        token_index = torch.nonzero(flat != IGNORE_INDEX).squeeze(1)
        supervised = hidden_states.flatten(0, 1).index_select(0, token_index)
        weight = None if row_weights is None else row_weights.to(flat.device, torch.float32)[token_index // targets.shape[1]]
        if token_weights is not None:
            weight = token_weights.reshape(-1)[token_index]
        losses = linear_cross_entropy(supervised, self.weight, self.bias, flat[token_index], token_weight=weight, z_loss=z_loss)
        return losses, token_index


class CodeGenLM(CodeGenPreTrained, GenerationMixin):
    """The language model: trunk and output projection. Exports of it open with stock transformers."""

    def __init__(self, config: CodeGenConfig):
        problems = config_problems(config)
        if problems:
            raise UsageError("this model cannot be built:\n" + "\n".join(f"  - {problem}" for problem in problems))
        super().__init__(config)
        self.transformer = CodeGenModel(config)
        self.lm_head = LMHead(config.n_embd, config.vocab_size)
        self._z_loss = 0.0
        self._loss_groups: dict[str, tuple[int, ...]] = {}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.lm_head

    def set_z_loss(self, coefficient: float) -> None:
        """Add the z-loss with this coefficient to the objective; 0 takes it out."""
        self._z_loss = coefficient

    def set_loss_groups(self, groups: Mapping[str, Sequence[int]]) -> None:
        """Report the loss of rows by their source: suffix of a metric's name -> numbers of the sources it sums over."""
        self._loss_groups = {name: tuple(sources) for name, sources in groups.items()}

    def save_pretrained(self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any) -> None:
        """As transformers does, with the stock class as the architecture, so that every program can open the directory."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        self.config.architectures = [STOCK_ARCHITECTURE]
        if is_main_process:
            self.config.save_pretrained(save_directory)

    def forward(
        self,
        input_ids: torch.Tensor,
        *,
        targets: torch.Tensor | None = None,
        cu_seqlens: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        row_sources: torch.Tensor | None = None,
        row_weights: torch.Tensor | None = None,
        row_bytes: torch.Tensor | None = None,
        **unused: Any,
    ) -> LossOutput | CausalLMOutputWithPast:
        """Loss with targets, logits without.

        Args:
            input_ids: int64 [B, T].
            targets: int64 [B, T], already shifted, `IGNORE_INDEX` where not supervised; or None.
            cu_seqlens: int32 [documents + 1], on the CPU: boundaries of the documents over the flattened B*T tokens. Padding at the end
                of a row is a document of its own; every row end is a boundary. With targets and without it, each row is one document.
            position_ids: int64 [B, T], restarting with each document; by default counted from the boundaries or the mask.
            attention_mask: [B, S], zero at padding; for generation.
            past_key_values: Key cache of transformers, extended in place.
            use_cache: Make a cache where none is given. None does not, unlike the stock class: evaluation has no use for one.
            logits_to_keep: Only the last so many positions, or those of an index tensor; 0 keeps all.
            row_sources: int64 [B], for the groups of `set_loss_groups`. This and the next two have a meaning with targets only.
            row_weights: float32 [B], weight of a row's tokens in the objective; the metrics are not weighted.
            row_bytes: int64 [B], bytes of the text that the row's targets spell, for bits per byte.
            unused: What transformers' generation passes along (`return_dict`, ...); what would change the result is refused.

        Returns:
            `LossOutput` of sums, or logits [B, T, V] in the type of the weights and the cache.
        """
        _refuse_unsupported(unused)
        if targets is not None and cu_seqlens is None:
            if position_ids is not None:
                raise ValueError("position_ids without cu_seqlens: rows of several documents would attend across them")
            rows, seq_len = input_ids.shape
            cu_seqlens = torch.arange(0, rows * seq_len + 1, seq_len, dtype=torch.int32)
        if targets is None and cu_seqlens is None and use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        hidden_states = self.transformer(
            input_ids,
            cu_seqlens=cu_seqlens,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        if targets is not None:
            losses, token_index = self.lm_head(hidden_states, targets, row_weights, self._z_loss)
            given = Rows(row_sources, row_weights, row_bytes)
            metrics = loss_metrics(losses, token_index, targets, given, self._z_loss, self._loss_groups)
            return LossOutput(losses.loss_sum, losses.token_loss, losses.token_correct, token_index, metrics)
        # A model spread over devices has its last layer elsewhere than the input.
        last = logits_to_keep
        keep: Any = slice(-last or None, None) if isinstance(last, int) else last.to(hidden_states.device)
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_states[:, keep]), past_key_values=past_key_values)


def set_attention(model: nn.Module, name: str) -> None:
    """Ask a model, anything with a `transformer`, for an attention backend; `attention.resolve_backend` says what `auto` becomes."""
    if name not in BACKENDS:
        raise UsageError(f"model.attention: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    trunk = model.transformer
    assert isinstance(trunk, CodeGenModel)
    trunk.attention = name


def _refuse_unsupported(arguments: dict[str, Any]) -> None:
    """Name the arguments of other implementations that would silently do nothing here."""
    harmless = {"return_dict", "cache_position"}
    given = sorted(name for name, value in arguments.items() if name not in harmless and value is not None and value is not False)
    if "labels" in given:
        raise TypeError("CodeGenLM.forward takes `targets`, already shifted by one, not `labels`")
    if given:
        raise TypeError(f"CodeGenLM.forward does not support {', '.join(given)}")


def init_model(config: CodeGenConfig, seed: int, dtype: torch.dtype, model_class: Any = CodeGenLM) -> Any:
    """A new model with random weights that do not depend on the world size.

    Works with and without ZeRO-3: where a live `HfDeepSpeedConfig` says stage 3, transformers builds the modules partitioned and fills
    them one at a time on rank 0, so no rank holds the whole model.

    Args:
        config: Shape of the model.
        seed: The same seed gives the same weights.
        dtype: Type of the weights: the float32 values, rounded.
        model_class: `CodeGenLM`, or `pm.CodeGenPM`.

    Returns:
        The model, in training mode.
    """
    require_process_group()
    with seeded_initialization(seed):
        return model_class._from_config(copy.deepcopy(config), dtype=dtype).train()
