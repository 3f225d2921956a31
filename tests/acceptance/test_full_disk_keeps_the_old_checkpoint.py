"""A disk that is full at any byte of a save: the error says so, the checkpoint before is used, and the next save has its room back."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from moss_train import files
from moss_train.train import manifest as manifests
from tests.campaigns import record
from tests.checkpoints import differences, names, save

CHECKPOINT = "step-00000001"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A directory with the checkpoint of step 1."""
    return save(tmp_path / "checkpoints", 1).parent


class Disk:
    """Takes so many bytes and no more: the write that passes the end is cut there, the next one is refused."""

    def __init__(self, room: int, number: int = errno.ENOSPC):
        self.room, self.number, self.refused = room, number, 0

    @contextlib.contextmanager
    def mounted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Stands before `files.write_piece`."""
        real = files.write_piece

        def write_piece(descriptor: int, piece: memoryview) -> int:
            if not self.room:
                self.refused += 1
                raise OSError(self.number, "No space left on device")
            written = real(descriptor, piece[: self.room])
            self.room -= written
            return written

        with monkeypatch.context() as patch:
            patch.setattr(files, "write_piece", write_piece)
            yield


def check_old_one_is_used(run: Path) -> None:
    """Step 1 is used, whole, and after cleaning it is alone."""
    used = manifests.newest_usable(run)
    assert used is not None
    assert (used[0].name, used[2]) == (CHECKPOINT, [])
    assert differences(used[0], 1) == []
    manifests.clean(run)
    assert names(run) == [CHECKPOINT]


def boundaries(checkpoint: Path) -> tuple[int, list[int]]:
    """Bytes of a save, and where files begin and end in it, in the order in which they are written."""
    order = sorted(checkpoint.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert order[-1].name == manifests.FILE_NAME
    ends = []
    total = 0
    for path in order:
        ends.append(total)
        total += path.stat().st_size
    return total, [*ends, total]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["ENOSPC", "EDQUOT"])
def test_a_disk_that_is_full_at_any_byte(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    total, ends = boundaries(save(tmp_path / "measured", 2))
    chance = random.Random(number)
    places = {*range(0, total, 4096), *(chance.randrange(total) for _ in range(50))}
    places |= {end + offset for end in ends for offset in (-1, 0, 1)}
    tried = 0
    for room in sorted(place for place in places if 0 <= place < total):
        disk = Disk(room, number)
        with disk.mounted(monkeypatch), pytest.raises(OSError) as caught:
            save(run, 2)
        assert files.is_disk_full(caught.value)
        assert disk.refused == 1, "what was refused once is not tried again"
        check_old_one_is_used(run)
        tried += 1
    assert tried > 100
    record(f"full-disk-{errno.errorcode[number]}", {"bytes_of_a_save": total, "places": tried, "old_checkpoint_lost": 0, "leftovers": 0})
    with Disk(total).mounted(monkeypatch):
        save(run, 2)
    assert manifests.verify(run / "step-00000002").step == 2, "with exactly its room, it is saved"


@pytest.mark.parametrize("call", ["sync", "rename"])
def test_a_disk_that_tells_it_late(run: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Network file systems and quotas refuse when a file is synced, or a directory cannot take a name."""
    real = getattr(files, call)
    place, committed = 0, False
    while not committed:
        place += 1
        left = [None] * (place - 1)

        def full(*arguments: object, left: list[None] = left) -> None:
            if not left:
                raise OSError(errno.ENOSPC, "No space left on device")
            left.pop()
            real(*arguments)

        with monkeypatch.context() as patch, contextlib.suppress(OSError):
            patch.setattr(files, call, full)
            save(run, 2)
        committed = (run / "step-00000002").exists()
        if not committed:
            check_old_one_is_used(run)
    assert place == {"sync": 14, "rename": 2}[call], "each was refused in turn; the last sync comes after the name"
    used = manifests.newest_usable(run)
    assert used is not None
    assert (used[1].step, used[2], differences(used[0], 2)) == (2, [], [])


def test_a_disk_that_is_really_full(tmp_path: Path, repository: Path) -> None:
    """A tmpfs with room for one checkpoint and a half, in a mount namespace of its own."""
    mount = tmp_path / "disk"
    mount.mkdir()
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in save(tmp_path / "measured", 1).iterdir())
    isolated = ["unshare", "--map-root-user", "--mount"]
    mounting = f"mount -t tmpfs -o size={4 * size} tmpfs {mount}"
    if shutil.which("unshare") is None or subprocess.run([*isolated, "sh", "-c", mounting], capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here: no unprivileged user namespaces")
    ballast = f"head -c {4 * size - size - size // 2} /dev/zero > {mount}/ballast"
    program = f"{mounting} && {ballast} && exec {sys.executable} -m tests.programs.fill_disk {mount}"
    result = subprocess.run([*isolated, "sh", "-c", program], cwd=repository, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert 0.3 * size < found["free_before"] < 0.7 * size
    assert (found["error"], found["recognised"]) == (errno.ENOSPC, True)
    assert found["left"] == sorted([CHECKPOINT, "ballast", "step-00000002"]), "it was writing"
    assert (found["used"], found["rejected"], found["different"]) == (1, [], [])
    assert found["left_when_clean"] == ["ballast", CHECKPOINT]
    assert (found["used_with_room"], found["left_with_room"]) == (2, ["step-00000002"])
