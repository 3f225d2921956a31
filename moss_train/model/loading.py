"""Reading model directories: stock Hugging Face CodeGen, published MOSS, and what this project writes.

A directory is checked before a weight is read: names and shapes come from the headers of the shards, and every problem goes into one error.
Under ZeRO-3 transformers reports neither a superfluous name nor, in all cases, a missing one, so this check is the only one there is.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import CodeGenConfig
from transformers.utils import logging as transformers_logging

from moss_train.errors import CheckpointError
from moss_train.model.codegen import CodeGenLM
from moss_train.model.pm import CodeGenPM, pm_config
from moss_train.model.pretrained import require_process_group, seeded_initialization
from moss_train.model.shapes import LM, PM, REWARD_HEAD, config_problems, head_of, parameter_shapes

DROPPED_SUFFIXES = (".attn.causal_mask", ".attn.bias", ".attn.masked_bias")
"""Causal masks that older implementations saved with the weights (MOSS as uint8); this model builds its own."""

SHAPE_KEYS = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim")
"""Keys a config.json must state: the defaults of the published configuration classes describe other models than the published weights."""

MOSS_KEYS = (
    *SHAPE_KEYS, "n_ctx", "n_inner", "activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon",
    "initializer_range", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
"""What a MOSS configuration shares with a CodeGen one. Its other keys (remote code, tokenizer class, summaries) are left out."""

FLOAT_TYPES = {"F64", "F32", "F16", "BF16"}

_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Tensor:
    """Header of a stored tensor: its shape and its type by safetensors' name (`F16`, ...)."""

    shape: tuple[int, ...]
    dtype: str
    file: str


def read_model_config(directory: str | Path) -> CodeGenConfig:
    """Read config.json of a CodeGen or MOSS directory.

    MOSS's is read key by key: transformers does not know `model_type: moss`, and the published class has the defaults of another model.

    Args:
        directory: A model directory.

    Returns:
        The configuration, always of model type codegen. That of a quantised directory keeps `quantization_config`; `check_weights`
        refuses it.

    Raises:
        CheckpointError: There is none, it is not JSON, of another family, or this model cannot be built with it; with every problem.
    """
    path = Path(directory) / "config.json"
    raw = _read_config_json(Path(directory))
    model_type = raw.get("model_type")
    if model_type not in ("codegen", "moss"):
        more = ". It may be an export with format=gptj: take the directory that was made from" if model_type == "gptj" else ""
        raise CheckpointError(f"{path}: model_type is {model_type!r}, expected codegen or moss; this model reads no other family{more}")
    problems = [f"{key} is missing" for key in SHAPE_KEYS if not isinstance(raw.get(key), int)]
    if problems:
        raise _error(path, problems, "take config.json from the publisher of these weights")
    if model_type == "moss":
        values = {key: raw[key] for key in MOSS_KEYS if key in raw}
        values.setdefault("tie_word_embeddings", False)
        values.setdefault("n_ctx", raw["n_positions"])
    else:
        values = {key: value for key, value in raw.items() if key not in ("model_type", "architectures", "auto_map")}
    try:
        config = CodeGenConfig(**values)
    except Exception as error:  # validation errors of several libraries
        raise CheckpointError(f"{path}: not a CodeGen configuration: {error}") from error
    problems = config_problems(config)
    if problems:
        raise _error(path, problems, "this model cannot be built with it")
    return config


