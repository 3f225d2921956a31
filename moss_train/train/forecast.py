"""What a run will take, and, after some steps, what it took: the plan held against the run in its own log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moss_train.config import Attention, StageConfig
from moss_train.train.memory import Memory, Setup, predict
from moss_train.train.optim import is_decayed

AFTER_STEPS = 20
"""Steps after which the plan is held against what was measured; at the end of a shorter run."""


def setup_of(config: StageConfig, model_config: Any, seq_len: int, world_size: int, is_cuda: bool) -> Setup:
    """The numbers that memory depends on, of any stage's configuration.

    Args:
        config: Of the stage.
        model_config: Its architecture.
        seq_len: Tokens of a row.
        world_size: Ranks.
        is_cuda: Whether it runs on CUDA devices.
    """
    import fnmatch

    from moss_train.config import Precision
    from moss_train.model.linear import _cpu_multiplies_bfloat16
    from moss_train.model.loss import chunk_size
    from moss_train.model.shapes import parameter_shapes

    shapes = parameter_shapes(model_config)
    widens = config.train.precision is Precision.bf16 and not is_cuda and not _cpu_multiplies_bfloat16()
    is_narrow = config.train.precision is Precision.bf16 and not widens
    frozen = {name for pattern in config.optim.freeze for name in fnmatch.filter(shapes, pattern)}
    trained = frozenset(shapes) - frozen
    return Setup(
        shapes=shapes,
        trained=trained,
        decayed=frozenset(name for name in trained if is_decayed(name, len(shapes[name]), config.optim.decay)),
        num_layers=model_config.n_layer,
        hidden_size=model_config.n_embd,
        inner_size=getattr(model_config, "n_inner", None) or 4 * model_config.n_embd,
        num_heads=model_config.n_head,
        vocab_size=model_config.vocab_size,
        seq_len=seq_len,
        micro_batch_size=config.train.micro_batch_size,
        accumulation=max(1, config.train.global_batch_size // (config.train.micro_batch_size * world_size)),
        world_size=world_size,
        zero=dict(config.deepspeed.get("zero_optimization") or {}),
        precision=config.train.precision.value,
        grad_accum=str((config.deepspeed.get("data_types") or {}).get("grad_accum_dtype", "fp32")),
        recompute=config.model.recompute,
        recompute_blocks=config.model.recompute_blocks,
        eager=config.model.attention is Attention.eager,
        is_cuda=is_cuda,
        widens=widens,
        chunk_tokens=chunk_size(model_config.vocab_size, "cuda" if is_cuda else "cpu", is_narrow),
        communication=config.deepspeed.get("communication_data_type"),
        async_save=config.train.async_save and config.train.keep > 0,
    )


@dataclass
class Forecast:
    """The plan of a run that is under way.

    Attributes:
        memory: What a rank will take.
        say: Told the line. gather: A collective: every rank's value.
        at_step: When the line is due, counted from the start of this process's part of the run.
        tokens_per_second: That all ranks will make; None on a device whose peak and links are not known.
    """

    memory: Memory
    say: Callable[[str], None]
    gather: Callable[[Any], list[Any]]
    at_step: int
    tokens_per_second: float | None = None
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    told: dict[str, float] = field(default_factory=dict)

    def after(self, tokens: int, seconds: float) -> dict[str, float]:
        """Takes note of a step; once, on every rank, tells what was predicted and what was measured.

        Returns:
            The figures for metrics.jsonl at the step where they are told, else nothing.
        """
        from moss_train.train.resident import peak_growth_bytes

        self.steps += 1
        if self.steps > 1:
            # The first step loads kernels and makes optimizer state.
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        if self.steps != self.at_step:
            return {}
        measured = max(self.gather(peak_growth_bytes()))
        predicted = self.memory.peak_bytes
        rate = self.tokens / self.seconds if self.seconds else tokens / seconds
        self.told = {"plan/predicted_peak_gib": predicted / 2**30, "plan/measured_peak_gib": measured / 2**30}
        speed = f"{rate:.0f} tokens/s"
        if self.tokens_per_second is not None:
            self.told |= {"plan/predicted_tokens_per_second": self.tokens_per_second, "plan/measured_tokens_per_second": rate}
            expected = self.tokens_per_second
            speed = f"tokens/s: predicted {expected:.0f}, measured {rate:.0f} (predicted / measured {expected / rate:.2f})"
        self.say(
            f"memory after {self.steps} steps: predicted {predicted / 2**30:.2f} GiB (peak: {self.memory.peak.name}), measured "
            f"{measured / 2**30:.2f} GiB on the fullest rank (predicted / measured {predicted / measured:.2f}) | {speed}"
        )
        return self.told


def forecast(
    config: StageConfig,
    model_config: Any,
    world_size: int,
    is_cuda: bool,
    steps: int,
    say: Callable[[str], None],
    gather: Callable[[Any], list[Any]],
    row_tokens: int | None = None,
) -> Forecast:
    """The forecast of a run that takes `steps` more steps, with samples of `row_tokens` tokens (`data.seq_len` by default)."""
    row_tokens = row_tokens or config.data.seq_len  # type: ignore[attr-defined]  # every stage's data section has it
    setup = setup_of(config, model_config, row_tokens, world_size, is_cuda)
    return Forecast(predict(setup), say, gather, max(1, min(AFTER_STEPS, steps)), _tokens_per_second(setup))


def _tokens_per_second(setup: Setup) -> float | None:
    """Predicted for this rank's kind of device, on the vendor's machine; None where it is not in the table."""
    if not setup.is_cuda:
        return None
    import torch

    from moss_train.train.devices import device_named
    from moss_train.train.speed import machine_of, predict_speed
    from moss_train.train.stage import PEAK_FLOPS

    device = device_named(torch.cuda.get_device_name())
    return predict_speed(setup, machine_of(device, PEAK_FLOPS[device.driver_name])).tokens_per_second if device is not None else None
