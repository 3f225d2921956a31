"""A variant of a model with weights of fewer bits: the job behind `scripts/quantize.py`.

    model, texts -> a process that quantises -> files in order -> another process opens them -> compared with the model -> kept, or refused

The directory has its name when all of that went well. What is written follows from the model, the texts and the versions of the libraries
alone: what the libraries write of times and temporary places is left out, so the same command gives the same bytes again.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train import files
from moss_train.artifacts import card, lineage, lineage_kinds, lineage_verify
from moss_train.artifacts.calibration import Texts, gather
from moss_train.artifacts.config import GROUP_SIZES, Method, QuantizeConfig
from moss_train.artifacts.quantize_worker import CLIP_SEARCH, Job, environment
from moss_train.errors import CheckpointError, DiskFullError, NonFiniteError, OutOfMemoryError, RefusedError, UsageError

if TYPE_CHECKING:
    import torch

    from moss_train.artifacts.quantize_compare import Difference

_log = logging.getLogger("moss_train")

RECORD_NAME = "quantization.json"
_LIBRARIES = {Method.gptq: ("gptqmodel", "optimum"), Method.torchao: ("torchao",)}
_VERSIONS = ("torch", "transformers", "safetensors")
_COPIED = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
_GENERATION = "generation_config.json"
# What the library says of this run alone, and not of the weights.
_LEFT_OUT = ("offload_to_disk", "offload_to_disk_path", "telemetry", "gc_mode", "wait_for_submodule_finalizers", "pack_impl")
_LOG_TAIL = 2000


def main(config: QuantizeConfig) -> None:
    """Runs the job.

    Raises:
        UsageError: `out` exists, a library is missing, or the model's sizes do not divide into groups.
        DataError: There is nothing to calibrate on.
        CheckpointError: The model is not what it should be, or the variant does not open.
        RefusedError: It differs from its source by more than `max_kl`.
        DiskFullError, OutOfMemoryError: As they say.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, out = Path(config.model), Path(config.target)
    if out.exists():
        raise UsageError(f"out={out} exists; a finished artefact is never changed. Name another directory")
    require_libraries(config.method)
    model_config = _check_source(source, config)
    from moss_train.data.tokenizer import MossTokenizer
    from moss_train.model.shapes import PM, head_of

    is_pm, tokenizer = head_of(model_config) == PM, MossTokenizer.load(source)
    texts = gather(config, source, tokenizer, model_config.n_positions, is_pm)
    partial = files.new_partial(out)
    try:
        partial.mkdir(parents=True)
        _make(config, source, out, partial, model_config, texts, is_pm)
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent} for the variant; free some, or name another place") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_libraries(method: Method) -> None:
    """Refuses to begin without what it takes.

    Raises:
        UsageError: With what to install.
    """
    missing = [name for name in _LIBRARIES[method] if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"method={method.value} needs {' and '.join(missing)}, not installed here: pip install 'moss-train[quant]'")


def _check_source(source: Path, config: QuantizeConfig) -> Any:
    """The configuration of a model that can be quantised."""
    if not config.unverified:
        lineage_verify.require(source, "model", "unverified=true", _log.info)
    from moss_train.model.loading import check_weights, read_model_config
    from moss_train.model.weight_files import find_weights

    model_config = read_model_config(source)
    check_weights(source, model_config)
    stated = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if stated.get("model_type") != "codegen" or find_weights(source)[0][0].suffix != ".safetensors":
        raise UsageError(
            f"model={source} is no stock CodeGen directory with safetensors; rewrite it first: scripts/export.py model={source} out=DIR"
        )
    group, sizes = config.group_size, {model_config.n_embd, model_config.n_inner or 4 * model_config.n_embd}
    if config.method is Method.gptq and any(size % group for size in sizes):
        possible = [f"group_size={one}" for one in GROUP_SIZES if not any(size % one for size in sizes)] or ["bits=8 method=torchao"]
        raise UsageError(
            f"group_size={group} does not divide the inputs of the model's layers, {sorted(sizes)}; possible is {' or '.join(possible)}"
        )
    return model_config


