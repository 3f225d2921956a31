"""Training checkpoints: the whole state of a run, as safetensors that know nothing of ranks.

    step-00000200/
      model-00001.safetensors ...       float32 master weights of the parameters that train, whole, by Hugging Face name
      optimizer-00001.safetensors ...   AdamW's moments, `NAME.exp_avg` and `NAME.exp_avg_sq`
      model.safetensors.index.json, optimizer.safetensors.index.json
      config.json and the tokenizer     so that the directory opens as a model
      state.json                        position, counters, what must not change; nothing is pickled
      lineage.json, MANIFEST.json       see artifacts/lineage.py and train/manifest.py

Parameters are dealt out over ranks; each rank streams its files to the disk while they are gathered, one tensor at a time, hashing as it
goes; `train/background.py` does so from a copy, while training goes on. On resuming a rank reads only the slices that it will hold, under
any number of ranks and any ZeRO stage.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import partial as bound
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from moss_train import files
from moss_train.artifacts import lineage
from moss_train.errors import CheckpointError, DiskFullError, NonFiniteError
from moss_train.files import FileEntry
from moss_train.train import engine as distributed
from moss_train.train import manifest as manifests
from moss_train.train import shards as sharding
from moss_train.train.manifest import DamagedError, Manifest
from moss_train.train.run import Run
from moss_train.train.shards import MOMENTS
from moss_train.train.tensors import PARTS, Shapes, TensorFiles, TensorReader, deal, index_name, tensor_name

STATE_NAME = "state.json"


@dataclass
class RunState:
    """state.json: where a run is, and what a resumed run must share with it."""

    run_id: str
    stage: str
    step: int
    """Optimizer steps done, those skipped by the spike guard included."""
    samples: int
    """Samples taken; the next one has this number."""
    adam_step: int
    """Updates AdamW has counted; fewer than `step` where updates were skipped."""
    tokens_seen: int
    weight_seen: float
    identity: dict[str, Any]
    """What must not change, by the name with which it can be allowed to."""
    position: dict[str, Any] = field(default_factory=dict)
    """Where each source of the data is (see `data.mixture.Mixture.position`): what a run in another mixture goes on from."""
    recent_losses: list[float] = field(default_factory=list)
    """The spike guard's window."""
    skipped_steps: list[int] = field(default_factory=list)
    """Steps whose update the spike guard left out."""
    trained: dict[str, list[int]] = field(default_factory=dict)
    """Name -> shape of every parameter in this checkpoint."""
    frozen: list[str] = field(default_factory=list)
    """Parameters that do not train; they are those of the run's `init` parent (see lineage.json), or of its seed."""
    saved_by: dict[str, Any] = field(default_factory=dict)
    """Ranks, threads, ZeRO stage, precision, attention and versions: equal ones make a resumed run equal bit for bit."""


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint that was found good."""

    path: Path
    manifest: Manifest
    state: RunState


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds beside tensors, as it is at its step: training may go on while it is written."""

    step: int
    shapes: Shapes
    """Of every parameter that trains."""
    state: bytes
    """state.json."""
    manifest: Manifest
    """Without files."""
    record: lineage.Lineage
    write_companions: Callable[[Path], Any]
    """Writes config.json and the tokenizer's files into a directory."""

    @property
    def bytes_needed(self) -> int:
        """Of the disk, by the tensors."""
        return 12 * sum(math.prod(shape) for shape in self.shapes.values())


