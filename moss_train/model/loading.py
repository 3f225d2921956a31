"""Reading model directories: stock Hugging Face CodeGen, published MOSS, and what this project writes.

A directory is checked before a weight is read: names and shapes come from the headers of the shards, and every problem goes into one error.
Under ZeRO-3 transformers reports neither a superfluous name nor, in all cases, a missing one, so this check is the only one there is.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import CodeGenConfig
from transformers.utils import logging as transformers_logging

from moss_train.errors import CheckpointError, UsageError
from moss_train.model.codegen import CodeGenLM
from moss_train.model.packed import PackedLinear, Packing, is_packed, make_layer, packed_shapes, put_layers, read_packing
from moss_train.model.pm import CodeGenPM, pm_config
from moss_train.model.pretrained import require_process_group, seeded_initialization
from moss_train.model.rotary import build_rotary_table
from moss_train.model.shapes import LM, PM, REWARD_HEAD, config_problems, head_of, parameter_shapes
from moss_train.model.weight_files import TORCH_TYPES, find_weights, problems_error, read_headers, read_tensors

_log = logging.getLogger("moss_train")

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


def read_model_config(directory: str | Path) -> CodeGenConfig:
    """Read config.json of a CodeGen or MOSS directory.

    MOSS's is read key by key: transformers does not know `model_type: moss`, and the published class has the defaults of another model.

    Args:
        directory: A model directory.

    Returns:
        The configuration, always of model type codegen. That of a quantised directory keeps `quantization_config`.

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
        raise problems_error(path, problems, "take config.json from the publisher of these weights")
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
        raise problems_error(path, problems, "this model cannot be built with it")
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
        CheckpointError: With every problem found; or the weights are quantised, which what trains or rewrites them does not take.
    """
    directory = Path(directory)
    packing = packing_of(directory)
    if packing is not None:
        raise CheckpointError(
            f"{directory}: the weights are quantised ({packing}), which this program does not take: they only compute answers; "
            "take the float16 or bfloat16 directory this one was made of"
        )
    _compare(directory, config, {name: (shape, None) for name, shape in parameter_shapes(config).items()}, allow_pickle)


def _compare(
    directory: Path, config: CodeGenConfig, expected: dict[str, tuple[tuple[int, ...], set[str] | None]], allow_pickle: bool
) -> None:
    """Compares the stored tensors with `expected`: name -> shape, and types where these are not just floating ones."""
    files, stored, problems = read_headers(directory, allow_pickle)
    for name, (shape, types) in expected.items():
        tensor = stored.get(name)
        if tensor is None:
            problems.append(f"{name} is missing; expected {list(shape)}")
        elif tensor.shape != shape:
            problems.append(f"{name} in {tensor.file} is {list(tensor.shape)}, expected {list(shape)}")
        elif tensor.dtype not in (types or FLOAT_TYPES):
            problems.append(f"{name} in {tensor.file} has type {tensor.dtype}, expected one of {', '.join(sorted(types or FLOAT_TYPES))}")
    for name, tensor in stored.items():
        if name not in expected and not name.endswith(DROPPED_SUFFIXES):
            problems.append(f"{name} in {tensor.file} is not part of this model")
    if problems:
        raise problems_error(
            directory,
            problems,
            f"{len(files)} weight file(s) were compared with config.json: n_layer {config.n_layer}, n_embd {config.n_embd}, "
            f"vocab_size {config.vocab_size}; the two must come from the same model, and every shard must be complete",
        )


def packing_of(directory: str | Path) -> Packing | None:
    """How the weights of a directory are quantised; None where they are not.

    Raises:
        CheckpointError: In a way that this model does not read.
    """
    return read_packing(_read_config_json(Path(directory)), str(directory))


def load_model(
    directory: str | Path, dtype: torch.dtype | Literal["auto"], allow_pickle: bool = False, device_map: str | None = None
) -> CodeGenLM:
    """Check a directory and load it.

    Under ZeRO-3 (a live `HfDeepSpeedConfig`, process group initialised before it) the model is built partitioned and filled one module at
    a time; only rank 0 reads values.

    Args:
        directory: Stock CodeGen, published MOSS, or one of ours; quantised ones are read too, and stay packed.
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
    loaded: CodeGenLM
    if (packing := packing_of(directory)) is not None:
        loaded = _load_packed(CodeGenLM, Path(directory), config, packing, dtype, device_map, allow_pickle)
        return loaded
    check_weights(directory, config, allow_pickle)
    loaded = _load(CodeGenLM, Path(directory), config, dtype, device_map)
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
    loaded: CodeGenPM
    if (packing := packing_of(directory)) is not None and new_head is None:
        loaded = _load_packed(CodeGenPM, Path(directory), config, packing, dtype, device_map, allow_pickle)
        return loaded
    check_weights(directory, config, allow_pickle)
    expected = {REWARD_HEAD} if head_of(config) == LM else set()
    with seeded_initialization(new_head or 0):
        loaded = _load(CodeGenPM, Path(directory), pm_config(config, with_lm), dtype, device_map, frozenset(expected))
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
    files, _ = find_weights(directory)
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


