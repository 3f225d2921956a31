"""`deepspeed=auto`: which section is chosen, and what is refused. In real runs: tests/integration/test_auto.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from moss_train.config import StageConfig
from moss_train.train import resident
from moss_train.train.auto import SECTIONS, Room, candidates, choose, refusal, section_of
from moss_train.train.memory import predict
from tests.launch import REPOSITORY
from tests.unit.train.test_plan import small

AUTO: dict[str, Any] = {"stage": "auto"}
# Long enough that the state of the optimizer does not drown in buckets.
SETUP = small(world_size=4, precision="bf16", zero={"stage": 3}, is_cuda=False)


def peaks() -> dict[str, float]:
    return {name: predict(candidate).peak_bytes for name, candidate in candidates(SETUP, AUTO)}


def problems(section: dict[str, Any]) -> list[str]:
    return [problem for problem in StageConfig(deepspeed=section).problems() if problem.startswith("deepspeed")]


@pytest.mark.parametrize("name", list(SECTIONS))
def test_sections_are_those_of_the_files(name: str) -> None:
    written = yaml.safe_load((REPOSITORY / "configs" / "deepspeed" / f"{name}.yaml").read_text())
    assert written == {"zero_optimization": SECTIONS[name]}


def test_the_lowest_stage_that_fits_is_chosen() -> None:
    found = peaks()
    assert found["zero1"] > found["zero3"]
    assert choose(SETUP, AUTO, Room(found["zero1"])).name == "zero1"
    below = choose(SETUP, AUTO, Room(found["zero1"] - 1))
    assert below.name == next(name for name in SECTIONS if found[name] < found["zero1"])
    assert next(iter(below.tried)) == "zero1"
    assert choose(SETUP, AUTO, Room(1.0)).name is None


def test_offloading_needs_the_hosts_memory() -> None:
    setup = replace(SETUP, is_cuda=True)
    # On CUDA a bucket takes what it may hold, which would be more than this model.
    given = {**AUTO, "reduce_bucket_size": 1000}
    offloaded = predict(replace(setup, zero=section_of("zero3_offload", given)))
    room = Room(offloaded.peak_bytes, offloaded.host_bytes)
    assert choose(setup, given, room).name == "zero3_offload"
    assert choose(setup, given, replace(room, host=offloaded.host_bytes - 1)).name is None


def test_the_reason_names_the_one_below() -> None:
    found = peaks()
    room = Room(found["zero1"] - 1)
    choice = choose(SETUP, AUTO, room)
    reason = choice.reason(room)
    for words in (f"{choice.name} takes", "a rank may take", "would take", "peak: "):
        assert words in reason
    assert "the lowest stage" in choose(SETUP, AUTO, Room(1e15)).reason(Room(1e15))


def test_a_refusal_names_every_stage_and_a_way_out() -> None:
    room = Room(1.0)
    text = refusal(SETUP, 16, choose(SETUP, AUTO, room), room)
    for words in (*SECTIONS, "no ZeRO stage fits", "lower train.micro_batch_size"):
        assert words in text
    long = replace(SETUP, micro_batch_size=8, seq_len=2048, zero=SECTIONS["zero3"])
    room = Room(predict(replace(long, micro_batch_size=1, recompute=True)).peak_bytes)
    assert "the nearest that fits: " in refusal(long, 64, choose(long, AUTO, room), room)


def test_what_stands_beside_auto_holds_for_any_stage() -> None:
    given = {"stage": "auto", "reduce_bucket_size": 1000, "overlap_comm": False}
    assert section_of("zero2", given) == {"stage": 2, "overlap_comm": False, "contiguous_gradients": True, "reduce_bucket_size": 1000}


def test_a_configuration_may_leave_the_stage_to_the_run() -> None:
    written = yaml.safe_load((REPOSITORY / "configs" / "deepspeed" / "auto.yaml").read_text())
    assert problems(written) == []
    assert problems({"zero_optimization": AUTO, "memory_gib": 2.5}) == []
    assert ["memory_gib" in problem for problem in problems({"zero_optimization": AUTO, "memory_gib": -1})] == [True]
    assert ["memory_gib" in problem for problem in problems({"zero_optimization": {"stage": 2}, "memory_gib": 1})] == [True]
    (refused,) = problems({"zero_optimization": {"stage": "auto", "offload_optimizer": {"device": "cpu"}}})
    assert "offload_optimizer may not be set with stage auto" in refused
    assert "expected 1, 2, 3 or auto" in problems({"zero_optimization": {"stage": "lowest"}})[0]


def test_free_memory_is_within_the_limit_of_the_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = resident.free_host_bytes()
    assert 0 < free < 2**50
    for name, text in (("memory.max", "3000"), ("memory.current", "2500"), ("memory.stat", "anon 1\ninactive_file 100\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(resident, "_CONTROL_GROUPS", ((tmp_path, "memory.max", "memory.current"),))
    assert resident.free_host_bytes() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert resident.free_host_bytes() > 2**20
