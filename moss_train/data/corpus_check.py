"""Reads every byte of a corpus and holds it against what its descriptions say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from moss_train import files
from moss_train.data.corpus import AGAIN, TOKENIZER_FOLDER, Corpus, Shard, shard_paths, wrong_id
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError

_AT_ONCE = 4 * 2**20


def check_corpus(corpus: Corpus, progress: Callable[[Shard], None] | None = None) -> Iterator[DataError]:
    """Every problem of a corpus, at most one a shard and file.

    Args:
        corpus: An open one.
        progress: Told of each shard before it is read.
    """
    folder = corpus.directory / TOKENIZER_FOLDER
    try:
        tokenizer = MossTokenizer.load(folder)
        if tokenizer.fingerprint != corpus.tokenizer_fingerprint:
            yield DataError(
                f"{folder}: its fingerprint is {tokenizer.fingerprint[:12]}; expected {corpus.tokenizer_fingerprint[:12]}, which made the "
                f"ids. {AGAIN.capitalize()}."
            )
    except DataError as error:
        yield error
    for shard in corpus.shards():
        if progress is not None:
            progress(shard)
        for check in (_check_record, _check_arrays, _check_hashes):
            try:
                check(corpus, shard)
            except DataError as error:
                yield error
                break
    for source in corpus.sources.values():
        named = {path.name for shard in source.shards for path in shard_paths(corpus.directory, source.name, shard.name).values()}
        for path in sorted((corpus.directory / source.name).glob("shard-*")):
            if path.name not in named:
                yield DataError(f"{path}: is named nowhere in corpus.json: another preparation left it. Remove it, or {AGAIN}.")


def _check_record(corpus: Corpus, shard: Shard) -> None:
    path = shard_paths(shard.directory, shard.source, shard.name)["record"]
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: missing, although corpus.json names the shard; {AGAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {AGAIN}.") from None
    expected = {
        "tokenizer": corpus.tokenizer_fingerprint,
        "source": shard.source,
        "documents": shard.documents,
        "tokens": shard.tokens,
        "bytes": shard.bytes,
        "sha256": shard.sha256,
    }
    for key, value in expected.items():
        found = record.get(key) if isinstance(record, dict) else None
        if found != value:
            raise DataError(f"{path}: {key} is {found!r}; expected {value!r}, as corpus.json says. {AGAIN.capitalize()}.")


def _check_arrays(corpus: Corpus, shard: Shard) -> None:
    ids, ends = shard.token_ids, shard.ends
    path = shard_paths(shard.directory, shard.source, shard.name)["tokens"]
    closing = 0
    for start in range(0, len(ids), _AT_ONCE):
        piece = np.asarray(ids[start : start + _AT_ONCE])
        if int(piece.max()) >= shard.vocab_size:
            place = int(np.argmax(piece >= shard.vocab_size))
            raise wrong_id(shard, start + place, int(piece[place]))
        closing += int((piece == corpus.endoftext).sum())
    open_ended = np.flatnonzero(ids[ends - 1] != corpus.endoftext)
    if len(open_ended):
        number = int(open_ended[0])
        place = int(ends[number]) - 1
        raise DataError(
            f"{path}: document {number} is not closed: token {place} is {int(ids[place])}, expected {corpus.endoftext} (<|endoftext|>). "
            f"{AGAIN.capitalize()}."
        )
    if closing != shard.documents:
        raise DataError(
            f"{path}: <|endoftext|> occurs {closing} times; expected {shard.documents}, once a document: text holds a control. "
            f"{AGAIN.capitalize()}."
        )


def _check_hashes(corpus: Corpus, shard: Shard) -> None:
    paths = shard_paths(shard.directory, shard.source, shard.name)
    for what in ("tokens", "ends"):
        found = files.hash_file(paths[what]).sha256
        if found != shard.sha256.get(what):
            raise DataError(
                f"{paths[what]}: its sha256 is {found[:16]}...; expected {str(shard.sha256.get(what))[:16]}...: a byte has changed. "
                f"{AGAIN.capitalize()}."
            )
