"""What was read, for the record of what is made of it."""

from __future__ import annotations

from pathlib import Path

from moss_train import files
from moss_train.artifacts import lineage, lineage_kinds
from moss_train.data.fingerprint import combined
from moss_train.data.paths import find_files, split_limit


def source_of(spec: str, records: int, role: str) -> tuple[lineage.Source, list[lineage.Parent]]:
    """Files as a source, and as parents where they have records of their own; every byte is read.

    Args:
        spec: A file, directory or glob; `PATH#N` are its first N records.
        records: How many there are.
        role: Of the source. Parents have the role `source`.
    """
    pattern, limit = split_limit(spec)
    paths = [Path(pattern)] if Path(pattern).is_file() else find_files(pattern)
    digest = combined([str(path) for path in paths], [files.hash_file(path).sha256 for path in paths], limit)
    name = spec.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    parents = [parent for path in paths for parent in lineage.recorded_parent(path, "source")]
    return lineage.Source(name, digest, records, role, lineage_kinds.licence_of(paths)), parents
