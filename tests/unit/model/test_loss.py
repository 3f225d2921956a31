"""The chunked loss equals the plain one, with its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from moss_train.model import loss as loss_module
from moss_train.model.codegen import LMHead
from moss_train.model.loss import IGNORE_INDEX, chunk_size, linear_cross_entropy


def make_inputs(tokens: int, hidden: int = 24, vocab: int = 97, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(tokens, hidden), (vocab, hidden), (vocab,)]
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return [*inputs, torch.randint(0, vocab, (tokens,), generator=generator)]


def plain(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="none")


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(1, 70), chunk=st.integers(1, 80))
def test_float32_equals_the_plain_loss(tokens: int, chunk: int) -> None:
    inputs = make_inputs(tokens)
    losses = plain(*inputs)
    (losses.sum() * 0.37).backward()
    expected = [x.grad for x in inputs[:3]]
    for x in inputs[:3]:
        x.grad = None
    loss_sum, token_loss, correct, _ = linear_cross_entropy(*inputs, chunk_tokens=chunk)
    (loss_sum * 0.37).backward()
    torch.testing.assert_close(token_loss, losses.detach(), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(loss_sum.detach(), losses.detach().sum(), atol=0, rtol=1e-6)
    assert torch.equal(correct, F.linear(*inputs[:3]).argmax(-1) == inputs[3])
    for x, gradient in zip(inputs[:3], expected):
        torch.testing.assert_close(x.grad, gradient, atol=2e-6, rtol=1e-5)


def test_bfloat16_loss_is_that_of_the_logits_and_gradients_are_nearer_than_plain_ones() -> None:
    inputs = make_inputs(200, hidden=64, vocab=301, dtype=torch.bfloat16)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs[:3]]
    F.cross_entropy(F.linear(*exact_inputs), inputs[3], reduction="sum").backward()
    losses = plain(*inputs)
    losses.sum().backward()
    errors_plain = [float((x.grad.double() - e.grad).norm() / e.grad.norm()) for x, e in zip(inputs[:3], exact_inputs)]
    for x in inputs[:3]:
        x.grad = None
    loss_sum, token_loss, *_ = linear_cross_entropy(*inputs, chunk_tokens=32)
    loss_sum.backward()
    torch.testing.assert_close(token_loss, losses.detach(), atol=1e-5, rtol=1e-6)
    for x, exact, error_plain in zip(inputs[:3], exact_inputs, errors_plain):
        assert x.grad.dtype == torch.bfloat16
        error = float((x.grad.double() - exact.grad).norm() / exact.grad.norm())
        assert error < max(1.05 * error_plain, 4e-3)


def test_weight_gradient_accumulates_in_float32_over_many_chunks() -> None:
    """2,048 chunks of one token: in bfloat16 the running sum would stop growing after a few hundred."""
    hidden = torch.ones(2048, 4, dtype=torch.bfloat16)
    weight = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.bfloat16, requires_grad=True)
    loss_sum, *_ = linear_cross_entropy(hidden, weight, bias, torch.zeros(2048, dtype=torch.int64), chunk_tokens=1)
    loss_sum.backward()
    torch.testing.assert_close(weight.grad.float(), torch.tensor([-2.0, 1.0, 1.0])[:, None].expand(3, 4) * 2048 / 3, rtol=4e-3, atol=0)
    torch.testing.assert_close(bias.grad.float(), torch.tensor([-2.0, 1.0, 1.0]) * 2048 / 3, rtol=4e-3, atol=0)


def test_without_targets_the_loss_is_zero_and_every_gradient_is_zero() -> None:
    head = LMHead(8, 11)
    hidden = torch.randn(2, 5, 8, requires_grad=True)
    (loss_sum, token_loss, correct, _), index = head(hidden, torch.full((2, 5), IGNORE_INDEX))
    loss_sum.backward()
    assert loss_sum.item() == 0.0
    assert token_loss.numel() == correct.numel() == index.numel() == 0
    for gradient in (hidden.grad, head.weight.grad, head.bias.grad):
        assert gradient is not None
        assert not gradient.any()


def test_ignored_tokens_take_no_part() -> None:
    head = LMHead(8, 11)
    hidden = torch.randn(2, 5, 8)
    targets = torch.tensor([[1, IGNORE_INDEX, 3, IGNORE_INDEX, 0], [IGNORE_INDEX, 10, IGNORE_INDEX, 2, 2]])
    (loss_sum, token_loss, *_), index = head(hidden, targets)
    torch.testing.assert_close(loss_sum, F.cross_entropy(head(hidden).flatten(0, 1), targets.flatten(), reduction="sum"))
    assert index.tolist() == [0, 2, 4, 6, 8, 9]
    spoiled = hidden.clone()
    spoiled[targets == IGNORE_INDEX] = float("nan")
    assert torch.equal(head(spoiled, targets)[0].token_loss, token_loss)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_input_gets_no_gradient_and_the_others_are_unchanged(frozen: int) -> None:
    inputs = make_inputs(20)
    linear_cross_entropy(*inputs)[0].backward()
    expected = [x.grad for x in inputs[:3]]
    inputs = make_inputs(20)
    inputs[frozen].requires_grad_(False)
    linear_cross_entropy(*inputs)[0].backward()
    for i, x in enumerate(inputs[:3]):
        assert x.grad is None if i == frozen else torch.equal(x.grad, expected[i])


def test_no_grad_computes_the_same_losses_and_no_gradient() -> None:
    inputs = make_inputs(50)
    with_gradient = linear_cross_entropy(*inputs)
    with torch.no_grad():
        without = linear_cross_entropy(*inputs)
    assert with_gradient[0].requires_grad
    assert not without[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(with_gradient, without))
    assert not with_gradient[1].requires_grad


def test_a_second_backward_is_refused() -> None:
    loss_sum, *_ = linear_cross_entropy(*make_inputs(3))
    loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss_sum.backward()


def test_chunk_size_bounds_the_logits() -> None:
    assert chunk_size(107008, "cuda") == 2432
    assert chunk_size(10**9, "cuda") == 128
    assert chunk_size(107008, "cpu") == 128
    assert chunk_size(107008, "cpu", is_narrow=True) == 1152
    assert chunk_size(107008, "cuda", is_narrow=True) == 2432
    for device, limit in (("cpu", 2**24), ("cuda", 2**28)):
        assert chunk_size(51200, device) * 51200 <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_chunks_nor_blocks_change_the_result(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chunk in one block, and chunks of several blocks whose ends do not meet."""
    found = []
    for chunk, logits_per_block in ((1000, 2**19), (48, 7 * 33), (1, 1)):
        monkeypatch.setattr(loss_module, "_LOGITS_PER_BLOCK", logits_per_block)
        inputs = make_inputs(100, vocab=33, dtype=dtype)
        result = linear_cross_entropy(*inputs, chunk_tokens=chunk, token_weight=torch.linspace(0.5, 2, 100), z_loss=1e-2)
        result.loss_sum.backward()
        found.append((result, [x.grad for x in inputs[:3]]))
    (whole, gradients), *others = found
    for other, own in others:
        assert torch.equal(whole.token_correct, other.token_correct)
        torch.testing.assert_close(whole.token_loss, other.token_loss)
        for x, y in zip(gradients, own, strict=True):
            # In bfloat16 the products of chunks are rounded one by one.
            assert float((x.float() - y.float()).norm() / x.float().norm()) < (1e-6 if dtype == torch.float32 else 5e-3)


