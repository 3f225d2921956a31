"""Model directories that open anywhere: sharded safetensors, config, tokenizer, generation config, card, lineage.

Parameter names are those of a Hugging Face class, which `architectures` names, so `AutoModelForCausalLM.from_pretrained(dir)` loads an
export without code of ours. The directory appears under its name when it is complete and, opened again, computes what the model does
(`reopen.py`): everything is written into `<name>.tmp-*` beside it first.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from moss_train import files
from moss_train.artifacts import card, lineage, lineage_kinds, lineage_verify
from moss_train.artifacts.config import ExportJobConfig
from moss_train.artifacts.layouts import layout_config, rename
from moss_train.artifacts.reopen import Tracer, compare, reopened_logits
from moss_train.errors import DiskFullError, NonFiniteError, UsageError
from moss_train.model.shapes import PM, head_of

if TYPE_CHECKING:
    from moss_train.data.tokenizer import MossTokenizer

_log = logging.getLogger("moss_train")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The sampling values published with MOSS (its command line demo), and room for a reply.
SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 40, "repetition_penalty": 1.02, "max_new_tokens": 512}

PROBE = "MOSS: 1 + 1 = 2, and the capital of France is Paris.\n你好，世界！\ndef f(x):\n    return x\n"
"""The prompt with which an export is tried."""


def write_export(
    out: Path,
    parameters: Iterable[tuple[str, torch.Tensor | None]],
    model_config: Any,
    dtype: str,
    record: lineage.Lineage,
    *,
    tokenizer: MossTokenizer,
    max_shard_bytes: int,
    writes: bool = True,
    layout: str = "codegen",
    beside: Mapping[str, str] | None = None,
) -> str | None:
    """Writes a model directory.

    Args:
        out: The directory; must not exist.
        parameters: Names and whole tensors, one at a time. It is run to its end on every rank, whatever fails: gathering is a collective.
        model_config: The model's `CodeGenConfig`.
        dtype: Number format of the weights written: fp32, bf16 or fp16.
        record: Its lineage; files and id are filled in.
        tokenizer: Saved beside the weights.
        max_shard_bytes: Largest file; as much memory is taken.
        writes: Whether this rank is the one that writes; the others only take part in gathering.
        layout: Names and shapes of the parameters: codegen or gptj.
        beside: More text files, by name.

    Returns:
        The artefact's id on the rank that writes, else None.

    Raises:
        UsageError: `out` exists.
        CheckpointError: Opened again, the export computes something else; nothing is left under `out`.
        DiskFullError: No space left; nothing is left under `out`.
    """
    pending = iter(parameters)
    partial: Path | None = None
    try:
        if not writes:
            return None
        if out.exists():
            raise UsageError(f"{out} exists; a finished artefact is never changed. Name another directory")
        record.details["layout"], record.number_format = layout, dtype
        partial = files.new_partial(out)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            if files.is_disk_full(error):
                raise
            raise UsageError(f"{out} cannot be written: {error.strerror}") from error
        ids = tokenizer.encode(PROBE)[: model_config.n_positions]
        tracer = Tracer(model_config, ids)
        write_shards(partial, _laid_out(pending, DTYPES[dtype], layout, tracer), max_shard_bytes)
        _write_configs(partial, layout_config(model_config, layout), tokenizer, DTYPES[dtype])
        if tracer.logits is None:
            raise RuntimeError("not every parameter of the model was given")
        compare(tracer.logits, reopened_logits(partial, ids, layout), out)
        for name, content in (beside or {}).items():
            (partial / name).write_text(content, encoding="utf-8")
        (partial / "README.md").write_text(card.render(out.name, model_config, record), encoding="utf-8")
        identity = lineage.write(partial, record)
        for path in partial.iterdir():
            files.sync_file(path)
        files.sync_directory(partial)
        files.rename(partial, out)
        files.sync_directory(out.parent)
        return identity
    except (OSError, SafetensorError) as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent} for the export; free some, or name another place") from error
        raise
    finally:
        # The other ranks are gathering; a rank that stopped taking part would leave them waiting.
        for _ in pending:
            pass
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def _laid_out(
    parameters: Iterable[tuple[str, torch.Tensor | None]], dtype: torch.dtype, layout: str, tracer: Tracer
) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters in the number format and layout of the export, shown to the tracer on their way."""
    for name, tensor in parameters:
        if tensor is None:
            raise RuntimeError(f"{name} was not gathered on the rank that writes")
        cast = tensor.detach().to(device="cpu", dtype=dtype)
        if not bool(cast.isfinite().all()) and bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{name} has values too large for {dtype}; export as bf16 or fp32")
        tracer.feed(name, cast)
        yield from rename(name, cast, layout)


