"""The plan: components against bytes counted by hand, refusals with what is possible instead."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moss_train.cli import PLANS, plan_program
from moss_train.errors import UsageError
from moss_train.model import attention
from moss_train.model.shapes import parameter_shapes
from moss_train.sft.config import PlanSFTConfig
from moss_train.train import memory, plan
from moss_train.train.config import PlanOptions
from moss_train.train.memory import Item, Memory, Moment, Setup, activations, loss_items, predict
from moss_train.train.memory_zero import Zero
from tests.launch import python

D, V, LAYERS, T = 64, 1024, 3, 32
PARAMETERS = 2 * V * D + V + LAYERS * (12 * D * D + 4 * D + D + 2 * D) + 2 * D
"""Embedding and head with its bias; per block the matrices, the biases of fc_in and fc_out, LayerNorm; the last LayerNorm."""


def small(**changes: Any) -> Setup:
    """A model small enough to count by hand: on CUDA in bfloat16, ZeRO-2 on 2 ranks."""
    shapes = parameter_shapes(SimpleNamespace(n_layer=LAYERS, n_embd=D, n_inner=None, vocab_size=V))  # type: ignore[arg-type]
    setup = Setup(
        shapes=shapes,
        trained=frozenset(shapes),
        decayed=frozenset(name for name, shape in shapes.items() if len(shape) == 2),
        num_layers=LAYERS,
        hidden_size=D,
        inner_size=4 * D,
        num_heads=8,
        vocab_size=V,
        seq_len=T,
        micro_batch_size=1,
        accumulation=1,
        world_size=2,
        zero={"stage": 2, "overlap_comm": True, "contiguous_gradients": True},
        precision="bf16",
        grad_accum="fp32",
        recompute=False,
        eager=False,
        is_cuda=True,
        widens=False,
        chunk_tokens=128,
    )
    return replace(setup, **changes)


def of(items: list[Item] | tuple[Item, ...], component: str) -> float:
    """Bytes of one component."""
    return sum(item.bytes for item in items if item.component == component)


def test_parameters_are_counted_exactly() -> None:
    assert small().parameters == PARAMETERS
    moss = parameter_shapes(SimpleNamespace(n_layer=34, n_embd=6144, n_inner=None, vocab_size=107008))  # type: ignore[arg-type]
    assert replace(small(), shapes=moss).parameters == 16_717_980_160


@pytest.mark.parametrize(
    ("stage", "precision", "parameters", "state", "gradients"),
    [
        # (bytes of all parameters, of 12 bytes of state, of gradients from the reduction to the update), each of one of 2 ranks
        (1, "bf16", 2 * PARAMETERS, 6 * PARAMETERS, 6 * PARAMETERS),
        (2, "bf16", 2 * PARAMETERS, 6 * PARAMETERS, 2 * PARAMETERS),
        (2, "fp32", 4 * PARAMETERS, 6 * PARAMETERS, 2 * PARAMETERS),
        (3, "fp32", 2 * PARAMETERS, 6 * PARAMETERS, 2 * PARAMETERS),
    ],
)
def test_model_and_optimizer_are_divided_as_the_stage_says(stage: int, precision: str, parameters: int, state: int, gradients: int) -> None:
    zero = {"stage": stage, "contiguous_gradients": True, "stage3_param_persistence_threshold": 0}
    setup = small(zero=zero, precision=precision)
    terms = Zero(setup)
    items = [*terms.always(), *terms.reduced()]
    assert of(items, "parameters") == pytest.approx(parameters, abs=16)
    assert of(items, "optimizer state") == pytest.approx(state, abs=16)
    assert of(items, "gradients") == pytest.approx(gradients, abs=16)


def test_frozen_parameters_have_no_state() -> None:
    setup = small(trained=frozenset(["lm_head.weight"]), decayed=frozenset(["lm_head.weight"]))
    items = Zero(setup).always()
    assert of(items, "parameters") == 2 * PARAMETERS
    assert of(items, "optimizer state") == 12 * V * D / 2


def test_activations_are_those_that_a_block_keeps() -> None:
    kept, again = activations(small())
    # bf16: input, normed, q, k, v, output of attention, and [T, 4 D] twice; float32 means, deviations and log-sum-exps.
    block = 2 * T * D * 6 + 2 * 2 * T * 4 * D + 4 * T * (2 + 8)
    ends = 2 * 2 * T * D
    assert sum(item.bytes for item in kept) == LAYERS * block + ends
    assert again == []
    kept, again = activations(small(recompute=True))
    assert sum(item.bytes for item in kept) == LAYERS * 2 * T * D + ends
    assert sum(item.bytes for item in again) == block
    kept, again = activations(small(recompute=True, recompute_blocks=1))
    assert sum(item.bytes for item in kept) == 2 * T * D + (LAYERS - 1) * block + ends
    assert sum(item.bytes for item in again) == block


@pytest.mark.parametrize("heads", [4, 8])
def test_activations_are_those_that_autograd_keeps(heads: int) -> None:
    """Against torch itself: the tensors that a block saves for its backward pass on the CPU in float32, each storage once."""
    import torch
    from transformers import CodeGenConfig

    from moss_train.model.codegen import init_model, set_attention

    config = CodeGenConfig(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=heads, rotary_dim=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = init_model(config, 1, torch.float32)
    set_attention(model, "sdpa")
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hold = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (hold.append(t), keep(t))[1], lambda t: t):
        model.transformer(torch.zeros(1, T, dtype=torch.int64), cu_seqlens=torch.tensor([0, 20, T], dtype=torch.int32))
    kept, _ = activations(small(precision="fp32", is_cuda=False, num_heads=heads))
    predicted = sum(item.bytes for item in kept) - 4 * T * D  # the head keeps the output of the last LayerNorm
    # Sines and cosines, a few hundred bytes a block, are not counted.
    assert sum(saved.values()) == pytest.approx(predicted, rel=0.05)


def test_the_head_holds_one_chunk() -> None:
    # min(128, 32) tokens: the product in bfloat16 and its float32 copy.
    assert of(loss_items(small()), "logits") == 6 * T * V
    assert of(loss_items(small()), "head gradient, float32") == 4 * V * (D + 1)
    assert of(loss_items(small(seq_len=4096)), "logits") == 6 * 128 * V
    widened = small(is_cuda=False, widens=True)
    assert of(loss_items(widened), "head weight, widened") == 2 * 4 * V * D


def test_a_bucket_is_allocated_whole_on_cuda_and_filled_on_the_cpu() -> None:
    assert small().bucket() == PARAMETERS
    assert Zero(small()).bucket_allocated() == 500_000_000
    assert Zero(small(is_cuda=False)).bucket_allocated() == PARAMETERS


def test_the_peak_is_a_moment_and_components_sum_up_to_it() -> None:
    for setup in (small(), small(is_cuda=False, widens=True), small(zero={"stage": 3}), small(zero={"stage": 1}, is_cuda=False)):
        memory = predict(setup)
        assert sum(memory.components().values()) == pytest.approx(memory.peak_bytes)
        assert memory.peak_bytes < sum(moment.total() for moment in memory.moments)
        assert memory.peak in memory.moments


def test_freed_small_blocks_stay_resident_on_the_cpu() -> None:
    first = Moment("first", (Item("small", 100, 10),))
    assert first.small() == 100
    assert Moment("second", (Item("large", 2**26, 2**26),)).small() == 0
    memory = predict(small(is_cuda=False))
    assert memory.kept == max(moment.small() for moment in memory.moments) - memory.peak.small()


def test_recompute_and_more_ranks_take_less() -> None:
    long = small(seq_len=2048, micro_batch_size=8, zero={"stage": 3, "reduce_bucket_size": 1000})
    assert predict(replace(long, recompute=True)).peak_bytes < predict(long).peak_bytes
    assert predict(replace(long, world_size=8)).peak_bytes < predict(long).peak_bytes


def test_offloaded_state_is_the_hosts() -> None:
    offloaded = predict(small(zero={"stage": 3, "offload_optimizer": {"device": "cpu"}}))
    # Master weights and moments 12, the accumulated gradients 4 and each sub-group's own 4 bytes a parameter.
    assert offloaded.host_bytes == pytest.approx(20 * PARAMETERS / 2, abs=64)


def test_the_copy_for_checkpoints_is_the_hosts() -> None:
    plain, beside = predict(small()), predict(small(async_save=True))
    assert beside.peak_bytes == plain.peak_bytes, "the device holds no more"
    assert plain.host_bytes == 0
    # The copy, 12 bytes a parameter of this rank; and the embedding, which comes from the other rank while tensors wait for the disk.
    shard = PARAMETERS / 2
    assert beside.host_bytes == pytest.approx(12 * shard + 4 * V * D + 12 * shard, abs=64)
    alone = predict(small(async_save=True, world_size=1))
    assert alone.host_bytes == 12 * PARAMETERS, "one rank holds all and receives nothing"
    on_cpu = [predict(small(is_cuda=False, world_size=1, async_save=copies)) for copies in (False, True)]
    assert on_cpu[1].peak_bytes - on_cpu[0].peak_bytes == pytest.approx(12 * PARAMETERS, rel=0.01), "there it is the same memory"


def test_what_does_not_fit_is_answered_by_the_nearest_that_does() -> None:
    setup = small(seq_len=2048, micro_batch_size=8, zero={"stage": 3, "reduce_bucket_size": 1000})
    with_recompute = predict(replace(setup, recompute=True)).peak_bytes
    found = plan.nearest(setup, 16, with_recompute)
    assert found is not None
    # The last block has its backward pass first: what it keeps is there then, computed again or not.
    assert found[0] == ["model.recompute=true", f"model.recompute_blocks={LAYERS - 1}"]
    assert found[1].peak_bytes <= with_recompute
    found = plan.nearest(setup, 16, with_recompute * 0.6)
    assert found is not None
    assert found[0] == ["model.recompute=true", f"model.recompute_blocks={LAYERS - 1}", "train.micro_batch_size=4"]
    assert plan.nearest(setup, 16, 1.0) is None


def test_no_more_blocks_are_recomputed_than_it_takes() -> None:
    setup = small(num_layers=8, seq_len=2048, micro_batch_size=8, zero={"stage": 3, "reduce_bucket_size": 1000})
    peaks = [predict(replace(setup, recompute=True, recompute_blocks=count)).peak_bytes for count in range(1, 9)]
    assert peaks[:-1] == sorted(peaks[:-1], reverse=True)
    assert predict(setup).peak_bytes > peaks[0] > peaks[4] > peaks[-2]
    assert peaks[-1] == predict(replace(setup, recompute=True)).peak_bytes
    found = plan.nearest(setup, 16, peaks[4])
    assert found is not None
    fewest = peaks.index(peaks[4]) + 1
    assert found[0] == ["model.recompute=true", f"model.recompute_blocks={fewest}"]
    assert found[1].peak_bytes == peaks[4]
    # As it is, too few are.
    some = replace(setup, recompute=True, recompute_blocks=1)
    assert plan.nearest(some, 16, peaks[4]) == ([f"model.recompute_blocks={fewest}"], found[1])


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "words"),
    [
        (8, 2, 3, ["= 6", "train.global_batch_size=6", "train.global_batch_size=12", "world_size=2"]),
        (8, 3, 2, ["= 6", "train.micro_batch_size=2", "world_size=1"]),
        (2, 1, 4, ["= 4", "train.global_batch_size=4", "world_size=2"]),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(batch: int, micro: int, ranks: int, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        plan.check_divides(batch, micro, ranks)
    assert [word for word in words if word not in str(caught.value)] == [word for word in words if word == "world_size=1"]


def test_devices() -> None:
    assert plan.device_memory(PlanOptions(device="H200")) == 141e9
    assert plan.device_memory(PlanOptions(device="cpu", memory_gib=2)) == 2 * 2**30
    with pytest.raises(UsageError, match="did you mean H100"):
        plan.device_memory(PlanOptions(device="h100"))
    with pytest.raises(UsageError, match="memory_gib"):
        plan.device_memory(PlanOptions(device="cpu"))


def test_settings_whose_memory_is_not_known_are_refused() -> None:
    with pytest.raises(UsageError, match="offload_optimizer with stage 2"):
        plan.check_modelled(small(zero={"stage": 2, "offload_optimizer": {"device": "cpu"}}))
    with pytest.raises(UsageError, match="offload_param"):
        plan.check_modelled(small(zero={"stage": 3, "offload_param": {"device": "cpu"}}))


def test_options() -> None:
    assert PlanSFTConfig(world_size=0, mfu=1.5).plan_problems() == [
        "world_size is 0; expected a number above zero",
        "mfu is 1.5; expected a share above 0, up to 1",
    ]


def test_the_stage_is_named_or_guessed_from_the_preset() -> None:
    assert plan_program(["+config=tiny_sft"]) is PLANS["sft"]
    assert plan_program(["stage=sft"]) is PLANS["sft"]
    for preset in ("tiny_pretrain", "moss_moon_003_base", "codegen_2b_zh"):
        assert plan_program([f"+config={preset}"]) is PLANS["pretrain"]
    with pytest.raises(SystemExit) as caught:
        plan_program(["stage=nothing"])
    assert caught.value.code == 2


def test_the_program_tells_and_writes_the_plan_of_the_published_recipe(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = python("scripts/plan.py", "+config=moss_moon_003_sft", "world_size=8", "device=H200", "rows=350000", f"out={out}")
    assert result.returncode == 0, result.stderr
    for words in ("16,717,980,160 parameters", "recompute off", "which is an assumption", "200.6 GB a checkpoint", "5,469 steps"):
        assert words in result.stdout
    found = json.loads(out.read_text())
    assert found["checkpoint"] == 12 * 16_717_980_160
    assert found["checkpoints"] == 3 * found["checkpoint"]
    assert found["flops_6nd"] == 6 * 16_717_980_160 * 128 * 2048
    assert found["fits"]
    memory = found["memory"]
    assert sum(memory["components"].values()) == pytest.approx(memory["peak_bytes"])
    assert memory["components"]["optimizer state"] == pytest.approx(12 * 16_717_980_160 / 8)


def test_the_program_refuses_with_exit_code_2(tmp_path: Path) -> None:
    result = python("scripts/plan.py", "+config=moss_moon_003_sft", "world_size=8", "device=A100-40GB")
    assert result.returncode == 2
    assert "The nearest that fits: " in result.stderr
    result = python("scripts/plan.py", "+config=moss_moon_003_sft", "world_size=8", "data.seq_len=4096")
    assert result.returncode == 2
    assert "longer than model.max_positions (2048)" in result.stderr
    result = python("scripts/plan.py", "+config=moss_moon_003_sft", "world_size=3", "device=H200")
    assert result.returncode == 2
    assert "not divisible" in result.stderr


def test_a_run_tells_predicted_and_measured() -> None:
    from moss_train.train.forecast import Forecast

    lines: list[str] = []
    moment = Moment("loss", (Item("parameters", 2**30, 2**30),))
    outlook = Forecast(Memory((moment,), moment, 2**30, 0.0, 0.0), lines.append, lambda value: [value, 2**31], at_step=2)
    assert outlook.after(10, 1.0) == {}
    figures = outlook.after(30, 1.0)
    assert figures["plan/predicted_peak_gib"] == 1.0
    assert figures["plan/measured_peak_gib"] >= 2.0
    assert outlook.after(30, 1.0) == {}
    (line,) = lines
    assert "predicted 1.00 GiB (peak: loss)" in line
    assert "30 tokens/s" in line


def test_a_run_on_a_known_device_tells_its_speed_too() -> None:
    from moss_train.train.forecast import Forecast

    lines: list[str] = []
    moment = Moment("loss", (Item("parameters", 2**30, 2**30),))
    outlook = Forecast(Memory((moment,), moment, 2**30, 0.0, 0.0), lines.append, lambda value: [value], 2, tokens_per_second=45.0)
    outlook.after(10, 1.0)
    figures = outlook.after(30, 1.0)
    assert (figures["plan/predicted_tokens_per_second"], figures["plan/measured_tokens_per_second"]) == (45.0, 30.0)
    assert "tokens/s: predicted 45, measured 30 (predicted / measured 1.50)" in lines[0]


def test_the_forecast_of_a_gpu_has_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from moss_train.train.forecast import _tokens_per_second

    assert _tokens_per_second(small(is_cuda=False)) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert (_tokens_per_second(small()) or 0) > 0
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another")
    assert _tokens_per_second(small()) is None


def test_the_length_of_a_pretraining_run_is_in_tokens(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = python("scripts/plan.py", "+config=moss_moon_003_base", "world_size=8", "device=H200", f"out={out}")
    assert result.returncode == 0, result.stdout + result.stderr
    # 133.3e9 tokens in steps of 2^21, rounded up.
    assert "63,563 steps, 133,301,272,576 tokens" in result.stdout
    assert out.is_file()


def test_the_sizes_that_are_attended_to_in_float32_are_those_of_the_model() -> None:
    names = ("_CPU_FLOAT32_LENGTH", "_CPU_FLOAT32_HEAD_DIM")
    assert [getattr(memory, name) for name in names] == [getattr(attention, name) for name in names]
