"""Where the figures of the campaigns go: to the test's output, and to a file where MOSS_TRAIN_CAMPAIGN_DIR names a directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def record(name: str, summary: dict[str, Any]) -> None:
    """Prints a summary and writes it to `NAME.json`."""
    text = json.dumps(summary, indent=1)
    print(f"{name}: {text}")
    folder = os.environ.get("MOSS_TRAIN_CAMPAIGN_DIR")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")