def plain_objective(inputs: list[torch.Tensor], token_weight: torch.Tensor, z_loss: float) -> torch.Tensor:
    """The weighted sum with the z-loss, from the whole logits."""
    logits = F.linear(*inputs[:3])
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (token_weight * (F.cross_entropy(logits, inputs[3], reduction="none") + z_loss * logits.logsumexp(-1) ** 2)).sum()


@settings(max_examples=30, deadline=None)
@given(tokens=st.integers(0, 70), chunk=st.integers(1, 80), z_loss=st.sampled_from([0.0, 1e-4, 0.1]), weighted=st.booleans())
def test_z_loss_and_weights_equal_plain_autograd(tokens: int, chunk: int, z_loss: float, weighted: bool) -> None:
    inputs = make_inputs(tokens)
    token_weight = torch.rand(tokens, generator=torch.Generator().manual_seed(tokens)) * (torch.arange(tokens) % 3) if weighted else None
    exact = [*(x.detach().double().requires_grad_() for x in inputs[:3]), inputs[3]]
    expected = plain_objective(exact, torch.ones(tokens).double() if token_weight is None else token_weight.double(), z_loss)
    (expected * 0.37).backward()
    found = linear_cross_entropy(*inputs, chunk_tokens=chunk, token_weight=token_weight, z_loss=z_loss)
    (found.loss_sum * 0.37).backward()
    assert found.loss_sum.dtype == torch.float32
    torch.testing.assert_close(found.loss_sum.detach().double(), expected.detach(), atol=1e-6, rtol=2e-6)
    log_z = F.linear(*exact[:3]).logsumexp(-1).detach()
    torch.testing.assert_close(found.token_log_z.double(), log_z, atol=1e-5, rtol=1e-6)
    # The loss of a token is the plain one, whatever the objective makes of it.
    assert torch.equal(found.token_loss, linear_cross_entropy(*inputs, chunk_tokens=chunk).token_loss)
    for x, exact_x in zip(inputs[:3], exact[:3]):
        torch.testing.assert_close(x.grad.double(), exact_x.grad, atol=1e-5, rtol=1e-5)


