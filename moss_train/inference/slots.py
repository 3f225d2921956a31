"""Keys and values of many rows, a slot each.

Shape legend: B slots in use, T tokens, N heads, S keys, H head_dim.
"""

from __future__ import annotations

import torch

_GROWTH = 256
"""Keys by which the cache grows."""


class SlotCache:
    """Keys and values of all slots, [slots, N, S, H] a layer, as the model's blocks extend and read them; each layer where its block is.

    `select` says which slots and positions the next forward is about.
    """

    def __init__(self, slots: int):
        self.slots, self.length = slots, 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._slots: slice | torch.Tensor = slice(0, 0)
        self._positions, self._seen = torch.zeros(0), 0

    def select(self, slots: slice | torch.Tensor, positions: torch.Tensor, seen: int) -> None:
        """The next forward writes `positions` [B, T] of `slots` and attends to the first `seen` keys; 0: to what it is given alone."""
        self._slots, self._positions, self._seen = slots, positions, seen
        longest = max(seen, int(positions.max()) + 1)
        if longest > self.length:
            self.length = -(-longest // _GROWTH) * _GROWTH

    def get_seq_length(self) -> int:
        """For the model, which is told positions and masks, the cache is never the past."""
        return 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores keys and values [B, N, T, H] of the selected positions; returns those to attend to."""
        kept = self._room(layer, keys)
        slots = self._slots
        place = (torch.arange(slots.start, slots.stop) if isinstance(slots, slice) else slots).to(keys.device)[:, None]
        positions = self._positions.to(keys.device)
        for new, old in zip((keys, values), kept):
            old[place, :, positions] = new.transpose(1, 2)
        if self._seen == 0:
            return keys, values
        return kept[0][slots, :, : self._seen], kept[1][slots, :, : self._seen]

    def _room(self, layer: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tensors of a layer, long enough."""
        have = self.layers.get(layer)
        if have is not None and have[0].shape[2] >= self.length:
            return have
        # Zeros, not whatever memory holds: a weight of zero times an infinity would be no number.
        keys, values = (like.new_zeros(self.slots, like.shape[1], self.length, like.shape[3]) for _ in range(2))
        if have is not None:
            for new, old in zip((keys, values), have):
                new[:, :, : old.shape[2]] = old
        self.layers[layer] = (keys, values)
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first keys of a slot to another."""
        for pair in self.layers.values():
            for tensor in pair:
                tensor[target, :, :length] = tensor[source, :, :length]

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for pair in self.layers.values() for tensor in pair)
