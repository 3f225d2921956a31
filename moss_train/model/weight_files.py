"""The weight files of a model directory, safetensors or `.bin`: which they are, and names and shapes from their headers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from moss_train.errors import CheckpointError

_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Tensor:
    """Header of a stored tensor: its shape and its type by safetensors' name (`F16`, ...)."""

    shape: tuple[int, ...]
    dtype: str
    file: str


def read_tensors(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors that are known to be there, one at a time, in the order of `names`; memory is that of one."""
    files, _ = find_weights(directory)
    if files[0].suffix == ".safetensors":
        place: dict[str, Path] = {}
        for file in files:
            place |= dict.fromkeys(read_safetensors_header(file), file)
        for name in names:
            with safe_open(place[name], framework="pt") as reader:
                yield name, reader.get_tensor(name)
        return
    # Mapped, not read: a value is loaded when it is touched.
    states = [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]
    for name in names:
        yield name, next(state[name] for state in states if name in state)


def find_weights(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files in the order transformers prefers, and the name -> file map of a sharded set.

    Raises:
        CheckpointError: There are none, or the index cannot be read.
    """
    for stem in ("model.safetensors", "pytorch_model.bin"):
        single, index = directory / stem, directory / f"{stem}.index.json"
        if single.is_file():
            return [single], None
        if index.is_file():
            try:
                weight_map: dict[str, str] = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{index}: not an index of weights ({error!r}); expected a JSON object with weight_map") from error
            if not weight_map:
                raise CheckpointError(f"{index}: weight_map is empty")
            return [directory / file for file in sorted(set(weight_map.values()))], weight_map
    found = sorted(path.name for path in directory.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    raise CheckpointError(
        f"{directory}: no weights; expected model.safetensors or model.safetensors.index.json with its shards, "
        f"found {', '.join(found) if found else 'no weight file'}"
    )


def read_headers(directory: Path, allow_pickle: bool) -> tuple[list[Path], dict[str, Tensor], list[str]]:
    """Every stored tensor by name, and what is wrong with the files themselves."""
    files, weight_map = find_weights(directory)
    if files[0].suffix != ".safetensors" and not allow_pickle:
        raise CheckpointError(
            f"{directory}: the weights are pickle files ({files[0].name}), which can run code when they are opened; "
            "allow it with allow_pickle=true for a source you trust (only tensors are then unpickled), or convert them to safetensors"
        )
    stored: dict[str, Tensor] = {}
    problems: list[str] = []
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name} is named in the index and missing")
            continue
        try:
            tensors = read_safetensors_header(file) if file.suffix == ".safetensors" else _read_pickle_header(file)
        except Exception as error:  # a damaged file fails in many ways, and each is a problem of this file
            problems.append(f"{file.name} ({file.stat().st_size:,} bytes) cannot be read, it may be incomplete: {_first_line(error)}")
            continue
        stored.update(tensors)
        missing = [name for name, owner in (weight_map or {}).items() if owner == file.name and name not in tensors]
        problems += [f"{name} is not in {file.name}, where the index places it" for name in missing]
    return files, stored, problems


def read_safetensors_header(file: Path) -> dict[str, Tensor]:
    """Every tensor of a file by name."""
    with safe_open(file, framework="pt") as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
        return {name: Tensor(tuple(part.get_shape()), part.get_dtype(), file.name) for name, part in slices.items()}


TORCH_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NAMES = TORCH_TYPES | {torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}


def _read_pickle_header(file: Path) -> dict[str, Tensor]:
    """Shapes of a `.bin`, unpickled without code and without values."""
    state = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SafetensorError("expected a dictionary of tensors")
    return {
        name: Tensor(tuple(value.shape), _NAMES.get(value.dtype, str(value.dtype).removeprefix("torch.")), file.name)
        for name, value in state.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def problems_error(where: Path, problems: list[str], advice: str) -> CheckpointError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [f"  - {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"  - and {len(problems) - _MOST_PROBLEMS} more")
    return CheckpointError("\n".join([f"{where}: {count}:", *shown, f"  {advice}"]))