def write_shards(
    directory: Path, parameters: Iterable[tuple[str, torch.Tensor]], max_shard_bytes: int, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `model-0000i-of-0000n.safetensors` and the index; `metadata` beside `format` goes into every header."""
    shards: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    shard_bytes = total_bytes = 0

    def flush() -> None:
        nonlocal shard, shard_bytes
        save_file(shard, directory / f"shard-{len(shards)}", metadata={"format": "pt", **(metadata or {})})
        if metadata:
            sort_metadata(directory / f"shard-{len(shards)}")
        shards.append(list(shard))
        shard, shard_bytes = {}, 0

    for name, tensor in parameters:
        size = tensor.nbytes
        if shard and shard_bytes + size > max_shard_bytes:
            flush()
        shard[name] = tensor.contiguous()
        shard_bytes += size
        total_bytes += size
    flush()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(directory / f"shard-{number}", directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file in order, in place: the library writes it in another one each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        spelled = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(spelled) > length:
            raise ValueError(f"{path}: its header does not fit where it stood")
        file.seek(8)
        file.write(spelled.ljust(length))


def _write_configs(directory: Path, model_config: Any, tokenizer: MossTokenizer, dtype: torch.dtype) -> None:
    """Writes config.json (of the layout's own configuration, which is changed), generation_config.json and the tokenizer's files."""
    from transformers import GenerationConfig

    model_config.dtype = dtype
    model_config.bos_token_id, model_config.eos_token_id = tokenizer.endoftext, tokenizer.eom
    model_config.pad_token_id = tokenizer.endoftext
    model_config.save_pretrained(directory)
    tokenizer.save(directory)
    if head_of(model_config) == PM:
        return
    generation = GenerationConfig(
        **SAMPLING,
        bos_token_id=tokenizer.endoftext,
        eos_token_id=tokenizer.eom,
        pad_token_id=tokenizer.endoftext,
        suppress_tokens=tokenizer.never_written(model_config.vocab_size),
    )
    generation.save_pretrained(directory)


def number_format(source: Path, asked: str, allow_pickle: bool) -> str:
    """The name of the format to write: what is asked for, or with `auto` that of a model directory."""
    from moss_train.model.loading import stored_dtype

    names = {dtype: name for name, dtype in DTYPES.items()}
    return names.get(stored_dtype(source, allow_pickle), "fp32") if asked == "auto" else asked


def main(config: ExportJobConfig) -> None:
    """Rewrites a model directory as an export: the job behind `scripts/export.py`. No more than a shard of it is ever in memory."""
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.model.loading import check_weights, iterate_parameters, read_model_config
    from moss_train.model.shapes import count_parameters

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, out = Path(config.model), Path(config.out)
    if out.exists():
        raise UsageError(f"out={out} exists; a finished artefact is never changed. Name another directory")
    if not config.unverified:
        lineage_verify.require(source, "model", "unverified=true", _log.info)
    model_config = read_model_config(source)
    check_weights(source, model_config, config.allow_pickle)
    tokenizer = MossTokenizer.load(config.tokenizer or source)
    dtype = number_format(source, config.dtype.value, config.allow_pickle)
    record = lineage_kinds.rewritten_export(source, count_parameters(model_config))
    identity = write_export(
        out,
        iterate_parameters(source),
        model_config,
        dtype,
        record,
        tokenizer=tokenizer,
        max_shard_bytes=int(config.max_shard_gb * 1e9),
        layout=config.format.value,
    )
    _log.info(f"exported to {out} ({identity}): {dtype}, layout {config.format.value}; opened again, it gives the same logits")