def _make(config: QuantizeConfig, source: Path, out: Path, partial: Path, model_config: Any, texts: Texts, is_pm: bool) -> None:
    """Writes everything into `partial`, and gives it its name."""
    scratch = (partial / "scratch").absolute()
    scratch.mkdir()
    device = _device(config.device)
    uses_data = config.method is Method.gptq
    if uses_data:
        _log.info(f"calibrating on {len(texts.calibration)} documents, {sum(map(len, texts.calibration)):,} tokens: {_names(texts)}")
    stock = _as_language_model(source, scratch / "stock", model_config) if is_pm else source
    job = Job(
        method=config.method.value,
        model=str(stock.absolute()),
        out=str(scratch / "raw"),
        scratch=str(scratch / "layers"),
        rows=texts.calibration if uses_data else [],
        bits=config.bits,
        group_size=config.group_size,
        damp=config.damp,
        device=device,
    )
    job.write(scratch / "job.json")
    started = time.perf_counter()
    _run("quantize_worker", scratch / "job.json", scratch / "worker.log")
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    _log.info(f"quantised in {seconds:.0f} s, {peak / 2**30:.2f} GiB of memory at the peak")
    rounded = _rounded_layers(scratch / "raw")
    if rounded:
        raise RefusedError(
            f"{len(rounded)} layers were merely rounded, since too few tokens reached them: {', '.join(rounded[:4])}. Calibrate on more: "
            f"samples={2 * config.samples}, or data=PATH"
        )
    number_format = _put_in_order(config, source, scratch / "raw", partial, is_pm)
    shutil.rmtree(scratch / "raw")
    for name in (*_COPIED, _GENERATION):
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)

    found, measured = _compare(config, source, partial, scratch, model_config, texts, is_pm, device)
    shutil.rmtree(scratch)
    record = _record(config, texts, measured, found)
    (partial / RECORD_NAME).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    made = _lineage(config, source, texts, record, number_format)
    made.details |= {"seconds": round(seconds, 1), "peak_bytes": peak, "device": device}
    (partial / "README.md").write_text(card.render(out.name, model_config, made), encoding="utf-8")
    identity = lineage.write(partial, made)
    for path in partial.iterdir():
        files.sync_file(path)
    files.sync_directory(partial)
    files.rename(partial, out)
    files.sync_directory(out.parent)
    _log.info(f"kept as {out} ({identity})")


def _device(asked: str) -> str:
    import torch

    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise UsageError("device=cuda: there is no GPU that torch can use here; take device=cpu")
    return "cuda" if there and asked != "cpu" else "cpu"


def _names(texts: Texts) -> str:
    return ", ".join(source.name for source in texts.sources if source.role == "calibration")


def _run(module: str, job: Path, log: Path) -> None:
    """Runs a module in a process of its own.

    Raises:
        OutOfMemoryError: It was killed. DiskFullError: It had no space.
    """
    command = [sys.executable, "-m", f"moss_train.artifacts.{module}", str(job)]
    with log.open("wb") as output:
        # The library writes a folder of logs wherever it is run.
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment(), cwd=job.parent)
        try:
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code == 0:
        return
    said = log.read_text(encoding="utf-8", errors="replace")
    if code == -signal.SIGKILL or "out of memory" in said.lower():
        raise OutOfMemoryError(
            f"{module} ran out of memory; plan.py stage=quantize tells what it takes. Fewer samples or a smaller seq_len take less"
        )
    if "No space left on device" in said:
        raise DiskFullError(f"no space is left at {job.parent.parent.parent} for the variant; free some, or name another place")
    raise RuntimeError(f"{module} ended with code {code}:\n{said[-_LOG_TAIL:]}")


