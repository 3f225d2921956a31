"""Memory, time and disk of a run before a device is taken: the job behind `scripts/plan.py`, for every stage.

    python scripts/plan.py +config=moss_moon_003_sft world_size=8 device=H200

What a rank takes is in `memory.py`. What does not fit, or does not divide, is refused with exit code 2 and the nearest configuration that
is possible.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from moss_train.config import ExportDtype, StageConfig
from moss_train.errors import UsageError
from moss_train.train import auto, scaling
from moss_train.train.auto import SECTIONS, USABLE, Room
from moss_train.train.config import AUTO_MEMORY, PlanOptions, is_auto
from moss_train.train.devices import CPU, DEVICES
from moss_train.train.forecast import setup_of
from moss_train.train.memory import BYTES, Memory, Setup, predict
from moss_train.train.speed import Machine, Speed, predict_speed

_GIB = 2**30

_RECOMPUTE, _RECOMPUTE_ALL = "model.recompute=true", "model.recompute_blocks=null"
# What a change costs a user, so that the search proposes the cheapest first.
_DEAR = {"model.recompute": 1, "train.micro_batch_size": 2, "deepspeed": 4, "offload": 16, "world_size": 32}


@dataclass(frozen=True)
class Plan:
    """Everything that is told; sizes in bytes, of one rank unless said otherwise."""

    parameters: int
    trained_parameters: int
    world_size: int
    device: str
    device_memory: float
    memory: Memory
    other_recompute: Memory
    """The same with `model.recompute` the other way round."""
    tokens_per_step: int
    steps: int | None
    flops_6nd: float
    """Of a step: 6 * parameters * tokens."""
    flops_with_attention: float
    """Of a step, by `stage.FLOPS_FORMULA`, every row one document."""
    mfu: float | None
    """Assumed where the options name one, else predicted; None for a device without a known peak."""
    efficiency: float | None
    """Share of the peak in arithmetic, from which time is predicted; None where the MFU is assumed."""
    speed: Speed | None
    seconds_per_step: float | None
    communication: dict[str, Any] | None
    """Of a rank in a step, by ZeRO stage, see `scaling.communication`."""
    checkpoint: int
    """One checkpoint of the whole run."""
    checkpoints: int
    """As many as are kept, and the one being written."""
    export: int


def plan_stage(
    config: StageConfig, options: PlanOptions, seq_len: int, head: Callable[[Any], Any] = lambda model_config: model_config
) -> None:
    """Prints the plan of a stage, and writes it where `out` names a file.

    Args:
        config: Of the stage.
        options: Of the plan.
        seq_len: Tokens of a row.
        head: Gives the architecture of a language model the stage's own head.

    Raises:
        UsageError: It is impossible; with the nearest configuration that is not.
    """
    memory, machine = device_memory(options), scaling.machine_for(options)
    model_config = head(_architecture(config, seq_len))
    if options.gpus:
        plan_sweep(config, options, model_config, seq_len, memory, machine)
        return
    check_divides(config.train.global_batch_size, config.train.micro_batch_size, options.world_size)
    if is_auto(config.deepspeed):
        config = _settled(config, options, model_config, seq_len, memory)
    setup = setup_of(config, model_config, seq_len, options.world_size, options.device != CPU)
    check_modelled(setup)
    plan = make_plan(config, options, model_config, setup, memory, machine)
    show(plan, setup)
    if machine is not None:
        scaling.show_communication(setup, machine)
    if options.out is not None:
        Path(options.out).write_text(json.dumps(as_json(plan), indent=1) + "\n", encoding="utf-8")
    if plan.memory.peak_bytes > memory:
        raise UsageError(refusal(setup, config.train.global_batch_size, plan, memory))


def plan_sweep(config: StageConfig, options: PlanOptions, model_config: Any, seq_len: int, memory: float, machine: Machine | None) -> None:
    """Prints the configuration on each of `gpus`, and writes it where `out` names a file.

    Raises:
        UsageError: The device is a CPU.
    """
    if machine is None:
        raise UsageError(
            f"gpus={list(options.gpus)} with device=cpu: expected one of {', '.join(DEVICES)}, whose speed and links are known"
        )
    config = replace(config, deepspeed={**config.deepspeed, "zero_optimization": SECTIONS["zero3"]})
    setup, room = setup_of(config, model_config, seq_len, 1, is_cuda=True), Room(USABLE * memory)
    points = scaling.sweep(setup, config.train.global_batch_size, list(options.gpus), room, machine)
    scaling.show_sweep(points, setup, options.device, room, machine)
    if options.out is not None:
        Path(options.out).write_text(json.dumps(scaling.sweep_json(points, machine), indent=1) + "\n", encoding="utf-8")


def _settled(config: StageConfig, options: PlanOptions, model_config: Any, seq_len: int, memory: float) -> StageConfig:
    """The configuration with the ZeRO stage that a run on such a device would choose."""
    given = config.deepspeed["zero_optimization"]
    limit = config.deepspeed.get(AUTO_MEMORY)
    room = Room(limit * _GIB if limit is not None else USABLE * memory)
    config = replace(config, deepspeed={**config.deepspeed, "zero_optimization": auto.section_of("zero3", given)})
    setup = setup_of(config, model_config, seq_len, options.world_size, options.device != CPU)
    choice = auto.choose(setup, given, room)
    if choice.name is None:
        raise UsageError(auto.refusal(setup, config.train.global_batch_size, choice, room))
    print(f"deepspeed=auto: {choice.reason(room)}")
    return replace(config, deepspeed={**config.deepspeed, "zero_optimization": auto.section_of(choice.name, given)})


def device_memory(options: PlanOptions) -> float:
    """Bytes of one device, or those named with `memory_gib`, of one rank."""
    if options.device == CPU:
        if options.memory_gib is None:
            raise UsageError("device=cpu needs memory_gib=N: the memory of one rank, in GiB")
    elif options.device not in DEVICES:
        close = difflib.get_close_matches(options.device.upper(), DEVICES, n=1, cutoff=0.4)
        raise UsageError(
            f"device={options.device} is not known; expected one of {', '.join([*DEVICES, CPU])}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    return options.memory_gib * _GIB if options.memory_gib is not None else DEVICES[options.device].memory


def check_divides(global_batch_size: int, micro_batch_size: int, world_size: int) -> None:
    """Refuses a batch that does not divide, with the nearest numbers that do."""
    forward = micro_batch_size * world_size
    if global_batch_size % forward == 0:
        return
    below, above = global_batch_size // forward * forward, math.ceil(global_batch_size / forward) * forward
    ways = [f"train.global_batch_size={size}" for size in (below, above) if size]
    micro = next((size for size in range(micro_batch_size, 0, -1) if global_batch_size % (size * world_size) == 0), None)
    ranks = next((n for n in range(world_size, 0, -1) if global_batch_size % (micro_batch_size * n) == 0), None)
    ways += [f"train.micro_batch_size={micro}"] if micro else []
    ways += [f"world_size={ranks}"] if ranks else []
    raise UsageError(
        f"train.global_batch_size ({global_batch_size}) is not divisible by train.micro_batch_size ({micro_batch_size}) x world_size "
        f"({world_size}) = {forward}; possible are {', or '.join(ways)}"
    )


def check_modelled(setup: Setup) -> None:
    """Refuses DeepSpeed settings whose memory is not known here, rather than give a figure for other ones."""
    wrong = []
    if (setup.zero.get("offload_param") or {}).get("device", "none") != "none":
        wrong.append("offload_param")
    if setup.offloads and setup.stage != 3:
        wrong.append(f"offload_optimizer with stage {setup.stage}")
    if wrong:
        raise UsageError(f"deepspeed.zero_optimization has {' and '.join(wrong)}, whose memory this plan does not know; expected none")


def make_plan(
    config: StageConfig, options: PlanOptions, model_config: Any, setup: Setup, memory: float, machine: Machine | None = None
) -> Plan:
    """The figures of one configuration; without a machine, no time."""
    from moss_train.train.stage import training_flops_per_token

    parameters, trained = setup.parameters, setup.count(setup.trained)
    tokens = config.train.global_batch_size * setup.seq_len
    flops = tokens * training_flops_per_token(model_config, parameters, (setup.seq_len + 1) / 2)
    steps = config.train.steps
    if steps is None and options.rows is not None:
        steps = math.ceil((config.train.epochs or 0) * options.rows / config.train.global_batch_size)
    speed = predict_speed(setup, machine) if machine is not None else None
    assumed = flops / (machine.peak * options.world_size * options.mfu) if machine is not None and options.mfu is not None else None
    exported = config.train.precision.value if config.export.dtype is ExportDtype.auto else config.export.dtype.value
    return Plan(
        parameters=parameters,
        trained_parameters=trained,
        world_size=options.world_size,
        device=options.device,
        device_memory=memory,
        memory=predict(setup),
        other_recompute=predict(replace(setup, recompute=not setup.recompute, recompute_blocks=None)),
        tokens_per_step=tokens,
        steps=steps,
        flops_6nd=6.0 * parameters * tokens,
        flops_with_attention=flops,
        mfu=options.mfu if options.mfu is not None or speed is None else speed.mfu,
        efficiency=machine.efficiency if machine is not None and assumed is None else None,
        speed=speed if assumed is None else None,
        seconds_per_step=assumed if assumed is not None or speed is None else speed.step,
        communication=scaling.communication(setup, machine) if machine is not None else None,
        # float32 weights and two moments of what trains (train/checkpoint.py).
        checkpoint=12 * trained,
        checkpoints=12 * trained * (config.train.keep + 1) if config.train.keep else 0,
        export=BYTES[exported] * parameters if config.export.enabled else 0,
    )


def refusal(setup: Setup, global_batch_size: int, plan: Plan, memory: float) -> str:
    """Why a configuration does not fit, and the nearest one that does."""
    text = (
        f"a rank takes {plan.memory.peak_bytes / _GIB:.2f} GiB (peak: {plan.memory.peak.name}), and {plan.device} has "
        f"{memory / _GIB:.2f} GiB"
    )
    found = nearest(setup, global_batch_size, memory)
    if found is None:
        return f"{text}; no change of recompute, micro-batch, ZeRO stage, offloading or up to 64 times as many ranks makes it fit"
    changes, taken = found
    host = f" and {taken.host_bytes / _GIB:.2f} GiB of the host's memory" if taken.host_bytes else ""
    return f"{text}. The nearest that fits: {' '.join(changes)}, which takes {taken.peak_bytes / _GIB:.2f} GiB{host} a rank"


def nearest(setup: Setup, global_batch_size: int, memory: float) -> tuple[list[str], Memory] | None:
    """The overrides of the cheapest change that fits into `memory` bytes, and what it takes; None where nothing does."""
    for _, changes, candidate in sorted(_neighbours(setup, global_batch_size), key=lambda found: (found[0], found[1])):
        taken = predict(candidate)
        if taken.peak_bytes <= memory:
            again = bool(changes) and changes[0] in (_RECOMPUTE, _RECOMPUTE_ALL)
            return _with_fewest_blocks(candidate, changes, memory) if again else (changes, taken)
    return None


def _with_fewest_blocks(setup: Setup, changes: list[str], memory: float) -> tuple[list[str], Memory]:
    """As few recomputed blocks as fit: the more there are, the less is taken, until all are."""
    fewest = next(count for count in range(1, setup.num_layers + 1) if predict(replace(setup, recompute_blocks=count)).peak_bytes <= memory)
    if fewest == setup.num_layers:
        return changes, predict(setup)
    first = [changes[0]] if changes[0] == _RECOMPUTE else []
    return [*first, f"model.recompute_blocks={fewest}", *changes[1:]], predict(replace(setup, recompute_blocks=fewest))


def _neighbours(setup: Setup, global_batch_size: int) -> Iterator[tuple[float, list[str], Setup]]:
    """(cost, overrides, setup) of what can be changed without changing what is trained."""
    sections: list[tuple[float, list[str], dict[str, Any]]] = [(0, [], setup.zero)]
    for stage in range(setup.stage + 1, 4):
        sections.append((_DEAR["deepspeed"] * (stage - setup.stage), [f"deepspeed=zero{stage}"], SECTIONS[f"zero{stage}"]))
    if not setup.offloads:
        sections.append((_DEAR["offload"], ["deepspeed=zero3_offload"], SECTIONS["zero3_offload"]))
    given = (setup.recompute, setup.recompute_blocks)
    choices = [given] if setup.recomputed_blocks == setup.num_layers else [given, (True, None)]
    for doubling in range(7):
        ranks = setup.world_size * 2**doubling
        micros = [size for size in range(1, setup.micro_batch_size + 1) if global_batch_size % (size * ranks) == 0]
        for micro in micros:
            for choice in choices:
                for cost, overrides, section in sections:
                    cost += _DEAR["world_size"] * doubling + _DEAR["model.recompute"] * (choice != given)
                    cost += _DEAR["train.micro_batch_size"] * math.log2(setup.micro_batch_size / micro)
                    changes = [] if choice == given else [_RECOMPUTE_ALL if setup.recompute else _RECOMPUTE]
                    changes += [f"train.micro_batch_size={micro}"] if micro != setup.micro_batch_size else []
                    changes += [*overrides, *([f"world_size={ranks}"] if doubling else [])]
                    accumulation = global_batch_size // (micro * ranks)
                    yield (
                        cost,
                        changes,
                        replace(
                            setup,
                            recompute=choice[0],
                            recompute_blocks=choice[1],
                            micro_batch_size=micro,
                            accumulation=accumulation,
                            world_size=ranks,
                            zero=section,
                        ),
                    )


def _recompute(setup: Setup) -> str:
    if setup.recompute and setup.recomputed_blocks < setup.num_layers:
        return f"of {setup.recomputed_blocks} of {setup.num_layers} blocks"
    return "on" if setup.recompute else "off"


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; sizes in bytes."""
    record = asdict(plan)
    for key in ("memory", "other_recompute"):
        memory: Memory = getattr(plan, key)
        record[key] = {
            "peak_bytes": memory.peak_bytes,
            "peak_moment": memory.peak.name,
            "host_bytes": memory.host_bytes,
            "components": memory.components(),
            "moments": {moment.name: moment.total() for moment in memory.moments},
        }
    record["fits"] = plan.memory.peak_bytes <= plan.device_memory
    assumed = {"mfu": plan.mfu} if plan.speed is None else {"efficiency": plan.efficiency}
    record["assumptions"] = {**assumed, "context": "every row is one document, every token supervised"}
    return record


