"""Which files a path, directory or glob stands for, and what form they have."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from moss_train.artifacts.lineage import FILE_NAME, SUFFIX
from moss_train.data.streams import COMPRESSIONS
from moss_train.errors import DataError

KINDS = {
    "c": "c", "h": "c", "cc": "c++", "cpp": "c++", "cxx": "c++", "hpp": "c++", "cs": "c#", "css": "css", "cu": "cuda", "dart": "dart",
    "go": "go", "hs": "haskell", "html": "html", "htm": "html", "java": "java", "jl": "julia", "js": "javascript", "jsx": "javascript",
    "mjs": "javascript", "kt": "kotlin", "lua": "lua", "md": "markdown", "m": "objective-c", "pl": "perl", "pm": "perl", "php": "php",
    "ps1": "powershell", "py": "python", "pyi": "python", "r": "r", "rb": "ruby", "rs": "rust", "rst": "text", "scala": "scala",
    "sh": "shell", "bash": "shell", "sql": "sql", "swift": "swift", "tex": "tex", "toml": "toml", "ts": "typescript", "tsx": "typescript",
    "txt": "text", "vue": "vue", "yaml": "yaml", "yml": "yaml",
}  # fmt: skip
"""Extension of a file of text or code -> what it is called in the counts."""
TAGGING_SUFFIX = ".tagging.json"
"""After the name of a file of dialogues with levels, the name of the record of what these are; see `pm.tag`."""
FORMS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
# Tables have a compression of their own within.
_NEVER_PACKED = (".parquet", ".arrow")


def form_of(path: Path) -> str | None:
    """One of `FORMS`, whether packed or not; None: files with this name are not read."""
    if path.name == FILE_NAME or path.name.endswith((SUFFIX, TAGGING_SUFFIX)):
        # What tells where a file comes from, or what its levels are, is not data, although it lies among them.
        return None
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        suffix = Path(path.stem).suffix.lower()
        return suffix if suffix in FORMS and suffix not in _NEVER_PACKED else None
    return suffix if suffix in FORMS else None


def find_files(pattern: str) -> list[Path]:
    """The readable files a path or glob stands for, sorted.

    Raises:
        DataError: There are none; for a missing path the message names the nearest folder that exists.
    """
    path = Path(pattern)
    if path.is_file():
        if form_of(path) is None:
            raise DataError(f"{path}: {describe_unread(path)}")
        return [path]
    if path.is_dir():
        files = _files_below(path)
        what = "directory"
    elif re.search(r"[*?\[]", pattern):
        found = (Path(name) for name in glob.glob(pattern, recursive=True))
        files = sorted(file for file in found if file.is_file() and form_of(file) and not file.name.startswith("."))
        what = "glob"
    else:
        nearest = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        beside = sorted(child.name for child in nearest.iterdir())[:8]
        holds = f"The nearest folder that exists is {nearest}, with: {', '.join(beside) or 'nothing'}."
        raise DataError(f"{pattern}: no such file or directory. {holds}")
    if not files:
        raise DataError(f"{pattern}: this {what} holds no file ending in {' '.join(FORMS)}.")
    return files


def all_files(pattern: str) -> Iterator[Path]:
    """Every file a path or glob stands for, sorted, hidden ones left out."""
    path = Path(pattern)
    if path.is_dir():
        for folder, directories, names in os.walk(path):
            directories[:] = sorted(name for name in directories if not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
    elif path.is_file():
        yield path
    else:
        yield from (Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(name))


def _files_below(directory: Path) -> list[Path]:
    """Readable files of a directory and of those below it, hidden ones left out; of a saved dataset only its rows."""
    from moss_train.data.tables import refuse_splits, rows_of_dataset

    files: list[Path] = []
    datasets: dict[Path, list[Path] | None] = {}
    for candidate in directory.rglob("*"):
        if not candidate.is_file() or any(part.startswith(".") for part in candidate.relative_to(directory).parts):
            continue
        folder = candidate.parent
        if candidate.name == "dataset_dict.json":
            refuse_splits(candidate)
        if folder not in datasets:
            datasets[folder] = rows_of_dataset(folder)
        rows = datasets[folder]
        if form_of(candidate) is not None and (rows is None or candidate in rows):
            files.append(candidate)
    missing = [str(file) for rows in datasets.values() for file in rows or () if not file.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: missing, although state.json beside it names it; save the dataset again.")
    return sorted(files)


def describe_unread(path: Path) -> str:
    suffix = path.suffix or "nothing"
    return f"files ending in {suffix!r} are not read; expected one of {' '.join(FORMS)}, the first three also with .gz or .zst after that."


def split_limit(spec: str) -> tuple[str, int | None]:
    """`PATH#N` -> (PATH, N). A file whose name really ends so is taken as it is."""
    match = re.fullmatch(r"(.+)#(\d+)", spec)
    if match is None or Path(spec).exists():
        return spec, None
    if int(match[2]) == 0:
        raise DataError(f"{spec}: #0 asks for no records; write {match[1]} for all of them.")
    return match[1], int(match[2])
