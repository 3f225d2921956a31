"""The safetensors files of a training checkpoint: written one tensor after another, dealt over ranks, read in slices."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from moss_train.files import FileEntry, HashedFile
from moss_train.train.shards import MOMENTS

MAX_FILE_BYTES = 4 * 10**9
PARTS = {"param": "model", **dict.fromkeys(MOMENTS, "optimizer")}
"""Kind of state -> the files it is in."""


def index_name(stem: str) -> str:
    """The file that says in which file each tensor of a part is."""
    return f"{stem}.safetensors.index.json"


class TensorFile:
    """A safetensors file written one tensor after another.

    Args:
        path: Must not exist.
        tensors: Name -> shape, in the order in which they will come; all float32.
    """

    def __init__(self, path: Path, tensors: dict[str, tuple[int, ...]]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, shape in tensors.items():
            end = offset + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._waiting = list(tensors.items())[::-1]
        self._file = HashedFile(path)
        try:
            self._file.write(len(text).to_bytes(8, "little") + text)
        except BaseException:
            self._file.abandon()
            raise

    @property
    def complete(self) -> bool:
        """Whether every tensor has come."""
        return not self._waiting

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Writes the next tensor."""
        expected, shape = self._waiting.pop()
        if (name, tuple(tensor.shape)) != (expected, shape):
            raise RuntimeError(f"the next tensor is {expected} {shape}, not {name} {tuple(tensor.shape)}")
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        self._file.write(values.view(-1).view(torch.uint8).numpy().data)

    def close(self) -> FileEntry:
        """Waits for the disk."""
        return self._file.close()

    def abandon(self) -> None:
        """Closes a file that will not be used."""
        self._file.abandon()


def deal(shapes: dict[str, tuple[int, ...]], ranks: int, max_file_bytes: int = MAX_FILE_BYTES) -> list[tuple[int, list[str]]]:
    """Which rank writes which parameters: a list of files in order, each as (rank, names).

    Each parameter goes to the rank with the least to write so far, and a rank begins a new file when one is full.
    """
    loads = [0] * ranks
    open_files: dict[int, tuple[int, list[str]]] = {}
    plan: list[tuple[int, list[str]]] = []
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        rank = loads.index(min(loads))
        loads[rank] += size
        filled, names = open_files.get(rank, (0, []))
        if not names or filled + size > max_file_bytes:
            filled, names = 0, []
            plan.append((rank, names))
        names.append(name)
        open_files[rank] = (filled + size, names)
    return plan


def tensor_name(name: str, kind: str) -> str:
    """Name of a tensor in the files: parameters keep theirs."""
    return name if kind == "param" else f"{name}.{kind}"


class TensorReader(contextlib.AbstractContextManager["TensorReader"]):
    """Reads parts of a checkpoint's tensors."""

    def __init__(self, checkpoint: Path):
        self._checkpoint = checkpoint
        self._stack = contextlib.ExitStack()
        self._opened: dict[str, Any] = {}
        self._where = _file_of_each(checkpoint)

    def range(self, name: str, kind: str, start: int, count: int) -> torch.Tensor:
        """`count` elements from `start` on of a flattened tensor, float32 [count]. Reads the rows that hold them."""
        key = tensor_name(name, kind)
        file_name = self._where[key]
        if file_name not in self._opened:
            self._opened[file_name] = self._stack.enter_context(safe_open(self._checkpoint / file_name, framework="pt"))
        rows = self._opened[file_name].get_slice(key)
        width = math.prod(rows.get_shape()[1:])
        first = start // width
        found = rows[first : -(-(start + count) // width)].reshape(-1)
        return found[start - first * width :][:count]

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def iterate_tensors(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a checkpoint by its name in the files, in order of names."""
    where = _file_of_each(checkpoint)
    for key in sorted(where):
        with safe_open(checkpoint / where[key], framework="pt") as file:
            yield key, file.get_tensor(key)


def _file_of_each(checkpoint: Path) -> dict[str, str]:
    where: dict[str, str] = {}
    for stem in sorted(set(PARTS.values())):
        where |= json.loads((checkpoint / index_name(stem)).read_text(encoding="utf-8"))["weight_map"]
    return where
