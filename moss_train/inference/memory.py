"""How much memory inference takes, before anything is loaded.

weights + keys and values of all slots + the largest working set: the logits of a step, or a prompt's activations.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from moss_train.model.packed import Packing, packed_bytes
from moss_train.model.shapes import count_parameters

GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes that inference takes, by purpose."""

    weights: int
    cache: int
    working: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.working

    def describe(self, slots: int, positions: int) -> str:
        """One line for people."""
        return (
            f"memory: about {self.total / GIB:.2f} GiB at most: weights {self.weights / GIB:.2f}, keys and values of {slots} x "
            f"{positions:,} tokens {self.cache / GIB:.2f}, working set {self.working / GIB:.2f}"
        )


def predict(
    config: Any, dtype: torch.dtype, slots: int, positions: int | None = None, eager: bool = False, packing: Packing | None = None
) -> Memory:
    """What `slots` rows of up to `positions` tokens take.

    Keys and values are 2 * layers * hidden_size values a token. The working set is bounded by a prompt that fills all positions: about
    sixteen hidden states a token are alive in a block (residual, its norm, q, k, v, the MLP's inner layer), and by the logits of a step
    in float32, of which sampling holds four copies.

    Args:
        config: Of the model.
        dtype: Of the weights.
        slots: Rows at once, of which guidance takes two for each reply.
        positions: Tokens of a row; by default all that the model covers.
        eager: The scores of a prompt that goes on from cached keys are held whole, in float32: on a CPU.
        packing: How the weights are quantised, if they are; the widest layer is then widened, a few times over, while it is used.
    """
    positions = config.n_positions if positions is None else positions
    inner = (config.n_inner or 4 * config.n_embd) // config.n_embd
    prompt = positions * config.n_embd * (8 + 2 * inner) * max(dtype.itemsize, 2)
    if eager:
        # Scores, masked scores and weights; half of the positions new, half cached, is the most.
        prompt += 3 * config.n_head * (positions // 2) * positions * 4
    logits = 4 * slots * config.vocab_size * 4
    weights, widened = count_parameters(config) * dtype.itemsize, 0
    if packing is not None:
        weights = packed_bytes(config, packing, dtype.itemsize)
        widened = 3 * 4 * config.n_embd * (config.n_inner or 4 * config.n_embd)
    return Memory(
        weights=weights,
        cache=2 * config.n_layer * config.n_embd * positions * slots * dtype.itemsize,
        working=max(prompt, logits) + widened,
    )


def available(device: torch.device, spread: bool = False) -> int:
    """Free bytes of a GPU, or with `spread` of all of them; of the machine for the CPU."""
    if device.type == "cuda":
        return sum(torch.cuda.mem_get_info(number)[0] for number in (range(torch.cuda.device_count()) if spread else [device.index or 0]))
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next((line for line in file if line.startswith("MemAvailable")), None)
    except OSError:
        found = None
    return int(found.split()[1]) * 1024 if found else pages
