"""Settings of `scripts/benchmark.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from moss_train.config import Precision


class Suite(StrEnum):
    """What is measured."""

    train = "train"
    """A step of pretraining beside stock transformers at equal shape, number format and batch."""
    sft = "sft"
    """Fine-tuning on dialogues beside the published recipe on stock parts, under the launcher."""
    loss = "loss"
    """Output projection and cross-entropy, forward and backward."""
    attention = "attention"
    """Causal attention over packed documents, forward and backward."""
    loader = "loader"
    """The share of a step that waits for its batch."""
    prepare = "prepare"
    """From text to token ids on disk."""
    checkpoint = "checkpoint"
    """Writing a training checkpoint beside `dd`."""
    generate = "generate"
    """Writing replies."""
    startup = "startup"
    """Imports, `--help`, and from a command to its first step."""
    pretrain = "pretrain"
    """Real runs of whole models through the launcher; for a GPU. Not among those that run by default."""
    predict = "predict"
    """Memory and speed as planned beside measured."""


class Device(StrEnum):
    """Where it runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class ShapeConfig:
    """The model of `train` and `sft`, and the head of `loss`."""

    hidden_size: int = 1024
    num_layers: int = 8
    head_dim: int = 64
    vocab_size: int = 51200

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = [f"shape.{name} is {value}; expected 1 or more" for name, value in vars(self).items() if value < 1]
        if not found and self.hidden_size % (4 * self.head_dim):
            found.append(f"shape.hidden_size is {self.hidden_size}; expected a multiple of 4 x shape.head_dim = {4 * self.head_dim}")
        return found


@dataclass
class BenchmarkConfig:
    """What `scripts/benchmark.py` takes."""

    suite: list[Suite] = field(default_factory=list)
    """One or more; all but `pretrain` by default."""
    out: str = "runs/benchmark"
    """A directory: SUITE.json, SUITE.md, SUITE.png each. What is there already, of the same commit and settings, is not measured again."""
    again: bool = False
    """Measure it again all the same."""
    data: str | None = None
    """Dialogues, for `sft`, `loader` and `generate`, bundled ones by default, and the Chinese text of `prepare`."""
    device: Device = Device.auto
    dtype: Precision = Precision.bf16
    shape: ShapeConfig = field(default_factory=ShapeConfig)
    seq_len: int = 2048
    rows: int = 2
    """Of a forward; of an optimizer step in `train`, too."""
    loss_vocab_size: int = 107008
    loss_tokens: int = 4096
    rounds: int = 5
    """How often each side is timed, in turns."""
    megabytes: int = 50
    """Of each text in `prepare`."""
    parameters: int = 50_000_000
    """Of the state that `checkpoint` writes, at 12 bytes each."""
    ranks: int = 2
    """Processes of `sft`, `pretrain` and `startup`."""
    dialogues: int = 72
    """That `sft` trains on."""
    models: list[str] = field(default_factory=lambda: ["codegen_2b"])
    """Of `pretrain`: names in `configs/model`, or NAME:LAYERS."""
    deepspeed: str = "zero1"
    """Section of `pretrain`."""
    overrides: list[str] = field(default_factory=list)
    """More settings of `pretrain`, as on its command line."""

    def problems(self) -> list[str]:
        """Everything that is wrong with the values."""
        found = self.shape.problems()
        names = ("seq_len", "rows", "loss_vocab_size", "loss_tokens", "rounds", "megabytes", "parameters", "ranks", "dialogues")
        found += [f"{name} is {getattr(self, name)}; expected 1 or more" for name in names if getattr(self, name) < 1]
        if len(set(self.suite)) < len(self.suite):
            found.append(f"suite is {[str(one) for one in self.suite]}; expected each once")
        if not self.out:
            found.append("out is empty; expected a directory")
        return found
