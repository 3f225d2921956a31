"""Writing many rows at once: a slot of the key cache for each, and a new row for every one that ends.

What is written is a coroutine: it yields `Write`s (the whole prompt each time, of which the slot's cache keeps the part that is unchanged)
and is sent what the model wrote. One reply is one `Write`; a turn with tools is several, and all of them keep their slot.

With guidance a row is two streams, each with a slot of its own: one reads the prompt with what is asked for, the other the prompt that is
led away from, and both read the ids that are chosen from their logits together (`sampling.guide`). A step is one forward for all of them.

On a CPU, what a row becomes does not depend on the rows beside it, on the batch size or on the number of threads, to the bit: first
prompts are read one at a time, products are made of a number of rows that torch's kernels treat alike (`rows_alike` tries it out), and
attention over the cache uses a formula whose sums run in the same order whatever follows the row's last key.

A turn with tools is written in pieces, with a few given ids before each: the opening of the next segment. Rows that come to one wait until
a quarter of all does, and read it together.

Shape legend: B streams or rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from moss_train.inference.sampling import Sampling, choose, guide, row_key, uniform
from moss_train.inference.slots import SlotCache
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
        away_from: With guidance, all ids before the new ones in the other stream.
    """

    prompt: list[int]
    max_new_tokens: int
    stream: str = ""
    away_from: list[int] | None = None

    @property
    def prompts(self) -> list[list[int]]:
        """The prompt of each stream."""
        return [self.prompt] if self.away_from is None else [self.prompt, self.away_from]


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
    """A task in its slots. `cached` are the ids whose keys each of them holds; `fed` is the last id written, not yet among them; `waits`
    where the rest of its prompts is to be read first."""

    number: int
    task: Task[Any]
    cached: list[list[int]]
    fed: int = 0
    write: Write = field(default_factory=lambda: Write([], 0))
    key: int = 0
    new: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    waits: bool = False


