"""Training checkpoints: the whole state of a run, as safetensors that know nothing of ranks.

    step-00000200/
      model-00001.safetensors ...       float32 master weights of the parameters that train, whole, by Hugging Face name
      optimizer-00001.safetensors ...   AdamW's moments, `NAME.exp_avg` and `NAME.exp_avg_sq`
      model.safetensors.index.json, optimizer.safetensors.index.json
      config.json and the tokenizer     so that the directory opens as a model
      state.json                        position, counters, what must not change; nothing is pickled
      lineage.json, MANIFEST.json       see artifacts/lineage.py and train/manifest.py

Parameters are dealt out over ranks; each rank streams its files to the disk while they are gathered, one tensor at a time, hashing as it
goes. On resuming a rank reads only the slices that it will hold, under any number of ranks and any ZeRO stage.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from moss_train.train.tensors import PARTS, TensorFile, TensorReader, deal, index_name, tensor_name

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


def save(
    run: Run,
    engine: Any,
    state: RunState,
    record: lineage.Lineage,
    write_tokenizer: Callable[[Path], Any],
    verified: manifests.Verified,
) -> tuple[Path, str]:
    """Writes and commits the checkpoint of the step `state.step`. A collective.

    Args:
        run: The open run; the checkpoint goes into its directory.
        engine: From `engine.initialize`.
        state: Its `trained`, `frozen`, `adam_step` and `saved_by` are filled in here.
        record: Lineage of the checkpoint; files and id are filled in.
        write_tokenizer: Writes the tokenizer's files into a directory.
        verified: Told of the new checkpoint.

    Returns:
        The checkpoint's directory, and its lineage id on rank 0 (empty elsewhere).

    Raises:
        DiskFullError: No space left. NonFiniteError: The state holds a value that is not finite. CheckpointError: The place cannot be
            written. In all cases nothing was committed, what was there before is untouched, and what was written is removed.
    """
    shapes = sharding.trained_shapes(engine)
    state.trained = {name: list(shape) for name, shape in shapes.items()}
    state.frozen = sharding.frozen_names(engine)
    state.adam_step = sharding.adam_step(engine)
    state.saved_by = distributed.computed_by(engine)
    main = distributed.rank() == 0
    folder = run.checkpoints
    partial = folder / f"{manifests.step_name(state.step)}.tmp-{distributed.gather(uuid.uuid4().hex[:12])[0]}"
    needed = 12 * sum(math.prod(shape) for shape in shapes.values())
    try:
        run.together(lambda: _prepare(partial, needed) if main else None)
        own = run.together(lambda: _translated(partial, lambda: _write_tensors(engine, shapes, partial, run.beat)))
        run.rest("committing a checkpoint")
        entries = {name: entry for part in distributed.gather(own) for name, entry in part.items()}
        return run.together(
            lambda: (
                _translated(partial, lambda: _commit(partial, engine, state, record, entries, write_tokenizer, verified))
                if main
                else (partial.with_name(manifests.step_name(state.step)), "")
            )
        )
    finally:
        if main:
            shutil.rmtree(partial, ignore_errors=True)


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

    _translated(partial, make)


def _translated(partial: Path, work: Callable[[], Any]) -> Any:
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


def _write_tensors(engine: Any, shapes: dict[str, tuple[int, ...]], partial: Path, beat: Callable[[str], None]) -> dict[str, FileEntry]:
    """Streams this rank's share to its files. Gathering is a collective, so it goes on to its end whatever fails here."""
    numbers: dict[str, int] = {}
    names_of: dict[int, list[str]] = {}
    for number, (rank, names) in enumerate(deal(shapes, distributed.world_size()), 1):
        if rank == distributed.rank():
            numbers |= dict.fromkeys(names, number)
            names_of[number] = names
    opened: dict[str, TensorFile] = {}
    entries: dict[str, FileEntry] = {}
    failure: BaseException | None = None
    for name, kind, tensor in distributed.full_state(engine):
        beat(f"saving {name}")
        if failure is not None or name not in numbers:
            continue
        try:
            _check_finite(name, kind, tensor)
            file_name = f"{PARTS[kind]}-{numbers[name]:05d}.safetensors"
            if file_name not in opened:
                kinds = ["param"] if kind == "param" else list(MOMENTS)
                held = {tensor_name(n, k): shapes[n] for n in names_of[numbers[name]] for k in kinds}
                opened[file_name] = TensorFile(partial / file_name, held)
            opened[file_name].add(tensor_name(name, kind), tensor)
            if opened[file_name].complete:
                entries[file_name] = opened.pop(file_name).close()
        except Exception as error:
            failure = error
    for left in opened.values():
        left.abandon()
    if failure is not None:
        raise failure
    return entries


def _check_finite(name: str, kind: str, tensor: torch.Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        what = "the parameter" if kind == "param" else f"AdamW's {kind} of"
        raise NonFiniteError(f"{what} {name} has values that are not finite; such a state is not saved. The checkpoints before it are")


def _commit(
    partial: Path,
    engine: Any,
    state: RunState,
    record: lineage.Lineage,
    entries: dict[str, FileEntry],
    write_tokenizer: Callable[[Path], Any],
    verified: manifests.Verified,
) -> tuple[Path, str]:
    """Rank 0's part: everything beside the tensors, the manifest, the name."""
    shapes = {name: tuple(shape) for name, shape in state.trained.items()}
    for kinds, stem in ((("param",), "model"), (MOMENTS, "optimizer")):
        weight_map = {
            tensor_name(name, kind): f"{stem}-{number:05d}.safetensors"
            for number, (_, names) in enumerate(deal(shapes, distributed.world_size()), 1)
            for name in names
            for kind in kinds
        }
        index = {"metadata": {"total_size": 4 * len(kinds) * sum(map(math.prod, shapes.values()))}, "weight_map": weight_map}
        content = json.dumps(index, indent=1, sort_keys=True) + "\n"
        entries[index_name(stem)] = files.write_new(partial / index_name(stem), content.encode())
    config = copy.deepcopy(engine.module.config)
    config.architectures, config.dtype = ["CodeGenForCausalLM"], torch.float32
    config.save_pretrained(partial)
    write_tokenizer(partial)
    content = json.dumps(asdict(state), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    entries[STATE_NAME] = files.write_new(partial / STATE_NAME, content.encode())
    for path in sorted(partial.iterdir()):
        if path.name not in entries:
            files.sync_file(path)
            entries[path.name] = files.hash_file(path)
    identity = lineage.write(partial, record, {name: asdict(entry) for name, entry in entries.items()})
    files.sync_file(partial / lineage.FILE_NAME)
    entries[lineage.FILE_NAME] = files.hash_file(partial / lineage.FILE_NAME)
    fingerprints = {"identity": lineage.hash_value(state.identity), "data": str(state.identity.get("data"))}
    manifest = Manifest(state.run_id, state.step, state.samples, fingerprints, entries)
    target = manifests.commit(partial, manifest)
    verified.remember(target, manifests.read_manifest(target))
    # Where a good checkpoint of this step was there already, it stays.
    return target, str((lineage.read(target) or {}).get("id", identity))


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
