"""Causal attention over packed documents, by the name of its backend.

Shape legend: B batch (rows), T tokens of a row, S keys (past and present), N heads, H head_dim.

Two situations:

* *packed*: `documents` gives the boundaries over the flattened B*T tokens. A token attends to the earlier tokens of its own document
  only, and on every backend a change in one document leaves the output of the others equal to the last bit. Nothing depends on a mask
  that a kernel may or may not honour: a backend either receives the boundaries or works on one document at a time.
* *dense*: rows with left padding or a key cache, that is generation. A boolean mask [B, 1, T, S] says what may be attended to.

Backends:

* `sdpa`: torch's scaled_dot_product_attention, document by document. Exact, any device and precision.
* `varlen`: torch.nn.attention.varlen, the flash kernel that ships with torch; CUDA, float16 or bfloat16.
* `flash_attention_2`: the flash-attn package; the same conditions.
* `eager`: float32 scores and a block-diagonal mask, as the published implementation computes them. The reference; memory grows with T².
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import itertools
import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from moss_train.errors import UsageError
from moss_train.model.linear import widens

BACKENDS = ("auto", "eager", "sdpa", "flash_attention_2", "varlen")

FLASH_MAX_HEAD_DIM = 256
"""Both flash kernels refuse larger heads (flash-attn README, "head dimensions up to 256")."""

FLASH_HEAD_DIM_MULTIPLE = 8
"""The kernels load 16 bytes at a time: other head sizes are filled up with zeros, which change neither scores nor output."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a packed batch begin and end.

    Attributes:
        boundaries: Ascending positions over the flattened B*T tokens, from 0 to B*T; the end of every row is among them.
        lengths: Tokens of each document.
        cu_seqlens: `boundaries` as int32 on the device of the model, for the flash kernels.
    """

    boundaries: list[int]
    lengths: list[int]
    cu_seqlens: torch.Tensor

    @property
    def max_length(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: torch.Tensor, rows: int, seq_len: int, device: torch.device) -> Documents:
        """Check boundaries and bring them to the device.

        Args:
            cu_seqlens: int32 [documents + 1], best on the CPU (elsewhere reading it waits for the device).
            rows: B.
            seq_len: T.
            device: Where attention runs.

        Raises:
            ValueError: They do not go from 0 to B*T in ascending order, or a row ends inside a document.
        """
        boundaries: list[int] = cu_seqlens.tolist()
        lengths = [end - start for start, end in itertools.pairwise(boundaries)]
        if not lengths or boundaries[0] != 0 or boundaries[-1] != rows * seq_len or min(lengths) <= 0:
            raise ValueError(f"cu_seqlens must ascend from 0 to {rows} rows x {seq_len} tokens = {rows * seq_len}, found {boundaries}")
        crossed = sorted(set(range(seq_len, rows * seq_len, seq_len)).difference(boundaries))
        if crossed:
            raise ValueError(f"cu_seqlens: a document crosses the end of a row of {seq_len} tokens at {crossed}; found {boundaries}")
        return cls(boundaries, lengths, cu_seqlens.to(device=device, dtype=torch.int32, non_blocking=True))

    def position_ids(self, rows: int) -> torch.Tensor:
        """Positions that restart with each document: int64 [B, T] on the device of `cu_seqlens`."""
        device = self.cu_seqlens.device
        starts = torch.repeat_interleave(
            torch.tensor(self.boundaries[:-1], device=device), torch.tensor(self.lengths, device=device), output_size=self.boundaries[-1]
        )
        return (torch.arange(self.boundaries[-1], device=device) - starts).view(rows, -1)

    def block_diagonal_mask(self, rows: int) -> torch.Tensor:
        """Dense form of the same rule: bool [B, 1, T, T], true where a query (rows) may see a key (columns)."""
        device = self.cu_seqlens.device
        document = torch.repeat_interleave(
            torch.arange(len(self.lengths), device=device), torch.tensor(self.lengths, device=device), output_size=self.boundaries[-1]
        ).view(rows, -1)
        same = document[:, :, None] == document[:, None, :]
        return same.tril_()[:, None]


def causal_mask(attention_mask: torch.Tensor | None, query_length: int, key_length: int, device: torch.device) -> torch.Tensor | None:
    """Mask of the dense case.

    Args:
        attention_mask: [B, S], non-zero where a token is real; or an already causal [B, 1, T, S] (bool, or additive float); or None.
        query_length: T, the last T of the S positions.
        key_length: S.
        device: Where attention runs.

    Returns:
        bool [B or 1, 1, T, S], or None where plain causal attention over T = S tokens, or one query that sees every key, says the same.
        A padding query sees at least itself, so that its row of the softmax is finite; no real token ever sees it.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    if attention_mask is not None and attention_mask.shape[-1] != key_length:
        raise ValueError(f"attention_mask covers {attention_mask.shape[-1]} tokens; the query and its cached past have {key_length}")
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not padded and query_length in (1, key_length):
        return None
    queries = torch.arange(key_length - query_length, key_length, device=device)[:, None]
    keys = torch.arange(key_length, device=device)[None, :]
    mask = (keys <= queries)[None, None]
    if padded:
        assert attention_mask is not None
        mask = (mask & attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]) | (keys == queries)
    return mask


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    """Choose the backend for packed rows, or refuse one that cannot work here.

    Args:
        name: One of `BACKENDS`.
        device: Where the model runs.
        dtype: Type of the activations.
        head_dim: H.

    Returns:
        The name of a backend other than `auto`, and the reason as a sentence.

    Raises:
        UsageError: The name is unknown, or the backend cannot run on this device, precision or head size.
    """
    return _resolve(name, device.type, device.index, dtype, head_dim)


