"""The safetensors files of a training checkpoint: written one tensor after another, dealt over ranks, read in slices."""

from __future__ import annotations

import contextlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from moss_train.files import FileEntry, HashedFile
from moss_train.train.shards import MOMENTS

MAX_FILE_BYTES = 4 * 10**9
AHEAD_BYTES = 128 * 2**20
"""Of gathered tensors that wait for the disk."""
PARTS = {"param": "model", **dict.fromkeys(MOMENTS, "optimizer")}
"""Kind of state -> the files it is in."""


Shapes = dict[str, tuple[int, ...]]
"""Name -> shape."""


def index_name(stem: str) -> str:
    """The file that says in which file each tensor of a part is."""
    return f"{stem}.safetensors.index.json"


class TensorFile:
    """A safetensors file written one tensor after another.

    Args:
        path: Must not exist.
        tensors: Name -> shape, in the order in which they will come; all float32.
    """

    def __init__(self, path: Path, tensors: Shapes):
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


class TensorFiles:
    """Several tensor files written at once, each by a thread of its own: a file is hashed by one core, and there is more than one.

    Args:
        folder: Where they are.
        ahead_bytes: Tensors that may wait for the disk before `add` waits for one; those of a caller that keeps them cost nothing.
    """

    def __init__(self, folder: Path, ahead_bytes: float = AHEAD_BYTES):
        self._folder, self._ahead_bytes = folder, ahead_bytes
        self._open: dict[str, tuple[TensorFile, ThreadPoolExecutor]] = {}
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._entries: dict[str, FileEntry] = {}
        self._refused = False

    def add(self, file_name: str, held: Callable[[], Shapes], name: str, tensor: torch.Tensor) -> None:
        """Hands over the next tensor of a file; it must not change until it is written.

        Args:
            file_name: Of the file. held: What `TensorFile` takes, asked for at its first tensor.
            name: Of the tensor. tensor: Float32; any device.

        Raises:
            OSError: This tensor or one before it was refused by the disk.
        """
        if file_name not in self._open:
            self._open[file_name] = TensorFile(self._folder / file_name, held()), ThreadPoolExecutor(1, file_name)
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        size = 4 * values.numel()
        while self._waiting and sum(bytes_ for _, bytes_ in self._waiting) + size > self._ahead_bytes:
            self._waiting.popleft()[0].result()
        self._waiting.append((self._open[file_name][1].submit(self._write, file_name, name, values), size))

    def _write(self, file_name: str, name: str, values: torch.Tensor) -> None:
        if self._refused:
            return
        file = self._open[file_name][0]
        try:
            file.add(name, values)
            if file.complete:
                self._entries[file_name] = file.close()
        except BaseException:
            self._refused = True
            raise

    def finish(self) -> dict[str, FileEntry]:
        """Waits until all is on disk; returns what each file is.

        Raises:
            OSError: The disk refused something.
        """
        while self._waiting:
            self._waiting.popleft()[0].result()
        for _, thread in self._open.values():
            thread.shutdown()
        return dict(self._entries)

    def abandon(self) -> None:
        """Stops writing, and closes files that will not be used."""
        for file, thread in self._open.values():
            thread.shutdown(cancel_futures=True)
            file.abandon()


def deal(shapes: Shapes, ranks: int, max_file_bytes: int = MAX_FILE_BYTES) -> list[tuple[int, list[str]]]:
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