def content_of(engine: Any, state: RunState, record: lineage.Lineage, write_tokenizer: Callable[[Path], Any]) -> Content:
    """What the checkpoint of `state.step` holds beside tensors.

    Args:
        engine: From `engine.initialize`.
        state: Its `trained`, `frozen`, `adam_step` and `saved_by` are filled in here.
        record: Lineage of the checkpoint; files and id are filled in when it is written.
        write_tokenizer: Writes the tokenizer's files into a directory.
    """
    shapes = sharding.trained_shapes(engine)
    state.trained = {name: list(shape) for name, shape in shapes.items()}
    state.frozen = sharding.frozen_names(engine)
    state.adam_step = sharding.adam_step(engine)
    state.saved_by = distributed.computed_by(engine)
    text = json.dumps(asdict(state), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    fingerprints = {"identity": lineage.hash_value(state.identity), "data": str(state.identity.get("data"))}
    manifest = Manifest(state.run_id, state.step, state.samples, fingerprints, {})
    config = copy.deepcopy(engine.module.config)
    config.architectures, config.dtype = ["CodeGenForCausalLM"], torch.float32

    def write_companions(folder: Path) -> None:
        config.save_pretrained(folder)
        write_tokenizer(folder)

    return Content(state.step, shapes, text.encode(), manifest, record, write_companions)


@dataclass(frozen=True)
class Written:
    """A checkpoint that was just committed.

    Attributes:
        path: Its directory.
        id: Of its lineage; empty on other ranks than 0.
        bytes: Of all its files; 0 on other ranks than 0.
    """

    path: Path
    id: str = ""
    bytes: int = 0


def save(run: Run, engine: Any, content: Content) -> Written:
    """Writes and commits a checkpoint. A collective.

    Raises:
        DiskFullError: No space left. NonFiniteError: The state holds a value that is not finite. CheckpointError: The place cannot be
            written. In all cases nothing was committed, what was there before is untouched, and what was written is removed.
    """
    main = distributed.rank() == 0
    partial = begin(run, content)
    try:
        state = distributed.full_state(engine)
        own = run.together(
            lambda: translated(
                partial, lambda: write_tensors(state, content.shapes, TensorFiles(partial), lambda name: run.beat(f"saving {name}"))
            )
        )
        run.rest("committing a checkpoint")
        entries = {name: entry for part in distributed.gather(own) for name, entry in part.items()}
        return run.together(
            lambda: (
                translated(partial, lambda: commit(partial, content, entries, run.verified))
                if main
                else Written(partial.with_name(manifests.step_name(content.step)))
            )
        )
    finally:
        if main:
            shutil.rmtree(partial, ignore_errors=True)


def begin(run: Run, content: Content) -> Path:
    """Makes the directory that a checkpoint is written in, the same for all ranks. A collective.

    Raises:
        DiskFullError: There is no room. CheckpointError: The place cannot be written.
    """
    partial = run.checkpoints / f"{manifests.step_name(content.step)}.tmp-{distributed.gather(uuid.uuid4().hex[:12])[0]}"
    try:
        run.together(lambda: _prepare(partial, content.bytes_needed) if distributed.rank() == 0 else None)
    except BaseException:
        if distributed.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial


def _prepare(partial: Path, needed: int) -> None:
    def make() -> None:
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < needed:
            raise DiskFullError(
                f"no room for the checkpoint {partial.parent / partial.name.split('.')[0]}: it takes {needed / 1e9:.3f} GB, and "
                f"{free / 1e9:.3f} GB are free. Nothing that was saved before is touched. Free some space, or lower train.keep, and give "
                "the same command again"
            )

    translated(partial, make)


def translated(partial: Path, work: Callable[[], Any]) -> Any:
    """Runs `work`; what a disk refuses becomes an error that says where and what to do."""
    try:
        return work()
    except OSError as error:
        step = partial.name.split(".")[0]
        if files.is_disk_full(error):
            raise DiskFullError(
                f"no space is left at {partial.parent} for {step}. Nothing that was saved before is touched. Free some space, or lower "
                "train.keep, and give the same command again"
            ) from error
        raise CheckpointError(
            f"{step} cannot be written to {partial.parent}: {error.strerror or error}. Nothing that was saved before is touched"
        ) from error


State = Iterable[tuple[str, str, torch.Tensor]]
"""(name, kind, whole tensor) of what trains, in the order of the model; a rank may be given its own share alone."""


def write_tensors(state: State, shapes: Shapes, tensor_files: TensorFiles, say: Callable[[str], None]) -> dict[str, FileEntry]:
    """Streams this rank's share to its files. Getting the tensors is a collective, so it goes on to its end whatever fails here.

    Args:
        state: Tensors that do not change until they are written.
        shapes: Of all parameters that train.
        tensor_files: Where they go.
        say: Told the name of each parameter.
    """
    numbers: dict[str, int] = {}
    names_of: dict[int, list[str]] = {}
    for number, (rank, names) in enumerate(deal(shapes, distributed.world_size()), 1):
        if rank == distributed.rank():
            numbers |= dict.fromkeys(names, number)
            names_of[number] = names
    failure: Exception | None = None
    try:
        for name, kind, tensor in state:
            say(name)
            if failure is not None or name not in numbers:
                continue
            number = numbers[name]
            held = bound(_held, shapes, names_of[number], ["param"] if kind == "param" else list(MOMENTS))
            try:
                check_finite(name, kind, tensor)
                tensor_files.add(f"{PARTS[kind]}-{number:05d}.safetensors", held, tensor_name(name, kind), tensor)
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure
        return tensor_files.finish()
    except BaseException:
        tensor_files.abandon()
        raise


def _held(shapes: Shapes, names: list[str], kinds: list[str]) -> Shapes:
    return {tensor_name(name, kind): shapes[name] for name in names for kind in kinds}


def check_finite(name: str, kind: str, tensor: torch.Tensor) -> None:
    """Refuses values that are nan or infinite.

    Raises:
        NonFiniteError: Naming the parameter.
    """
    if not sharding.is_finite(tensor):
        what = "the parameter" if kind == "param" else f"AdamW's {kind} of"
        raise NonFiniteError(f"{what} {name} has values that are not finite; such a state is not saved. The checkpoints before it are")


def commit(partial: Path, content: Content, entries: dict[str, FileEntry], verified: manifests.Verified) -> Written:
    """Rank 0's part: everything beside the tensors, the manifest, the name.

    Args:
        partial: Holds the tensor files. content: The rest. entries: Of the tensor files of all ranks.
        verified: Told of the new checkpoint.
    """
    for kinds, stem in ((("param",), "model"), (MOMENTS, "optimizer")):
        weight_map = {
            tensor_name(name, kind): f"{stem}-{number:05d}.safetensors"
            for number, (_, names) in enumerate(deal(content.shapes, distributed.world_size()), 1)
            for name in names
            for kind in kinds
        }
        index = {"metadata": {"total_size": 4 * len(kinds) * sum(map(math.prod, content.shapes.values()))}, "weight_map": weight_map}
        text = json.dumps(index, indent=1, sort_keys=True) + "\n"
        entries[index_name(stem)] = files.write_new(partial / index_name(stem), text.encode())
    content.write_companions(partial)
    entries[STATE_NAME] = files.write_new(partial / STATE_NAME, content.state)
    for path in sorted(partial.iterdir()):
        if path.name not in entries:
            files.sync_file(path)
            entries[path.name] = files.hash_file(path)
    identity = lineage.write(partial, content.record, {name: asdict(entry) for name, entry in entries.items()})
    files.sync_file(partial / lineage.FILE_NAME)
    entries[lineage.FILE_NAME] = files.hash_file(partial / lineage.FILE_NAME)
    target = manifests.commit(partial, replace(content.manifest, files=entries))
    manifest = manifests.read_manifest(target)
    verified.remember(target, manifest)
    # Where a good checkpoint of this step was there already, it stays.
    return Written(target, str((lineage.read(target) or {}).get("id", identity)), manifest.total_bytes)


def find(run: Run, verified: manifests.Verified) -> Saved | None:
    """The newest good checkpoint of a run directory; every rank reads and hashes its share of the files. A collective.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, but none can be used.
    """
    run.rest("verifying checkpoints")
    names = distributed.gather([path.name for _, path in manifests.committed(run.checkpoints)])[0]
    rejected: list[str] = []
    for name in names:
        path = run.checkpoints / name
        problems = list(dict.fromkeys(chain(*distributed.gather(_problems_of_share(path)))))
        if problems:
            rejected.append(f"{name}: {'; '.join(problems)}")
            continue
        manifest = manifests.read_manifest(path)
        verified.remember(path, manifest)
        if rejected:
            run.log("\n".join(f"checkpoint rejected: {line}" for line in rejected))
            run.log(f"WARNING: going on from {name}, not from {names[0]}: the steps between them are trained again")
        return Saved(path, manifest, read_state(path))
    if rejected:
        raise manifests.none_usable(run.checkpoints, rejected)
    return None


def _problems_of_share(path: Path) -> list[str]:
    try:
        manifest = manifests.read_manifest(path)
    except DamagedError as error:
        return [str(error)]
    entries = sorted(manifest.files.items(), key=lambda item: -item[1].bytes)[distributed.rank() :: distributed.world_size()]
    return manifests.problems_of_files(path, entries)


def read_state(checkpoint: Path) -> RunState:
    """state.json of a verified checkpoint.

    Raises:
        CheckpointError: It was written by another version of this package, with other fields.
    """
    record = json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))
    try:
        return RunState(**record)
    except TypeError as error:
        raise CheckpointError(f"{checkpoint / STATE_NAME} is of another version of this package: {error}") from error


