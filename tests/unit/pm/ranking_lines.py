"""Lines of responses for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moss_train.data.comparisons import parse_responses
from moss_train.pm.ranking import Line, make_line


def record(replies: Sequence[Any], question: str = "2+3?", **keys: Any) -> dict[str, Any]:
    """A line; a reply is a text, or a whole response."""
    responses = [{"moss": f" {one}"} if isinstance(one, str) else one for one in replies]
    return {"context": {"turns": [{"human": f" {question}"}]}, "responses": responses, **keys}


def line(replies: Sequence[Any], **keys: Any) -> Line:
    return make_line(0, "f:1", parse_responses(record(replies, **keys), "f:1"))


def write(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    return [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]