class Decoder:
    """Runs tasks, as many at once as there are slots.

    Args:
        model: In evaluation mode, on its device.
        stops: Ids that end a write.
        forbidden: Ids that are never written.
        sampling: How ids are chosen. With guidance, every write needs its `away_from`.
        seed: With a row's number, the source of its draws.
        batch_size: Rows.
        attention: Resolved backend for prompts that are read whole.
        share_prompts: Keep the last prompt that a task began with, and begin the next tasks that have the same one from there: for tasks
            that come in groups with one prompt. It takes the memory of one more row, and changes no bit.

    Attributes:
        exact: Whether a row is the same to the bit beside any others.
        tokens: Written so far. prompt_tokens: Read so far, by all streams; what was shared is counted once.
        streams: Slots of a row: two with guidance.
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
        self.streams = streams_of(sampling.guidance)
        on_cpu = self.device.type == "cpu"
        multiple = rows_alike(model) if on_cpu else 1
        self.exact = multiple is not None and on_cpu
        self.multiple = multiple or 1
        self.cached_attention = "eager" if on_cpu or attention == "eager" else "sdpa"
        slots = -(-batch_size * self.streams // self.multiple) * self.multiple
        # The slots behind those of rows hold the shared prompt.
        self.cache = SlotCache(slots + share_prompts * self.streams)
        self.share_prompts = share_prompts
        self._shared: tuple[list[list[int]], torch.Tensor] | None = None
        self.positions: int = model.config.n_positions
        self.held = torch.zeros(batch_size, model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.rows: list[_Row] = []
        self.tokens = self.prompt_tokens = 0
        self.on_token: Callable[[int, int], None] | None = None
        """Called with the number of a row and each id that it writes, stops left out."""
        self.keep_cache = False
        """With one slot: let a task begin with what the last one left there, as for the turns of a chat. A prompt then gives the same
        reply to the bit only after the same turns."""
        self._left = self._nothing()

    def run(self, tasks: Iterable[tuple[int, Task[_Result]]]) -> Iterator[tuple[int, _Result]]:
        """Runs numbered tasks; gives the number and the result of each as it ends.

        The number, not the order, decides the draws of a row.
        """
        waiting = iter(tasks)
        if self.rows:
            # A run that was left in its middle: what its slots hold is nobody's.
            self.rows, self._left = [], self._nothing()
        more = True
        with torch.inference_mode():
            while True:
                while more and len(self.rows) < self.batch_size:
                    number, task = next(waiting, (0, None))
                    if task is None:
                        more = False
                        break
                    self.rows.append(_Row(number, task, self._left))
                    self._left = self._nothing()
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

    def _nothing(self) -> list[list[int]]:
        """What the slots of a row hold at first."""
        return [[] for _ in range(self.streams)]

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
            if self._can_wait(row):
                row.waits = True
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
        """Gives the slots to the last row, so that the rows in use are the first."""
        place, last = self.rows.index(row), self.rows[-1]
        if last is not row:
            self._move((len(self.rows) - 1) * self.streams, place * self.streams, last.cached)
            self.held[place] = self.held[len(self.rows) - 1]
            self.rows[place] = last
        self.rows.pop()
        if self.keep_cache and self.batch_size == 1:
            self._left = row.cached

    def _read(self, row: _Row) -> torch.Tensor:
        """The logits [1, V] after the last id of a row's prompt, whose keys its slot then holds."""
        place, prompts = self.rows.index(row), row.write.prompts
        if len(prompts) != self.streams:
            raise ValueError(f"a write has {len(prompts)} prompts; with guidance={self.sampling.guidance} it needs {self.streams}")
        slot, shared = place * self.streams, self.cache.slots - self.streams
        begins = self.share_prompts and not any(row.cached)
        if begins and self._shared is not None and self._shared[0] == prompts:
            self._move(shared, slot, prompts)
            logits = self._shared[1]
        else:
            read = [self._read_new(prompt, held, slot + one) for one, (prompt, held) in enumerate(zip(prompts, row.cached))]
            logits = self._guided(torch.cat(read)) if len(read) > 1 else read[0]
            if begins:
                self._move(slot, shared, prompts)
                self._shared = [list(prompt) for prompt in prompts], logits
        self._hold(row)
        return logits

    def _hold(self, row: _Row) -> None:
        """The slots of a row hold the whole of its prompts now."""
        place = self.rows.index(row)
        row.cached = [list(prompt) for prompt in row.write.prompts]
        self.held[place] = False
        # Prompts differ in their tags alone, which are never written.
        self.held[place, torch.tensor(row.write.prompt, device=self.device)] = True

    def _can_wait(self, row: _Row) -> bool:
        """Whether little of a row's prompts is new, so that it is better read with those of other rows; then its slots keep the rest."""
        prompts = row.write.prompts
        if len(prompts) != len(row.cached):
            return False
        kept = [_in_common(held, prompt) for held, prompt in zip(row.cached, prompts)]
        # Room for the widest that is read together, which the padding of a shorter one may need.
        if not all(one and len(prompt) - one <= _READ_TOGETHER <= self.positions - one for one, prompt in zip(kept, prompts)):
            return False
        row.cached = [held[:one] for held, one in zip(row.cached, kept)]
        return True

    def _read_together(self, rows: list[_Row]) -> list[_Row]:
        """Reads what is new in the prompts of several rows, and writes one id for each; the rows whose write ended with it."""
        # Rows with about as much to read go together, so that little is padding. Where bits must not depend on the others, products are of
        # numbers of rows that `rows_alike` has tried.
        unit, most = (max(_PROMPT_ALIKE, self.multiple), _WIDEST) if self.exact else (8, _MOST_TOGETHER)
        by_width: dict[int, list[_Row]] = {}
        for row in rows:
            longest = max(len(prompt) - len(held) for prompt, held in zip(row.write.prompts, row.cached))
            by_width.setdefault(-(-longest // unit) * unit, []).append(row)
        ended = []
        for width, alike in by_width.items():
            count = max(1, most // (width * self.streams))
            for start in range(0, len(alike), count):
                some = alike[start : start + count]
                logits = self._read_width(some, width)
                for row in some:
                    row.waits = False
                    self._hold(row)
                ended += self._choose(some, self._guided(logits))
        return ended

    def _read_width(self, rows: list[_Row], width: int) -> torch.Tensor:
        """The logits [B * streams, V] after the prompts of B rows, of each of which `width` ids or fewer are new."""
        slots = torch.tensor([self.rows.index(row) * self.streams + one for row in rows for one in range(self.streams)])
        kept = [len(held) for row in rows for held in row.cached]
        new = [prompt[len(held) :] for row in rows for prompt, held in zip(row.write.prompts, row.cached)]
        ids = torch.tensor([one + one[-1:] * (width - len(one)) for one in new], device=self.device)
        positions = torch.tensor(kept, device=self.device)[:, None] + torch.arange(width, device=self.device)
        seen = self._round(max(kept) + width)
        self.cache.select(slots, positions, seen)
        mask = (torch.arange(seen, device=self.device) <= positions[:, :, None])[:, None]
        # Logits of few places: the openings of segments are of few lengths.
        ends = sorted({len(one) - 1 for one in new})
        keep = torch.tensor(ends + ends[-1:] * (-len(ends) % self.multiple), device=self.device)
        logits = self._forward(ids, positions, mask, self.cached_attention, keep)
        self.prompt_tokens += sum(map(len, new))
        return logits[torch.arange(len(new)), torch.tensor([ends.index(len(one) - 1) for one in new])]

    def _move(self, source: int, target: int, held: list[list[int]]) -> None:
        """Copies what the slots of a row hold, from the slots that begin with `source` to those that begin with `target`."""
        for one, ids in enumerate(held):
            self.cache.move(source + one, target + one, len(ids))

    def _guided(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [B * streams, V] -> [B, V]."""
        return logits if self.streams == 1 else guide(logits[0::2], logits[1::2], self.sampling.guidance)

    def _read_new(self, prompt: list[int], held: list[int], slot: int) -> torch.Tensor:
        """Reads a prompt, but for what the slot holds of it already: logits [1, V]."""
        kept = _in_common(held, prompt)
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
        logits = self._forward(ids, positions, mask, self.attention if not kept else self.cached_attention, last)[:1, 0]
        self.prompt_tokens += len(new)
        return logits

    def _step(self) -> list[_Row]:
        """One more id for every row that does not wait; the rows whose write ended with it."""
        streams = [(row.fed, held) for row in self.rows for held in row.cached]
        count = len(streams)
        width = -(-count // self.multiple) * self.multiple
        # What is written to slots that only fill up the product, and to those of rows that wait, is read by nobody.
        places = [len(held) for _, held in streams] + [0] * (width - count)
        ids = torch.tensor([fed for fed, _ in streams] + [0] * (width - count), device=self.device)[:, None]
        positions = torch.tensor(places, device=self.device)[:, None]
        seen = self._round(max(places) + 1)
        self.cache.select(slice(0, width), positions, seen)
        mask = (torch.arange(seen, device=self.device)[None, :] <= positions)[:, None, None]
        writing = [place for place, row in enumerate(self.rows) if not row.waits]
        for place in writing:
            for held in self.rows[place].cached:
                held.append(self.rows[place].fed)
        logits = self._guided(self._forward(ids, positions, mask, self.cached_attention, None)[:count, 0])
        return self._choose([self.rows[place] for place in writing], logits[writing] if len(writing) < len(self.rows) else logits)

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
        places = [self.rows.index(row) for row in rows] if len(rows) < len(self.rows) else list(range(len(rows)))
        draws = [uniform(row.key, len(row.new)) for row in rows]
        chosen, log_probabilities = choose(logits, self.held[places], self.forbidden, draws, self.sampling)
        ended = []
        for row, place, token, log_probability in zip(rows, places, chosen, log_probabilities):
            row.new.append(token)
            row.log_probability += log_probability
            row.fed = token
            self.tokens += 1
            if token in self.stops or len(row.new) >= row.write.max_new_tokens:
                ended.append(row)
            if token not in self.stops and self.on_token is not None:
                self.on_token(row.number, token)
            self.held[place, token] = True
        return ended


def _in_common(held: list[int], prompt: list[int]) -> int:
    """How many ids at the beginning of a prompt a slot holds already. The last one is read anew: its logits are wanted."""
    kept = 0
    while kept < min(len(held), len(prompt) - 1) and held[kept] == prompt[kept]:
        kept += 1
    return kept


def streams_of(guidance: float) -> int:
    """Slots that a row takes."""
    return 1 if guidance == 1 else 2


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
