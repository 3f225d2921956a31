"""Gives a model a larger vocabulary: the job behind `scripts/extend_vocab.py`.

    texts -> pieces, counted in bounded memory -> merges after the model's own -> tokenizer -> rows -> a model directory with its report

A directory with a tokenizer alone is extended too; the result is then a tokenizer. What the new vocabulary does to held-out texts is
printed, and kept in `extension.json`.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds, lineage_verify
from moss_train.artifacts.config import ExtendVocabConfig
from moss_train.artifacts.vocab_report import TextReport, bits_per_byte, print_reports, report_on
from moss_train.data.backend import read_declared_rows
from moss_train.data.cache import Cache, default_directory
from moss_train.data.extend import Extension, added_tokens, extend_tokenizer, text_tokens, tokens_of
from moss_train.data.fingerprint import combined, hash_inputs
from moss_train.data.merges import learn_merges
from moss_train.data.paths import split_limit
from moss_train.data.pieces import Counted, PieceCounter
from moss_train.data.texts import find_text_files, read_texts
from moss_train.data.tokenizer import CONTROL_TOKENS, RESERVED_TAGS, MossTokenizer
from moss_train.errors import CheckpointError, DataError, DiskFullError, UsageError

if TYPE_CHECKING:
    import torch

    from moss_train.model.codegen import CodeGenLM
    from moss_train.model.vocab import RowPlan

_log = logging.getLogger("moss_train")

REPORT_NAME = "extension.json"
PROGRESS_SECONDS = 10.0
_SPECIALS = 1 + len(CONTROL_TOKENS) + RESERVED_TAGS


def main(config: ExtendVocabConfig) -> None:
    """Runs the job.

    Raises:
        UsageError: `out` exists, or the configuration cannot be carried out.
        DataError: A text cannot be read, or holds nothing to learn from.
        CheckpointError: The model directory is not what it should be.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    source, out = Path(config.model), Path(config.out)
    if out.exists():
        raise UsageError(f"out={out} exists; a finished artefact is never changed. Name another directory")
    has_weights = any(path.suffix in (".safetensors", ".bin") for path in source.glob("*")) if source.is_dir() else False
    if not config.unverified:
        lineage_verify.require(source, "model", "unverified=true", _log.info)
    if config.warmup.steps and not has_weights:
        raise UsageError(f"warmup.steps={config.warmup.steps}, but {source} holds no model to warm up")
    # The controls need no room among the old rows: they get new ones.
    declared = read_declared_rows(source) if source.is_dir() else None
    base = MossTokenizer.load(source, vocab_size=None if declared is None else declared + _SPECIALS)
    trained = tokens_of(source)
    if has_weights:
        from moss_train.model.loading import check_weights, read_model_config

        model_config = read_model_config(source)
        check_weights(source, model_config, config.allow_pickle)
        vocabulary = {**base.description["model"]["vocab"], **{entry["content"]: entry["id"] for entry in base.description["added_tokens"]}}
        largest = max(vocabulary[token] for token in trained)
        if largest >= model_config.vocab_size:
            raise CheckpointError(f"{source}: its tokenizer has the id {largest}, its model only {model_config.vocab_size} rows")

    specs = config.texts()
    learned_from = _fingerprints(specs, "vocabulary", config.licence)
    heldout = {name: _heldout(name, spec, config.text_key) for name, spec in (config.heldout or {}).items()}

    extension, counted = _learn(config, specs, base, trained, learned_from)
    reports = {name: report_on(texts, base, extension, config.scripts.value) for name, texts in heldout.items()}
    _refuse_inexact(reports)
    report: dict[str, Any] = {
        "tokens_before": base.size,
        "tokens_after": extension.tokenizer.size,
        "rows_before": base.vocab_size if declared is None else declared,
        "rows_after": extension.tokenizer.vocab_size,
        "learned": len(extension.learned),
        "text": asdict(counted),
        "strategy": config.strategy.value,
    }
    if has_weights:
        _extend_model(config, source, out, base, extension, heldout, reports, report, learned_from)
    else:
        _write_tokenizer(out, source, extension.tokenizer, learned_from, _with_texts(report, reports))
    print_reports(reports, report)
    _log.info(f"written to {out}; use it with {'init_from' if has_weights else 'tokenizer.path'}={out}")


# ---------------------------------------------------------------------- texts and merges


def _fingerprints(specs: list[str], role: str, licence: str | None) -> list[lineage.Source]:
    """What texts are, for the record; the number of records is filled in as they are read."""
    cache = Cache(default_directory())
    found = []
    for spec in specs:
        pattern, limit = split_limit(spec)
        paths = find_text_files(pattern)
        digest = combined([str(path) for path in paths], hash_inputs(paths, cache), limit)
        found.append(lineage.Source(Path(pattern).name, digest, 0, role, licence))
    return found


