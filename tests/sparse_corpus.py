"""A corpus of any size that takes no room: its shards are sparse files, which read as zeros."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moss_train.data.corpus import FILE_NAME, FORMAT, TOKENIZER_FOLDER, VERSION, shard_paths
from moss_train.data.tokenizer import MossTokenizer


def write_sparse_corpus(folder: Path, tokenizer: MossTokenizer, sources: dict[str, tuple[int, int]]) -> Path:
    """Writes a corpus.

    Args:
        folder: Does not exist yet.
        tokenizer: Its tokenizer.
        sources: Name, which is its language too -> number of shards, tokens of each; a shard is one document.
    """
    folder.mkdir(parents=True)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    described = {}
    for name, (count, tokens) in sources.items():
        (folder / name).mkdir()
        shards = []
        for number in range(count):
            shard = f"shard-{number:05d}"
            paths = shard_paths(folder, name, shard)
            with paths["tokens"].open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<u4", "fortran_order": False, "shape": (tokens,)})
                file.truncate(file.tell() + 4 * tokens)
            np.save(paths["ends"], np.array([tokens], dtype="<i8"))
            hashes = {"tokens": f"{name} {number}", "ends": ""}
            shards.append({"name": shard, "documents": 1, "tokens": tokens, "bytes": tokens, "sha256": hashes})
        described[name] = {
            "language": name,
            "licence": None,
            "documents": count,
            "tokens": count * tokens,
            "bytes": count * tokens,
            "fingerprint": name,
            "shards": shards,
            "counts": {},
        }
    totals = {what: sum(one[what] for one in described.values()) for what in ("documents", "tokens", "bytes")}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": {"fingerprint": tokenizer.fingerprint, "size": tokenizer.size, "endoftext": tokenizer.endoftext},
        "sources": described,
        "totals": totals,
        "settings": {},
        "inputs": "none",
    }
    (folder / FILE_NAME).write_text(json.dumps(content), encoding="utf-8")
    return folder
