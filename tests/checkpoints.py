"""Training checkpoints made without training: the files that `checkpoint.save` writes, with tensors that follow from the step."""

from __future__ import annotations

import json
import time
import uuid
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from moss_train import files
from moss_train.artifacts import lineage
from moss_train.files import FileEntry
from moss_train.train import manifest as manifests
from moss_train.train.checkpoint import STATE_NAME, RunState
from moss_train.train.manifest import Manifest
from moss_train.train.tensors import PARTS, TensorFile, deal, iterate_tensors, tensor_name

RUN = "7f3c5a1e9b2d4f60"
OTHER_RUN = "00c0ffee00c0ffee"

Shapes = dict[str, tuple[int, ...]]

SHAPES: Shapes = {
    "transformer.wte.weight": (64, 32),
    "transformer.h.0.ln_1.weight": (32,),
    "transformer.h.0.ln_1.bias": (32,),
    "transformer.h.0.attn.qkv_proj.weight": (96, 32),
    "transformer.h.0.attn.out_proj.weight": (32, 32),
    "transformer.h.0.mlp.fc_in.weight": (128, 32),
    "transformer.h.0.mlp.fc_in.bias": (128,),
    "transformer.h.0.mlp.fc_out.weight": (32, 128),
    "lm_head.weight": (61, 32),
    "lm_head.bias": (61,),
}
"""About 230 KB a checkpoint."""

SMALL: Shapes = {"weight": (5, 7), "bias": (3,)}
"""Enough where it is the names that count."""


def value(step: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The one value that a tensor has at a step."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(f"{step} {name}".encode())))


def partial_name(step: int) -> str:
    """Name of the directory that a step is written in before it is committed."""
    return f"{manifests.step_name(step)}.tmp-{uuid.uuid4().hex[:12]}"


def write(partial: Path, step: int, run_id: str = RUN, shapes: Shapes = SHAPES) -> Manifest:
    """Writes all of a checkpoint but its MANIFEST.json, by way of `files` alone."""
    partial.mkdir(parents=True)
    entries: dict[str, FileEntry] = {}
    kinds_of: dict[str, list[str]] = {}
    for kind, stem in PARTS.items():
        kinds_of.setdefault(stem, []).append(kind)
    for stem, kinds in kinds_of.items():
        weight_map: dict[str, str] = {}
        for number, (_, names) in enumerate(deal(shapes, 2), 1):
            held = {tensor_name(name, kind): shapes[name] for name in names for kind in kinds}
            file_name = f"{stem}-{number:05d}.safetensors"
            entries[file_name] = _write_tensors(partial / file_name, step, held)
            weight_map |= dict.fromkeys(held, file_name)
        index = {"metadata": {}, "weight_map": weight_map}
        entries[f"{stem}.safetensors.index.json"] = _write_json(partial / f"{stem}.safetensors.index.json", index)
    state = RunState(run_id, "sft", step, 12 * step, step, 1000 * step, 900.0 * step, {"train.seed": 7}, recent_losses=[1.5] * 20)
    record = lineage.Lineage("checkpoint", "sft", tokens_seen=1000 * step)
    entries["config.json"] = _write_json(partial / "config.json", {"architectures": ["CodeGenForCausalLM"], "n_embd": 32})
    if shapes is not SMALL:
        vocabulary = {f"token{number}": number for number in range(500)}
        entries["tokenizer.json"] = _write_json(partial / "tokenizer.json", {"model": {"type": "BPE", "vocab": vocabulary}})
        entries["tokenizer_config.json"] = _write_json(partial / "tokenizer_config.json", {"eos_token": "<eom>"})
    entries[STATE_NAME] = _write_json(partial / STATE_NAME, asdict(state))
    entries[lineage.FILE_NAME] = _write_json(partial / lineage.FILE_NAME, asdict(record))
    return Manifest(run_id, step, 12 * step, {"identity": "0" * 64, "data": "1" * 64}, entries)


def save(directory: Path, step: int, run_id: str = RUN, shapes: Shapes = SHAPES) -> Path:
    """Writes and commits a checkpoint."""
    partial = directory / partial_name(step)
    return manifests.commit(partial, write(partial, step, run_id, shapes))


def differences(checkpoint: Path, step: int, shapes: Shapes = SHAPES) -> list[str]:
    """Names of the tensors that are not, bit for bit, those of the step; what is missing or too much included."""
    expected = {tensor_name(name, kind): shape for name, shape in shapes.items() for kind in PARTS}
    found = dict(iterate_tensors(checkpoint))
    return [
        name
        for name in sorted(expected.keys() | found.keys())
        if name not in expected or name not in found or not _same_bits(found[name], value(step, name, expected[name]))
    ]


def flip_bit(path: Path, bit: int) -> None:
    """Inverts one bit of a file, in place."""

    def flip() -> None:
        with path.open("r+b", buffering=0) as file:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ (1 << bit % 8)]))

    change(path, flip)


def change(path: Path, work: Callable[[], object]) -> None:
    """Changes a file so that its times tell: on a clock of coarse ticks, not in the tick in which it was written."""
    before = path.stat().st_ctime_ns
    work()
    while path.exists() and path.stat().st_ctime_ns == before:
        time.sleep(0.002)
        path.chmod(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


def _write_tensors(path: Path, step: int, held: Shapes) -> FileEntry:
    file = TensorFile(path, held)
    try:
        for name, shape in held.items():
            file.add(name, value(step, name, shape))
    except BaseException:
        file.abandon()
        raise
    return file.close()


def _write_json(path: Path, content: object) -> FileEntry:
    return files.write_new(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
