"""What an artefact declares, held against its tensors: number format, bits, embedding rows, tokenizer. Of tensors only headers are read.

A directory can be whole to the last byte and still be wrong: published eight-bit weights have said `wbits: 4`, and a tokenizer with more
tokens than the embedding has rows fails only at the first rare token. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moss_train.artifacts.lineage import Record

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Of one element, by safetensors' name of its type."""
FORMATS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""Names of number formats, this project's and torch's, as safetensors' types."""
_INTEGERS = ("I32", "I16", "I8", "U32", "U16", "U8")
_BESIDE = re.compile(r"(^|[._])(g_idx|q?zeros?|zero_?points?|scales?|bias|shape|perm|causal_mask|masked_bias)$")
"""Integer tensors that stand beside packed weights."""
CONTROLS = ("<|endoftext|>", "<eoh>", "<eom>", "<eot>", "<eoc>", "<eor>")
QUANTISATION_FILES = ("quantization.json", "quantize_config.json")
"""Beside config.json they say how weights are packed: this project's record, and GPTQ's settings."""
_MOST_HEADER = 100 * 2**20

Found = Iterator[tuple[str, str]]
"""(file, what is wrong)"""


@dataclass(frozen=True)
class Tensor:
    """Header of a stored tensor."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of them as stored; packed weights hold several values in one."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises:
        ValueError: It is not one, or its length is not what its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MOST_HEADER):
            raise ValueError(f"{path.name} is no safetensors file, or ends early")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is no safetensors file: its header is no object")
    tensors, end = {}, 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            tensor = Tensor(path.name, entry["dtype"], tuple(entry["shape"]))
            start, stop = entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}: the header entry of {name} is no tensor ({error!r})") from error
        if tensor.dtype in BITS and (stop - start) * 8 != tensor.elements * BITS[tensor.dtype]:
            raise ValueError(f"{path.name}: {name} has {stop - start} bytes, which are not {list(tensor.shape)} of {tensor.dtype}")
        tensors[name], end = tensor, max(end, stop)
    if 8 + length + end != size:
        raise ValueError(f"{path.name} has {size:,} bytes, its header describes {8 + length + end:,}")
    return tensors


def problems_of_model(directory: Path, record: Record) -> Found:
    """Everything in which a directory is not what it declares; nothing for one that holds neither weights nor a tokenizer."""
    names = {Path(name).name for name in record.files if "/" not in name}
    config = _read_json(directory / "config.json") if "config.json" in names else {}
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        if name.endswith(".safetensors"):
            try:
                tensors |= read_header(directory / name)
            except (OSError, ValueError) as error:
                yield name, str(error)
    for name in sorted(names):
        if name.endswith(".safetensors.index.json"):
            yield from _problems_of_index(directory, name, tensors)
    model = {name: tensor for name, tensor in tensors.items() if not tensor.file.startswith("optimizer")}
    if model:
        yield from _problems_of_vocabulary(config, model)
        yield from _problems_of_format(config, model, record)
        yield from _problems_of_bits(directory, names, config, model, record)
    yield from _problems_of_tokenizer(directory, names, config, model, record)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _problems_of_index(directory: Path, name: str, tensors: dict[str, Tensor]) -> Found:
    weight_map = _read_json(directory / name).get("weight_map")
    if not isinstance(weight_map, dict):
        yield name, f"{name} is no index of weights: it has no weight_map"
        return
    stem = name.removesuffix(".safetensors.index.json")
    for file in sorted({str(file) for file in weight_map.values()}):
        if not (directory / file).is_file():
            yield file, f"{file} is named in {name} and missing"
    there = {tensor: header.file for tensor, header in tensors.items() if header.file.startswith(f"{stem}-")}
    for tensor, file in weight_map.items():
        if (directory / str(file)).is_file() and there.get(tensor) != file:
            yield str(file), f"{tensor} is not in {file}, where {name} places it"
    for tensor, file in there.items():
        if tensor not in weight_map:
            yield file, f"{tensor} in {file} is not in {name}"


def _embeddings(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with a row for each token."""
    return {name: tensor for name, tensor in model.items() if name.endswith(("wte.weight", "lm_head.weight")) and len(tensor.shape) == 2}