def _as_language_model(source: Path, place: Path, model_config: Any) -> Path:
    """A preference model as a language model with an empty output projection: the library knows no other head, and looks at layers only."""
    import torch
    from safetensors.torch import save_file

    from moss_train.model.weight_files import read_headers

    place.mkdir()
    paths, stored, _ = read_headers(source, False)
    for path in paths:
        (place / path.name).symlink_to(path.absolute())
    rows = (model_config.vocab_size, model_config.n_embd)
    empty = {"lm_head.weight": torch.zeros(rows, dtype=torch.bfloat16), "lm_head.bias": torch.zeros(rows[:1], dtype=torch.bfloat16)}
    save_file(empty, place / "lm_head.safetensors", metadata={"format": "pt"})
    weight_map = {name: tensor.file for name, tensor in stored.items() if not name.startswith("score.")}
    weight_map |= dict.fromkeys(empty, "lm_head.safetensors")
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    stated = json.loads((source / "config.json").read_text(encoding="utf-8"))
    stated = {key: value for key, value in stated.items() if not key.startswith("moss_")} | {"architectures": ["CodeGenForCausalLM"]}
    (place / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    for name in _COPIED:
        if (source / name).is_file():
            (place / name).symlink_to((source / name).absolute())
    return place


def _rounded_layers(raw: Path) -> list[str]:
    """Layers that GPTQ gave up on, by the library's log: it falls back to rounding without an error."""
    log = raw / "quant_log.csv"
    lines = log.read_text(encoding="utf-8").splitlines()[1:] if log.is_file() else []
    return [".".join(line.split(",")[:2]) for line in lines if "fallback" in line]


def _put_in_order(config: QuantizeConfig, source: Path, raw: Path, partial: Path, is_pm: bool) -> str:
    """Writes weights and configuration as this project has them; the number format of what is not quantised."""
    from safetensors import safe_open

    from moss_train.artifacts.export import DTYPES, write_shards
    from moss_train.model.shapes import REWARD_HEAD
    from moss_train.model.weight_files import TORCH_TYPES, read_headers, read_tensors

    paths, stored, problems = read_headers(raw, False)
    if problems:
        raise CheckpointError(f"{raw}: the library wrote {'; '.join(problems)}")
    names = sorted(name for name in stored if not (is_pm and name.startswith("lm_head.")))
    floating = next(one for one, name in TORCH_TYPES.items() if name == stored["transformer.wte.weight"].dtype)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in read_tensors(raw, names):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NonFiniteError(
                    f"{name} of the variant is not finite; its source has values too large, or the calibration texts are odd"
                )
            yield name, tensor
        if is_pm:
            yield from read_tensors(source, [REWARD_HEAD])

    metadata: dict[str, str] = {}
    if config.method is Method.torchao and not is_pm:
        # Tells its reader how to put the parts of a weight together.
        for path in paths:
            with safe_open(path, framework="pt") as reader:
                metadata |= reader.metadata() or {}
    write_shards(partial, tensors(), int(config.max_shard_gb * 1e9), metadata)
    settings = json.loads((raw / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    if "meta" in settings:
        settings["meta"] = {key: value for key, value in settings["meta"].items() if key not in _LEFT_OUT}
    # The configuration of the source, and not what the library made of it.
    stated = json.loads((source / "config.json").read_text(encoding="utf-8"))
    stated |= {"dtype": str(floating).removeprefix("torch."), "quantization_config": settings}
    _write_json(partial / "config.json", stated)
    if config.method is Method.gptq:
        # Some readers look for the settings in a file of their own.
        _write_json(partial / "quantize_config.json", settings)
    return next(name for name, dtype in DTYPES.items() if dtype == floating)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _compare(
    config: QuantizeConfig, source: Path, partial: Path, scratch: Path, model_config: Any, texts: Texts, is_pm: bool, device: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """What the variant is, opened again, and what it differs by."""
    from safetensors.torch import load_file

    from moss_train.artifacts.quantize_check import PROBLEM, CheckJob
    from moss_train.artifacts.quantize_compare import difference, round_to_nearest, source_values

    rows = texts.heldout
    CheckJob(str(partial.absolute()), str(scratch / "found"), rows, device, is_pm).write(scratch / "check.json")
    _run("quantize_check", scratch / "check.json", scratch / "check.log")
    found: dict[str, Any] = json.loads((scratch / "found.json").read_text(encoding="utf-8"))
    if PROBLEM in found:
        raise CheckpointError(f"{found[PROBLEM]}. It is not kept; check the versions of the libraries (pip install 'moss-train[quant]')")
    expected = source_values(source, model_config, rows)
    variant = load_file(scratch / "found.safetensors")["values"]
    if not bool(variant.isfinite().all()):
        raise RefusedError("the variant computes values that are not finite; it is not kept")
    kept = difference(expected, variant, is_pm)
    measured = {"heldout/kl": kept.kl, "heldout/agreement": kept.agreement}
    if config.method is Method.gptq:
        rounded = source_values(source, model_config, rows, lambda weight: round_to_nearest(weight, config.bits, config.group_size))
        measured["heldout/kl_round_to_nearest"] = difference(expected, rounded, is_pm).kl
    sizes = {
        name: sum(path.stat().st_size for path in place.glob("*.safetensors")) for name, place in (("source", source), ("made", partial))
    }
    found |= {"count": kept.count, "bytes": sizes["made"], "source_bytes": sizes["source"]}
    _tell(config, kept, measured, found, is_pm)
    if not kept.kl <= config.most_kl:
        raise RefusedError(
            f"the variant differs from its source by a KL divergence of {kept.kl:.3g} nats a {'pair' if is_pm else 'token'}, more than "
            f"max_kl={config.most_kl:g}; it is not kept. Calibrate on more of what the model was trained on (samples=, data=), take a "
            "smaller group_size or bits=8, or allow it: max_kl=NUMBER"
        )
    return found, measured


def _tell(config: QuantizeConfig, kept: Difference, measured: dict[str, float], found: dict[str, Any], is_pm: bool) -> None:
    unit, what = ("pair", "the same response preferred") if is_pm else ("token", "the same most likely token")
    against = ""
    if (rounded := measured.get("heldout/kl_round_to_nearest")) is not None:
        against = f"; mere rounding to {config.bits} bits: {rounded:.3g}, {rounded / max(kept.kl, 1e-12):.1f} times as much"
    _log.info(
        f"KL from the source {kept.kl:.3g} nats a {unit} over {kept.count:,} held-out {unit}s, {what} in {kept.agreement:.2%}{against}"
    )
    share = found["bytes"] / found["source_bytes"]
    _log.info(
        f"{found['bytes'] / 1e6:,.1f} MB on disk, {share:.2f} of the source; {found['memory'] / 1e6:,.1f} MB in memory once opened "
        f"({found['reader']})"
    )


def _record(config: QuantizeConfig, texts: Texts, measured: dict[str, float], found: dict[str, Any]) -> dict[str, Any]:
    """How it was made and what came of it: what is the same whenever it is made."""
    versions = {name: importlib.metadata.version(name) for name in (*_LIBRARIES[config.method], *_VERSIONS)}
    record: dict[str, Any] = {"method": config.method.value, "bits": config.bits, "sym": True, "libraries": versions}
    if config.method is Method.gptq:
        record |= {"group_size": config.group_size, "desc_act": False, "damp": config.damp, "mse": CLIP_SEARCH}
        record["calibration"] = texts.describe(texts.calibration) | {"order": "evenly spaced, sources in turn", "seq_len": config.seq_len}
    else:
        record["group_size"] = None
    record["heldout"] = texts.describe(texts.heldout)
    record["measured"] = measured | {key: found[key] for key in ("count", "bytes", "source_bytes", "memory", "reader")}
    return record


def _lineage(config: QuantizeConfig, source: Path, texts: Texts, record: dict[str, Any], number_format: str) -> lineage.Lineage:
    before = lineage.load(source)
    parent = lineage.parent_of(source, "source")
    made = lineage_kinds.variant(parent, before, config.bits, config.method.value, record["group_size"])
    used = [one for one in texts.sources if one.role == "heldout" or config.method is Method.gptq]
    made.data += used
    made.parents += texts.parents
    made.details |= {key: value for key, value in record.items() if key not in ("bits", "method", "measured")}
    made.details["rewritten_from"] = source.resolve().name
    made.details["measured"] = {name: value for name, value in record["measured"].items() if "/" not in name}
    made.metrics = {name: value for name, value in record["measured"].items() if "/" in name}
    made.config, made.number_format = asdict(config), number_format
    return made
