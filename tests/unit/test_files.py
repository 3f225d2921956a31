"""Files that appear whole or not at all, and in which order that reaches the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from moss_train import files
from moss_train.files import FileEntry, HashedFile
from tests.checkpoints import names


def entry(content: bytes) -> FileEntry:
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("size", [0, 1, 4095, 3 * 2**20 + 1])
def test_a_file_is_what_was_written_and_is_hashed_on_the_way(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    file = HashedFile(tmp_path / "file")
    for start in range(0, size, 10**6):
        file.write(content[start : start + 10**6])
    assert file.close() == entry(content) == files.hash_file(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == content


def test_a_write_that_takes_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(10_000)
    real, sizes = files.write_piece, []

    def some(descriptor: int, piece: memoryview) -> int:
        sizes.append(len(piece))
        return real(descriptor, piece[: 1 + len(piece) // 3])

    monkeypatch.setattr(files, "write_piece", some)
    assert files.write_new(tmp_path / "file", content) == entry(content)
    assert (tmp_path / "file").read_bytes() == content
    assert len(sizes) > 10


def test_more_than_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PIECE", 1000)
    content = os.urandom(2500)
    beats = []
    assert files.write_new(tmp_path / "file", content) == entry(content)
    assert files.hash_file(tmp_path / "file", lambda: beats.append(1)) == entry(content)
    assert len(beats) == 3


def test_what_has_the_name_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_view_of_other_items_is_written_as_bytes(tmp_path: Path) -> None:
    values = memoryview(bytearray(range(16))).cast("i")
    assert files.write_new(tmp_path / "file", values) == entry(bytes(range(16)))  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", ["write_piece", "sync", "rename"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full disk", "Ctrl-C"])
def test_content_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException) -> None:
    def fail(*_: object) -> int:
        raise error

    files.replace_content(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(files, broken, fail)
        with pytest.raises(type(error)):
            files.replace_content(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"], "nothing partial is left"
    files.replace_content(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_content_replaced_by_two_threads_at_once_is_that_of_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main thread and the watchdog both write status.json; one is stopped in the middle of its write, and the other passes it."""
    real = files.write_piece
    seen = []

    def interrupted(descriptor: int, piece: memoryview) -> int:
        monkeypatch.setattr(files, "write_piece", real)
        written = real(descriptor, piece[:2])
        other = threading.Thread(target=files.replace_content, args=(tmp_path / "file", b"the other's"))
        other.start()
        other.join()
        seen.append((tmp_path / "file").read_bytes())
        return written

    monkeypatch.setattr(files, "write_piece", interrupted)
    files.replace_content(tmp_path / "file", b"the first's")
    assert seen == [b"the other's"]
    assert (tmp_path / "file").read_bytes() == b"the first's"
    assert names(tmp_path) == ["file"]


def test_content_is_on_disk_before_its_name_and_its_name_before_the_call_returns(tmp_path: Path, disk: list[str]) -> None:
    files.replace_content(tmp_path / "file", b"content")
    partial = disk[0].removeprefix("write ")
    assert partial != "file"
    assert disk == [f"write {partial}", f"sync {partial}", f"rename {partial} file", f"sync {tmp_path.name}"]


def test_a_directory_is_out_of_sight_before_a_file_of_it_is_gone(tmp_path: Path, disk: list[str]) -> None:
    folder = tmp_path / "step-00000002"
    (folder / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (folder / name).write_text(name)
    files.remove_directory(folder)
    assert names(tmp_path) == []
    verb, source, target = disk[0].split(" ")
    assert (verb, source) == ("rename", "step-00000002")
    assert target.startswith(files.TRASH_PREFIX)
    assert disk[1] == f"sync {tmp_path.name}"
    assert sorted(disk[2:]) == ["remove a", "remove b", "remove c"]


def test_trash_that_cannot_be_removed_is_left_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "step-00000002"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_text(name)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", refuse)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)
        files.remove_directory(folder)
    (trash,) = tmp_path.iterdir()
    assert trash.name.startswith(files.TRASH_PREFIX)
    files.empty_trash(trash)
    assert names(tmp_path) == []


def test_a_file_that_fails_is_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On network file systems a file that is open cannot be removed."""

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number, name in enumerate(["write_piece", "sync"]):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, fail)
            with pytest.raises(OSError, match="No space left") as caught:
                files.write_new(tmp_path / str(number), b"content")
        opened = [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in os.listdir("/proc/self/fd") if _is_open(descriptor)]
        assert str(tmp_path / str(number)) not in opened, caught


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError("a message alone"), False),
        (RuntimeError("os error 2"), False),
        (RuntimeError("os error 282)"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: BaseException, full: bool) -> None:
    assert files.is_disk_full(error) is full


LARGE = 2**20


@pytest.mark.parametrize("sizes", [(LARGE,), (100, 5 * LARGE + 77, 9, LARGE, 2 * LARGE - 1), (4096, LARGE + 4096, 1)])
@pytest.mark.parametrize("has_direct", [True, False], ids=["direct", "cached"])
def test_large_content_goes_past_the_page_cache_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], has_direct: bool
) -> None:
    real, direct = files.write_piece, []

    def write_piece(descriptor: int, piece: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            if not has_direct:
                raise OSError(errno.EINVAL, "as a file system without direct writes says it")
            assert len(piece) % 4096 == 0
            direct.append(len(piece))
        return real(descriptor, piece)

    monkeypatch.setattr(files, "write_piece", write_piece)
    pieces = [os.urandom(size) for size in sizes]
    file = HashedFile(tmp_path / "file")
    for piece in pieces:
        file.write(piece)
    assert file.close() == entry(b"".join(pieces))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    assert bool(direct) == has_direct


def test_a_direct_write_that_takes_a_part_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.write_piece
    monkeypatch.setattr(
        files, "write_piece", lambda descriptor, piece: real(descriptor, piece[: max(4096, len(piece) // 3 // 4096 * 4096)])
    )
    content = os.urandom(3 * LARGE + 5)
    assert files.write_new(tmp_path / "file", content) == entry(content)
    assert (tmp_path / "file").read_bytes() == content


def test_a_disk_that_is_full_in_a_direct_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.write_piece

    def write_piece(descriptor: int, piece: memoryview) -> int:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, piece)

    monkeypatch.setattr(files, "write_piece", write_piece)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError) as caught:
        files.write_new(tmp_path / "file", os.urandom(2 * LARGE))
    assert files.is_disk_full(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"
