"""The program behind the suite `sft`: this project against the published recipe on stock parts, in one launch, on the same dialogues.

    DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 moss_train/benchmark/sft_speed.py dialogues.jsonl --out speed.json

* *stock*: transformers' `CodeGenForCausalLM`, batches of four dialogues in random order, padded on the right to the longest, the stock
  forward with `labels`: full attention matrices, logits of every position, its mean loss. With gradient checkpointing, as the published
  script has it; `--no-stock-recompute` turns that off, which is faster and takes more memory.
* *ours*: `CodeGenLM`, the same dialogues packed into rows, and the project's own loop (`train.loop.fit`).

Both have the same weights to begin with, loss mask (`generated`), DeepSpeed section, AdamW, number format and threads, and nearly the same
number of supervised tokens an optimizer step. They take turns, a step each, and go through the dialogues once, what does not fill a last
step left out. Before that, both must give the same loss on the same dialogues. Peak memory comes from processes that train one side only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moss_train.benchmark.outcome import machine
from moss_train.benchmark.sft_sides import (
    SEED,
    SIDES,
    STOCK_BATCH,
    OurSide,
    Step,
    StockSide,
    Work,
    build_engine,
    compare_losses,
    model_config,
)
from moss_train.benchmark.timing import peak_growth
from moss_train.config import Precision
from moss_train.data.dialogue import Dialogue, read_dialogues
from moss_train.data.loader import RowDataset, StepPlan
from moss_train.data.mixture import permutation_key, permuted_index
from moss_train.data.render import render_all
from moss_train.data.tokenizer import MossTokenizer
from moss_train.model.codegen import count_parameters
from moss_train.ports import free_port
from moss_train.train import engine as distributed


def measure_speed(work: Work, precision: Precision, say: Callable[[str], None]) -> dict[str, Any]:
    """Both sides in turns, in this process; the first step of each is repeated untimed before."""
    ours = build_engine("ours", work.config, precision, work.plan.accumulation)
    stock = build_engine("stock", work.config, precision, work.stock_accumulation, work.stock_recompute, weights_of=ours)
    losses = compare_losses(stock, ours, work, precision)
    say(f"{precision.value}: losses on the same dialogues, stock and ours: {', '.join(f'{a:.6f} {b:.6f}' for a, b in losses)}")
    sides: dict[str, StockSide | OurSide] = {"stock": StockSide(stock, work), "ours": OurSide(ours, work)}
    steps: dict[str, list[Step]] = {side: [] for side in SIDES}
    for side in SIDES:
        sides[side].step(0)
    for number in range(max(work.stock_steps, work.our_steps)):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            if number < (work.stock_steps if side == "stock" else work.our_steps):
                steps[side].append(sides[side].step(number))
        shown = [f"{side} {rate(done[-1:]):.1f}" for side, done in steps.items() if len(done) > number]
        say(f"{precision.value}: round {number + 1}: supervised tokens/s: {', '.join(shown)}")
    pairs = list(zip(steps["stock"], steps["ours"]))
    for engine in (stock, ours):
        distributed.release(engine)
    return {
        "losses": losses,
        "ratio": spread([rate([own]) / rate([theirs]) for theirs, own in pairs]),
        "ratio_by_cpu_time": spread([rate([own], by="cpu_seconds") / rate([theirs], by="cpu_seconds") for theirs, own in pairs]),
        "ratio_over_all": rate(steps["ours"]) / rate(steps["stock"]),
        **{side: summary(done) for side, done in steps.items()},
    }


def rate(steps: Sequence[Step], by: str = "seconds") -> float:
    """Supervised tokens a second."""
    return sum(step.supervised for step in steps) / sum(getattr(step, by) for step in steps)


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """How the ratios of the rounds lie."""
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "rounds": len(ratios)}


def summary(steps: Sequence[Step]) -> dict[str, Any]:
    """What is reported of one side."""
    seconds, positions = sum(step.seconds for step in steps), sum(step.positions for step in steps)
    tokens = sum(step.tokens for step in steps)
    return {
        "supervised_tokens_per_second": rate(steps),
        "tokens_per_second": tokens / seconds,
        "padding": 1 - tokens / positions,
        "seconds_per_step": statistics.median(step.seconds for step in steps),
        "cpu_seconds_per_step": statistics.median(step.cpu_seconds for step in steps),
        "supervised_tokens_per_step": statistics.mean(step.supervised for step in steps),
        "steps": [asdict(step) for step in steps],
    }


def measure_memory(side: str, work: Work, precision: Precision, steps: int) -> float:
    """MiB by which this rank's resident memory grew at its highest, from before the model was built, over some optimizer steps."""

    def train() -> None:
        if side == "stock":
            trained: StockSide | OurSide = StockSide(
                build_engine(side, work.config, precision, work.stock_accumulation, work.stock_recompute), work
            )
            available = work.stock_steps
        else:
            trained = OurSide(build_engine(side, work.config, precision, work.plan.accumulation), work)
            available = work.our_steps
        for number in range(steps):
            trained.step(number % available)

    return peak_growth(train, "cpu") / 2**20


def memory_apart(options: argparse.Namespace, tokenizer: Path, side: str, precision: Precision) -> list[float]:
    """`measure_memory` in a process of its own for each rank: MiB of all ranks."""
    (port, *_) = distributed.gather(free_port())
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--memory-of", side, precision.value, str(tokenizer)]
    environment = {**os.environ, "MASTER_PORT": str(port)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600)
    if result.returncode:
        raise RuntimeError(f"the process that measures memory failed:\n{result.stderr[-3000:]}")
    return distributed.gather(float(result.stdout.split()[-1]))


