"""Writing many rows at once: a slot of the key cache for each, and a new row for every one that ends.

What is written is a coroutine: it yields `Write`s (the whole prompt each time, of which the slot's cache keeps the part that is unchanged)
and is sent what the model wrote. One reply is one `Write`; a turn with tools is several, and all of them keep their slot.

On a CPU, what a row becomes does not depend on the rows beside it, on the batch size or on the number of threads, to the bit: first prompts
are read one at a time, products are made of a number of rows that torch's kernels treat alike (`rows_alike` tries it out), and attention
over the cache uses a formula whose sums run in the same order whatever follows the row's last key.

A turn with tools is written in pieces, with a few given ids before each: the opening of the next segment. Rows that come to one wait until
a quarter of all does, and read it together.

Shape legend: B slots in use, N heads, S keys, T new ids, H head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from moss_train.inference.sampling import Sampling, choose, row_key, uniform
from moss_train.model.block import Block
from moss_train.model.codegen import CodeGenLM, set_attention
from moss_train.model.linear import linear

_KEYS_ALIKE = 64
"""Sums over a multiple of so many keys run in the same order (32 were seen to be enough, 16 not); keys beyond a row's own weigh zero."""
_PROMPT_ALIKE = 16
"""Prompts are filled up to a multiple of so many ids."""
_READ_TOGETHER = 64
"""Most ids behind what a slot holds already that are read together with those of other rows."""
_MOST_TOGETHER = 1024
"""Ids that one forward reads of several rows, where no bit depends on it."""
_GROWTH = 256
"""Keys by which the cache grows."""
_WIDEST = 64
FEWEST_SLOTS = 4
"""The smallest number of rows that `rows_alike` tries."""
_COLUMNS_TRIED = 4096


@dataclass(frozen=True)
class Write:
    """A request to write.

    Attributes:
        prompt: All ids before the new ones.
        max_new_tokens: At most so many, the stop included.
        stream: Tells the draws of this write from others of the row.
    """

    prompt: list[int]
    max_new_tokens: int
    stream: str = ""


@dataclass(frozen=True)
class Written:
    """What the model wrote.

    Attributes:
        ids: Without the stop.
        stop: The id it ended with, or None where it came to `max_new_tokens`.
        log_probability: Of all ids and the stop, in nats, as they were sampled.
    """

    ids: list[int]
    stop: int | None
    log_probability: float


_Result = TypeVar("_Result")
Task = Generator[Write, Written, _Result]


@dataclass(eq=False)
class _Row:
    """A task in its slot. `cached` are the ids whose keys the slot holds; `fed` is the last id written, not yet among them; `waits` where
    the rest of its prompt is to be read first."""

    number: int
    task: Task[Any]
    cached: list[int] = field(default_factory=list)
    fed: int = 0
    write: Write = field(default_factory=lambda: Write([], 0))
    key: int = 0
    new: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    waits: bool = False


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


