"""The two sides of the suite `sft`: the published recipe on stock parts, and this project, each an optimizer step at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import CodeGenConfig, CodeGenForCausalLM

from moss_train.config import OptimConfig, Precision
from moss_train.data.loader import Batch, RowDataset, StepPlan, collate, step_batches
from moss_train.data.packing import IGNORE_INDEX
from moss_train.data.render import Rendered
from moss_train.model.codegen import init_model
from moss_train.model.rotary import build_rotary_table
from moss_train.train import engine as distributed
from moss_train.train.guard import SpikeGuard
from moss_train.train.loop import Actions, Plan, Progress, fit

REPOSITORY = Path(__file__).resolve().parents[2]
STOCK_BATCH = 4
"""Dialogues of a stock batch, as in the published script."""
SIDES = ("stock", "ours")
SEED = 0
CLIP = 1.0
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}
"""Largest relative difference of the two losses of the same dialogues."""


@dataclass(frozen=True)
class Step:
    """One optimizer step of one side, over all ranks."""

    seconds: float
    cpu_seconds: float
    """Processor time of all ranks together: what the step costs whatever else the machine is doing."""
    supervised: int
    """Tokens with loss."""
    tokens: int
    """Input tokens, padding not counted."""
    positions: int
    """Input positions, padding counted."""


@dataclass(frozen=True)
class Work:
    """What both sides train on.

    Attributes:
        rendered: The dialogues, in the random order in which the stock side takes them.
        rows: The same ones, packed.
        stock_accumulation: Stock batches of a rank in one optimizer step.
        stock_recompute: Gradient checkpointing on the stock side.
        plan: Rows of an optimizer step.
    """

    config: CodeGenConfig
    rendered: list[Rendered]
    rows: RowDataset
    stock_accumulation: int
    stock_recompute: bool
    plan: StepPlan
    pad_id: int

    @property
    def stock_steps(self) -> int:
        """Optimizer steps in which the stock side takes every dialogue once; what is left over by the last step is left out."""
        return len(self.rendered) // (STOCK_BATCH * self.stock_accumulation * distributed.world_size())

    @property
    def our_steps(self) -> int:
        """Optimizer steps in which the rows are taken once; what is left over by the last step is left out."""
        return max(1, len(self.rows) // self.plan.global_batch_size)


def model_config(vocab_size: int, seq_len: int, hidden_size: int = 512, num_layers: int = 6, head_dim: int = 64) -> CodeGenConfig:
    """A CodeGen without dropout; with 16,384 rows and the defaults it has 35.7 million parameters."""
    return CodeGenConfig(
        vocab_size=vocab_size,
        n_positions=seq_len,
        n_ctx=seq_len,
        n_embd=hidden_size,
        n_layer=num_layers,
        n_head=hidden_size // head_dim,
        rotary_dim=head_dim // 2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )


def stock_batch(rendered: Sequence[Rendered], pad_id: int) -> dict[str, torch.Tensor]:
    """Inputs of the stock forward, each int64 [dialogues, longest]: padded on the right, labels not shifted."""
    longest = max(len(dialogue.input_ids) for dialogue in rendered)
    input_ids = torch.full((len(rendered), longest), pad_id)
    labels = torch.full((len(rendered), longest), IGNORE_INDEX)
    attention_mask = torch.zeros((len(rendered), longest), dtype=torch.int64)
    for place, dialogue in enumerate(rendered):
        ids = torch.tensor(dialogue.input_ids)
        input_ids[place, : len(ids)] = ids
        labels[place, : len(ids)] = torch.where(torch.tensor(dialogue.loss_mask), ids, IGNORE_INDEX)
        attention_mask[place, : len(ids)] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}


def packed_batch(rendered: Sequence[Rendered], seq_len: int, pad_id: int) -> Batch:
    """The same dialogues as rows."""
    rows = RowDataset(rendered, seq_len, SEED, pad_id=pad_id)
    return collate([rows.row(index) for index in range(len(rows))], seq_len, pad_id)


def repair_stock_rotary(model: torch.nn.Module, config: CodeGenConfig, device: torch.device | str = "cpu") -> None:
    """Gives the stock layers their sines in float32: built under bfloat16 they are rounded, and wrong at long positions."""
    for block in model.transformer.h:  # type: ignore[union-attr]
        block.attn.embed_positions = build_rotary_table(config.n_positions, config.rotary_dim).to(device)


def build_engine(
    side: str, config: CodeGenConfig, precision: Precision, accumulation: int, recompute: bool = False, weights_of: Any = None
) -> Any:
    """A DeepSpeed engine around one side's model.

    Args:
        side: One of `SIDES`.
        config: Of the model.
        precision: Number format.
        accumulation: Forwards of an optimizer step.
        recompute: Gradient checkpointing; of the stock side.
        weights_of: An engine whose weights are taken over.
    """
    import deepspeed

    section = yaml.safe_load((REPOSITORY / "configs" / "deepspeed" / "zero3.yaml").read_text(encoding="utf-8"))
    ds_config = distributed.deepspeed_config(section, precision, 1, accumulation, CLIP)
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    with distributed.building(ds_config):
        model = init_model(config, SEED, dtype) if side == "ours" else CodeGenForCausalLM._from_config(config, dtype=dtype).train()
    if weights_of is not None:
        given = dict(weights_of.module.named_parameters())
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter, given[name]], modifier_rank=0):
                parameter.data.copy_(given[name].data)
    if side == "stock":
        repair_stock_rotary(model, config)
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return distributed.initialize(model, ds_config, OptimConfig(lr=1e-4))


def compare_losses(stock: Any, ours: Any, work: Work, precision: Precision) -> list[tuple[float, float]]:
    """Loss per supervised token of the first batches, by both sides; refuses a difference beyond rounding. A collective."""
    found = []
    for side in (stock, ours):
        side.eval()
    with torch.no_grad():
        for start in range(0, min(len(work.rendered), 2 * STOCK_BATCH), STOCK_BATCH):
            chosen = work.rendered[start : start + STOCK_BATCH]
            batch = packed_batch(chosen, work.rows.seq_len, work.pad_id)
            expected = float(stock(**stock_batch(chosen, work.pad_id)).loss)
            loss = float(ours(**batch.inputs).loss_sum) / batch.weight
            assert abs(loss - expected) <= TOLERANCE[precision.value] * expected, f"the two sides differ: stock {expected}, ours {loss}"
            found.append((expected, loss))
    for side in (stock, ours):
        side.train()
    return found


class StockSide:
    """Trains the stock model, an optimizer step a call."""

    def __init__(self, engine: Any, work: Work):
        self.engine, self.work = engine, work

    def step(self, number: int) -> Step:
        """Optimizer step `number` of the pass over the dialogues. A collective."""
        work, ranks = self.work, distributed.world_size()
        distributed.barrier()
        started, used = time.perf_counter(), time.process_time()
        supervised = tokens = positions = 0
        for micro in range(work.stock_accumulation):
            first = ((number * work.stock_accumulation + micro) * ranks + distributed.rank()) * STOCK_BATCH
            chosen = work.rendered[first : first + STOCK_BATCH]
            batch = stock_batch(chosen, work.pad_id)
            supervised += sum(dialogue.supervised_tokens for dialogue in chosen)
            tokens += sum(len(dialogue.input_ids) for dialogue in chosen)
            positions += batch["input_ids"].numel()
            # As the published script does: the mean over the batch, averaged by DeepSpeed over batches and ranks.
            self.engine.backward(self.engine(**batch).loss)
            self.engine.step()
        distributed.barrier()
        seconds, used = time.perf_counter() - started, time.process_time() - used
        used, *counts = distributed.all_reduce_sum([used, supervised, tokens, positions])
        return Step(seconds, used, *map(int, counts))


class OurSide:
    """Trains the project's model with its loop, an optimizer step a call."""

    def __init__(self, engine: Any, work: Work):
        self.engine, self.work = engine, work
        self.progress = Progress(guard=SpikeGuard(0))
        self.batches: list[Batch] = []

    def _batches(self, first_sample: int) -> list[Batch]:
        self.batches = step_batches(self.work.rows, first_sample, self.work.plan, distributed.rank(), len(self.work.rows))
        return self.batches

    def step(self, number: int) -> Step:
        """Optimizer step `number` of the pass over the rows. A collective."""
        self.progress.samples = number * self.work.plan.global_batch_size
        plan = Plan(self.progress.step + 1, self.work.plan.global_batch_size, 0, 0, lambda _: 1e-4, SEED)
        weight, tokens = self.progress.weight, self.progress.tokens
        distributed.barrier()
        started, used = time.perf_counter(), time.process_time()
        fit(self.engine, self._batches, plan, self.progress, _NOTHING_ELSE)
        distributed.barrier()
        seconds, used = time.perf_counter() - started, time.process_time() - used
        used, positions = distributed.all_reduce_sum([used, sum(batch.input_ids.numel() for batch in self.batches)])
        return Step(seconds, used, int(self.progress.weight - weight), int(self.progress.tokens - tokens), int(positions))


_NOTHING_ELSE = Actions(lambda: None, lambda: None, lambda _: None, lambda: False, lambda _: None)