def _problems_of_vocabulary(config: dict[str, Any], model: dict[str, Tensor]) -> Found:
    rows = config.get("vocab_size")
    if not isinstance(rows, int):
        return
    for name, tensor in _embeddings(model).items():
        if tensor.shape[0] != rows and tensor.dtype in FORMATS.values():
            yield tensor.file, f"config.json says vocab_size {rows:,}, but {name} has {tensor.shape[0]:,} rows"


def _problems_of_format(config: dict[str, Any], model: dict[str, Tensor], record: Record) -> Found:
    declared = {"lineage.json (number_format)": record.lineage.number_format, "config.json": config.get("dtype", config.get("torch_dtype"))}
    quantised = bool(_declared_bits(config, record))
    for where, value in declared.items():
        expected = FORMATS.get(str(value).removeprefix("torch."))
        if expected is None or quantised:
            continue
        other = {name: tensor for name, tensor in model.items() if tensor.dtype != expected and not _is_mask(name, tensor)}
        if other:
            name, tensor = next(iter(other.items()))
            count = f"{len(other)} of {len(model)} tensors are not {expected}"
            yield tensor.file, f"{where} says {value}, but {name} is {tensor.dtype} ({count})"


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Older implementations save their causal masks with the weights."""
    return tensor.dtype in (*_INTEGERS, "BOOL") and _BESIDE.search(name) is not None


def _declared_bits(config: dict[str, Any], record: Record) -> dict[str, int]:
    """Where bits of weights are declared -> how many; MOSS's own scheme says 32 where it is not used."""
    quantisation = config.get("quantization_config")
    found = {
        "lineage.json (details.bits)": record.lineage.details.get("bits"),
        "config.json (wbits)": config.get("wbits"),
        "config.json (quantization_config.bits)": quantisation.get("bits") if isinstance(quantisation, dict) else None,
    }
    if isinstance(quantisation, dict):
        for bits in (4, 8):
            if quantisation.get(f"load_in_{bits}bit") is True:
                found[f"config.json (quantization_config.load_in_{bits}bit)"] = bits
    return {where: bits for where, bits in found.items() if isinstance(bits, int) and not isinstance(bits, bool) and bits < 16}


def _weights_of(config: dict[str, Any]) -> dict[str, int]:
    """Last part of a linear layer's name -> elements of its weight, by config.json."""
    hidden, rows = config.get("n_embd"), config.get("vocab_size")
    if not isinstance(hidden, int) or not isinstance(rows, int):
        return {}
    inner = config.get("n_inner") or 4 * hidden
    return {
        "qkv_proj": 3 * hidden * hidden,
        "out_proj": hidden * hidden,
        "fc_in": hidden * inner,
        "fc_out": hidden * inner,
        "lm_head": rows * hidden,
        "wte": rows * hidden,
    }


