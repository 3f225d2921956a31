"""How much memory a rank of a training run takes, from the tensors that the code allocates. No figure here is fitted to a measurement.

A step is a few *moments*: the loss, the first block of the backward pass, the last, the reduction of gradients, their norm, the update.
What is alive in each is listed tensor by tensor (`Item`), and the peak is the largest moment, not the sum of everything.

On CUDA the peak is that of `torch.cuda.max_memory_allocated`: what tensors take. On the CPU it is what the process's resident memory grows
by, which differs in two ways. A page that is never written is not resident, so DeepSpeed's buckets count as far as they are filled. And
glibc gives freed memory back at once only from `resident.MAPPED_FROM` on; smaller blocks stay resident for the next tensors, so the most
that small tensors ever take counts in every moment.

Read from deepspeed 0.19.8, torch 2.13 and glibc 2.36. Shape legend: T tokens of a rank's forward, D hidden_size, I inner size of the MLP, N
heads, V vocabulary, C tokens of a chunk of the loss, P parameters, W ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from moss_train.train.resident import MAPPED_FROM

# DeepSpeed's defaults (runtime/zero/config.py, runtime/engine.py), in elements.
REDUCE_BUCKET = 500_000_000
PREFETCH_BUCKET = 50_000_000
LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP = 1_000_000_000
PERSISTENCE_THRESHOLD = 100_000
ALLGATHER_BUCKET = 500_000_000
REUSE_DISTANCE = 1_000_000_000
FALLBACK_BUCKET = 500_000_000
"""MEMORY_OPT_ALLREDUCE_SIZE, which no setting changes."""

"""`model.shapes.QKV_BLOCKS`."""
_CPU_FLOAT32_LENGTH, _CPU_FLOAT32_HEAD_DIM = 512, 64
"""As in `model.attention`, which needs torch."""
_ROWS_PER_PRODUCT = 16384
"""Of `model.loss`, on CUDA."""
_LOGITS_PER_BLOCK = 2**19
"""Of `model.loss`, on a CPU."""
AHEAD_BYTES = 128 * 2**20
"""Of `train.tensors`."""

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Setup:
    """The numbers that memory depends on; every stage has them.

    Attributes:
        shapes: Name -> shape of every parameter, from `model.shapes.parameter_shapes`.
        trained: Names of those that train.
        decayed: Names of the trained ones in AdamW's first group.
        num_layers, hidden_size, inner_size, num_heads, vocab_size: Of the model.
        seq_len: Tokens of a row. micro_batch_size: Rows of a rank's forward. accumulation: Forwards of a rank in a step.
        world_size: Ranks. zero: The `zero_optimization` section.
        precision: "bf16" or "fp32". grad_accum: Format in which gradients add up.
        recompute: Whether blocks keep only their input. eager: Whether attention keeps its scores.
        recompute_blocks: How many blocks do, the first ones; None: all.
        is_cuda: Whether tensors are on a CUDA device.
        widens: Whether bfloat16 is multiplied in float32 (`model.linear.widens`).
        chunk_tokens: C, from `model.loss.chunk_size`.
        communication: Format in which gradients travel, DeepSpeed's `communication_data_type`; by default the model's.
        async_save: Whether a copy of the state is kept, from which checkpoints are written (`train.snapshot`).
    """

    shapes: dict[str, tuple[int, ...]] = field(repr=False)
    trained: frozenset[str] = field(repr=False)
    decayed: frozenset[str] = field(repr=False)
    num_layers: int
    hidden_size: int
    inner_size: int
    num_heads: int
    vocab_size: int
    seq_len: int
    micro_batch_size: int
    accumulation: int
    world_size: int
    zero: dict[str, Any]
    precision: str
    grad_accum: str
    recompute: bool
    eager: bool
    is_cuda: bool
    widens: bool
    chunk_tokens: int
    communication: str | None = None
    async_save: bool = False
    recompute_blocks: int | None = None

    @property
    def recomputed_blocks(self) -> int:
        """Blocks that keep only their input."""
        if not self.recompute:
            return 0
        return self.num_layers if self.recompute_blocks is None else min(self.recompute_blocks, self.num_layers)

    def count(self, names: frozenset[str] | None = None) -> int:
        """Parameters in all, or of these names."""
        return sum(math.prod(shape) for name, shape in self.shapes.items() if names is None or name in names)

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.count()

    @property
    def tokens(self) -> int:
        """T."""
        return self.seq_len * self.micro_batch_size

    @property
    def width(self) -> int:
        """Bytes of a number of the model."""
        return BYTES[self.precision]

    @property
    def gradient_width(self) -> int:
        """Bytes of a number of a gradient on its way to other ranks."""
        return BYTES[self.communication or self.precision]

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return int(self.zero["stage"])

    @property
    def hpz(self) -> int:
        """Ranks among which hpZ divides a second copy of the parameters; 1: there is none."""
        return self.setting("zero_hpz_partition_size", 1) if self.stage == 3 else 1

    def setting(self, name: str, default: int) -> int:
        """A number of the section, which YAML may have read as a float or a text."""
        return int(float(self.zero.get(name, default)))

    @property
    def offloads(self) -> bool:
        """Whether optimizer state is in the host's memory."""
        return bool((self.zero.get("offload_optimizer") or {}).get("device", "none") != "none")

    @property
    def largest(self) -> int:
        """Elements of the largest trained parameter."""
        return max(math.prod(self.shapes[name]) for name in self.trained)

    def bucket(self) -> int:
        """Elements that DeepSpeed gathers before it reduces them."""
        return min(self.setting("reduce_bucket_size", REDUCE_BUCKET), self.count(self.trained))

    def is_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed chooses its BF16_Optimizer: ZeRO-1 in bfloat16 with gradients in float32."""
        return self.stage == 1 and self.precision == "bf16" and self.grad_accum == "fp32"


@dataclass(frozen=True)
class Item:
    """Tensors of one kind that are alive together: all of their bytes, and those of the largest single one, which decides who keeps it."""

    component: str
    bytes: float
    block: float
    on_host: bool = False


@dataclass(frozen=True)
class Moment:
    """What is alive at one point of a step."""

    name: str
    items: tuple[Item, ...]

    def total(self, on_host: bool = False) -> float:
        """Bytes of the tensors on the device, or those that are put on the host."""
        return sum(item.bytes for item in self.items if item.on_host is on_host)

    def small(self) -> float:
        """Bytes in blocks that glibc does not give back."""
        return sum(item.bytes for item in self.items if item.block < MAPPED_FROM)


@dataclass(frozen=True)
class Memory:
    """Of one rank.

    Attributes:
        moments: Of a step, from the second on (the first has no optimizer state yet).
        peak: The moment that decides. peak_bytes: On the device; on the CPU, growth of resident memory.
        kept: Of `peak_bytes`, freed blocks that the allocator still holds at the peak.
        host_bytes: On the host, by offloading and by `train.async_save`, where that is another memory.
    """

    moments: tuple[Moment, ...]
    peak: Moment
    peak_bytes: float
    kept: float
    host_bytes: float

    def components(self) -> dict[str, float]:
        """Bytes by component at the peak; they sum up to `peak_bytes`."""
        found: dict[str, float] = {}
        for item in self.peak.items:
            if not item.on_host or self.host_bytes == 0:
                found[item.component] = found.get(item.component, 0.0) + item.bytes
        if self.kept:
            found["kept by the allocator"] = self.kept
        return found


def predict(setup: Setup) -> Memory:
    """The memory of a rank."""
    moments = tuple(_moments(setup))
    if setup.is_cuda:
        peak = max(moments, key=Moment.total)
        return Memory(moments, peak, peak.total(), 0.0, max(moment.total(on_host=True) for moment in moments))
    # On the CPU, what is on the host is in the same memory.
    small = max(moment.small() for moment in moments)
    peak = max(moments, key=lambda moment: moment.total() + moment.total(on_host=True) - moment.small())
    kept = small - peak.small()
    return Memory(moments, peak, peak.total() + peak.total(on_host=True) + kept, kept, 0.0)


def activations(setup: Setup) -> tuple[list[Item], list[Item]]:
    """(what all blocks keep for the backward pass, what one block keeps while it is computed again; empty without recompute).

    `Block.forward` keeps: its input (LayerNorm's), LayerNorm's output (the input of qkv_proj and fc_in, one tensor), q, k and v as the
    attention kernel takes them, its output, the input of out_proj, and the MLP's tensor before and after its activation.
    """
    t, d, i, b = setup.tokens, setup.hidden_size, setup.inner_size, setup.width
    # Where bfloat16 is widened, attention runs in float32 and keeps its own tensors so; out_proj takes a bfloat16 copy. On a CPU short
    # documents are attended to in float32 whatever the processor (`model.attention._is_short`).
    is_short = not setup.is_cuda and b == 2 and setup.seq_len <= _CPU_FLOAT32_LENGTH and d // setup.num_heads <= _CPU_FLOAT32_HEAD_DIM
    in_float32 = setup.widens or setup.eager or is_short
    attended = 4 if in_float32 else b
    copied = 0 if setup.is_cuda and not setup.eager else b
    # On the CPU, low precision is padded document by document (`model.attention._attend_by_document`): copies of q, k and v.
    padded = 0 if setup.is_cuda or in_float32 or b == 4 else b
    per_block = [
        Item("activations", 2 * b * t * d, b * t * d),
        Item("activations", 4 * attended * t * d, attended * t * d),
        Item("activations", copied * t * d, b * t * d),
        Item("activations", 3 * padded * t * d, padded * t * d),
        Item("activations", 2 * b * t * i, b * t * i),
        # Mean and reciprocal deviation of LayerNorm, log-sum-exp of attention, float32.
        Item("activations", 4 * t * (2 + setup.num_heads), 4 * t),
    ]
    if setup.eager:
        # Scores before the mask, their softmax, and the weights in the type of the values: [N, T, seq_len].
        scores = setup.num_heads * t * setup.seq_len
        per_block.append(Item("activations", (4 + 4 + b) * scores, 4 * scores))
    inputs = Item("activations", b * t * d, b * t * d)
    ends = [inputs, inputs]  # the input and the output of the last LayerNorm
    again = setup.recomputed_blocks
    whole = [replace(item, bytes=(setup.num_layers - again) * item.bytes) for item in per_block]
    return [replace(inputs, bytes=again * inputs.bytes), *whole, *ends], per_block if again else []


def loss_items(setup: Setup) -> list[Item]:
    """The head's float32 gradient and one chunk of logits (`model.loss._losses_and_gradients`)."""
    if "lm_head.weight" not in setup.shapes:
        return []
    d, v, b = setup.hidden_size, setup.vocab_size, setup.width
    chunk = min(setup.chunk_tokens, setup.tokens) * v
    # Every token may be supervised: their hidden states and the gradients of these.
    items = [Item("loss", 2 * b * setup.tokens * d, b * setup.tokens * d)]
    if b == 2 and not setup.widens and not setup.is_cuda:
        # A product for each chunk, which is all there is where there is one; and the softmax of a few tokens.
        several = setup.chunk_tokens < setup.tokens
        items += [Item("head gradient, float32", 4 * v * d, 4 * v * d)] if several else []
        items.append(Item("head gradient", 2 * v * d, 2 * v * d))
        return [*items, Item("logits", 2 * chunk, 2 * chunk), Item("loss", 4 * max(_LOGITS_PER_BLOCK, v), 4 * v)]
    items.append(Item("head gradient, float32", 4 * v * (d + 1), 4 * v * d))
    if setup.widens:
        # The weight in float32 for the hidden states' gradients, and once more inside the product; the product before it is rounded.
        items += [Item("head weight, widened", 8 * v * d, 4 * v * d), Item("logits", 6 * chunk, 4 * chunk)]
    elif b == 4:
        items += [Item("logits", 4 * chunk, 4 * chunk)]
    else:
        # The product, its float32 copy, and on CUDA a slice of the weight's gradient.
        items += [Item("logits", 6 * chunk, 4 * chunk)]
    if setup.is_cuda and b == 2:
        part = 4 * min(v, _ROWS_PER_PRODUCT) * d
        items.append(Item("loss", part, part))
    return items


def block_backward(setup: Setup) -> list[Item]:
    """What the backward pass of one block has beside what was kept: most in fc_in."""
    t, d, i, b = setup.tokens, setup.hidden_size, setup.inner_size, setup.width
    if setup.widens:
        # `_WidenedLinear.backward`: the gradient and its float32 copy [T, I], x and its gradient; the weight's product and its rounding.
        return [
            Item("backward of a block", (2 + 4) * t * i + (2 + 4) * t * d, 4 * t * i),
            Item("backward of a block", (4 + 2) * i * d, 4 * i * d),
        ]
    # The gradients before and after the activation, that of the residual, and the weight's gradient.
    return [Item("backward of a block", 2 * b * t * i + b * t * d, b * t * i), Item("backward of a block", b * i * d, b * i * d)]


def _moments(setup: Setup) -> list[Moment]:
    from moss_train.train.memory_zero import Zero

    zero = Zero(setup)
    kept, again = activations(setup)
    head = setup.width * setup.vocab_size * (setup.hidden_size + 1) if "lm_head.weight" in setup.shapes else 0
    head_gradient = Item("gradients, one parameter", head, head)
    always = [*zero.always(), *zero.snapshot()]
    held = [*always, *zero.between_micro_batches()]
    whole, gathering = zero.gathered(), zero.gathering()
    recomputed = setup.recomputed_blocks
    partly = 0 < recomputed < setup.num_layers
    inside = [*([] if partly else again), *block_backward(setup)]
    below = activations(replace(setup, num_layers=recomputed))[0] if partly else []
    after = [*always, *zero.reduced()]
    return [
        Moment("forward, gathering", (*held, *zero.in_flight())),
        Moment("loss", (*held, *whole, *kept, *loss_items(setup))),
        Moment("backward, last block", (*held, *whole, *gathering, *kept, *inside, head_gradient)),
        # The blocks that keep all have been through.
        *(
            [Moment("backward, last recomputed block", (*held, *whole, *gathering, *below, *again, *block_backward(setup), head_gradient))]
            if partly
            else []
        ),
        # All other blocks have been through: their activations are gone, their gradients are there.
        Moment("backward, embedding", (*always, *zero.gradients(), *whole, head_gradient)),
        Moment("reduction", (*always, *zero.reduction())),
        Moment("gradient norm", (*after, *zero.norm())),
        Moment("update", (*after, *zero.update())),
        Moment("gathering the new weights", (*always, *zero.weights_gathering())),
    ]