def _heldout(name: str, spec: str, text_key: str) -> list[str]:
    texts = [text for _, text in read_texts(spec, text_key) if text]
    if not texts:
        raise DataError(f"heldout.{name}={spec}: no text in it")
    return texts


def _learn(
    config: ExtendVocabConfig, specs: list[str], base: MossTokenizer, trained: frozenset[str], sources: list[lineage.Source]
) -> tuple[Extension, Counted]:
    """Counts pieces, learns merges and extends the tokenizer."""
    # Refused before an hour of learning, not after it.
    least = len(text_tokens(base)) + len(added_tokens(base, config.reserved_tags)) + config.new_tokens
    if config.vocab_size is not None and config.vocab_size < least:
        raise UsageError(
            f"vocab_size={config.vocab_size} has no room for {config.new_tokens} new tokens after {least - config.new_tokens} old ones"
        )
    counter = PieceCounter(int(config.memory_gib * 2**30), config.scripts.value, config.seed)
    begun = told = time.monotonic()
    for spec, source in zip(specs, sources):
        for origin, text in read_texts(spec, config.text_key):
            source.records += 1
            try:
                counter.add(text)
            except UnicodeEncodeError as error:
                raise DataError(f"{origin}: {error}") from error
            if time.monotonic() - told > PROGRESS_SECONDS:
                told = time.monotonic()
                seen = counter.seen
                rate = seen.bytes / 1e6 / (told - begun)
                _log.info(f"reading: {seen.texts:,} texts, {seen.bytes / 1e6:,.0f} MB at {rate:.1f} MB/s, {len(counter.counts):,} pieces")
    seen = counter.seen
    if not counter.counts:
        raise DataError(
            f"text={config.text}: {seen.texts:,} texts ({seen.bytes / 1e6:.1f} MB) and not one piece to learn from; "
            f"scripts={config.scripts.value} wants {'Chinese, Japanese or Korean text' if config.scripts.value == 'cjk' else 'any text'}"
        )
    used = "" if seen.share == 1 else f"; memory_gib={config.memory_gib:g} holds 1/{round(1 / seen.share)} of them, which is used"
    _log.info(f"read {seen.texts:,} texts, {seen.bytes / 1e6:,.1f} MB, {len(counter.counts):,} different pieces{used}")

    pieces = counter.symbols(base)
    tokens = text_tokens(base)
    before = pieces.count(len(tokens))
    begun = told = time.monotonic()

    def tell(made: int) -> None:
        nonlocal told
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            left = (told - begun) * (config.new_tokens - made) / made
            _log.info(f"learning: {made:,} of {config.new_tokens:,} tokens, about {left:.0f} s to go")

    merges = learn_merges(pieces, tokens, config.new_tokens, config.min_count, tell)
    after = pieces.count(len(tokens) + config.new_tokens)
    extension = extend_tokenizer(
        base,
        merges,
        trained=trained,
        counts=(before, after),
        reserved_tags=config.reserved_tags,
        rows=config.vocab_size,
        pad_multiple=config.pad_multiple,
    )
    if len(extension.learned) < config.new_tokens:
        _log.info(
            f"no pair occurs {config.min_count} times any more: {len(extension.learned):,} new tokens instead of {config.new_tokens:,}"
        )
    return extension, seen


# ---------------------------------------------------------------------- writing


def _extend_model(
    config: ExtendVocabConfig,
    source: Path,
    out: Path,
    base: MossTokenizer,
    extension: Extension,
    heldout: dict[str, list[str]],
    reports: dict[str, TextReport],
    report: dict[str, Any],
    learned_from: list[lineage.Source],
) -> None:
    """Makes the rows, measures, warms up and writes the model; one parameter at a time where nothing needs the whole model."""
    import copy

    import torch

    from moss_train.artifacts.export import number_format, write_export
    from moss_train.artifacts.warm_up import warm_up
    from moss_train.model.loading import iterate_parameters, load_model, read_model_config
    from moss_train.model.shapes import count_parameters
    from moss_train.model.vocab import RowPlan, extend_parameters

    old_config = read_model_config(source)
    plan = RowPlan.make(
        torch.from_numpy(extension.old_ids),
        torch.from_numpy(extension.learned),
        extension.pieces,
        torch.from_numpy(extension.log_shares),
        extension.tokenizer.size,
    )
    new_config = copy.deepcopy(old_config)
    new_config.vocab_size = extension.tokenizer.vocab_size
    dtype = number_format(source, config.dtype.value, config.allow_pickle)

    parameters: Iterator[tuple[str, torch.Tensor]] = extend_parameters(iterate_parameters(source), plan, config.strategy.value, config.seed)
    if heldout or config.warmup.steps:
        model = load_model(source, torch.float32, config.allow_pickle)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        texts = {name: _part(found, config.heldout_bytes) for name, found in heldout.items()}
        _measure(model, base, texts, reports, "before", device)
        chosen = config.strategy.value
        # The one that is kept comes last, wherever it stands among those to compare.
        for strategy in [*(found.value for found in config.compare if found.value != chosen), chosen]:
            extended = _extended(model, new_config, plan, strategy, config.seed)
            _measure(extended, extension.tokenizer, texts, reports, strategy, device)
        if config.warmup.steps:
            documents = (text for _ in iter(int, 1) for spec in config.texts() for _, text in read_texts(spec, config.text_key))
            report["warmup"] = warm_up(extended, plan, extension.tokenizer, documents, config.warmup, device, _log.info)
            _measure(extended, extension.tokenizer, texts, reports, f"{config.strategy.value} + warm-up", device)
            parameters = ((name, parameter.detach().cpu()) for name, parameter in extended.named_parameters())

    record = lineage_kinds.extended_model(
        lineage.parent_of(source, "init"),
        lineage.load(source),
        learned_from,
        (old_config.vocab_size, new_config.vocab_size),
        config.strategy.value,
    )
    record.details |= {
        "new_tokens": len(extension.learned),
        "warmup_steps": config.warmup.steps,
        "parameters": count_parameters(new_config),
        "tokenizer_fingerprint": extension.tokenizer.fingerprint,
    }
    compared = {found.value for found in config.compare} - {config.strategy.value}
    for name, found in reports.items():
        record.metrics[f"{name}/times_fewer_tokens"] = found.gain
        record.metrics |= {f"{name}/bits_per_byte/{key}": value for key, value in found.bits_per_byte.items() if key not in compared}
    write_export(
        out,
        parameters,
        new_config,
        dtype,
        record,
        tokenizer=extension.tokenizer,
        max_shard_bytes=int(config.max_shard_gb * 1e9),
        beside={REPORT_NAME: _with_texts(report, reports)},
    )


