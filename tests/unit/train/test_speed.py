"""The time of a step: FLOPs against torch's own count, the model of overlap, and predictions of what others published."""

from __future__ import annotations

import statistics
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from moss_train.train.communication import Kind, Phase, Transfer
from moss_train.train.devices import DEVICES, Links, device_named
from moss_train.train.speed import Machine, Work, machine_of, predict_speed, step_of, work_of
from moss_train.train.stage import PEAK_FLOPS, training_flops_per_token
from tests.published import INTERNEVO, predicted, rows
from tests.unit.train.test_plan import LAYERS, D, T, V, small

MACHINE = Machine(1e12, 0.5, 1e12, Links(100e9, 10e9, 20e9, 8))


def moved(seconds: float, phase: Phase, overlaps: bool) -> Transfer:
    """A transfer that takes so long."""
    return Transfer("", Kind.from_host, phase, seconds * 0.8 * 20e9, 1, 1, 1, overlaps)


def test_flops_are_those_of_the_runs_own_count() -> None:
    setup = small(seq_len=128)
    model = SimpleNamespace(vocab_size=V, n_embd=D, n_layer=LAYERS)
    assert work_of(setup).model == pytest.approx(setup.tokens * training_flops_per_token(model, setup.parameters, (128 + 1) / 2))
    assert work_of(setup).again == 0


def test_recompute_repeats_what_torch_says_it_does() -> None:
    """Against torch's counter of FLOPs: matrix products of the blocks in a training step with and without recompute; attention is apart."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CodeGenConfig

    from moss_train.model.codegen import init_model, set_attention

    config = CodeGenConfig(
        vocab_size=V, n_positions=T, n_embd=D, n_layer=LAYERS, n_head=8, rotary_dim=8, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False,
    )  # fmt: skip
    counted = []
    for recompute, blocks in ((False, None), (True, None), (True, 1)):
        model = init_model(config, 1, torch.float32)
        set_attention(model, "sdpa")
        model.set_recompute(recompute, blocks)
        ids = torch.zeros(1, T, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model.transformer(ids, cu_seqlens=torch.tensor([0, T], dtype=torch.int32)).sum().backward()
        products = counter.get_flop_counts()["Global"]
        counted.append(sum(flops for kernel, flops in products.items() if "mm" in str(kernel)))
    setup = small(recompute=True)
    attention = setup.tokens * 4 * LAYERS * D * (T + 1) / 2
    assert counted[0] == 3 * setup.tokens * 2 * LAYERS * 12 * D * D
    assert counted[1] - counted[0] == work_of(setup).again - attention
    once = work_of(replace(setup, recompute_blocks=1)).again - attention / LAYERS
    assert counted[2] - counted[0] == pytest.approx(once)


def test_communication_hides_behind_the_arithmetic_of_its_phase_only() -> None:
    work = Work(forward=1e12, again=0.0)  # 2 s forward, 4 s backward
    quiet = step_of(work, [], MACHINE, 100, 1, 4)
    assert (quiet.arithmetic, quiet.exposed, quiet.step, quiet.tokens) == (6.0, 0.0, 6.0, 400)
    assert quiet.mfu == pytest.approx(0.5)
    hidden = step_of(work, [moved(2, Phase.forward, True), moved(4, Phase.backward, True)], MACHINE, 100, 1, 4)
    assert hidden.exposed == pytest.approx(0)
    assert hidden.communication == pytest.approx(6)
    late = [moved(5, Phase.forward, True), moved(1, Phase.backward, False), moved(1, Phase.update, True)]
    seen = step_of(work, late, MACHINE, 100, 1, 4)
    assert seen.exposed == pytest.approx(3 + 1 + 1)
    assert seen.mfu == pytest.approx(0.5 * 6 / 11)


def test_accumulation_repeats_the_arithmetic() -> None:
    once, thrice = (step_of(Work(1e12, 1e12), [], MACHINE, 100, times, 1) for times in (1, 3))
    assert thrice.step == pytest.approx(3 * once.step)
    # What is computed again takes time and is no use.
    assert once.mfu == pytest.approx(0.5 * 3 / 4)


def test_an_offloaded_update_takes_the_hosts_time() -> None:
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}}
    offloaded, on_device = (predict_speed(small(world_size=16, zero=section), MACHINE) for section in (zero, {"stage": 3}))
    assert offloaded.update == pytest.approx(8 * small().parameters / 16 / 4e9, rel=1e-3)
    assert on_device.update == pytest.approx(40 * small().parameters / 16 / 1e12, rel=1e-3)


def test_more_ranks_wait_more() -> None:
    setup = small(zero={"stage": 3}, seq_len=2048)
    shares = [(speed := predict_speed(replace(setup, world_size=n), MACHINE)).exposed / speed.step for n in (1, 8, 64, 1024)]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > shares[1]


def test_devices_are_those_with_a_peak() -> None:
    for device in DEVICES.values():
        assert device.driver_name in PEAK_FLOPS
        assert device_named(device.driver_name) == device
        assert machine_of(device, PEAK_FLOPS[device.driver_name]).efficiency == device.efficiency
    assert device_named("a toaster") is None


def test_the_efficiency_of_a_chip_is_what_its_two_figures_say() -> None:
    for device in ("H100", "A100-80GB"):
        ratios = [predicted(row) / row.measured for row in rows() if row.calibrates and row.device == device]
        assert len(ratios) == 2
        assert statistics.geometric_mean(ratios) == pytest.approx(1, abs=0.01)
    assert DEVICES["H200"].efficiency == DEVICES["H100"].efficiency
    assert DEVICES["A100-40GB"].efficiency == DEVICES["A100-80GB"].efficiency


def test_the_other_published_figures_are_predicted() -> None:
    """As docs/scaling.md tells: none of these went into a constant."""
    errors = {row: predicted(row) / row.measured - 1 for row in rows() if not row.calibrates}
    assert len(errors) >= 50
    assert statistics.median(abs(error) for error in errors.values()) < 0.1
    assert sum(abs(error) < 0.2 for error in errors.values()) / len(errors) >= 0.9
    # Gathers over hundreds of ranks on slow adapters take longer than their latency explains: the plan is an upper bound there.
    beyond = [row for row, error in errors.items() if abs(error) > 0.25]
    assert {row.source for row in beyond if row.gpus >= 256} == {INTERNEVO}
    assert all(errors[row] > 0 for row in beyond)


def test_published_scaling_over_nodes_is_predicted() -> None:
    """What is lost from one node to sixteen, which no efficiency can hide."""
    found = {(row.system, row.gpus): row for row in rows() if row.source == INTERNEVO}
    for gpus in (16, 32, 64, 128):
        row, base = found["zero1", gpus], found["zero1", 8]
        assert predicted(row) / predicted(base) == pytest.approx(row.measured / base.measured, abs=0.06)
