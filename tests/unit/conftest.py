"""What unit tests of storage share."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from moss_train import files


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk, in order, by last parts of paths."""
    trace: list[str] = []

    def spy(name: str, describe: Callable[..., str]) -> None:
        real = getattr(files, name)

        def call(*arguments: object) -> object:
            trace.append(describe(*arguments))
            return real(*arguments)

        monkeypatch.setattr(files, name, call)

    def path_of(descriptor: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    spy("write_piece", lambda descriptor, _: f"write {path_of(descriptor)}")
    spy("sync", lambda descriptor: f"sync {path_of(descriptor)}")
    spy("rename", lambda source, target: f"rename {source.name} {target.name}")
    spy("remove", lambda path: f"remove {path.name}")
    return trace
