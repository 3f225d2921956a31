"""What DeepSpeed's ZeRO optimizers hold on a rank, by stage and precision: read from its code, with the place named at each.

deepspeed 0.19.8: runtime/bf16_optimizer.py (ZeRO-1 in bfloat16), runtime/zero/stage_1_and_2.py (ZeRO-1 in float32, ZeRO-2), runtime/zero/
stage3.py. The gloo staging is torch's (ProcessGroupGloo.cpp).
"""

from __future__ import annotations

import math

from moss_train.train.memory import (
    AHEAD_BYTES,
    BYTES,
    FALLBACK_BUCKET,
    LIVE_PARAMETERS,
    PERSISTENCE_THRESHOLD,
    PREFETCH_BUCKET,
    REDUCE_BUCKET,
    SUB_GROUP,
    Item,
    Setup,
)
from moss_train.train.resident import MAPPED_FROM

PARAMETERS, GRADIENTS, STATE, BUFFERS = "parameters", "gradients", "optimizer state", "DeepSpeed buffers"
HPZ_COPY = "parameters, hpZ's copy"
COPY = "copy for checkpoints"


class Zero:
    """The terms of one configuration, all in bytes of one rank."""

    def __init__(self, setup: Setup):
        self.setup = setup
        self.trained = setup.count(setup.trained)
        self.shard = math.ceil(self.trained / setup.world_size)
        self.width = setup.width
        self.accum = BYTES[setup.grad_accum]
        self.bucket = setup.bucket()
        # A parameter may lie in several ranks' partitions.
        self.largest_part = min(setup.largest, self.shard)

    def setting(self, name: str, default: int) -> int:
        """See `Setup.setting`."""
        return self.setup.setting(name, default)

    def always(self) -> list[Item]:
        """From the first update on, to the end."""
        setup, host = self.setup, self.setup.offloads
        group = 4 * self.shard
        state = [
            # The flat clone of this rank's part (`single_partition_of_fp32_groups`, `fp32_partitioned_groups_flat`), in float32 models too.
            Item(STATE, group, group, host),
            # exp_avg and exp_avg_sq, made by the first `step`.
            Item(STATE, 2 * group, group, host),
        ]
        if setup.stage < 3:
            # The model's parameters are views of the flat group; the tensors they were built in are freed.
            parameters = self.width * setup.parameters
            items = [Item(PARAMETERS, parameters, parameters), *state]
            if setup.is_bf16_optimizer():
                # `fp32_groups_gradients_flat` is as long as the group: ZeRO-1 does not divide it. `clear_lp_grads` zeroes the model's own
                # gradients between steps and keeps them.
                items.append(Item(GRADIENTS, self.accum * self.trained, self.accum * self.trained))
                items.append(Item(GRADIENTS, self.width * self.trained, self.width * setup.largest / 2))
            return items
        part = self.width * math.ceil(setup.parameters / setup.world_size)
        # `grad_partitions_flat_buffer`, made once.
        items = [Item(PARAMETERS, part, part), *state, Item(GRADIENTS, self.accum * self.shard, self.accum * self.shard, host)]
        if host:
            # Each sub-group's own gradient (`initialize_optimizer_states`).
            items.append(Item(GRADIENTS, 4 * self.shard, 4 * self.shard, True))
        small = sum(n for n in map(math.prod, setup.shapes.values()) if n <= self.threshold())
        items.append(Item(PARAMETERS, self.width * small, self.width))
        if setup.hpz > 1:
            # hpZ's second copy (`_partition_param_sec`): from a parameter's first release in a step until the update.
            copy = self.width * (setup.parameters - small) / min(setup.hpz, setup.world_size)
            items.append(Item(HPZ_COPY, copy, self.width * setup.largest / min(setup.hpz, setup.world_size)))
        # The contiguous bucket lives as long as the engine; on the CPU, pages that were never written take nothing.
        bucket = self.width * self.bucket_allocated()
        return [*items, Item(BUFFERS, bucket, bucket)] if setup.zero.get("contiguous_gradients", True) else items

    def snapshot(self) -> list[Item]:
        """`train.async_save`: the copy of this rank's part (`train.snapshot`), and tensors from other ranks that wait for the disk."""
        if not self.setup.async_save:
            return []
        copy, one = 12 * self.shard, 4 * self.setup.largest
        items = [Item(COPY, copy, 4 * self.shard, True)]
        if self.setup.world_size > 1:
            items.append(Item(COPY, one + min(copy, max(one, AHEAD_BYTES)), one, True))
        return items

    def threshold(self) -> int:
        """Parameters of at most so many elements stay whole on every rank."""
        return self.setting("stage3_param_persistence_threshold", PERSISTENCE_THRESHOLD)

    def bucket_allocated(self) -> int:
        """Elements of a bucket that take memory."""
        return self.setting("reduce_bucket_size", REDUCE_BUCKET) if self.setup.is_cuda else self.bucket

    def between_micro_batches(self) -> list[Item]:
        """Gradients of the micro-batches before, where there are several in a step."""
        if self.setup.accumulation == 1 or self.setup.stage == 3 or self.setup.is_bf16_optimizer():
            return []
        if self.setup.stage == 1:
            # Only the last backward reduces: until then every parameter has its gradient.
            return self.by_parameter(self.accum)
        # This rank's part: `averaged_gradients` in float32, or `all_grad_tensors`.
        return [Item(GRADIENTS, self.accum * self.shard, self.accum * self.shard)]

    def gathered(self) -> list[Item]:
        """ZeRO-3: parameters that are whole. They are released when more are live than a bound, or not needed again soon.

        One rank has them whole anyway, and takes no copies (`NoGatherCoalescedHandle`).
        """
        if self.setup.stage != 3 or self.setup.world_size == 1:
            return []
        sizes = [self.width * math.prod(shape) for shape in self.setup.shapes.values()]
        live = self.width * self.setting("stage3_max_live_parameters", LIVE_PARAMETERS)
        if sum(sizes) > live:
            return [Item("gathered parameters", max(live, *sizes), max(sizes))]
        small = [size for size in sizes if size < MAPPED_FROM]
        return [
            Item("gathered parameters", sum(small), max(small, default=0)),
            Item("gathered parameters", sum(sizes) - sum(small), max(sizes)),
        ]

    def in_flight(self) -> list[Item]:
        """ZeRO-3, as a forward begins: every module fetches a bucket ahead, until as many are on their way as may be live.

        They arrive in a flat tensor a fetch (`_all_gather_dtype`); gloo gathers into one of its own and copies from there.
        """
        if self.setup.stage != 3 or self.setup.world_size == 1:
            return []
        live = self.setting("stage3_max_live_parameters", LIVE_PARAMETERS)
        flat = self.width * min(self.setup.parameters, live)
        return [Item("gathered parameters", flat if self.setup.is_cuda else 2 * flat, flat)]

    def gathering(self) -> list[Item]:
        """ZeRO-3: the flat buffer into which the next modules are fetched (`AllGatherCoalescedHandle`), then copied out of."""
        live = self.setting("stage3_max_live_parameters", LIVE_PARAMETERS)
        if self.setup.stage != 3 or self.setup.world_size == 1 or self.setup.parameters <= live:
            # All parameters are whole already.
            return []
        ahead = self.width * min(self.setting("stage3_prefetch_bucket_size", PREFETCH_BUCKET), self.setup.parameters)
        return [Item("gathered parameters", ahead, ahead)]

    def by_parameter(self, width: int) -> list[Item]:
        """A gradient for each parameter, in a tensor of its own: small ones and large ones apart, since glibc treats them so."""
        sizes = [width * math.prod(self.setup.shapes[name]) for name in self.setup.trained]
        small = [size for size in sizes if size < MAPPED_FROM]
        return [Item(GRADIENTS, sum(small), max(small, default=0)), Item(GRADIENTS, sum(sizes) - sum(small), max(sizes))]

    def gradients(self) -> list[Item]:
        """When the backward pass has been through, before they are reduced."""
        setup = self.setup
        if setup.is_bf16_optimizer() or setup.stage == 3:
            return []
        if setup.stage == 1:
            return self.by_parameter(self.width)
        # ZeRO-2: gradients lie in the bucket.
        return [Item(BUFFERS, self.width * self.bucket_allocated(), self.width * self.bucket), *self.between_micro_batches()]

    def reduced(self) -> list[Item]:
        """From the reduction to the update: this rank's part (`averaged_gradients`)."""
        setup = self.setup
        if setup.is_bf16_optimizer() or setup.stage == 3:
            return []
        return [Item(GRADIENTS, self.accum * self.shard, self.accum * self.shard)]

    def reduction(self) -> list[Item]:
        """While a bucket of gradients is summed over ranks."""
        setup, gloo = self.setup, not self.setup.is_cuda
        staged = self.width * self.bucket
        if setup.is_bf16_optimizer():
            # `allreduce_no_retain` concatenates the groups' buffers until there are enough; one that is large enough goes alone, in
            # place. The bucket is then rounded to `communication_data_type`, which is that of the model.
            decayed = setup.count(setup.decayed)
            joined = decayed <= FALLBACK_BUCKET and decayed < self.trained
            parts = self.trained if joined else max(decayed, self.trained - decayed)
            together = Item(BUFFERS, self.accum * parts if joined else 0, self.accum * parts)
            return [together, Item(BUFFERS, self.width * parts, self.width * parts)]
        if setup.stage == 3:
            # `reduce_scatter_coalesced` concatenates the bucket by rank; gloo's reduce_scatter clones it; then this rank's part in the
            # accumulation's format.
            own = self.accum * math.ceil(self.bucket / setup.world_size) if self.width != self.accum else 0
            return [Item(BUFFERS, staged, staged), Item(BUFFERS, max(staged if gloo else 0, own), staged)]
        if not setup.zero.get("contiguous_gradients", True):
            return [*self.by_parameter(self.width), *self.reduced(), Item(BUFFERS, staged, staged)]
        # ZeRO-1 and 2: the contiguous bucket, two of them where communication overlaps (the second is written once the first is full), and
        # the concatenation of its slices (`allreduce_bucket`).
        full = self.bucket < self.trained
        both = 2 if setup.zero.get("overlap_comm") and (full or setup.is_cuda) else 1
        bucket = Item(BUFFERS, both * self.width * self.bucket_allocated(), self.width * self.bucket_allocated())
        own = self.accum * self.shard
        if self.width != self.accum:
            # The float32 part is added to while the concatenation is there, a parameter at a time (`_add_to_grad_partition_buffer`).
            one = self.accum * self.largest_part
            return [Item(GRADIENTS, own, own), bucket, Item(BUFFERS, staged, staged), Item(BUFFERS, one, one)]
        # `grads_in_partition` is made when the concatenation is gone. What does not fit into ZeRO-1's bucket is still with its parameters.
        waiting = self.width * (self.trained - self.bucket) if setup.stage == 1 else 0
        before = self.between_micro_batches() if setup.stage == 2 else []
        return [bucket, Item(BUFFERS, max(staged, own), staged), Item(GRADIENTS, waiting, waiting), *before]

    def norm(self) -> list[Item]:
        """The norm is taken in float64, a tensor at a time (`get_norm_dtype`); ZeRO-1 in bfloat16 takes it in float32, in place."""
        if self.setup.is_bf16_optimizer():
            return []
        part = self.largest_part if self.setup.stage < 3 else math.ceil(self.setup.largest / self.setup.world_size)
        return [Item(BUFFERS, 8 * part, 8 * part)]

    def update(self) -> list[Item]:
        """Beside the gradients. torch's fused AdamW and DeepSpeed's CPU one work in place."""
        setup = self.setup
        if setup.stage == 3 and not setup.offloads:
            # `_prepare_fp32_grad_for_sub_group` flattens a sub-group's gradients into a copy.
            size = min(self.shard, self.setting("sub_group_size", SUB_GROUP) + math.ceil(setup.largest / setup.world_size))
            return [Item(BUFFERS, 4 * size, 4 * size)]
        if setup.stage < 3 and self.width == self.accum:
            # `flatten(averaged_gradients)`; of ZeRO-1 in float32 the gradients in this rank's part have moved to one tensor before.
            return [Item(BUFFERS, 4 * self.shard, 4 * self.shard)]
        return []

    def weights_gathering(self) -> list[Item]:
        """ZeRO-1 and 2: gloo gathers into one flat tensor and copies from there (`AsyncAllgatherWork`); NCCL in place."""
        if self.setup.stage == 3 or self.setup.is_cuda or self.setup.world_size == 1:
            return []
        return [Item(BUFFERS, self.width * self.trained, self.width * self.trained)]