_CPU_LENGTH_STEP = 64
"""Lengths of documents are rounded up to a multiple of this where kernels are compiled by length: a kernel takes 2 to 30 ms and 0.2 MiB,
up to 1,024 of them are kept, and every batch brings new lengths."""
_CPU_FLOAT32_LENGTH, _CPU_FLOAT32_HEAD_DIM = 512, 64
"""On a CPU, heads and documents up to these sizes are attended to in float32: the backward pass of torch's kernel takes 2.5 (512 tokens) to
7 times (64 tokens) as long in bfloat16, whatever the processor multiplies, since it prepares blocks of 512 keys for each document."""


@functools.lru_cache(maxsize=64)
def _resolve(name: str, device_type: str, device_index: int | None, dtype: torch.dtype, head_dim: int) -> tuple[str, str]:
    if name not in BACKENDS:
        raise UsageError(f"model.attention: unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    if name in ("eager", "sdpa"):
        return name, f"{name} was asked for; it runs on every device and precision."
    if name != "auto":
        obstacle = _flash_obstacle(name, device_type, device_index, dtype, head_dim)
        if obstacle:
            raise UsageError(
                f"model.attention={name} cannot be used here: {obstacle}. Use model.attention=sdpa (exact, any device) or auto."
            )
        return name, f"{name} was asked for and runs here."
    if device_type != "cuda":
        return "sdpa", f"sdpa, document by document: the exact and fastest choice on {device_type}."
    obstacles = []
    for candidate in ("varlen", "flash_attention_2"):
        obstacle = _flash_obstacle(candidate, device_type, device_index, dtype, head_dim)
        if obstacle is None:
            return (
                candidate,
                f"{candidate}: a flash kernel that takes the document boundaries, {str(dtype).removeprefix('torch.')} on CUDA.",
            )
        obstacles.append(f"{candidate}: {obstacle}")
    return "sdpa", f"sdpa, document by document, since no flash kernel can be used ({'; '.join(obstacles)})."


def _flash_obstacle(name: str, device_type: str, device_index: int | None, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why a flash backend cannot run, or None."""
    if device_type != "cuda":
        return f"it needs a CUDA device, the model is on {device_type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs bfloat16 or float16, the model is {str(dtype).removeprefix('torch.')}"
    if head_dim > FLASH_MAX_HEAD_DIM:
        return f"it takes heads of at most {FLASH_MAX_HEAD_DIM}, this model has {head_dim}"
    capability = torch.cuda.get_device_capability(device_index)
    if capability < (8, 0):
        return f"it needs compute capability 8.0 (Ampere) or newer, the device has {capability[0]}.{capability[1]}"
    if name == "varlen" and importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} does not have torch.nn.attention.varlen"
    if name == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed (pip install 'moss-train[gpu]')"
    return None


def check_dropout(backend: str, dropout: float) -> None:
    """Refuse attention dropout where the kernel has none, instead of dropping nothing in silence."""
    if dropout > 0.0 and backend == "varlen":
        raise UsageError(
            f"attn_pdrop={dropout}: model.attention=varlen has no dropout; use sdpa or flash_attention_2, or set attn_pdrop to 0"
        )


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    backend: str,
    documents: Documents | None = None,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention, packed (`documents`) or dense (`mask`).

    Args:
        q: [B, T, N, H], rotated; float32 or the type of `v`.
        k: [B, S, N, H], rotated; S = T when packed.
        v: [B, S, N, H].
        backend: A resolved name. The flash backends serve packed rows; a dense mask goes to `sdpa` under them.
        documents: Boundaries of the packed batch, or None.
        mask: Of the dense case, from `causal_mask`; or, packed with `eager`, `Documents.block_diagonal_mask`, shared by all layers.
        dropout: Probability of dropping an attention weight.

    Returns:
        [B, T, N, H] in the type of `v`.
    """
    if backend == "eager":
        if mask is None and documents is not None:
            mask = documents.block_diagonal_mask(q.shape[0])
        return _attend_eager(q, k, v, mask, dropout)
    if widens(v):
        # torch's kernel multiplies bfloat16 as slowly as everything else does on such a processor.
        return attend(q.float(), k.float(), v.float(), backend=backend, documents=documents, mask=mask, dropout=dropout).to(v.dtype)
    q, k = q.to(v.dtype), k.to(v.dtype)
    if documents is None:
        return _attend_dense(q, k, v, mask, dropout)
    if backend == "sdpa":
        return _attend_by_document(q, k, v, documents, dropout)
    flat = [x.flatten(0, 1) for x in (q, k, v)]
    head_dim = v.shape[-1]
    missing = -head_dim % FLASH_HEAD_DIM_MULTIPLE
    if missing:
        flat = [F.pad(x, (0, missing)) for x in flat]
    kernel = _attend_varlen if backend == "varlen" else _attend_flash_attn
    out = kernel(*flat, documents=documents, scale=1.0 / math.sqrt(head_dim), dropout=dropout)
    return out[..., :head_dim].view_as(v) if not missing else out[..., :head_dim].reshape(v.shape)


def _attend_eager(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """Scores and softmax in float32, weights cast to the type of the values, as the published implementation computes them."""
    query_length, key_length = q.shape[1], k.shape[1]
    if mask is None:
        mask = torch.ones(query_length, key_length, dtype=torch.bool, device=q.device).tril_(key_length - query_length)
    scores = torch.matmul(q.float().transpose(1, 2), k.float().permute(0, 2, 3, 1)) / math.sqrt(v.shape[-1])
    # The smallest finite number, not -inf: its exponential is an exact 0 all the same, and a row that sees nothing stays finite.
    scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = F.dropout(torch.softmax(scores, dim=-1).to(v.dtype), dropout)
    return torch.matmul(weights, v.transpose(1, 2)).transpose(1, 2)


def _attend_dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    if _is_short(v, max(q.shape[1], k.shape[1])):
        return _attend_dense(q.float(), k.float(), v.float(), mask, dropout).to(v.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    is_causal = mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal).transpose(1, 2)


def _is_short(v: torch.Tensor, length: int) -> bool:
    """Whether attention over so many tokens is faster in float32."""
    is_narrow = v.device.type == "cpu" and v.dtype != torch.float32
    return is_narrow and length <= _CPU_FLOAT32_LENGTH and v.shape[-1] <= _CPU_FLOAT32_HEAD_DIM


def _attend_by_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents, dropout: float) -> torch.Tensor:
    """One causal call for each document; one call for all where they are equally long (pretraining rows)."""
    if len(set(documents.lengths)) == 1:
        shape = (len(documents.lengths), documents.lengths[0], *v.shape[2:])
        return _attend_dense(q.reshape(shape), k.reshape(shape), v.reshape(shape), None, dropout).reshape(v.shape)
    if _is_short(v, documents.max_length):
        # Cast as a whole: casting document by document takes longer than attention over a few short ones.
        return _attend_by_document(q.float(), k.float(), v.float(), documents, dropout).to(v.dtype)
    # `split`, not slices: its backward is one concatenation, while each slice would write a gradient as large as the whole batch.
    parts = zip(*(x.flatten(0, 1).split(documents.lengths) for x in (q, k, v)))
    # oneDNN compiles and keeps kernels for every length it meets; float32 does not go through it.
    compiles = v.device.type == "cpu" and v.dtype != torch.float32
    outputs = []
    for part in parts:
        length = len(part[0])
        step = _CPU_LENGTH_STEP if compiles and not _is_short(v, length) else 1
        # Padding stands behind every query that counts, where a causal mask hides it.
        qd, kd, vd = (F.pad(x, (0, 0, 0, 0, 0, -length % step))[None] if length % step else x[None] for x in part)
        outputs.append(_attend_dense(qd, kd, vd, None, dropout)[0, :length])
    return torch.cat(outputs).view(v.shape)


def _attend_varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, documents: Documents, scale: float, dropout: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    check_dropout("varlen", dropout)
    # torch 2.10 has `is_causal`; later ones say the same with a window that reaches back without limit.
    causal = {"is_causal": True} if "is_causal" in inspect.signature(varlen_attn).parameters else {"window_size": (-1, 0)}
    cu_seqlens, longest = documents.cu_seqlens, documents.max_length
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scale, **causal)
    assert isinstance(out, torch.Tensor)
    return out


def _attend_flash_attn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, documents: Documents, scale: float, dropout: float
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    cu_seqlens, longest = documents.cu_seqlens, documents.max_length
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, dropout_p=dropout, softmax_scale=scale, causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
