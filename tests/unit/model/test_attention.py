"""Packed attention: right, isolated to the last bit, and refused where it cannot be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from moss_train.errors import UsageError
from moss_train.model.attention import Documents, attend, causal_mask, resolve_backend
from moss_train.model.codegen import CodeGenLM, set_attention

CPU = torch.device("cpu")
BACKENDS = ["eager", "sdpa"]
# Two rows of 48 tokens, with short documents, a document of one token and padding at the end of the second row.
BOUNDARIES = [0, 7, 8, 33, 48, 71, 90, 96]
CU_SEQLENS = torch.tensor(BOUNDARIES, dtype=torch.int32)


def make_qkv(head_dim: int, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 48, 4, head_dim, generator=generator).to(dtype) for _ in range(3)]


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Each document alone, in float64, written out."""
    q, k, v = (x.double().flatten(0, 1) for x in (q, k, v))
    out = torch.empty_like(v)
    for start, end in itertools.pairwise(BOUNDARIES):
        for i in range(start, end):
            scores = torch.einsum("nh,snh->ns", q[i], k[start : i + 1]) / math.sqrt(q.shape[-1])
            out[i] = torch.einsum("ns,snh->nh", scores.softmax(-1), v[start : i + 1])
    return out.view(2, 48, *v.shape[1:])