def texts(dialogues: Sequence[Dialogue]) -> Iterator[str]:
    """Every content, to train a tokenizer on."""
    for dialogue in dialogues:
        for turn in dialogue.turns:
            yield from (part for part in (turn.human, turn.thoughts, turn.commands, turn.results, turn.moss) if part)


def prepare(options: argparse.Namespace, tokenizer: MossTokenizer) -> Work:
    """The dialogues both sides train on: a random choice from the file, the same on every rank."""
    dialogues, _ = read_dialogues(str(options.data))
    rendered, _ = render_all(dialogues, tokenizer, "generated", options.seq_len)
    per_step = STOCK_BATCH * options.stock_accumulation * distributed.world_size()
    count = min(options.dialogues, len(rendered)) // per_step * per_step
    if not count:
        raise SystemExit(f"{options.data} has {len(rendered)} dialogues that can be trained on; at least {per_step} are needed")
    key = permutation_key("sft_speed", SEED, 0)
    chosen = [rendered[permuted_index(key, len(rendered), index)] for index in range(count)]
    rows = RowDataset(chosen, options.seq_len, SEED, pad_id=tokenizer.endoftext)
    per_pass = options.rows_per_forward * distributed.world_size()
    accumulation = max(1, round(len(rows) * per_step / count / per_pass))
    plan = StepPlan(per_pass * accumulation, options.rows_per_forward, distributed.world_size())
    config = model_config(tokenizer.vocab_size, options.seq_len, options.hidden_size, options.num_layers)
    return Work(config, chosen, rows, options.stock_accumulation, options.stock_recompute, plan, tokenizer.endoftext)


def surroundings() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {**machine(), "threads_per_rank": torch.get_num_threads(), "ranks": distributed.world_size()}


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| number format | side | supervised tokens/s | all tokens/s | padding | s/step | peak memory growth, MiB a rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in results.items():
        for side in SIDES:
            row = found[side]
            memory = "-" if "memory_mib" not in row else f"{max(row['memory_mib']):,.0f}"
            lines.append(
                f"| {name} | {side} | {row['supervised_tokens_per_second']:.1f} | {row['tokens_per_second']:.1f} | {row['padding']:.1%} "
                f"| {row['seconds_per_step']:.2f} | {memory} |"
            )
    for name, found in results.items():
        ratio = found["ratio"]
        lines.append(
            f"\n{name}: ours / stock, supervised tokens/s: **{ratio['median']:.2f}**, the median of {ratio['rounds']} rounds "
            f"({ratio['min']:.2f} to {ratio['max']:.2f}); {found['ratio_over_all']:.2f} over all of them; "
            f"{found['ratio_by_cpu_time']['median']:.2f} by processor time"
        )
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dialogues, JSONL")
    parser.add_argument("--out", type=Path, help="write the figures here, JSON")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], help="by default both, or fp32 where torch has no fast bf16")
    parser.add_argument("--dialogues", type=int, default=120, help="how many are trained on, once by each side")
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=6)
    parser.add_argument("--stock-accumulation", type=int, default=3, help="batches of four of a rank in one optimizer step")
    parser.add_argument("--rows-per-forward", type=int, default=2)
    parser.add_argument(
        "--stock-recompute", action=argparse.BooleanOptionalAction, default=True, help="gradient checkpointing of the stock side"
    )
    parser.add_argument("--memory-steps", type=int, default=2, help="optimizer steps over which memory is watched; 0 leaves it out")
    parser.add_argument("--memory-of", nargs=3, metavar=("SIDE", "PRECISION", "TOKENIZER"), help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    # Without instructions for bfloat16 a stock step takes ten minutes: asked for by name only.
    options.precisions = options.precisions or (["bf16", "fp32"] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ["fp32"])
    return options


def main() -> None:
    """Measures and reports."""
    options = parse()
    distributed.start()
    if options.memory_of:
        side, precision, folder = options.memory_of
        grown = measure_memory(side, prepare(options, MossTokenizer.load(folder)), Precision(precision), options.memory_steps)
        distributed.stop()
        print(grown)
        return

    def say(text: str) -> None:
        if distributed.rank() == 0:
            print(text, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(distributed.gather(scratch)[0]) / "tokenizer"
        if distributed.rank() == 0:
            MossTokenizer.train(texts(read_dialogues(str(options.data))[0]), options.vocabulary).save(folder)
        distributed.barrier()
        work = prepare(options, MossTokenizer.load(folder))
        busy = os.getloadavg()[0]
        say(
            f"{count_parameters(work.config):,} parameters | {len(work.rendered)} dialogues, {work.rows.tokens:,} tokens, "
            f"{work.rows.supervised_tokens:,} with loss | {len(work.rows)} rows of {work.rows.seq_len}, {work.rows.fill:.1%} filled "
            f"| optimizer step: {len(work.rendered) // work.stock_steps} dialogues, or {work.plan.global_batch_size} rows"
        )
        results: dict[str, Any] = {}
        for precision in map(Precision, options.precisions):
            peaks = {side: memory_apart(options, folder, side, precision) for side in SIDES} if options.memory_steps else {}
            results[precision.value] = found = measure_speed(work, precision, say)
            for side, peak in peaks.items():
                found[side]["memory_mib"] = peak
        distributed.barrier()
    report = {
        "surroundings": {**surroundings(), "load_average_before": busy, "load_average_after": os.getloadavg()[0]},
        "options": {name: str(value) for name, value in vars(options).items() if name not in ("memory_of", "local_rank", "out")},
        "parameters": count_parameters(work.config),
        "rows_fingerprint": work.rows.fingerprint,
        "results": results,
    }
    say(table(results))
    if options.out and distributed.rank() == 0:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    distributed.stop()


if __name__ == "__main__":
    main()
