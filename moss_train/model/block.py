"""One layer of the decoder: LayerNorm, then attention and MLP side by side.

Shape legend: B batch (rows), T tokens of a row, S keys (past and present), D hidden_size, N heads, H head_dim, R rotary_dim.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import CodeGenConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache

from moss_train.model.attention import Documents, attend
from moss_train.model.linear import Linear, widens
from moss_train.model.rotary import split_and_rotate


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: CodeGenConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.num_heads = config.n_head
        self.dropout = float(config.attn_pdrop)
        self.qkv_proj = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.out_proj = Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        sin: torch.Tensor,
        cos: torch.Tensor,
        backend: str,
        documents: Documents | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]; for the arguments see `Block`."""
        qkv = self.qkv_proj(hidden_states)
        # The reference scores in float32 from the unrounded rotation; the fast kernels take q and k in the type of v, where the
        # processor multiplies it.
        dtype = torch.float32 if backend == "eager" or widens(qkv) else qkv.dtype
        q, k, v = split_and_rotate(qkv, self.num_heads, sin, cos, dtype)
        if past_key_values is not None:
            k, v = past_key_values.update(k.to(v.dtype).transpose(1, 2), v.transpose(1, 2), self.layer)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        out = attend(q, k, v, backend=backend, documents=documents, mask=attention_mask, dropout=dropout)
        return self.resid_dropout(self.out_proj(out.flatten(-2)))


class MLP(nn.Module):
    """fc_in, activation, fc_out."""

    def __init__(self, config: CodeGenConfig):
        super().__init__()
        inner = config.n_inner or 4 * config.n_embd
        self.fc_in = Linear(config.n_embd, inner)
        self.fc_out = Linear(inner, config.n_embd)
        # gelu_new is the tanh approximation in eight operations; torch has it as one, which keeps one tensor for the backward pass.
        tanh_gelu = config.activation_function in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
        self.act = nn.GELU(approximate="tanh") if tanh_gelu else ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.dropout(self.fc_out(self.act(self.fc_in(hidden_states))))


class Block(nn.Module):
    """One layer. Call it with the hidden states positional and the rest by keyword: tools that hook blocks rely on it."""

    def __init__(self, config: CodeGenConfig, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        sin: torch.Tensor,
        cos: torch.Tensor,
        backend: str,
        documents: Documents | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """One layer over a batch.

        Args:
            hidden_states: [B, T, D].
            sin: float32 [B or 1, T, 1, R/2], of each token's position.
            cos: The same shape.
            backend: A resolved attention backend.
            documents: Boundaries of packed rows, or None.
            attention_mask: bool [B or 1, 1, T, S], or None; see `attention.attend`.
            past_key_values: Key cache, extended in place, or None.

        Returns:
            [B, T, D].
        """
        normed = self.ln_1(hidden_states)
        attended = self.attn(
            normed,
            sin=sin,
            cos=cos,
            backend=backend,
            documents=documents,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        # This order of addition, as in the published code: in bfloat16 another order gives other bits.
        return attended + self.mlp(normed) + hidden_states