@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_computes_attention_of_each_document(backend: str, head_dim: int) -> None:
    qkv = make_qkv(head_dim, torch.float32)
    documents = Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, CPU)
    torch.testing.assert_close(attend(*qkv, backend=backend, documents=documents).double(), reference(*qkv), atol=2e-6, rtol=1e-5)
    low = make_qkv(head_dim, torch.bfloat16)
    torch.testing.assert_close(attend(*low, backend=backend, documents=documents).double(), reference(*low), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equally_long_documents_take_one_call_and_give_the_same(backend: str) -> None:
    qkv = make_qkv(64, torch.float32)
    found = attend(*qkv, backend=backend, documents=Documents.from_cu_seqlens(torch.arange(0, 97, 12, dtype=torch.int32), 2, 48, CPU))
    alone = [attend(*(x[:, i : i + 12] for x in qkv), backend=backend) for i in range(0, 48, 12)]
    torch.testing.assert_close(found, torch.cat(alone, dim=1), atol=1e-6, rtol=1e-5)


def test_gradients_of_the_backends_agree() -> None:
    documents = Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, CPU)
    gradients = []
    for backend in BACKENDS:
        qkv = [x.requires_grad_() for x in make_qkv(80, torch.float32)]
        out = attend(*qkv, backend=backend, documents=documents)
        out.backward(torch.sin(torch.arange(out.numel()).float()).view(out.shape))
        gradients.append([x.grad for x in qkv])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_of_one_document_leaves_the_others_bit_equal(
    make_model: Callable[..., CodeGenLM], backend: str, dtype: torch.dtype, head_dim: int
) -> None:
    model = make_model(head_dim, dtype).eval()
    set_attention(model, backend)
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 307, (2, 48), generator=generator)
    with torch.no_grad():
        before = model(input_ids, cu_seqlens=CU_SEQLENS).logits.flatten(0, 1)
        for position in (0, 6, 7, 20, 47, 60, 95):
            changed = input_ids.flatten().clone()
            changed[position] = (changed[position] + 101) % 307
            after = model(changed.view(2, 48), cu_seqlens=CU_SEQLENS).logits.flatten(0, 1)
            start, end = next((s, e) for s, e in itertools.pairwise(BOUNDARIES) if s <= position < e)
            assert torch.equal(before[:start], after[:start])
            assert torch.equal(before[end:], after[end:])
            assert torch.equal(before[start:position], after[start:position]), "causal inside the document"
            assert not torch.equal(before[position:end], after[position:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_isolation_of_documents_longer_than_the_kernels_blocks(backend: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(1, 1500, 2, 64, generator=generator).to(dtype) for _ in range(3)]
    documents = Documents.from_cu_seqlens(torch.tensor([0, 610, 1321, 1500], dtype=torch.int32), 1, 1500, CPU)
    before = attend(*qkv, backend=backend, documents=documents)[0]
    for x in qkv:
        x[0, 700] += 1.0
    after = attend(*qkv, backend=backend, documents=documents)[0]
    assert torch.equal(before[:700], after[:700])
    assert torch.equal(before[1321:], after[1321:])
    assert not torch.equal(before[700:1321], after[700:1321])


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_a_number_stays_in_its_document(backend: str) -> None:
    qkv = make_qkv(64, torch.float32)
    documents = Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, CPU)
    before = attend(*qkv, backend=backend, documents=documents).flatten(0, 1)
    qkv[0].view(96, 4, 64)[40] = qkv[1].view(96, 4, 64)[40] = float("nan")
    after = attend(*qkv, backend=backend, documents=documents).flatten(0, 1)
    assert torch.equal(before[:33], after[:33])
    assert torch.equal(before[48:], after[48:])


def test_positions_restart_and_the_mask_is_block_diagonal() -> None:
    documents = Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, CPU)
    expected = torch.cat([torch.arange(e - s) for s, e in itertools.pairwise(BOUNDARIES)]).view(2, 48)
    assert torch.equal(documents.position_ids(2), expected)
    mask = documents.block_diagonal_mask(2)
    assert mask.shape == (2, 1, 48, 48)
    for row in range(2):
        for query in range(48):
            first = max(b for b in BOUNDARIES if b <= row * 48 + query) - row * 48
            assert mask[row, 0, query].nonzero().flatten().tolist() == list(range(first, query + 1))


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [([0, 50, 96], "crosses the end"), ([0, 48], "ascend"), ([0, 48, 48, 96], "ascend"), ([1, 48, 96], "ascend"), ([0], "ascend")],
)
def test_wrong_boundaries_are_refused(boundaries: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Documents.from_cu_seqlens(torch.tensor(boundaries, dtype=torch.int32), 2, 48, CPU)


def test_dense_mask() -> None:
    assert causal_mask(None, 5, 5, CPU) is None
    assert causal_mask(torch.ones(2, 9), 1, 9, CPU) is None
    chunk = causal_mask(None, 2, 5, CPU)
    assert chunk is not None
    assert chunk[0, 0].int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    padded = causal_mask(torch.tensor([[0, 0, 1, 1]]), 4, 4, CPU)
    assert padded is not None
    assert padded[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="covers 3 tokens"):
        causal_mask(torch.ones(1, 3), 1, 4, CPU)


def test_resolution_says_why_and_refuses_what_cannot_run() -> None:
    assert resolve_backend("auto", CPU, torch.bfloat16, 64) == (
        "sdpa",
        "sdpa, document by document: the exact and fastest choice on cpu.",
    )
    assert resolve_backend("eager", CPU, torch.float32, 64)[0] == "eager"
    for name in ("varlen", "flash_attention_2"):
        with pytest.raises(UsageError, match=rf"model.attention={name} cannot be used here: it needs a CUDA device.*sdpa"):
            resolve_backend(name, CPU, torch.bfloat16, 64)
    cuda = torch.device("cuda", 0)
    with pytest.raises(UsageError, match="needs bfloat16 or float16, the model is float32"):
        resolve_backend("varlen", cuda, torch.float32, 64)
    with pytest.raises(UsageError, match="heads of at most 256, this model has 320"):
        resolve_backend("flash_attention_2", cuda, torch.bfloat16, 320)
    backend, reason = resolve_backend("auto", cuda, torch.float32, 64)
    assert backend == "sdpa"
    assert "varlen: it needs bfloat16" in reason
    with pytest.raises(UsageError, match="unknown backend 'flash'"):
        resolve_backend("flash", CPU, torch.float32, 64)


def test_set_attention_takes_known_names_only(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model()
    with pytest.raises(UsageError, match="choose one of auto, eager, sdpa"):
        set_attention(model, "flash")
    set_attention(model, "varlen")
    with pytest.raises(UsageError, match="needs a CUDA device"):
        model(torch.ones(1, 4, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [20, 64, 80, 256])
@pytest.mark.parametrize("backend", ["varlen", "flash_attention_2"])
def test_flash_kernels_on_cuda(backend: str, head_dim: int) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    device = torch.device("cuda", 0)
    assert resolve_backend(backend, device, torch.bfloat16, head_dim)[0] == backend
    documents = Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, device)
    low = make_qkv(head_dim, torch.bfloat16)
    expected_inputs = [x.float().requires_grad_() for x in low]
    expected = attend(*expected_inputs, backend="sdpa", documents=Documents.from_cu_seqlens(CU_SEQLENS, 2, 48, CPU))
    found_inputs = [x.to(device).requires_grad_() for x in low]
    found = attend(*found_inputs, backend=backend, documents=documents)
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-2, rtol=2e-2)
    direction = torch.sin(torch.arange(expected.numel()).float()).view(expected.shape)
    expected.backward(direction)
    found.backward(direction.to(device, torch.bfloat16))
    for a, b in zip(found_inputs, expected_inputs):
        error = (a.grad.float().cpu() - b.grad).norm() / b.grad.norm()
        assert error < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("backend", ["sdpa", "eager", "varlen", "flash_attention_2"])
def test_isolation_on_cuda(make_model: Callable[..., CodeGenLM], backend: str, head_dim: int) -> None:
    if backend == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = make_model(head_dim, torch.bfloat16).eval().cuda()
    set_attention(model, backend)
    input_ids = torch.randint(0, 307, (2, 48), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        before = model(input_ids, cu_seqlens=CU_SEQLENS).logits.flatten(0, 1)
        input_ids[0, 20] = (input_ids[0, 20] + 101) % 307
        after = model(input_ids, cu_seqlens=CU_SEQLENS).logits.flatten(0, 1)
    assert torch.equal(before[:20], after[:20])
    assert torch.equal(before[33:], after[33:])
    assert not torch.equal(before[20:33], after[20:33])


@pytest.mark.gpu
def test_auto_on_cuda_is_a_flash_kernel() -> None:
    backend, reason = resolve_backend("auto", torch.device("cuda", 0), torch.bfloat16, 256)
    assert backend in ("varlen", "flash_attention_2"), reason