class Decoder:
    """Runs tasks, as many at once as there are slots.

    Args:
        model: In evaluation mode, on its device.
        stops: Ids that end a write.
        forbidden: Ids that are never written.
        sampling: How ids are chosen.
        seed: With a row's number, the source of its draws.
        batch_size: Slots.
        attention: Resolved backend for prompts that are read whole.
        share_prompts: Keep the last prompt that a task began with, and begin the next tasks that have the same one from there: for tasks
            that come in groups with one prompt. It takes the memory of one more slot, and changes no bit.

    Attributes:
        exact: Whether a row is the same to the bit beside any others.
        tokens: Written so far. prompt_tokens: Read so far; what was shared is counted once.
    """

    def __init__(
        self,
        model: CodeGenLM,
        stops: Iterable[int],
        forbidden: Iterable[int],
        sampling: Sampling,
        seed: int,
        batch_size: int = 1,
        attention: str = "sdpa",
        share_prompts: bool = False,
    ):
        self.model, self.sampling, self.seed, self.attention = model, sampling, seed, attention
        self.stops = frozenset(stops)
        self.device = model.device
        self.forbidden = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.forbidden[sorted(set(forbidden) - self.stops)] = True
        self.batch_size = batch_size
        on_cpu = self.device.type == "cpu"
        multiple = rows_alike(model) if on_cpu else 1
        self.exact = multiple is not None and on_cpu
        self.multiple = multiple or 1
        self.cached_attention = "eager" if on_cpu or attention == "eager" else "sdpa"
        slots = -(-batch_size // self.multiple) * self.multiple
        # The slot behind those of rows holds the shared prompt.
        self.cache = SlotCache(slots + share_prompts)
        self.share_prompts = share_prompts
        self._shared: tuple[list[int], torch.Tensor] | None = None
        self.positions: int = model.config.n_positions
        self.held = torch.zeros(slots, model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.rows: list[_Row] = []
        self.tokens = self.prompt_tokens = 0
        self.on_token: Callable[[int, int], None] | None = None
        """Called with the number of a row and each id that it writes, stops left out."""
        self.keep_cache = False
        """With one slot: let a task begin with what the last one left there, as for the turns of a chat. A prompt then gives the same
        reply to the bit only after the same turns."""
        self._left: list[int] = []

    def run(self, tasks: Iterable[tuple[int, Task[_Result]]]) -> Iterator[tuple[int, _Result]]:
        """Runs numbered tasks; gives the number and the result of each as it ends.

        The number, not the order, decides the draws of a row.
        """
        waiting = iter(tasks)
        if self.rows:
            # A run that was left in its middle: what its slots hold is nobody's.
            self.rows, self._left = [], []
        more = True
        with torch.inference_mode():
            while True:
                while more and len(self.rows) < self.batch_size:
                    number, task = next(waiting, (0, None))
                    if task is None:
                        more = False
                        break
                    self.rows.append(_Row(number, task, self._left))
                    self._left = []
                    yield from self._advance(self.rows[-1], None)
                if not self.rows:
                    return
                waiting_rows = [row for row in self.rows if row.waits]
                enough = 4 * len(waiting_rows) >= len(self.rows)
                for row in self._read_together(waiting_rows) if enough else self._step():
                    yield from self._advance(row, self._take(row))

    def one(self, task: Task[_Result], number: int = 0) -> _Result:
        """Runs one task to its end."""
        ((_, result),) = self.run([(number, task)])
        return result

    def _advance(self, row: _Row, written: Written | None) -> Iterator[tuple[int, Any]]:
        """Sends a task what was written, and reads its next prompts until one leaves something to write; gives its result if it ends."""
        while True:
            try:
                row.write = next(row.task) if written is None else row.task.send(written)
            except StopIteration as ended:
                self._free(row)
                yield row.number, ended.value
                return
            row.key, row.new, row.log_probability = row_key(self.seed, row.number, row.write.stream), [], 0.0
            kept = self._kept(row)
            if kept and len(row.write.prompt) - kept <= _READ_TOGETHER <= self.positions - kept:
                row.waits, row.cached = True, row.cached[:kept]
                return
            logits = self._read(row)
            if not self._choose([row], logits):
                return
            written = self._take(row)

    def _take(self, row: _Row) -> Written:
        stop = row.new[-1] if row.new[-1] in self.stops else None
        ids = row.new if stop is None else row.new[:-1]
        return Written(ids, stop, row.log_probability)

    def _free(self, row: _Row) -> None:
        """Gives a slot to the last row, so that the rows in use are the first."""
        slot, last = self.rows.index(row), self.rows[-1]
        if last is not row:
            self.cache.move(len(self.rows) - 1, slot, len(last.cached))
            self.held[slot] = self.held[len(self.rows) - 1]
            self.rows[slot] = last
        self.rows.pop()
        if self.keep_cache and self.batch_size == 1:
            self._left = row.cached

    def _read(self, row: _Row) -> torch.Tensor:
        """The logits [1, V] after the last id of a row's prompt, whose keys its slot then holds."""
        slot, prompt = self.rows.index(row), row.write.prompt
        begins = self.share_prompts and not row.cached
        if begins and self._shared is not None and self._shared[0] == prompt:
            self.cache.move(self.cache.slots - 1, slot, len(prompt))
            logits = self._shared[1]
        else:
            logits = self._read_new(row, slot)
            if begins:
                self.cache.move(slot, self.cache.slots - 1, len(prompt))
                self._shared = list(prompt), logits
        self._hold(row, slot)
        return logits

    def _read_new(self, row: _Row, slot: int) -> torch.Tensor:
        """Reads a prompt, but for what the slot holds of it already."""
        prompt, kept = row.write.prompt, self._kept(row)
        new = prompt[kept:]
        # Padding behind the prompt is seen by no token of it, and what it leaves in the cache is overwritten.
        padded = max(len(new), min(-(-len(new) // _PROMPT_ALIKE) * _PROMPT_ALIKE, self.positions - kept))
        ids = torch.tensor([new + [prompt[-1]] * (padded - len(new))], device=self.device)
        positions = torch.arange(kept, kept + padded, device=self.device)[None]
        seen = self._round(kept + padded) if kept else 0
        self.cache.select(slice(slot, slot + 1), positions, seen)
        mask = (torch.arange(seen, device=self.device)[None, :] <= positions[0][:, None])[None, None] if kept else None
        # As many rows as products are made of, all the same: a product of one row is rounded in another way.
        last = torch.full((self.multiple,), len(new) - 1, device=self.device)
        logits = self._forward(ids, positions, mask, self.attention if not kept else self.cached_attention, last)[:, 0]
        self.prompt_tokens += len(new)
        return logits

    def _kept(self, row: _Row) -> int:
        """How many ids of a row's prompt its slot holds already."""
        prompt, kept = row.write.prompt, 0
        # The last id is read anew: its logits are wanted.
        while kept < min(len(row.cached), len(prompt) - 1) and row.cached[kept] == prompt[kept]:
            kept += 1
        return kept

    def _read_together(self, rows: list[_Row]) -> list[_Row]:
        """Reads what is new in the prompts of several rows, and writes one id for each; the rows whose write ended with it."""
        unit = max(_PROMPT_ALIKE, self.multiple)
        longest = max(len(row.write.prompt) - len(row.cached) for row in rows)
        width = -(-longest // unit) * unit
        # `rows_alike` has tried products of up to so many rows.
        most = max(1, (_WIDEST if self.exact else _MOST_TOGETHER) // width)
        ended = []
        for start in range(0, len(rows), most):
            some = rows[start : start + most]
            ended += self._choose(some, self._read_width(some, width))
        return ended

    def _read_width(self, rows: list[_Row], width: int) -> torch.Tensor:
        """The logits [B, V] after the prompts of rows, of each of which `width` ids or fewer are new."""
        slots = torch.tensor([self.rows.index(row) for row in rows])
        kept = torch.tensor([len(row.cached) for row in rows], device=self.device)
        new = [row.write.prompt[len(row.cached) :] for row in rows]
        ids = torch.tensor([one + [one[-1]] * (width - len(one)) for one in new], device=self.device)
        positions = kept[:, None] + torch.arange(width, device=self.device)
        seen = self._round(int(positions.max()) + 1)
        self.cache.select(slots, positions, seen)
        mask = (torch.arange(seen, device=self.device) <= positions[:, :, None])[:, None]
        # Logits of few places: the openings of segments are of few lengths.
        ends = sorted({len(one) - 1 for one in new})
        keep = torch.tensor(ends + ends[-1:] * (-len(ends) % self.multiple), device=self.device)
        logits = self._forward(ids, positions, mask, self.cached_attention, keep)
        logits = logits[torch.arange(len(rows)), torch.tensor([ends.index(len(one) - 1) for one in new])]
        for row in rows:
            self.prompt_tokens += len(row.write.prompt) - len(row.cached)
            row.waits = False
            self._hold(row, self.rows.index(row))
        return logits

    def _hold(self, row: _Row, slot: int) -> None:
        """A slot holds the whole prompt of its row now."""
        row.cached = list(row.write.prompt)
        self.held[slot] = False
        self.held[slot, torch.tensor(row.cached, device=self.device)] = True

    def _step(self) -> list[_Row]:
        """One more id for every row that does not wait; the rows whose write ended with it."""
        count = len(self.rows)
        width = -(-count // self.multiple) * self.multiple
        # What is written to slots that only fill up the product, and to those of rows that wait, is read by nobody.
        places = [len(row.cached) for row in self.rows] + [0] * (width - count)
        ids = torch.tensor([row.fed for row in self.rows] + [0] * (width - count), device=self.device)[:, None]
        positions = torch.tensor(places, device=self.device)[:, None]
        seen = self._round(max(places) + 1)
        self.cache.select(slice(0, width), positions, seen)
        mask = (torch.arange(seen, device=self.device)[None, :] <= positions)[:, None, None]
        writing = [slot for slot, row in enumerate(self.rows) if not row.waits]
        for slot in writing:
            self.rows[slot].cached.append(self.rows[slot].fed)
        logits = self._forward(ids, positions, mask, self.cached_attention, None)[:count, 0]
        return self._choose([self.rows[slot] for slot in writing], logits[writing] if len(writing) < count else logits)

    def _round(self, length: int) -> int:
        return -(-length // _KEYS_ALIKE) * _KEYS_ALIKE

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, attention: str, keep: torch.Tensor | None
    ) -> torch.Tensor:
        set_attention(self.model, attention)
        cache: Any = self.cache
        out = self.model(
            ids, position_ids=positions, attention_mask=mask, past_key_values=cache, logits_to_keep=0 if keep is None else keep
        )
        logits: torch.Tensor = out.logits
        return logits

    def _choose(self, rows: list[_Row], logits: torch.Tensor) -> list[_Row]:
        """Appends an id to each row; those that end with it."""
        slots = [self.rows.index(row) for row in rows] if len(rows) < len(self.rows) else list(range(len(rows)))
        draws = [uniform(row.key, len(row.new)) for row in rows]
        chosen, log_probabilities = choose(logits[: len(rows)], self.held[slots], self.forbidden, draws, self.sampling)
        ended = []
        for row, slot, token, log_probability in zip(rows, slots, chosen, log_probabilities):
            row.new.append(token)
            row.log_probability += log_probability
            row.fed = token
            self.tokens += 1
            if token in self.stops or len(row.new) >= row.write.max_new_tokens:
                ended.append(row)
            if token not in self.stops and self.on_token is not None:
                self.on_token(row.number, token)
            self.held[slot, token] = True
        return ended


def rows_alike(model: CodeGenLM) -> int | None:
    """The smallest number of rows, of whose multiples every product gives a row the same bits on this machine; None if there is none.

    Kernels choose their blocking by the number of rows and threads. A few shapes are tried, with the model's own weights.
    """
    block = model.transformer.h[0]
    assert isinstance(block, Block)
    weights = [block.attn.qkv_proj.weight, block.mlp.fc_in.weight, block.mlp.fc_out.weight, model.lm_head.weight[:_COLUMNS_TRIED]]
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        inputs = [torch.randn(_WIDEST, weight.shape[1], generator=generator).to(weight.dtype) for weight in weights]
        try:
            torch.set_num_threads(1)
            expected = [linear(x, weight) for x, weight in zip(inputs, weights)]
        finally:
            torch.set_num_threads(threads)
        for multiple in (FEWEST_SLOTS, 8, 16, 32):
            counts = range(multiple, _WIDEST + 1, multiple)
            if all(
                torch.equal(linear(x[-count:], weight), product[-count:])
                for x, weight, product in zip(inputs, weights, expected)
                for count in counts
            ):
                return multiple
    return None
