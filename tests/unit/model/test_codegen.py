"""The decoder as a whole: sizes, initial weights, the loss of a packed batch, recomputation, what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import CodeGenConfig
from transformers.cache_utils import DynamicCache

from moss_train.errors import UsageError
from moss_train.model.codegen import CodeGenLM, LossOutput, count_parameters, init_model, parameter_shapes, set_attention
from moss_train.model.loss import IGNORE_INDEX

CU_SEQLENS = torch.tensor([0, 9, 20, 32, 50, 64], dtype=torch.int32)


def make_batch(supervised: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    input_ids = torch.randint(0, 307, (2, 32), generator=generator)
    targets = torch.randint(0, 307, (2, 32), generator=generator)
    targets[torch.rand(2, 32, generator=generator) > supervised] = IGNORE_INDEX
    targets[1, 18:] = IGNORE_INDEX  # the padding document
    return input_ids, targets


@pytest.mark.parametrize(
    ("layers", "heads", "hidden", "rotary_dim", "vocab", "parameters"),
    [
        (20, 16, 1024, 32, 51200, 356_712_448),
        (32, 32, 2560, 64, 51200, 2_779_356_160),
        (33, 16, 4096, 64, 51200, 7_064_213_504),
        (34, 24, 6144, 64, 51200, 16_032_155_648),
        (34, 24, 6144, 64, 107008, 16_717_980_160),
    ],
)
def test_published_sizes(layers: int, heads: int, hidden: int, rotary_dim: int, vocab: int, parameters: int) -> None:
    config = CodeGenConfig(n_layer=layers, n_head=heads, n_embd=hidden, rotary_dim=rotary_dim, vocab_size=vocab)
    assert count_parameters(config) == parameters
    with torch.device("meta"):
        model = CodeGenLM(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == parameter_shapes(config)


def test_inner_size_counts(make_config: Callable[..., CodeGenConfig]) -> None:
    config = make_config(n_inner=40)
    assert count_parameters(config) == sum(p.numel() for p in CodeGenLM(config).parameters())


def test_initial_weights(make_config: Callable[..., CodeGenConfig]) -> None:
    config = make_config(64, initializer_range=0.03)
    model = init_model(config, seed=1, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "ln_" in name:
            assert bool((parameter == 1).all()), name
        else:
            assert abs(float(parameter.detach().std()) - 0.03) < 0.001, name
            assert abs(float(parameter.detach().mean())) < 0.001, name
    same = init_model(config, seed=1, dtype=torch.bfloat16)
    other = init_model(config, seed=2, dtype=torch.float32)
    torch.manual_seed(0)
    for (name, a), b, c in zip(model.named_parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a.bfloat16(), b), name
        assert torch.equal(a, c) == (name.endswith("bias") or "ln_" in name), name
    assert not torch.equal(model.transformer.h[0].mlp.fc_in.weight, model.transformer.h[1].mlp.fc_in.weight)
    assert model.training
    assert config.dtype is None or config.dtype == torch.float32, "the caller's configuration is left as it was"


def test_initial_weights_do_not_depend_on_the_number_of_threads(make_config: Callable[..., CodeGenConfig]) -> None:
    """A table of more than one block of values."""
    config, threads = make_config(vocab_size=70000, n_layer=1), torch.get_num_threads()
    tables = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            tables.append(init_model(config, seed=1, dtype=torch.float32).transformer.wte.weight.detach())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*tables)
    assert abs(float(torch.corrcoef(torch.stack((tables[0].view(-1)[: 2**18], tables[0].view(-1)[2**22 :][: 2**18])))[0, 1])) < 0.01


def test_outside_a_seed_the_weights_follow_torch(make_config: Callable[..., CodeGenConfig]) -> None:
    torch.manual_seed(5)
    first = CodeGenLM(make_config())
    second = CodeGenLM(make_config())
    torch.manual_seed(5)
    again = CodeGenLM(make_config())
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_loss_of_a_packed_batch_is_the_sum_over_its_documents(make_model: Callable[..., CodeGenLM], backend: str) -> None:
    model = make_model()
    set_attention(model, backend)
    input_ids, targets = make_batch()
    out = model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS)
    assert isinstance(out, LossOutput)
    expected, hits = torch.zeros(()), 0
    bounds = CU_SEQLENS.tolist()
    for start, end in itertools.pairwise(bounds):
        ids, wanted = input_ids.flatten()[start:end], targets.flatten()[start:end]
        logits = model(ids[None]).logits[0]
        expected = expected + F.cross_entropy(logits, wanted, reduction="sum")
        hits += int((logits.argmax(-1) == wanted).sum())
    torch.testing.assert_close(out.loss_sum, expected, rtol=1e-6, atol=0)
    supervised = int((targets != IGNORE_INDEX).sum())
    assert out.token_index.tolist() == (targets.flatten() != IGNORE_INDEX).nonzero().flatten().tolist()
    assert out.metrics["loss"] == (out.loss_sum.detach(), supervised)
    assert out.metrics["accuracy"] == (torch.tensor(float(hits)), supervised)
    assert not out.metrics["loss"][0].requires_grad
    # The positions that are counted from the boundaries are those a loader would give.
    positions = torch.cat([torch.arange(e - s) for s, e in itertools.pairwise(bounds)]).view(2, 32)
    given = model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS, position_ids=positions)
    assert torch.equal(given.token_loss, out.token_loss)


def test_without_boundaries_each_row_is_a_document(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model()
    input_ids, targets = make_batch()
    rows = model(input_ids, targets=targets)
    same = model(input_ids, targets=targets, cu_seqlens=torch.tensor([0, 32, 64], dtype=torch.int32))
    assert torch.equal(rows.token_loss, same.token_loss)
    with pytest.raises(ValueError, match="position_ids without cu_seqlens"):
        model(input_ids, targets=targets, position_ids=torch.arange(32)[None].expand(2, 32))


def test_a_batch_without_targets_gives_zero_and_zero_gradients(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model()
    input_ids, _ = make_batch()
    out = model(input_ids, targets=torch.full((2, 32), IGNORE_INDEX), cu_seqlens=CU_SEQLENS)
    out.loss_sum.backward()
    assert out.loss_sum.item() == 0.0
    assert out.metrics["accuracy"][1] == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
def test_recomputation_gives_the_same_gradients(make_model: Callable[..., CodeGenLM], frozen: bool, dtype: torch.dtype) -> None:
    input_ids, targets = make_batch()
    gradients = []
    for recompute, blocks in ((False, None), (True, None), (True, 1)):
        model = make_model(dtype=dtype)
        model.set_recompute(recompute, blocks)
        if frozen:
            model.transformer.requires_grad_(False)
            model.transformer.h[1].mlp.requires_grad_(True)
        model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS).loss_sum.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name
        assert torch.equal(gradient, gradients[2][name]), name


def test_recomputation_is_of_the_first_blocks(make_model: Callable[..., CodeGenLM]) -> None:
    """How often each runs in a step."""
    model = make_model()
    layers = len(model.transformer.h)
    model.set_recompute(True, 1)
    passes = [0] * layers
    for layer, block in enumerate(model.transformer.h):
        block.register_forward_pre_hook(lambda *_, layer=layer: passes.__setitem__(layer, passes[layer] + 1))
    input_ids, targets = make_batch()
    model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS).loss_sum.backward()
    assert passes == [2] + [1] * (layers - 1)
    with pytest.raises(UsageError, match=f"expected 1 to {layers}, the blocks of this model"):
        model.set_recompute(True, layers + 1)


def test_recomputation_keeps_the_same_dropout(make_model: Callable[..., CodeGenLM]) -> None:
    input_ids, targets = make_batch()
    gradients = []
    for recompute in (False, True):
        model = make_model(resid_pdrop=0.2, attn_pdrop=0.1, embd_pdrop=0.1)
        model.set_recompute(recompute)
        torch.manual_seed(0)
        model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS).loss_sum.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_key_cache_gives_the_same_logits_in_pieces(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model().eval()
    input_ids, _ = make_batch()
    whole = model(input_ids).logits
    cache = DynamicCache(config=model.config)
    pieces = [model(part, past_key_values=cache).logits for part in input_ids.split([7, 1, 20, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=2e-6, rtol=1e-5)
    assert model(input_ids, use_cache=True).past_key_values.get_seq_length() == 32
    assert model(input_ids).past_key_values is None


def test_left_padding_changes_nothing_for_the_real_tokens(make_model: Callable[..., CodeGenLM]) -> None:
    input_ids, _ = make_batch()
    mask = torch.ones_like(input_ids)
    mask[0, :11] = 0
    for backend in ("eager", "sdpa"):
        model = make_model().eval()
        set_attention(model, backend)
        padded = model(input_ids, attention_mask=mask).logits
        assert bool(padded.isfinite().all())
        torch.testing.assert_close(padded[0, 11:], model(input_ids[:1, 11:]).logits[0], atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(padded[1], model(input_ids[1:]).logits[0], atol=2e-6, rtol=1e-5)


def test_logits_to_keep(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model().eval()
    input_ids, _ = make_batch()
    whole = model(input_ids).logits
    torch.testing.assert_close(model(input_ids, logits_to_keep=3).logits, whole[:, -3:])
    torch.testing.assert_close(model(input_ids, logits_to_keep=torch.tensor([2, 5])).logits, whole[:, [2, 5]])


def test_long_rows_of_short_documents_are_fine_and_a_long_document_is_refused(make_model: Callable[..., CodeGenLM]) -> None:
    model = make_model(n_positions=20)
    input_ids, targets = make_batch()
    assert model(input_ids, targets=targets, cu_seqlens=CU_SEQLENS).loss_sum > 0
    with pytest.raises(UsageError, match="a document of 32 tokens is longer than the 20 positions"):
        model(input_ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"labels": torch.ones(1, 2)}, "`targets`, already shifted"), ({"output_attentions": True}, "does not support output_attentions")],
)
def test_arguments_that_would_do_nothing_are_refused(make_model: Callable[..., CodeGenLM], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_model()(torch.ones(1, 2, dtype=torch.int64), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 6, "n_embd": 60}, "n_head is 6, expected a multiple of 4"),
        ({"n_embd": 66}, "n_embd is 66, expected a multiple of n_head 4"),
        ({"rotary_dim": 7}, "rotary_dim is 7, expected an even number from 2 to head_dim 16"),
        ({"rotary_dim": 32}, "rotary_dim is 32"),
        ({"activation_function": "gelu_old"}, "activation_function is 'gelu_old'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true"),
    ],
)
def test_impossible_shapes_are_refused(make_config: Callable[..., CodeGenConfig], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CodeGenLM(make_config(**changes))