def test_z_loss_and_weights_in_bfloat16_are_nearer_to_the_exact_gradient_than_plain_autograd() -> None:
    inputs = make_inputs(200, hidden=64, vocab=301, dtype=torch.bfloat16)
    token_weight = torch.rand(200, generator=torch.Generator().manual_seed(1)) * 2
    exact = [*(x.detach().double().requires_grad_() for x in inputs[:3]), inputs[3]]
    plain_objective(exact, token_weight.double(), 1e-2).backward()
    expected = plain_objective(inputs, token_weight, 1e-2)
    expected.backward()
    errors_plain = [float((x.grad.double() - e.grad).norm() / e.grad.norm()) for x, e in zip(inputs[:3], exact)]
    for x in inputs[:3]:
        x.grad = None
    found = linear_cross_entropy(*inputs, chunk_tokens=48, token_weight=token_weight, z_loss=1e-2)
    found.loss_sum.backward()
    # The value is that of the bfloat16 logits.
    torch.testing.assert_close(found.loss_sum.detach(), expected.detach(), atol=0, rtol=2e-6)
    for x, exact_x, error_plain in zip(inputs[:3], exact, errors_plain):
        assert x.grad.dtype == torch.bfloat16
        assert float((x.grad.double() - exact_x.grad).norm() / exact_x.grad.norm()) < max(1.05 * error_plain, 4e-3)


def test_weights_of_one_change_nothing_and_a_weight_of_zero_leaves_a_token_out() -> None:
    inputs = make_inputs(50)
    linear_cross_entropy(*inputs, chunk_tokens=16).loss_sum.backward()
    expected = [x.grad for x in inputs[:3]]
    inputs = make_inputs(50)
    linear_cross_entropy(*inputs, chunk_tokens=16, token_weight=torch.ones(50)).loss_sum.backward()
    for x, gradient in zip(inputs[:3], expected):
        torch.testing.assert_close(x.grad, gradient, atol=2e-6, rtol=1e-5)
    inputs = make_inputs(50)
    linear_cross_entropy(*inputs, token_weight=(torch.arange(50) != 7).float(), z_loss=0.1).loss_sum.backward()
    assert not inputs[0].grad[7].any()
    assert inputs[0].grad[8].any()


def test_an_infinite_z_loss_shows_in_the_sum() -> None:
    """The cross-entropy of such logits is finite, and so are its gradients: the sum alone tells."""
    bias = torch.full((11,), 3e19)
    losses = linear_cross_entropy(torch.zeros(4, 8), torch.zeros(11, 8), bias, torch.zeros(4, dtype=torch.int64), z_loss=1e-4)
    assert torch.isfinite(losses.token_loss).all()
    assert torch.isinf(losses.loss_sum)