def _extended(model: CodeGenLM, new_config: Any, plan: RowPlan, strategy: str, seed: int) -> CodeGenLM:
    """The model with the rows of a strategy; everything else is shared with it."""
    import copy

    import torch

    from moss_train.model.codegen import CodeGenLM
    from moss_train.model.vocab import extend_parameters

    with torch.device("meta"):
        extended = CodeGenLM(copy.deepcopy(new_config))
    old = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    state = dict(extend_parameters(((name, tensor.cpu()) for name, tensor in old), plan, strategy, seed))
    extended.load_state_dict(state, strict=True, assign=True)
    # Tables that are not parameters.
    for (name, buffer), (_, target) in zip(model.named_buffers(), extended.named_buffers()):
        if target.is_meta:
            owner, _, last = name.rpartition(".")
            extended.get_submodule(owner)._buffers[last] = buffer
    return extended


def _part(texts: list[str], most: int) -> list[str]:
    """Whole texts from the beginning, up to so many bytes; at least one."""
    part: list[str] = []
    for text in texts:
        if part and most <= 0:
            break
        part.append(text)
        most -= len(text.encode())
    return part


def _measure(
    model: CodeGenLM, tokenizer: MossTokenizer, texts: dict[str, list[str]], reports: dict[str, TextReport], key: str, device: torch.device
) -> None:
    """Bits per byte; the model is on the device only meanwhile, where another one comes after it. Without room there it is not measured."""
    import torch

    try:
        model = model.to(device).eval()
        for name, found in texts.items():
            reports[name].bits_per_byte[key] = bits_per_byte(model, tokenizer, found, device)
    except torch.OutOfMemoryError:
        _log.info(f"no memory on {device} to measure bits per byte ({key}); it is left out")
    finally:
        model.cpu()


def _write_tokenizer(out: Path, source: Path, tokenizer: MossTokenizer, learned_from: list[lineage.Source], report: str) -> None:
    """A directory with the tokenizer alone; it appears under its name when it is complete."""
    partial = files.new_partial(out)
    try:
        tokenizer.save(partial)
        (partial / REPORT_NAME).write_text(report, encoding="utf-8")
        record = lineage_kinds.tokenizer("extend_vocab", learned_from, tokenizer.size, tokenizer.vocab_size, tokenizer.fingerprint)
        record.parents = lineage.recorded_parent(source, "source")
        lineage.write(partial, record)
        for path in partial.iterdir():
            files.sync_file(path)
        files.sync_directory(partial)
        files.rename(partial, out)
        files.sync_directory(out.parent)
    except OSError as error:
        if files.is_disk_full(error):
            raise DiskFullError(f"no space is left at {out.parent} for the tokenizer; free some, or name another place") from error
        raise UsageError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# ---------------------------------------------------------------------- the report


def _refuse_inexact(reports: dict[str, TextReport]) -> None:
    for name, found in reports.items():
        if found.inexact:
            raise DataError(f"heldout.{name}: {found.inexact} of {found.documents} texts do not decode to themselves; nothing was written")


def _with_texts(report: dict[str, Any], reports: dict[str, TextReport]) -> str:
    whole = {**report, "heldout": {name: found.as_json() for name, found in reports.items()}}
    return json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
