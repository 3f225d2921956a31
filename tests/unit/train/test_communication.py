"""Bytes of a step against counts by hand, and the time of links. Against real runs: tests/integration/test_communication.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moss_train.train.communication import SUSTAINED, Kind, Phase, Transfer, kept_for_backward, traffic
from moss_train.train.devices import Links
from moss_train.train.memory import Setup, predict
from tests.unit.train.test_plan import LAYERS, PARAMETERS, small

ZERO3: dict[str, Any] = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}
LINKS = Links(nvlink=100e9, nic=10e9, pcie=20e9, node_size=8)


def sent(setup: Setup, stage: int | None = None) -> float:
    return sum(transfer.sent() for transfer in traffic(setup, stage))


@pytest.mark.parametrize(
    ("stage", "of_weights"),
    [
        # Times (n - 1) / n of the bfloat16 weights, in 3 forwards: an all-reduce is two passes, ZeRO-1 and 2 gather once.
        (0, 2),
        (1, 2 + 1),
        (2, 3 * 2 + 1),
    ],
)
def test_sums_of_gradients_and_gathered_weights(stage: int, of_weights: float) -> None:
    setup = small(world_size=8, accumulation=3, zero={"stage": 2})
    assert sent(setup, stage) == pytest.approx(of_weights * 7 / 8 * 2 * PARAMETERS)


def test_zero3_gathers_twice_and_scatters_once_a_forward() -> None:
    setup = small(world_size=8, accumulation=3, zero={**ZERO3, "stage3_max_reuse_distance": 0})
    assert sent(setup) == pytest.approx(3 * (1 + 1 + 1) * 7 / 8 * 2 * PARAMETERS)
    # All are still whole when the backward pass needs them.
    assert sent(replace(setup, zero=ZERO3)) == pytest.approx(3 * (1 + 1) * 7 / 8 * 2 * PARAMETERS)


def test_small_parameters_are_gathered_once_a_step() -> None:
    setup = small(world_size=8, accumulation=3, zero={**ZERO3, "stage3_param_persistence_threshold": 10**9})
    # Nothing but the update's gather and the gradients of 3 forwards.
    assert sent(setup) == pytest.approx((1 + 3) * 7 / 8 * 2 * PARAMETERS)


def test_hpz_leaves_the_node_once_for_parameters() -> None:
    zero = {**ZERO3, "stage3_max_reuse_distance": 0, "zero_hpz_partition_size": 8}
    moved = traffic(small(world_size=32, accumulation=3, zero=zero))
    outside = [transfer for transfer in moved if transfer.spans_nodes(LINKS)]
    # One forward's parameters, and three times the gradients.
    assert sum(transfer.sent() for transfer in outside) == pytest.approx((1 + 3) * 31 / 32 * 2 * PARAMETERS)
    inside = [transfer for transfer in moved if not transfer.spans_nodes(LINKS)]
    assert sum(transfer.sent() for transfer in inside) == pytest.approx((2 + 3) * 7 / 8 * 2 * PARAMETERS)


def test_hpz_takes_a_second_copy() -> None:
    setup = small(world_size=32, zero=ZERO3)
    more = predict(replace(setup, zero={**ZERO3, "zero_hpz_partition_size": 8})).peak_bytes - predict(setup).peak_bytes
    assert more == pytest.approx(2 * PARAMETERS / 8)


def test_offloading_moves_the_ranks_part_over_pcie() -> None:
    setup = small(world_size=4, accumulation=3, zero={**ZERO3, "offload_optimizer": {"device": "cpu"}})
    host = sum(transfer.times * transfer.size for transfer in traffic(setup) if transfer.kind in (Kind.to_host, Kind.from_host))
    # Sums in float32 to and fro in each of 3 forwards, the last once more, and the new bfloat16 weights.
    assert host == pytest.approx((3 * 2 * 4 + 4 + 2) * PARAMETERS / 4, abs=128)


def test_the_format_of_gradients_is_a_setting() -> None:
    setup = small(world_size=8, zero={"stage": 1})
    assert sent(replace(setup, communication="fp32")) == pytest.approx((2 * 2 + 1) * 7 / 8 * 2 * PARAMETERS)


def test_reducing_to_the_owner_is_half_of_an_all_reduce() -> None:
    setup = small(world_size=8, zero={"stage": 2, "use_multi_rank_bucket_allreduce": False})
    assert sent(setup) == pytest.approx((1 + 1) * 7 / 8 * 2 * PARAMETERS)


def test_one_rank_sends_nothing() -> None:
    for stage in range(4):
        moved = traffic(small(world_size=1, zero={"stage": max(stage, 1)}), stage)
        assert sum(transfer.sent() for transfer in moved) == 0
        assert sum(transfer.seconds(LINKS) for transfer in moved) == 0


def test_parameters_are_kept_by_distance_or_by_what_may_be_live() -> None:
    assert kept_for_backward([5, 5, 5, 5], within=10, live=0) == 2
    assert kept_for_backward([5, 5, 5, 5], within=0, live=11) == 2
    assert kept_for_backward([5, 5, 5, 5], within=100, live=0) == 4


def test_fewer_recomputed_blocks_release_fewer_parameters() -> None:
    """Gathered again for the backward pass: between what it is with all blocks recomputed, and with none."""
    section = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 300_000}

    def gathered(**given: Any) -> float:
        found = traffic(small(zero=section, world_size=4, **given))
        return sum(one.times * one.size for one in found if one.kind is Kind.gather and one.phase is Phase.backward)

    none, all_of_them = gathered(), gathered(recompute=True)
    some = [gathered(recompute=True, recompute_blocks=count) for count in range(1, LAYERS + 1)]
    assert some == sorted(some)
    assert none <= some[0] < some[-1] == all_of_them


def test_time_is_bytes_over_the_narrowest_link_and_latency() -> None:
    def seconds(ranks: int, kind: Kind = Kind.gather, calls: int = 1) -> float:
        return Transfer("", kind, Phase.forward, 8e9, calls, 1, ranks, True).seconds(LINKS)

    within, across = seconds(8), seconds(64)
    assert within == pytest.approx(7e9 / (SUSTAINED * 100e9), rel=1e-3)
    # 8 adapters of 10 GB/s a node are less than NVLink's 100.
    assert across == pytest.approx(8e9 * 63 / 64 / (SUSTAINED * 80e9), rel=1e-2)
    # A ring's latency grows with its ranks, a tree's with their logarithm.
    assert seconds(1024, calls=1000) - seconds(1024) > 10 * (seconds(64, calls=1000) - seconds(64))
    assert seconds(1024, Kind.reduce, 1000) - seconds(1024, Kind.reduce) < 2 * (seconds(64, Kind.reduce, 1000) - seconds(64, Kind.reduce))


def test_a_gpus_adapter_carries_its_share() -> None:
    transfer = Transfer("", Kind.gather, Phase.forward, 8e9, 1, 1, 64, True)
    assert transfer.through_nic(LINKS) == pytest.approx(transfer.sent() / 8)
    assert replace(transfer, ranks=8).through_nic(LINKS) == 0
