"""Predicted against measured memory on a seeded draw of configurations, each run by the DeepSpeed launcher for a few steps on CPU ranks.

    python -m tests.acceptance.plan_memory --seed 7 --count 20 --out table.json

Nothing is chosen after the draw: every configuration that is drawn is run and listed, the failed ones too.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moss_train.train.memory import Setup
from tests.launch import deepspeed, metrics

DIALOGUES = Path(__file__).resolve().parents[2] / "moss_train" / "data" / "bundled" / "dialogues_train.jsonl"
STEPS = 3
"""The second step is the first with optimizer state from its beginning, the third shows that memory stays."""
LARGEST_GIB = 14
"""Of all ranks together, as predicted: a draw above it is drawn again, since the machine would not hold it."""
MOST_FLOPS = 5e12
"""Of a run, all ranks together: some tens of seconds on two cores."""


@dataclass(frozen=True)
class Case:
    """One configuration."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    seq_len: int
    micro_batch: int
    accumulation: int
    zero: int
    ranks: int
    recompute: bool
    precision: str
    recompute_blocks: int | None = None

    @property
    def parameters(self) -> int:
        """In closed form; LayerNorms and biases left out."""
        return 12 * self.layers * self.width**2 + 2 * self.vocabulary * self.width

    def overrides(self) -> list[str]:
        """The command line of it."""
        return [
            f"model.num_layers={self.layers}",
            f"model.hidden_size={self.width}",
            f"model.num_heads={self.heads}",
            "model.rotary_dim=16",
            f"model.vocab_size={self.vocabulary}",
            f"model.recompute={str(self.recompute).lower()}",
            f"model.recompute_blocks={'null' if self.recompute_blocks is None else self.recompute_blocks}",
            f"data.seq_len={self.seq_len}",
            f"train.micro_batch_size={self.micro_batch}",
            f"train.global_batch_size={self.micro_batch * self.accumulation * self.ranks}",
            f"train.precision={self.precision}",
            f"deepspeed=zero{self.zero}",
        ]


def setup(case: Case) -> Setup:
    """What the predictor is told of a case."""
    from types import SimpleNamespace

    from moss_train.model.linear import _cpu_multiplies_bfloat16
    from moss_train.model.loss import chunk_size
    from moss_train.model.shapes import parameter_shapes

    widens = case.precision == "bf16" and not _cpu_multiplies_bfloat16()
    shape = SimpleNamespace(n_layer=case.layers, n_embd=case.width, n_inner=None, vocab_size=case.vocabulary)
    shapes = parameter_shapes(shape)  # type: ignore[arg-type]
    return Setup(
        shapes,
        frozenset(shapes),
        frozenset(name for name, sizes in shapes.items() if len(sizes) > 1),
        case.layers,
        case.width,
        4 * case.width,
        case.heads,
        case.vocabulary,
        case.seq_len,
        case.micro_batch,
        case.accumulation,
        case.ranks,
        {"stage": case.zero, "overlap_comm": case.zero > 1, "contiguous_gradients": True},
        case.precision,
        "fp32",
        case.recompute,
        False,
        False,
        widens,
        chunk_size(case.vocabulary, "cpu", case.precision == "bf16" and not widens),
        recompute_blocks=case.recompute_blocks,
    )


