"""Kinds of accelerators: memory, and the links that a rank's data travel over. Vendors' data sheets; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True)
class Links:
    """What carries a rank's data, in bytes/s in one direction, as the data sheet has it (`communication.SUSTAINED` is what is reached).

    Attributes:
        nvlink: Of one GPU to the others of its node.
        nic: Of one GPU to other nodes: the node's adapters, divided by its GPUs.
        pcie: Between one GPU and the host's memory.
        node_size: GPUs of a node.
    """

    nvlink: float
    nic: float
    pcie: float
    node_size: int = 8


@dataclass(frozen=True)
class Device:
    """A kind of accelerator.

    Attributes:
        driver_name: The driver's name of it, as in `stage.PEAK_FLOPS`.
        memory: Bytes. memory_rate: Bytes/s between its memory and its cores.
        efficiency: Share of the bfloat16 peak that the arithmetic of training reaches while nothing waits for communication, recomputed
            work counted as work. Calibrated on two published figures a chip, named in docs/scaling.md.
        links: Of the vendor's eight-GPU machine: NVLink, an adapter a GPU, PCIe.
    """

    driver_name: str
    memory: float
    memory_rate: float
    efficiency: float
    links: Links


# NVIDIA's data sheets. NVLink is told as the sum of both directions there: 900 and 600 GB/s. DGX H100 and H200 have an adapter of
# 400 Gb/s a GPU, DGX A100 one of 200 Gb/s; PCIe 5.0 and 4.0 x16.
_HOPPER = Links(nvlink=450e9, nic=50e9, pcie=64e9)
_AMPERE = Links(nvlink=300e9, nic=25e9, pcie=32e9)
_HOPPER_EFFICIENCY, _AMPERE_EFFICIENCY = 0.415, 0.597

DEVICES = {
    "H200": Device("NVIDIA H200", 141e9, 4.8e12, _HOPPER_EFFICIENCY, _HOPPER),
    "H100": Device("NVIDIA H100 80GB HBM3", 80 * _GIB, 3.35e12, _HOPPER_EFFICIENCY, _HOPPER),
    "A100-80GB": Device("NVIDIA A100-SXM4-80GB", 80 * _GIB, 2.039e12, _AMPERE_EFFICIENCY, _AMPERE),
    "A100-40GB": Device("NVIDIA A100-SXM4-40GB", 40 * _GIB, 1.555e12, _AMPERE_EFFICIENCY, _AMPERE),
}
CPU = "cpu"


def device_named(driver_name: str) -> Device | None:
    """The device that the driver calls so, or None where it is not in the table."""
    return next((device for device in DEVICES.values() if device.driver_name == driver_name), None)