def _problems_of_bits(directory: Path, names: set[str], config: dict[str, Any], model: dict[str, Tensor], record: Record) -> Found:
    """The bits that the shapes of packed weights imply, held against those that are declared."""
    beside = {name: _read_json(directory / name) for name in QUANTISATION_FILES if name in names}
    declared = _declared_bits(config, record) | {
        f"{name} (bits)": said["bits"] for name, said in beside.items() if _is_count(said.get("bits"))
    }
    sizes = _weights_of(config)
    packed: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.items():
        layer = next((part for part in reversed(name.split(".")) if part in sizes), None)
        if layer is None or tensor.dtype not in _INTEGERS or _BESIDE.search(name):
            continue
        bits, rest = divmod(tensor.elements * BITS[tensor.dtype], sizes[layer])
        if rest:
            stored = f"{list(tensor.shape)} of {tensor.dtype}"
            yield tensor.file, f"{name} is {stored}, which packs no weight of {sizes[layer]:,} elements evenly"
        else:
            packed.setdefault(bits, (name, tensor))
    for where, bits in declared.items():
        if packed and bits not in packed:
            found, (name, tensor) = next(iter(packed.items()))
            yield tensor.file, f"{where} says {bits} bits, but {name} holds {found} bits a weight"
        if not packed and sizes and record.lineage.kind == "variant":
            yield "config.json", f"{where} says {bits} bits, but no weight is packed"
    quantisation = config.get("quantization_config")
    groups = {
        "lineage.json (details.group_size)": record.lineage.details.get("group_size"),
        "config.json (quantization_config.group_size)": quantisation.get("group_size") if isinstance(quantisation, dict) else None,
    } | {f"{name} (group_size)": said.get("group_size") for name, said in beside.items()}
    for where, group in groups.items():
        if isinstance(group, int) and _is_count(group):
            yield from _problems_of_groups(where, group, model)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _problems_of_groups(where: str, group: int, model: dict[str, Tensor]) -> Found:
    """GPTQ's layout: a row of scales for each group of inputs."""
    for name, tensor in model.items():
        if not name.endswith(".scales") or len(tensor.shape) != 2:
            continue
        index = model.get(name.removesuffix("scales") + "g_idx")
        if index is not None and tensor.shape[0] != -(-index.shape[0] // group):
            yield (
                tensor.file,
                f"{where} says {group}, but {name} has {tensor.shape[0]} groups for {index.shape[0]} inputs",
            )
            return


def _problems_of_tokenizer(directory: Path, names: set[str], config: dict[str, Any], model: dict[str, Tensor], record: Record) -> Found:
    file = next((name for name in ("tokenizer.json", "vocab.json") if name in names), None)
    if file is None:
        return
    description = _read_json(directory / file)
    ids = _token_ids(description if file == "tokenizer.json" else {"model": {"vocab": description}})
    if file == "vocab.json" and "added_tokens.json" in names:
        ids |= {name: value for name, value in _read_json(directory / "added_tokens.json").items() if isinstance(value, int)}
    if not ids:
        yield file, f"{file} is no description of a tokenizer: it has no vocabulary"
        return
    size = max(ids.values()) + 1
    rows = {"config.json (vocab_size)": config.get("vocab_size")}
    rows |= {name: tensor.shape[0] for name, tensor in _embeddings(model).items() if tensor.dtype in FORMATS.values()}
    if not config and "tokenizer_config.json" in names:
        rows = {"tokenizer_config.json (padded_vocab_size)": _read_json(directory / "tokenizer_config.json").get("padded_vocab_size")}
    for where, count in rows.items():
        if isinstance(count, int) and size > count:
            beyond = [name for name in CONTROLS if ids.get(name, 0) >= count]
            more = f"; the controls {' '.join(beyond)} are among those beyond" if beyond else ""
            yield file, f"{file} has ids up to {size - 1:,}, but {where} has only {count:,} rows{more}"
            break
    known = record.lineage.details.get("tokenizer_fingerprint")
    if isinstance(known, str) and file == "tokenizer.json" and fingerprint_of(description) != known:
        yield file, f"{file} is not the tokenizer that the rows were made with (details.tokenizer_fingerprint)"


def _token_ids(description: dict[str, Any]) -> dict[str, int]:
    model = description.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids = {name: value for name, value in vocab.items() if isinstance(value, int)} if isinstance(vocab, dict) else {}
    for entry in description.get("added_tokens") or []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), int):
            ids[str(entry.get("content"))] = entry["id"]
    return ids


def fingerprint_of(description: dict[str, Any]) -> str:
    """`MossTokenizer.fingerprint` of a tokenizer.json that this project wrote."""
    return hashlib.sha256(json.dumps(description, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