def show(plan: Plan, setup: Setup) -> None:
    """Prints the plan."""
    from rich.console import Console
    from rich.table import Table

    # Figures must not be cut off where the output is not a terminal.
    console = Console(soft_wrap=True)
    console.print(
        f"{plan.parameters:,} parameters, {plan.trained_parameters:,} of them train | {plan.world_size} x {plan.device} | "
        f"ZeRO-{setup.stage} | {setup.precision}, gradients {setup.grad_accum} | recompute {_recompute(setup)} | "
        f"{setup.micro_batch_size} x {setup.seq_len} tokens a forward, {setup.accumulation} forwards a step"
    )
    other = "off" if setup.recompute else "on"
    table = Table("GiB of a rank, at the peak", "as configured", f"recompute {other}")
    sums = plan.memory.components(), plan.other_recompute.components()
    for name in {**sums[0], **sums[1]}:
        table.add_row(name, *(f"{found[name] / _GIB:.2f}" if found.get(name) else "" for found in sums))
    table.add_section()
    table.add_row("peak", *(f"{memory.peak_bytes / _GIB:.2f}" for memory in (plan.memory, plan.other_recompute)))
    table.add_row("at the moment", *(memory.peak.name for memory in (plan.memory, plan.other_recompute)))
    console.print(table)
    host = f", and {plan.memory.host_bytes / _GIB:.2f} GiB of the host's memory a rank" if plan.memory.host_bytes else ""
    moments = ", ".join(f"{moment.name} {moment.total() / _GIB:.2f}" for moment in plan.memory.moments)
    console.print(f"{plan.device} has {plan.device_memory / _GIB:.2f} GiB{host}\nmoments of a step: {moments}")
    console.print(
        f"a step: {plan.tokens_per_step:,} tokens | {plan.flops_6nd:.3g} FLOPs by 6 x parameters x tokens, {plan.flops_with_attention:.3g} "
        "without the input embedding and with attention"
    )
    if plan.seconds_per_step is None or plan.mfu is None:
        console.print("time: not known, a CPU has no entry in the table of peaks")
    else:
        rate = plan.tokens_per_step / plan.seconds_per_step
        console.print(f"time: {plan.seconds_per_step:.3g} s a step, {rate:,.0f} tokens/s, at an MFU of {plan.mfu:.1%}, {_why(plan)}")
        if plan.steps is None:
            console.print("the run's length is not known: give rows=N, the rows of an epoch")
    if plan.steps is not None:
        hours = f", {plan.steps * plan.seconds_per_step / 3600:,.1f} h" if plan.seconds_per_step else ""
        tokens, flops = plan.steps * plan.tokens_per_step, plan.steps * plan.flops_with_attention
        console.print(f"the run: {plan.steps:,} steps, {tokens:,} tokens, {flops:.3g} FLOPs{hours}")
    console.print(
        f"disk: {plan.checkpoint / 1e9:,.1f} GB a checkpoint, {plan.checkpoints / 1e9:,.1f} GB with those kept and the one being written, "
        f"{plan.export / 1e9:,.1f} GB the export"
    )


def _why(plan: Plan) -> str:
    """Where the figure of the time is from."""
    speed = plan.speed
    if speed is None:
        return "which is an assumption"
    return (
        f"predicted: arithmetic {speed.arithmetic:.3g} s at {plan.efficiency:.1%} of the peak, which is an assumption, communication "
        f"{speed.communication:.3g} s, of which arithmetic waits for {speed.exposed:.3g} s ({speed.exposed / speed.step:.1%} of the step), "
        f"update {speed.update:.2g} s"
    )


def _architecture(config: StageConfig, seq_len: int) -> Any:
    """The model's shape, with the vocabulary that the run would choose."""
    from moss_train.train.start import architecture

    found = architecture(config, seq_len, print)
    if config.init_from is None and config.model.vocab_size is None:
        if config.tokenizer.path is not None:
            from moss_train.data.tokenizer import MossTokenizer

            found.vocab_size = MossTokenizer.load(config.tokenizer.path).vocab_size
        else:
            # The tokenizer that would be trained; its rows are padded to a multiple of 64.
            found.vocab_size = math.ceil(config.tokenizer.train_vocab_size / 64) * 64
    return found