def restore(engine: Any, saved: Saved, beat: Callable[[str], None]) -> None:
    """Puts a checkpoint's weights, moments and step count into an engine; each rank reads the slices that it holds.

    Raises:
        CheckpointError: The parameters that train are not those of the checkpoint.
    """
    shapes = {name: tuple(shape) for name, shape in saved.state.trained.items()}
    trained = sharding.trained_shapes(engine)
    if trained != shapes:
        different = sorted({name for name in trained.keys() | shapes.keys() if trained.get(name) != shapes.get(name)})
        raise CheckpointError(
            f"{saved.path} holds {len(shapes)} trained parameters, this run trains {len(trained)}; they differ in {len(different)}, for "
            f"example {different[0]}: {shapes.get(different[0])} there, {trained.get(different[0])} here"
        )
    with TensorReader(saved.path) as reader:
        for shard in sharding.shards(engine):
            beat(f"loading {shard.name}")
            if shard.count and shard.flat is not None:
                held = slice(shard.offset, shard.offset + shard.count)
                values = reader.range(shard.name, "param", shard.start, shard.count)
                shard.flat.data[held].copy_(values)
                for kind in MOMENTS:
                    target = sharding.optimizer_state(engine, shard.flat)[kind]
                    target[held].copy_(reader.range(shard.name, kind, shard.start, shard.count))
                if shard.is_partitioned:
                    shard.model_values.data.view(-1)[: shard.count].copy_(values)
            if not shard.is_partitioned:
                shard.model_values.copy_(reader.range(shard.name, "param", 0, math.prod(shard.shape)).view(shard.shape))
    sharding.set_adam_step(engine, saved.state.adam_step)
