"""The corpora a run is given: directories that were prepared, or text that is prepared here and kept in the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import tokenizers

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.cache import Cache, default_directory, key_of
from moss_train.data.corpus import FILE_NAME, TOKENIZER_FOLDER
from moss_train.data.fingerprint import hash_inputs
from moss_train.data.prepare.config import Form, PrepareConfig, SourceConfig
from moss_train.data.prepare.main import prepare
from moss_train.data.texts import find_text_files, read_texts
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError
from moss_train.pretrain.config import CorpusDataConfig, PretrainConfig, is_paths
from moss_train.train.start import Say

BUNDLED_LICENCE = "Apache-2.0"
TOKENIZER_TRAINING_CHARACTERS = 20_000_000
UNDETERMINED = "und"
"""Language of text that was given as it is (ISO 639-2)."""
_TEXT_VERSION = 1


def open_cache(config: CorpusDataConfig) -> Cache:
    """The cache of `data.cache`."""
    return Cache(Path(config.cache) if config.cache else default_directory())


def find_corpora(config: PretrainConfig, say: Say) -> dict[str, Any]:
    """Where the corpora and the tokenizer are; text among them is prepared. Called on one rank of a machine.

    Returns:
        `train` and `valid`: lists of [path as given, directory of the corpus]; `tokenizer`: its directory.

    Raises:
        DataError: A path is missing, or holds neither a corpus nor text.
    """
    data = config.data
    specs = {"train": _paths(data.train), "valid": _paths(data.valid)}
    bundled = not specs["train"]
    if bundled:
        folder = bundled_texts(data, say)
        specs = {"train": [str(folder / "train")], "valid": specs["valid"] or [str(folder / "valid")]}
    for role, paths in specs.items():
        for path in paths:
            if not is_corpus(path):
                _require_text(f"data.{role}", path)
    prepared = [path for paths in specs.values() for path in paths if is_corpus(path)]
    tokenizer = config.tokenizer.path or config.init_from
    if tokenizer is None:
        tokenizer = str(Path(prepared[0]) / TOKENIZER_FOLDER) if prepared else train_tokenizer(config, specs["train"], say)
    found: dict[str, Any] = {
        role: [[path, path if is_corpus(path) else prepare_text(data, path, tokenizer, bundled, say)] for path in paths]
        for role, paths in specs.items()
    }
    return {**found, "tokenizer": tokenizer}


def _paths(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def is_corpus(path: str) -> bool:
    """Whether a path is a directory that holds shards, finished or not."""
    return (Path(path) / FILE_NAME).is_file() or (Path(path) / ".prepare").is_dir()


def _require_text(key: str, path: str) -> None:
    """Refuses what is neither a corpus nor text."""
    if any(Path(path).glob("*/shard-*.json")):
        raise DataError(
            f"{key}={path} holds shards but no {FILE_NAME}, which says what they are; copy the corpus again, or prepare it again"
        )
    try:
        find_text_files(path)
    except DataError as error:
        raise DataError(
            f"{key}={path}: expected a corpus that scripts/prepare.py wrote (a directory with {FILE_NAME}), or text: {error}"
        ) from None


def bundled_texts(config: CorpusDataConfig, say: Say) -> Path:
    """The bundled dialogues as plain text: folders `train` and `valid`, each with zh.jsonl and en.jsonl."""
    source = resources.files("moss_train.data.bundled")
    parts = {"train": "dialogues_train.jsonl", "valid": "dialogues_dev.jsonl"}

    def make(out: Path) -> dict[str, Any]:
        for part, name in parts.items():
            lines: dict[str, list[str]] = {"zh": [], "en": []}
            for origin, text in read_texts(str(source / name)):
                language = "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in text[-400:]) else "en"
                lines[language].append(json.dumps({"text": text, "origin": Path(origin).name}, ensure_ascii=False) + "\n")
            (out / part).mkdir()
            for language, content in lines.items():
                files.replace_content(out / part / f"{language}.jsonl", "".join(content).encode())
        return {}

    hashes = hash_inputs([Path(str(source / name)) for name in parts.values()], open_cache(config))
    entry, _ = open_cache(config).get("texts", key_of("bundled texts", _TEXT_VERSION, hashes), make, say)
    return Path(entry)


def train_tokenizer(config: PretrainConfig, paths: list[str], say: Say) -> str:
    """The directory of a small tokenizer trained on the text of `data.train`, kept in the cache."""
    cache = open_cache(config.data)
    hashes = [hash_inputs(find_text_files(path), cache) for path in paths]
    counts = [0] * len(paths)
    trained: list[MossTokenizer] = []

    def texts() -> Iterator[str]:
        left = TOKENIZER_TRAINING_CHARACTERS
        for number, path in enumerate(paths):
            for _, text in read_texts(path):
                counts[number] += 1
                yield text
                left -= len(text)
                if left < 0:
                    return

    def make(out: Path) -> dict[str, Any]:
        tokenizer = MossTokenizer.train(texts(), config.tokenizer.train_vocab_size)
        trained.append(tokenizer)
        tokenizer.save(out)
        say(f"tokenizer: trained on the training text, {tokenizer.size} tokens")
        return {}

    def seal(out: Path) -> None:
        sources = [
            lineage.Source(Path(path).name, lineage.hash_value(one), count) for path, one, count in zip(paths, hashes, counts) if count
        ]
        (made,) = trained
        lineage.write(out, lineage_kinds.tokenizer("pretrain", sources, made.size, made.vocab_size, made.fingerprint))

    key = key_of("text tokenizer v1", hashes, config.tokenizer.train_vocab_size, tokenizers.__version__)
    return str(cache.get("tokenizer", key, make, say, seal)[0])


def prepare_text(config: CorpusDataConfig, path: str, tokenizer: str, bundled: bool, say: Say) -> str:
    """The directory of a corpus made of a path's text, kept in the cache.

    One process does it: for more than some gigabytes, scripts/prepare.py is the tool, which also knows languages, filters and clusters.
    """
    found = find_text_files(path)
    cache = open_cache(config)
    if bundled:
        sources = {file.stem: SourceConfig(str(file), file.stem, BUNDLED_LICENCE, form=Form.records) for file in found}
    else:
        sources = {"text": SourceConfig(path, UNDETERMINED)}
    fingerprint = MossTokenizer.load(tokenizer).fingerprint

    def make(out: Path) -> dict[str, Any]:
        say(f"{path} is text: preparing a corpus of it in the cache (scripts/prepare.py does that for large data)")
        prepare(PrepareConfig(tokenizer=os.path.abspath(tokenizer), out=str(out), sources=sources, workers=1))
        return {}

    key = key_of("corpus of text", _TEXT_VERSION, hash_inputs(found, cache), sorted(sources), fingerprint)
    return str(cache.get("corpus", key, make, say)[0])


def weights_by_path(value: Any) -> dict[str, float]:
    """The weights that `data.train` gives, if it does."""
    return {} if value is None or is_paths(value) else {str(path): float(weight) for path, weight in value.items()}
