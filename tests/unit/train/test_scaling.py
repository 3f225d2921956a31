"""The sweep over numbers of GPUs: which section, the same batch everywhere, and the program's table and JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moss_train.train import scaling
from moss_train.train.auto import SECTIONS, USABLE, Room
from moss_train.train.config import PlanOptions
from moss_train.train.devices import Links
from moss_train.train.memory import predict
from moss_train.train.speed import Machine
from tests.launch import python
from tests.unit.train.test_plan import small

MACHINE = Machine(1e12, 0.5, 1e12, Links(100e9, 10e9, 20e9, 8))
SETUP = small(micro_batch_size=4, seq_len=256)
PLENTY = Room(1e15)


def test_the_batch_of_a_step_stays() -> None:
    points = scaling.sweep(SETUP, 64, [1, 4, 16, 32, 64], PLENTY, MACHINE)
    shapes = [(point.setup.micro_batch_size, point.setup.accumulation) for point in points]
    assert shapes == [(4, 16), (4, 4), (4, 1), (2, 1), (1, 1)]
    assert {point.global_batch for point in points} == {64}
    # More GPUs than rows, and a number that does not divide them, take more rows.
    (more, odd) = scaling.sweep(SETUP, 64, [128, 3], PLENTY, MACHINE)
    assert (more.global_batch, more.setup.micro_batch_size, odd.global_batch) == (128, 1, 66)


def test_the_lowest_section_that_fits_is_taken_before_a_smaller_batch() -> None:
    setup = replace(SETUP, world_size=8, accumulation=2)
    taken = {name: predict(replace(setup, zero=section)) for name, section in SECTIONS.items()}
    order = sorted(scaling._IN_MEMORY, key=lambda name: taken[name].peak_bytes)
    (point,) = scaling.sweep(setup, 64, [8], Room(taken[order[0]].peak_bytes), MACHINE)
    assert (point.section, point.setup.micro_batch_size, point.setup.recompute) == (order[0], 4, False)
    assert scaling.sweep(setup, 64, [8], Room(taken["zero1"].peak_bytes), MACHINE)[0].section in scaling._IN_MEMORY
    (none,) = scaling.sweep(setup, 64, [8], Room(1.0), MACHINE)
    assert none.section is None
    assert none.memory.peak_bytes > 1


def test_others_that_fit_are_compared_and_hpz_only_over_nodes() -> None:
    within, across = scaling.sweep(SETUP, 64, [8, 64], PLENTY, MACHINE)
    assert set(within.others) == {"zero2", "zero3"}
    assert set(across.others) == {"zero2", "zero3", "zero3_hpz"}
    best = {across.section: across.speed, **across.others}[across.fastest()]
    assert best.step == min(speed.step for speed in (across.speed, *across.others.values()))


def test_links_and_efficiency_are_options() -> None:
    machine = scaling.machine_for(PlanOptions(device="H200", nic_gb_per_second=12.5, node_size=4, efficiency=0.3))
    assert machine is not None
    assert (machine.links.nic, machine.links.node_size, machine.efficiency) == (12.5e9, 4, 0.3)
    assert machine.links.nvlink == 450e9
    assert scaling.machine_for(PlanOptions(device="cpu")) is None
    wrong = PlanOptions(nic_gb_per_second=0, node_size=-1, efficiency=2, gpus=[8, 0]).plan_problems()
    for words in ("nic_gb_per_second is 0", "node_size is -1", "efficiency is 2", "gpus has 0"):
        assert any(words in problem for problem in wrong)


def test_the_program_sweeps_the_published_base_model(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    result = python("scripts/plan.py", "+config=moss_moon_003_base", "device=H200", "gpus=[1,8,1024]", f"out={out}")
    assert result.returncode == 0, result.stderr
    for words in ("1,024", "waits", "which is an assumption", "zero3_offload"):
        assert words in result.stdout
    found = json.loads(out.read_text())
    one, eight, many = found["points"]
    assert (one["deepspeed"], one["gpus"], many["gpus"]) == ("zero3_offload", 1, 1024)
    assert all(point["fits"] and point["memory_bytes"] <= USABLE * 141e9 for point in found["points"])
    assert one["exposed_share"] < 1
    assert eight["tokens_per_second"] < many["tokens_per_second"] < 128 * eight["tokens_per_second"]
    assert 0 < many["mfu"] < eight["mfu"] < found["assumptions"]["efficiency"]


def test_the_program_plans_what_a_run_would_choose(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    arguments = ("+config=moss_moon_003_sft", "world_size=8", "device=H200", "deepspeed=auto", f"out={out}")
    result = python("scripts/plan.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "deepspeed=auto: zero2 takes" in result.stdout
    assert "zero1 would take" in result.stdout
    plan = json.loads(out.read_text())
    assert plan["communication"]["zero2"]["sent_bytes"] > plan["communication"]["zero1"]["sent_bytes"] > 0
    assert plan["seconds_per_step"] == pytest.approx(sum(plan["speed"][key] for key in ("arithmetic", "update", "exposed")))
    result = python("scripts/plan.py", *arguments, "deepspeed.memory_gib=3")
    assert result.returncode == 2
    assert "no ZeRO stage fits" in result.stderr
    result = python("scripts/plan.py", "+config=tiny_sft", "device=cpu", "memory_gib=4", "gpus=[1,2]")
    assert result.returncode == 2
    assert "whose speed and links are known" in result.stderr
