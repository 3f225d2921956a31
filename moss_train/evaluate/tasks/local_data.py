"""What the YAML files of this folder name as their data: the JSONL beside them, wherever the package is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets

_FOLDER = Path(__file__).resolve().parent


def _read(name: str) -> dict[str, Any]:
    return {"test": datasets.Dataset.from_json(str(_FOLDER / name))}


def choice(**_: Any) -> dict[str, Any]:
    """Of `moss_choice`."""
    return _read("moss_choice.jsonl")


def text(**_: Any) -> dict[str, Any]:
    """Of `moss_text`."""
    return _read("moss_text.jsonl")
