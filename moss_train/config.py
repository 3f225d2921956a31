"""What every stage is configured by: the sections shared by all of them, and `StageConfig` which puts them together.

Each package keeps the settings of its own in its `config.py`. These modules import the standard library alone, so that a wrong
configuration is refused before torch is loaded. The owner of a default is the dataclass here; the YAML files under `configs/` hold
choices.

A field that must be given has no usable default: it is None here and named by `problems()`. `problems()` returns sentences and never
raises, so that all of them can be told at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any

from moss_train.train.config import deepspeed_problems


class Precision(StrEnum):
    """Number format of weights, activations and gradients' transport; optimizer state is float32 in both."""

    bf16 = "bf16"
    fp32 = "fp32"


class Schedule(StrEnum):
    """Shape of the learning rate after warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    wsd = "wsd"
    """Constant, then down to the lowest rate over the last part, `optim.cooldown`. A run can be made longer while it is constant."""


class CooldownShape(StrEnum):
    """How the learning rate falls at the end of `wsd`."""

    linear = "linear"
    sqrt = "sqrt"
    """1 - sqrt: fast at first."""
    cosine = "cosine"


class Decay(StrEnum):
    """Which parameters weight decay acts on."""

    matrices = "matrices"
    """Weights of two dimensions; biases and LayerNorms are left alone."""
    release = "release"
    """Everything but biases, LayerNorm weights included: what the published MOSS script did."""


class Attention(StrEnum):
    """Attention backend; `auto` takes the fastest one at hand and says which."""

    auto = "auto"
    eager = "eager"
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    varlen = "varlen"


class Plugin(StrEnum):
    """What the switches of MOSS's meta instruction turn on."""

    inner_thoughts = "inner_thoughts"
    web_search = "web_search"
    calculator = "calculator"
    equation_solver = "equation_solver"
    text_to_image = "text_to_image"


class WandbMode(StrEnum):
    """How runs are sent to Weights & Biases."""

    disabled = "disabled"
    offline = "offline"
    online = "online"


class ExportDtype(StrEnum):
    """Number format of exported weights; `auto` is the one the model was trained in."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class OnBad(StrEnum):
    """What to do with a record that is not what it should be."""

    fail = "fail"
    """End before anything is made of the data, with the first of them and totals by kind."""
    skip = "skip"
    """Leave it out, up to a share."""


class OnMarker(StrEnum):
    """What to do with a role marker such as `<|Human|>:` that is spelled inside a message."""

    keep = "keep"
    space = "space"
    error = "error"


class DefaultMeta(StrEnum):
    """Meta instruction of records that have none."""

    moss = "moss"
    """The published one, with the switches of `plugins` on."""
    none = "none"


class Resume(StrEnum):
    """What to do with a run that is found in `run.dir`."""

    auto = "auto"
    """Go on from its newest good checkpoint; without any checkpoint, move it aside."""
    never = "never"
    """Move it aside and start anew."""


# A run is resumed with these as they were, unless `run.allow_changes` names them. What is neither here nor in the architecture (ranks,
# micro-batch, ZeRO stage, paths, tracking, rhythms) may change freely: it does not change what is computed, but for rounding.
CHANGEABLE = (
    "data",
    "tokenizer",
    "init_from",
    "run.seed",
    "train.steps",
    "train.global_batch_size",
    "train.precision",
    "train.spike_sigmas",
    "train.z_loss",
    "optim.lr",
    "optim.schedule",
    "optim.warmup",
    "optim.cooldown",
    "optim.cooldown_shape",
    "optim.min_lr_ratio",
    "optim.weight_decay",
    "optim.decay",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.clip",
)


@dataclass
class RunConfig:
    """Where a run writes and what makes it repeatable."""

    dir: str | None = None
    """Run directory. A run found there is gone on with, or moved aside to `<dir>.1`, `<dir>.2`, ...; never overwritten."""
    resume: Resume = Resume.auto
    allow_changes: list[str] = field(default_factory=list)
    """What may differ from the run that is gone on with, by the names in the message that refuses it."""
    stop_after: int | None = None
    """Save and stop after this many steps of the whole run; the same command without it, or with a larger one, goes on."""
    seed: int = 42
    """Seed of the initial weights, the order of the samples and the tokenizer's training sample."""

    def problems(self) -> list[str]:
        found = []
        if not self.dir:
            found.append("run.dir is not set: name a directory for the run, for example run.dir=runs/my_run")
        if self.seed < 0:
            found.append(f"run.seed is {self.seed}; expected a number of zero or more")
        if self.stop_after is not None and self.stop_after < 0:
            found.append(f"run.stop_after is {self.stop_after}; expected a number of steps")
        for name in self.allow_changes:
            if name not in CHANGEABLE:
                found.append(f"run.allow_changes has {name!r}; expected some of {', '.join(CHANGEABLE)}")
        return found


