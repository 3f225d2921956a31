"""What asynchronous saves are made of: files written at once, values that are finite, two signs of life. Whole runs: integration."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from moss_train import files
from moss_train.train import tensors
from moss_train.train.shards import is_finite
from moss_train.train.tensors import TensorFile, TensorFiles
from moss_train.train.watchdog import Watchdog

HELD = {f"part-{file}": {f"{file}.{number}": (7, 11 + number) for number in range(5)} for file in range(3)}
VALUES = {name: torch.randn(shape) for held in HELD.values() for name, shape in held.items()}


def add_all(written: TensorFiles) -> None:
    """The tensors of all files, one of each in turn."""
    for number in range(5):
        for file, held in HELD.items():
            name = list(held)[number]
            written.add(file, lambda held=held: held, name, VALUES[name])  # type: ignore[misc]


def test_files_written_at_once_are_those_written_one_after_another(tmp_path: Path) -> None:
    written = TensorFiles(tmp_path)
    add_all(written)
    entries = written.finish()
    for file, held in HELD.items():
        alone = TensorFile(tmp_path / f"{file}-alone", held)
        for name in held:
            alone.add(name, VALUES[name])
        assert entries[file] == alone.close() == files.hash_file(tmp_path / file)


def test_what_the_disk_refuses_is_raised_and_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = files.write_piece, []

    def write_piece(descriptor: int, piece: memoryview) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("part-1") and len(piece) == 4 * 7 * 13:
            refused.append(1)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, piece)

    monkeypatch.setattr(files, "write_piece", write_piece)
    before = len(os.listdir("/proc/self/fd"))
    written = TensorFiles(tmp_path)

    def write() -> None:
        add_all(written)
        written.finish()

    with pytest.raises(OSError) as caught:
        write()
    written.abandon()
    assert files.is_disk_full(caught.value)
    assert len(refused) == 1
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


def test_tensors_that_wait_for_the_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for two of these tensors, the fourth waits until the first is written."""
    go_on, real = threading.Event(), tensors.TensorFile.add

    def slow(self: TensorFile, name: str, tensor: torch.Tensor) -> None:
        assert go_on.wait(20)
        real(self, name, tensor)

    monkeypatch.setattr(tensors.TensorFile, "add", slow)
    held = {str(number): (100,) for number in range(4)}
    written = TensorFiles(tmp_path, ahead_bytes=800)
    added = []

    def add() -> None:
        for name in held:
            written.add("file", lambda: held, name, torch.zeros(100))
            added.append(name)

    thread = threading.Thread(target=add)
    thread.start()
    until = time.monotonic() + 20
    while len(added) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    thread.join(0.2)
    assert added == ["0", "1"]
    go_on.set()
    thread.join()
    assert list(written.finish()) == ["file"]


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38, 3e38], True),
        ([], True),
        ([1.0, math.nan], False),
        ([math.inf, 1.0], False),
        ([math.inf, -math.inf], False),
    ],
)
def test_finite_values_are_told_from_others(values: list[float], finite: bool) -> None:
    """A sum that overflows decides nothing."""
    assert is_finite(torch.tensor(values)) is finite


def test_neither_sign_of_life_hides_that_the_other_one_is_missing() -> None:
    watchdog = Watchdog.__new__(Watchdog)
    watchdog.rest_aside()
    watchdog.beat("step 3")
    assert watchdog._longest_silence()[1] == "step 3", "nothing is written"
    watchdog.beat_aside("writing step 2")
    assert watchdog._longest_silence()[1] == "step 3", "what is written gives signs, training does not"
    watchdog.beat("step 4")
    assert watchdog._longest_silence()[1] == "writing step 2", "training gives signs, what is written does not"
    watchdog.rest("exporting")
    assert watchdog._longest_silence()[1] == "writing step 2", "training may take its time"
    watchdog.rest_aside()
    assert watchdog._longest_silence()[0] == math.inf, "both may"