def check_weights(directory: str | Path, config: CodeGenConfig, allow_pickle: bool = False) -> None:
    """Compare names and shapes of the stored tensors with the model, before anything is loaded.

    Safetensors are read by their headers. A `.bin` has none that can be read without unpickling, so it is opened, restricted to tensors and
    without their values, and only if `allow_pickle` says so.

    Args:
        directory: A model directory.
        config: What the model will be built with.
        allow_pickle: Whether `.bin` files may be opened at all.

    Raises:
        CheckpointError: With every problem found.
    """
    directory = Path(directory)
    quantisation = _quantisation(_read_config_json(directory))
    if quantisation:
        raise CheckpointError(
            f"{directory}: the weights are quantised ({quantisation}), which this program does not read; "
            "take the float16 or bfloat16 directory this one was made of"
        )
    files, stored, problems = _read_headers(directory, allow_pickle)
    expected = parameter_shapes(config)
    for name, shape in expected.items():
        tensor = stored.get(name)
        if tensor is None:
            problems.append(f"{name} is missing; expected {list(shape)}")
        elif tensor.shape != shape:
            problems.append(f"{name} in {tensor.file} is {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in FLOAT_TYPES:
            problems.append(f"{name} in {tensor.file} has type {tensor.dtype}, expected one of {', '.join(sorted(FLOAT_TYPES))}")
    for name, tensor in stored.items():
        if name not in expected and not name.endswith(DROPPED_SUFFIXES):
            problems.append(f"{name} in {tensor.file} is not part of this model")
    if problems:
        raise _error(
            directory,
            problems,
            f"{len(files)} weight file(s) were compared with config.json: n_layer {config.n_layer}, n_embd {config.n_embd}, "
            f"vocab_size {config.vocab_size}; the two must come from the same model, and every shard must be complete",
        )


def load_model(
    directory: str | Path, dtype: torch.dtype | Literal["auto"], allow_pickle: bool = False, device_map: str | None = None
) -> CodeGenLM:
    """Check a directory and load it.

    Under ZeRO-3 (a live `HfDeepSpeedConfig`, process group initialised before it) the model is built partitioned and filled one module at
    a time; only rank 0 reads values.

    Args:
        directory: Stock CodeGen, published MOSS, or one of ours.
        dtype: Type of the weights, whatever the files have; `auto` keeps that of the files.
        allow_pickle: Whether `.bin` files may be opened (restricted to tensors).
        device_map: `auto` spreads the layers over the GPUs (and, beyond them, the CPU), for inference; None loads to the CPU.

    Returns:
        The model, in training mode.

    Raises:
        CheckpointError: The directory cannot be loaded, with every problem; or it holds a preference model.
    """
    config = read_model_config(directory)
    if head_of(config) != LM:
        raise CheckpointError(f"{directory} is a preference model, which scores responses and writes none; expected a language model")
    check_weights(directory, config, allow_pickle)
    loaded: CodeGenLM = _load(CodeGenLM, Path(directory), config, dtype, device_map)
    return loaded


def load_pm(
    directory: str | Path,
    dtype: torch.dtype | Literal["auto"],
    allow_pickle: bool = False,
    device_map: str | None = None,
    *,
    new_head: int | None = None,
    with_lm: bool = False,
) -> CodeGenPM:
    """Check a directory and load it as a preference model.

    Args:
        directory: A preference model, or, with `new_head`, a language model whose trunk it begins with.
        dtype, allow_pickle, device_map: As for `load_model`.
        new_head: Seed of the reward head that a language model is given; None: there must be one.
        with_lm: Whether the output projection is kept.

    Returns:
        The model, in training mode.

    Raises:
        CheckpointError: The directory cannot be loaded, with every problem; or it has no reward head.
    """
    config = read_model_config(directory)
    if head_of(config) == LM and new_head is None:
        raise CheckpointError(
            f"{directory} is a language model: it has no reward head ({REWARD_HEAD}). Train one with scripts/pm.py init_from={directory}"
        )
    if with_lm and head_of(config) == PM:
        raise CheckpointError(f"{directory} has no output projection, which a language model's loss needs; start from the SFT model")
    check_weights(directory, config, allow_pickle)
    expected = {REWARD_HEAD} if head_of(config) == LM else set()
    with seeded_initialization(new_head or 0):
        loaded: CodeGenPM = _load(CodeGenPM, Path(directory), pm_config(config, with_lm), dtype, device_map, frozenset(expected))
    return loaded


def _load(
    model_class: Any,
    directory: Path,
    config: CodeGenConfig,
    dtype: torch.dtype | Literal["auto"],
    device_map: str | None,
    new: frozenset[str] = frozenset(),
) -> Any:
    """A model whose names and shapes have been compared with the files; `new` are the parameters that these do not have."""
    require_process_group()
    files, _ = _find_weights(directory)
    quiet = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    # Names what is not in the files, although that is meant.
    verbosity = transformers_logging.get_verbosity()
    if new:
        transformers_logging.set_verbosity_error()
    try:
        model, report = model_class.from_pretrained(
            directory.resolve(),
            config=copy.deepcopy(config),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=files[0].suffix == ".safetensors",
            weights_only=True,
            output_loading_info=True,
            device_map=device_map,
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
        if quiet:
            transformers_logging.enable_progress_bar()
    wrong = {kind: found for kind, found in report.items() if found and set(found) != new}
    if wrong:
        raise CheckpointError(f"{directory}: transformers could not load every weight, although names and shapes agree: {wrong}")
    return model.train()


def stored_dtype(directory: str | Path, allow_pickle: bool = False) -> torch.dtype:
    """Number format of the stored head, which `load_model(dtype="auto")` keeps.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    _, stored, problems = _read_headers(Path(directory), allow_pickle)
    head = stored.get("lm_head.weight") or stored.get(REWARD_HEAD)
    if head is None or head.dtype not in FLOAT_TYPES:
        problems = problems or [f"neither lm_head.weight nor {REWARD_HEAD} is there with a floating type"]
        raise _error(Path(directory), problems, "every shard of the weights must be there")
    return next(dtype for dtype, name in _TORCH_TYPES.items() if name == head.dtype)


def _read_config_json(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not directory.is_dir():
        what = "is a file, expected a model directory" if directory.exists() else "no such directory"
        raise CheckpointError(f"{directory}: {what}; give the directory that holds config.json and the weights")
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json; a model directory holds config.json and model*.safetensors")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw


def _quantisation(raw: dict[str, Any]) -> str | None:
    """What a configuration says about quantised weights; MOSS's own scheme writes `wbits` (32 where it is not used)."""
    if raw.get("quantization_config"):
        return f"quantization_config {raw['quantization_config'].get('quant_method', '')}".strip()
    wbits = raw.get("wbits")
    return f"wbits {wbits}" if isinstance(wbits, int) and wbits < 16 else None


def iterate_parameters(directory: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a directory that `check_weights` has passed, one at a time, in the model's order; memory is that of one."""
    names = list(parameter_shapes(read_model_config(directory)))
    files, _ = _find_weights(Path(directory))
    if files[0].suffix == ".safetensors":
        place: dict[str, Path] = {}
        for file in files:
            place |= dict.fromkeys(_read_safetensors_header(file), file)
        for name in names:
            with safe_open(place[name], framework="pt") as reader:
                yield name, reader.get_tensor(name)
        return
    # Mapped, not read: a value is loaded when it is touched.
    states = [torch.load(file, map_location="cpu", weights_only=True, mmap=True) for file in files]
    for name in names:
        yield name, next(state[name] for state in states if name in state)


def _find_weights(directory: Path) -> tuple[list[Path], dict[str, str] | None]:
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


def _read_headers(directory: Path, allow_pickle: bool) -> tuple[list[Path], dict[str, Tensor], list[str]]:
    """Every stored tensor by name, and what is wrong with the files themselves."""
    files, weight_map = _find_weights(directory)
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
            tensors = _read_safetensors_header(file) if file.suffix == ".safetensors" else _read_pickle_header(file)
        except Exception as error:  # a damaged file fails in many ways, and each is a problem of this file
            problems.append(f"{file.name} ({file.stat().st_size:,} bytes) cannot be read, it may be incomplete: {_first_line(error)}")
            continue
        stored.update(tensors)
        missing = [name for name, owner in (weight_map or {}).items() if owner == file.name and name not in tensors]
        problems += [f"{name} is not in {file.name}, where the index places it" for name in missing]
    return files, stored, problems


def _read_safetensors_header(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as reader:
        slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
        return {name: Tensor(tuple(part.get_shape()), part.get_dtype(), file.name) for name, part in slices.items()}


_TORCH_TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def _read_pickle_header(file: Path) -> dict[str, Tensor]:
    """Shapes of a `.bin`, unpickled without code and without values."""
    state = torch.load(file, map_location="meta", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SafetensorError("expected a dictionary of tensors")
    return {
        name: Tensor(tuple(value.shape), _TORCH_TYPES.get(value.dtype, str(value.dtype).removeprefix("torch.")), file.name)
        for name, value in state.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _error(where: Path, problems: list[str], advice: str) -> CheckpointError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [f"  - {problem}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        shown.append(f"  - and {len(problems) - _MOST_PROBLEMS} more")
    return CheckpointError("\n".join([f"{where}: {count}:", *shown, f"  {advice}"]))