@dataclass
class ModelConfig:
    """Architecture of a model with random weights, and how any model is run.

    With `init_from` the architecture is the one found there, and only `attention` and what is said of recompute have an effect.
    """

    num_layers: int | None = None
    num_heads: int | None = None
    hidden_size: int | None = None
    rotary_dim: int | None = None
    """Leading dimensions of each head that the rotary embedding turns."""
    max_positions: int = 2048
    """Longest sequence the rotary table covers, in tokens."""
    vocab_size: int | None = None
    """Embedding rows; by default the tokenizer's, padded to a multiple of 64."""
    initializer_range: float = 0.02
    """Standard deviation of the random weights. CodeGen's suits widths in the thousands; a narrow model learns sooner from larger ones."""
    attention: Attention = Attention.auto
    recompute: bool = False
    """Recompute each block's activations in the backward pass: about a third more work, far less memory."""
    recompute_blocks: int | None = None
    """Of how many blocks, the first ones; by default of all. `scripts/plan.py` tells the fewest that fit."""

    def problems(self) -> list[str]:
        found = []
        shape = {key: getattr(self, key) for key in ("num_layers", "num_heads", "hidden_size", "rotary_dim", "max_positions", "vocab_size")}
        found += [f"model.{key} is {value}; expected a positive number" for key, value in shape.items() if value is not None and value < 1]
        if self.recompute_blocks is not None and self.recompute_blocks < 1:
            found.append(f"model.recompute_blocks is {self.recompute_blocks}; expected 1 or more, or null for all")
        elif self.recompute_blocks is not None and not self.recompute:
            found.append(f"model.recompute_blocks is {self.recompute_blocks} and model.recompute is false: set model.recompute=true")
        if not 0 < self.initializer_range < math.inf:
            found.append(f"model.initializer_range is {self.initializer_range}; expected a positive number")
        if found or self.num_heads is None or self.hidden_size is None or self.rotary_dim is None:
            return found
        if self.num_heads % 4:
            found.append(f"model.num_heads is {self.num_heads}; CodeGen lays its heads out in 4 groups, so use a multiple of 4")
        if self.hidden_size % self.num_heads:
            found.append(f"model.hidden_size ({self.hidden_size}) is not divisible by model.num_heads ({self.num_heads})")
        elif self.rotary_dim > self.hidden_size // self.num_heads or self.rotary_dim % 2:
            head_dim = self.hidden_size // self.num_heads
            found.append(f"model.rotary_dim is {self.rotary_dim}; expected an even number of at most the head size, {head_dim}")
        return found

    def is_complete(self) -> bool:
        """Whether a model can be built from this section alone."""
        return None not in (self.num_layers, self.num_heads, self.hidden_size, self.rotary_dim)


@dataclass
class TokenizerConfig:
    """Which tokenizer to use; by default the one in `init_from`."""

    path: str | None = None
    """Directory with tokenizer.json, or vocab.json and merges.txt."""
    train_vocab_size: int = 4096
    """Size of the tokenizer trained on the training data where neither `path` nor `init_from` gives one."""

    def problems(self) -> list[str]:
        if self.train_vocab_size < 512:
            return [
                f"tokenizer.train_vocab_size is {self.train_vocab_size}; expected 512 or more (256 bytes, control and tag tokens, merges)"
            ]
        return []