def draw(seed: int, count: int) -> list[Case]:
    """The configurations of a seed."""
    from moss_train.train.memory import predict

    generator = random.Random(f"plan_memory {seed}")
    found: list[Case] = []
    while len(found) < count:
        width = generator.choice([512, 640, 768, 1024, 1280])
        case = Case(
            layers=generator.randint(2, 14),
            width=width,
            heads=width // generator.choice([64, 128]) // 4 * 4 or 4,
            vocabulary=generator.choice([8192, 16384, 32768, 51200, 65536]),
            # Below 256 no bundled dialogue is short enough.
            seq_len=generator.choice([256, 512, 1024]),
            micro_batch=generator.choice([1, 2, 4]),
            accumulation=generator.choice([1, 2]),
            zero=generator.choice([1, 2, 3]),
            ranks=generator.choice([1, 2, 2, 4]),
            recompute=generator.random() < 0.4,
            precision=generator.choice(["bf16", "bf16", "fp32"]),
        )
        tokens = case.seq_len * case.micro_batch * case.accumulation * case.ranks * STEPS
        fits = case.ranks * predict(setup(case)).peak_bytes < LARGEST_GIB * 2**30
        # Below 30 M parameters the program itself is most of what grows.
        if case.parameters >= 30e6 and fits and 6 * case.parameters * tokens < MOST_FLOPS and case.width % case.heads == 0:
            found.append(case)
    return found


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Runs one configuration; returns what its own log said, in GiB."""
    started = time.perf_counter()
    arguments = [
        "+config=tiny_sft",
        f"data.train={DIALOGUES}",
        "data.holdout=0",
        "tokenizer.train_vocab_size=1024",
        f"train.steps={STEPS}",
        "train.eval_every=0",
        "train.eval_at_start=false",
        "train.keep=0",
        "export.enabled=false",
        "data.bundled=false",
        f"run.dir={folder / 'run'}",
        *case.overrides(),
    ]
    result = deepspeed(case.ranks, "scripts/sft.py", *arguments, OMP_WAIT_POLICY="PASSIVE")
    row: dict[str, Any] = {**asdict(case), "seconds": round(time.perf_counter() - started)}
    told = [event for event in metrics(folder / "run") if "plan/measured_peak_gib" in event] if result.returncode == 0 else []
    if not told:
        return {**row, "error": (result.stderr or result.stdout)[-1500:]}
    row["parameters"] = int(re.sub(r"\D", "", re.findall(r"([\d,]+) parameters \|", result.stdout)[0]))
    row["predicted"], row["measured"] = told[-1]["plan/predicted_peak_gib"], told[-1]["plan/measured_peak_gib"]
    row["ratio"] = row["predicted"] / row["measured"]
    row["moment"] = next(iter(re.findall(r"\(peak: (.+?)\), measured", result.stdout)), "")
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of predictions within 15 %, and the worst; a run that failed counts as outside."""
    errors = [abs(row["ratio"] - 1) if "ratio" in row else float("inf") for row in rows]
    return {"runs": len(rows), "within_15_percent": sum(error <= 0.15 for error in errors) / len(rows), "worst": max(errors)}


def run(seed: int, count: int) -> list[dict[str, Any]]:
    """Draws and measures; prints a row as soon as it is known."""
    rows = []
    for number, case in enumerate(draw(seed, count), 1):
        folder = Path(tempfile.mkdtemp(prefix="plan_memory-"))
        row = measure(case, folder)
        shutil.rmtree(folder, ignore_errors=True)
        rows.append(row)
        figures = f"{row['predicted']:.2f} {row['measured']:.2f} {row['ratio']:.2f}" if "ratio" in row else row["error"]
        print(f"{number}/{count} {case} {row['seconds']} s: {figures}", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, as docs/memory.md has them."""
    lines = [
        "| parameters | layers x width | vocabulary | rows x tokens | forwards | ZeRO | ranks | format | recompute | predicted | measured "
        "| ratio |",
        "|---:|---:|---:|---:|---:|---:|---:|---|---|---:|---:|---:|",
    ]
    for row in rows:
        cells = [
            f"{row.get('parameters', 0) / 1e6:.0f} M",
            f"{row['layers']} x {row['width']}",
            str(row["vocabulary"]),
            f"{row['micro_batch']} x {row['seq_len']}",
            str(row["accumulation"]),
            str(row["zero"]),
            str(row["ranks"]),
            row["precision"],
            "on" if row["recompute"] else "off",
            *([f"{row['predicted']:.2f}", f"{row['measured']:.2f}", f"{row['ratio']:.2f}"] if "ratio" in row else ["", "", "failed"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = run(arguments.seed, arguments.count)
    found = {"seed": arguments.seed, **summary(rows)}
    print(table(rows))
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps({"summary": found, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
