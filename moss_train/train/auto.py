"""`deepspeed=auto`: the lowest ZeRO stage whose predicted memory fits, chosen when a run starts; and the sections it chooses from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from moss_train.config import StageConfig
from moss_train.cores import local_ranks
from moss_train.errors import OutOfMemoryError
from moss_train.train.config import AUTO, AUTO_MEMORY, is_auto
from moss_train.train.memory import Memory, Setup, predict
from moss_train.train.resident import free_host_bytes

if TYPE_CHECKING:
    from moss_train.train.checkpoint import Saved
    from moss_train.train.run import Run

_Config = TypeVar("_Config", bound=StageConfig)
_GIB = 2**30
USABLE = 0.9
"""Share of a device's memory that a plan may fill: the context, NCCL's buffers and what lies in pieces take the rest."""

_OVERLAPPING = {"overlap_comm": True, "contiguous_gradients": True}
_ZERO3 = {"stage": 3, **_OVERLAPPING, "stage3_param_persistence_threshold": 100000}
SECTIONS: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2, **_OVERLAPPING},
    "zero3": _ZERO3,
    "zero3_offload": {**_ZERO3, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
}
"""Name -> `zero_optimization` of configs/deepspeed/NAME.yaml, in the order in which they are tried."""


@dataclass(frozen=True)
class Room:
    """Bytes that a rank may take: of its device, and of the host beside it, where that is another memory."""

    device: float
    host: float = float("inf")

    def holds(self, memory: Memory) -> bool:
        """Whether a run of this memory fits."""
        return memory.peak_bytes <= self.device and memory.host_bytes <= self.host

    def __str__(self) -> str:
        host = f" and {self.host / _GIB:.2f} GiB of the host's memory" if self.host < float("inf") else ""
        return f"{self.device / _GIB:.2f} GiB{host}"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what every section that was looked at would take."""

    name: str | None
    """None where nothing fits."""
    tried: dict[str, Memory]

    def reason(self, room: Room) -> str:
        """One line: what the choice takes, and what the one below it would."""
        if self.name is None:
            return "nothing fits"
        names = list(self.tried)
        below = names[names.index(self.name) - 1] if self.name != names[0] else None
        why = f"{below} would take {took(self.tried[below])}" if below else "it is the lowest stage"
        return f"{self.name} takes {took(self.tried[self.name])}, a rank may take {room}; {why}"


def took(memory: Memory) -> str:
    """Memory in words."""
    host = f" and {memory.host_bytes / _GIB:.2f} GiB of the host's memory" if memory.host_bytes else ""
    return f"{memory.peak_bytes / _GIB:.2f} GiB{host} (peak: {memory.peak.name})"


def section_of(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The `zero_optimization` of a choice: that of the file, and what else was given beside `stage: auto`."""
    return {**SECTIONS[name], **{key: value for key, value in given.items() if key != "stage"}}


def candidates(setup: Setup, given: dict[str, Any]) -> Iterator[tuple[str, Setup]]:
    """The setup under each section, lowest stage first."""
    for name in SECTIONS:
        yield name, replace(setup, zero=section_of(name, given))


def choose(setup: Setup, given: dict[str, Any], room: Room) -> Choice:
    """The lowest stage that fits into the room.

    Args:
        setup: Of the run, whatever its section.
        given: The `zero_optimization` section with `stage: auto`.
        room: Of a rank.
    """
    tried: dict[str, Memory] = {}
    for name, candidate in candidates(setup, given):
        tried[name] = predict(candidate)
        if room.holds(tried[name]):
            return Choice(name, tried)
    return Choice(None, tried)


def settle(run: Run, config: _Config, model_config: Any, row_tokens: int, saved: Saved | None) -> _Config:
    """The configuration with ZeRO's stage decided, where it is left to the run; said in the log and written into config.yaml. A collective.

    A run that goes on with as many ranks keeps the stage of its checkpoint while that fits, so that free memory, which varies, does not
    change how the rest is rounded.

    Args:
        run: The run. config: Its configuration. model_config: Its architecture.
        row_tokens: Tokens of the largest row.
        saved: The checkpoint it goes on from.

    Raises:
        OutOfMemoryError: No stage fits, on any rank.
    """
    if not is_auto(config.deepspeed):
        return config
    from moss_train.train import engine as distributed

    given: dict[str, Any] = dict(config.deepspeed["zero_optimization"])
    rooms = distributed.gather(run.together(lambda: _room(config.deepspeed.get(AUTO_MEMORY))))
    # Every rank decides the same: by the fullest one.
    room = Room(min(one.device for one in rooms), min(one.host for one in rooms))

    def decide() -> tuple[str, str]:
        from moss_train.train.forecast import setup_of

        on_cuda = distributed.device().type == "cuda"
        setup = setup_of(_with_section(config, section_of("zero3", given)), model_config, row_tokens, distributed.world_size(), on_cuda)
        before = _section_before(saved, distributed.world_size())
        if before is not None and room.holds(taken := predict(replace(setup, zero=section_of(before, given)))):
            return before, f"{before}, as before {saved.path.name if saved else ''}; it takes {took(taken)}, a rank may take {room}"
        choice = choose(setup, given, room)
        if choice.name is None:
            raise OutOfMemoryError(refusal(setup, config.train.global_batch_size, choice, room))
        return choice.name, choice.reason(room)

    name, reason = run.together(decide)
    run.log(f"deepspeed=auto: {reason}")
    settled = _with_section(config, section_of(name, given))
    run.config["deepspeed"] = settled.deepspeed
    if not run.resumes:
        # One that goes on writes it once it is known that it may.
        run.together(run.write_config)
    return settled


def _with_section(config: _Config, section: dict[str, Any]) -> _Config:
    rest = {key: value for key, value in config.deepspeed.items() if key != AUTO_MEMORY}
    return replace(config, deepspeed={**rest, "zero_optimization": section})


def _section_before(saved: Saved | None, world_size: int) -> str | None:
    """The section that a checkpoint was trained with, where it had as many ranks."""
    if saved is None or saved.state.saved_by.get("world_size") != world_size:
        return None
    stage = saved.state.saved_by.get("zero_stage")
    offloaded = saved.state.saved_by.get("optimizer") == "DeepSpeedCPUAdam"
    name = "zero3_offload" if offloaded else f"zero{stage}"
    return name if name in SECTIONS else None


def _room(given_gib: float | None) -> Room:
    """What this rank may take: `deepspeed.memory_gib`, else of its device, or of a CPU machine its share of what is free."""
    from moss_train.train import engine as distributed

    on_cuda = distributed.device().type == "cuda"
    host = USABLE * free_host_bytes() / local_ranks()
    if given_gib is not None:
        return Room(given_gib * _GIB, host if on_cuda else float("inf"))
    if not on_cuda:
        return Room(host)
    import torch

    return Room(USABLE * torch.cuda.mem_get_info()[1], host)


def refusal(setup: Setup, global_batch_size: int, choice: Choice, room: Room) -> str:
    """Why no stage fits, and the nearest change that makes one fit."""
    from moss_train.train.plan import nearest

    lines = "\n".join(f"  - {name}: {took(memory)}" for name, memory in choice.tried.items())
    found = nearest(setup, global_batch_size, room.device)
    way_out = "lower train.micro_batch_size or data.seq_len, set model.recompute=true, or take more ranks"
    if found is not None:
        way_out = f"the nearest that fits: {' '.join(change for change in found[0])}, which takes {took(found[1])}"
    return f"deepspeed={AUTO}: a rank may take {room}, and no ZeRO stage fits:\n{lines}\n{way_out}"