def _either(keys: Iterable[str]) -> str:
    *first, last = (f"train.{key}" for key in keys)
    return f"{', '.join(first)} and {last}"


@dataclass
class TrainConfig:
    """Length, batch sizes and rhythm of a run."""

    steps: int | None = None
    """Optimizer steps; exclusive with `epochs`."""
    epochs: float | None = None
    """Passes over the training rows; exclusive with `steps`."""
    global_batch_size: int = 8
    """Rows per optimizer step, over all ranks."""
    micro_batch_size: int = 1
    """Rows per rank per forward; the number of forwards per step is derived from this and the number of ranks."""
    precision: Precision = Precision.bf16
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_at_start: bool = False
    """Evaluate before the first step too, so that the first figure is that of the model one started from."""
    log_every: int = 1
    """Steps between console lines; metrics.jsonl has every step."""
    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end only. A request to stop saves too."""
    keep: int = 2
    """Good checkpoints to keep, the newest ones; each takes 12 bytes a parameter. 0 saves none: nothing can be gone on with."""
    async_save: bool = False
    """Write checkpoints while training goes on: a step waits for a copy in the host's memory, of 12 bytes a parameter over all ranks."""
    spike_sigmas: float = 6.0
    """A step whose loss is this many standard deviations above that of the 128 before does not change the weights; 0: never."""
    z_loss: float = 0.0
    """Coefficient of log(Z)^2 in the loss, which keeps logits from drifting; PaLM took 1e-4. Reported apart from the loss."""
    hang_seconds: float = 1800.0
    """A rank without progress for this long ends the run, with the stacks of all ranks."""

    def lengths(self) -> dict[str, float | None]:
        """The settings that a run's length can be given by; one of them is."""
        return {"steps": self.steps, "epochs": self.epochs}

    def problems(self) -> list[str]:
        found = []
        lengths = self.lengths()
        given = [f"train.{key}={value}" for key, value in lengths.items() if value is not None]
        if len(given) != 1:
            said = f"{'both' if len(given) == 2 else 'all'} are ({', '.join(given)})" if given else "none is"
            found.append(f"exactly one of {_either(lengths)} must be set; {said}")
        for key in (*lengths, "global_batch_size", "micro_batch_size", "log_every"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                found.append(f"train.{key} is {value}; expected a number above zero")
        for key in ("eval_every", "save_every"):
            if getattr(self, key) < 0:
                found.append(f"train.{key} is {getattr(self, key)}; expected zero (only at the end) or more")
        if self.keep < 0:
            found.append(f"train.keep is {self.keep}; expected zero (no checkpoints) or more")
        if self.spike_sigmas < 0:
            found.append(f"train.spike_sigmas is {self.spike_sigmas}; expected zero (no guard) or more")
        if self.z_loss < 0:
            found.append(f"train.z_loss is {self.z_loss}; expected zero (none) or more")
        if self.hang_seconds <= 0:
            found.append(f"train.hang_seconds is {self.hang_seconds}; expected a number above zero")
        if self.global_batch_size > 0 and self.micro_batch_size > 0 and self.global_batch_size % self.micro_batch_size:
            found.append(
                f"train.global_batch_size ({self.global_batch_size}) is not divisible by train.micro_batch_size ({self.micro_batch_size})"
            )
        return found


@dataclass
class OptimConfig:
    """AdamW and its learning rate."""

    lr: float = 1e-4
    """Learning rate at the end of the warm-up."""
    schedule: Schedule = Schedule.cosine
    warmup: float = 0.05
    """Below 1: share of all steps; from 1 on: number of steps."""
    cooldown: float = 0.2
    """The falling part of `wsd`. Below 1: share of all steps; from 1 on: number of steps."""
    cooldown_shape: CooldownShape = CooldownShape.linear
    min_lr_ratio: float = 0.0
    """Learning rate at the last step, as a share of `lr`."""
    weight_decay: float = 0.1
    decay: Decay = Decay.matrices
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 turns it off."""
    freeze: list[str] = field(default_factory=list)
    """Parameters that do not train, by name, with * and ?: `["transformer.wte.*", "transformer.h.[0-7].*"]`."""

    def problems(self) -> list[str]:
        found = []
        for key in ("lr", "eps"):
            if getattr(self, key) <= 0:
                found.append(f"optim.{key} is {getattr(self, key)}; expected a number above zero")
        for key in ("warmup", "cooldown", "weight_decay", "clip"):
            if getattr(self, key) < 0:
                found.append(f"optim.{key} is {getattr(self, key)}; expected zero or more")
        for key in ("warmup", "cooldown"):
            value = getattr(self, key)
            if 1 <= value < math.inf and value != int(value):
                found.append(f"optim.{key} is {value}; expected a share below 1, or a whole number of steps")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                found.append(f"optim.{key} is {getattr(self, key)}; expected a number from 0 up to, but not including, 1")
        if not 0 <= self.min_lr_ratio <= 1:
            found.append(f"optim.min_lr_ratio is {self.min_lr_ratio}; expected a number from 0 to 1")
        return found


@dataclass
class TrackingConfig:
    """What a run reports besides metrics.jsonl and the console, which are always written."""

    wandb: WandbMode = WandbMode.disabled
    project: str = "moss_train"
    name: str | None = None
    """Name of the run there; by default the last part of `run.dir`."""


@dataclass
class ExportConfig:
    """The model directory written when training ends."""

    enabled: bool = True
    dtype: ExportDtype = ExportDtype.auto
    max_shard_gb: float = 4.0
    """Largest safetensors file, in 10^9 bytes; also bounds the memory that writing takes."""

    def problems(self) -> list[str]:
        if self.max_shard_gb <= 0:
            return [f"export.max_shard_gb is {self.max_shard_gb}; expected a number above zero"]
        return []


@dataclass
class VerifyConfig:
    """What `verify_resume` compares."""

    steps: int = 8
    """Optimizer steps of the stretch."""
    stop_at: int = 3
    """The step after which the interrupted run is stopped."""

    def problems(self) -> list[str]:
        if not 0 < self.stop_at < self.steps:
            return [f"verify.stop_at is {self.stop_at}, verify.steps {self.steps}; expected 0 < stop_at < steps"]
        return []


def not_finite(config: Any, prefix: str = "") -> list[str]:
    """Problems of the numbers in a configuration that are nan or infinite, which no comparison catches."""
    found = []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found += not_finite(value, f"{prefix}{item.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(f"{prefix}{item.name} is {value}; expected a finite number")
    return found


@dataclass
class StageConfig:
    """The sections of every stage. A stage adds its `data` section."""

    run: RunConfig = field(default_factory=RunConfig)
    init_from: str | None = "???"
    """Model directory to start from: an export, or a stock Hugging Face CodeGen or MOSS directory. null means random weights, and has to be
    said: a long run from nothing by accident is dear."""
    init_unverified: bool = False
    """Start from `init_from` and `tokenizer.path` even where they are not what their lineage.json says."""
    allow_pickle: bool = False
    """Accept pickled `.bin` weights in `init_from`; they are read through torch's restricted loader."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Passed to DeepSpeed, but for what `OWNED_ELSEWHERE` lists."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def problems(self) -> list[str]:
        """Everything that is wrong with the values, one sentence each; types and unknown keys are checked before."""
        found = []
        for section in (self.run, self.model, self.tokenizer, self.train, self.optim, self.export):
            found += section.problems()
        found += deepspeed_problems(self.deepspeed)
        found += not_finite(self)
        if self.init_from is None and not self.model.is_complete():
            found.append(
                "no model: set init_from=DIR, or choose an architecture with model=codegen_350m (codegen_tiny, codegen_2b, moss_16b, ...)"
            )
        return found