def _load_packed(
    model_class: Any,
    directory: Path,
    config: CodeGenConfig,
    packing: Packing,
    dtype: torch.dtype | Literal["auto"],
    device_map: str | None,
    allow_pickle: bool,
) -> Any:
    """A model with quantised layers, a layer read at a time; in evaluation mode, since these do not train."""
    if device_map is not None:
        raise UsageError(f"device_map={device_map}: a quantised model is not spread over devices ({directory}); leave device_map out")
    if packing.is_moss:
        packing = _really_packed(directory, packing, allow_pickle)
    _compare(directory, config, packed_shapes(config, packing), allow_pickle)
    kept = stored_dtype(directory, allow_pickle) if dtype == "auto" else dtype
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    # Of one layer after another, as the model has them.
    names = list(packed_shapes(config, packing))
    plain: dict[str, torch.Tensor] = {}
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in read_tensors(directory, names):
        layer, _, part = name.rpartition(".")
        if is_packed(layer):
            parts.setdefault(layer, {})[part] = tensor.to(kept) if part == "bias" else tensor
        else:
            plain[name] = tensor.to(kept)

    def make(layer: str) -> PackedLinear:
        stored = parts.pop(layer)
        return make_layer(stored, stored.get("bias"), packing, kept)

    put_layers(model, ((layer, make(layer)) for layer in list(parts)))
    packed = {
        f"{name}.{buffer}" for name, module in model.named_modules() if isinstance(module, PackedLinear) for buffer in module._buffers
    }
    missing, unexpected = model.load_state_dict(plain, strict=False, assign=True)
    wrong = [*(name for name in missing if name not in packed), *unexpected]
    if wrong:
        raise CheckpointError(f"{directory}: not every weight could be put in its place, although names and shapes agree: {wrong}")
    trunk = model.transformer
    # The buffer is in no file, and was made without values.
    trunk.rotary_table = build_rotary_table(config.n_positions, config.rotary_dim)
    return model.requires_grad_(False).eval()


def _really_packed(directory: Path, packing: Packing, allow_pickle: bool) -> Packing:
    """The packing that the tensors have: a published directory of eight bits says that it has four."""
    _, stored, _ = read_headers(directory, allow_pickle)
    words, index = (stored.get(f"transformer.h.0.attn.qkv_proj.{part}") for part in ("qweight", "g_idx"))
    if words is None or index is None or not index.shape[0]:
        return packing
    bits = words.shape[0] * 32 // index.shape[0]
    if bits != packing.bits and bits in (4, 8):
        _log.warning(f"{directory}: config.json says wbits {packing.bits}, but the tensors hold {bits} bits a weight, which is used")
        return replace(packing, bits=bits)
    return packing


def stored_dtype(directory: str | Path, allow_pickle: bool = False) -> torch.dtype:
    """Number format of the stored head, which `load_model(dtype="auto")` keeps.

    Raises:
        CheckpointError: There are no weights, or they cannot be read.
    """
    _, stored, problems = read_headers(Path(directory), allow_pickle)
    head = stored.get("lm_head.weight") or stored.get(REWARD_HEAD)
    if head is None or head.dtype not in FLOAT_TYPES:
        problems = problems or [f"neither lm_head.weight nor {REWARD_HEAD} is there with a floating type"]
        raise problems_error(Path(directory), problems, "every shard of the weights must be there")
    return next(dtype for dtype, name in TORCH_TYPES.items() if name == head.dtype)


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


def iterate_parameters(directory: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of a directory that `check_weights` has passed, one at a time, in the model's order; memory is that of one."""
    return read_tensors(Path(directory), parameter_shapes(read_model_config(directory)))
