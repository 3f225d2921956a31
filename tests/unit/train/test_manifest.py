"""Which checkpoints are trusted, which are kept, and what happens to the others; and the files that tensors are in."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from moss_train import files
from moss_train.errors import CheckpointError
from moss_train.files import FileEntry
from moss_train.train import manifest as manifests
from moss_train.train.manifest import FILE_NAME, DamagedError, Manifest, Verified
from moss_train.train.tensors import TensorFile, deal
from tests.checkpoints import OTHER_RUN, RUN, SHAPES, SMALL, change, differences, flip_bit, names, partial_name, save, write

MANIFEST = Manifest(RUN, 7, 84, {"identity": "a" * 64, "data": "ü\ud800"}, {"a": FileEntry(3, "b" * 64), "b": FileEntry(10**12, "c" * 64)})


def small(directory: Path, *steps: int, run_id: str = RUN) -> list[Path]:
    """Saves small checkpoints."""
    return [save(directory, step, run_id, SMALL) for step in steps]


def damage(checkpoint: Path, name: str = "model-00001.safetensors") -> None:
    """Flips the last bit of a file: a value is another, and the file opens as before."""
    flip_bit(checkpoint / name, 8 * (checkpoint / name).stat().st_size - 1)


# MANIFEST.json


def place(tmp_path: Path, content: bytes, name: str = "step-00000007") -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / FILE_NAME).write_bytes(content)
    return tmp_path / name


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert manifests.read_manifest(place(tmp_path, MANIFEST.encode())) == MANIFEST
    assert MANIFEST.total_bytes == 10**12 + 3


def test_any_changed_byte_of_a_manifest_is_refused(tmp_path: Path) -> None:
    content = MANIFEST.encode()
    chance = random.Random(0)
    for position in range(len(content)):
        for byte in {content[position] ^ 1, content[position] ^ 0x20, chance.randrange(256), ord(" ")} - {content[position]}:
            with pytest.raises(DamagedError, match=r"MANIFEST\.json is damaged: its content is not what its own hash says"):
                manifests.read_manifest(place(tmp_path, content[:position] + bytes([byte]) + content[position + 1 :]))


RECORD = json.loads(MANIFEST.encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" " + MANIFEST.encode(),
        MANIFEST.encode() + b"\n",
        MANIFEST.encode()[:-1],
        MANIFEST.encode().replace(b"\n", b"\r\n"),
        MANIFEST.encode().replace(b": 84", b":  84"),
        b"\xef\xbb\xbf" + MANIFEST.encode(),
        MANIFEST.encode().decode().encode("utf-16"),
        json.dumps(RECORD).encode(),
        json.dumps(dict(reversed(RECORD.items())), indent=1).encode() + b"\n",
        MANIFEST.encode().replace(b'"samples": 84', b'"samples": 83,\n "samples": 84'),
        b"null",
        b"[]",
        b'"sha256"',
        b"7",
        b"{}",
        b'{"sha256": null}',
        b"[" * 100_000,
        b'{"sha256": ' + b"9" * 5000 + b"}",
        b"\0" * 500,
    ],
    ids=range(20),
)
def test_another_spelling_of_a_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DamagedError, match="is damaged"):
        manifests.read_manifest(place(tmp_path, content))


def test_a_manifest_of_another_step_is_refused(tmp_path: Path) -> None:
    for name in ("step-00000008", "step-000000007"):
        with pytest.raises(DamagedError, match=rf"MANIFEST\.json is that of step 7, in a directory named {name}"):
            manifests.read_manifest(place(tmp_path, MANIFEST.encode(), name))


@pytest.mark.parametrize(("key", "value"), [("version", 2), ("format", "another program's")])
def test_a_manifest_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object) -> None:
    monkeypatch.setattr(manifests, key.upper(), value)
    content = MANIFEST.encode()
    monkeypatch.undo()
    with pytest.raises(DamagedError, match="this program reads version 1"):
        manifests.read_manifest(place(tmp_path, content))


def test_a_directory_without_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step-00000007").mkdir()
    with pytest.raises(DamagedError, match=r"MANIFEST\.json cannot be read: No such file or directory"):
        manifests.read_manifest(tmp_path / "step-00000007")


# Which checkpoint is used


def test_committed_ones_are_listed_newest_first_and_nothing_else_is(tmp_path: Path) -> None:
    assert manifests.committed(tmp_path / "absent") == []
    order = [0, 2, 10, 99_999_999, 100_000_000]
    for step in random.Random(0).sample(order, len(order)):
        (tmp_path / manifests.step_name(step)).mkdir()
    for name in (
        "step-00000003.tmp-0123456789ab",
        ".trash-step-00000003-01234567",
        "step-00000003.damaged-1",
        "step-3",
        "Step-00000003",
        "step-00000003 ",
        "step-0000000x",
        "latest",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000004").write_text("a file")
    assert manifests.committed(tmp_path) == [(step, tmp_path / manifests.step_name(step)) for step in reversed(order)]


def test_there_may_be_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert manifests.newest_usable(tmp_path / "absent") is None
    assert manifests.newest_usable(tmp_path) is None
    write(tmp_path / partial_name(1), 1, shapes=SMALL)
    assert manifests.newest_usable(tmp_path) is None


def test_the_newest_good_one_is_used_and_each_newer_one_is_named_with_all_its_faults(tmp_path: Path) -> None:
    _, good, *bad = small(tmp_path, 1, 2, 10, 20, 30, 40)
    damage(bad[0])
    (bad[0] / "config.json").unlink()
    (bad[1] / FILE_NAME).unlink()
    size = (bad[2] / "state.json").stat().st_size
    with (bad[2] / "state.json").open("ab") as file:
        file.write(b" ")
    shutil.copytree(good, bad[3], dirs_exist_ok=True)
    used = manifests.newest_usable(tmp_path)
    assert used is not None
    path, manifest, rejected = used
    assert (path, manifest.step, manifest.run_id) == (good, 2, RUN)
    assert rejected == [
        "step-00000040: MANIFEST.json is that of step 2, in a directory named step-00000040",
        f"step-00000030: state.json has {size + 1:,} bytes, not {size:,}",
        "step-00000020: MANIFEST.json cannot be read: No such file or directory",
        "step-00000010: config.json cannot be read: No such file or directory; "
        "model-00001.safetensors is damaged: its sha256 is not the one in the manifest",
    ]


def test_a_file_replaced_by_something_else_is_refused(tmp_path: Path) -> None:
    _, path = small(tmp_path, 1, 2)
    (path / "config.json").unlink()
    (path / "config.json").mkdir()
    (path / "state.json").unlink()
    (path / "state.json").symlink_to(tmp_path / "nowhere")
    used = manifests.newest_usable(tmp_path)
    assert used is not None
    assert used[1].step == 1
    assert "config.json" in used[2][0]
    assert "state.json cannot be read" in used[2][0]


def test_when_none_can_be_used_each_is_named_with_its_reason(tmp_path: Path) -> None:
    one, two = small(tmp_path, 1, 2)
    damage(one)
    (two / FILE_NAME).unlink()
    with pytest.raises(CheckpointError) as caught:
        manifests.newest_usable(tmp_path)
    assert caught.value.exit_code == 4
    lines = str(caught.value).splitlines()
    assert lines[0] == f"none of the checkpoints in {tmp_path} can be used:"
    assert lines[1].startswith("  - step-00000002: MANIFEST.json cannot be read")
    assert lines[2].startswith("  - step-00000001: model-00001.safetensors is damaged")
    assert "run.resume=never" in lines[3]


def test_a_file_that_cannot_be_read_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that reports an error is a reason to go back, not to end."""
    real = files.hash_file
    small(tmp_path, 1, 2)

    def broken(path: Path, progress: Callable[[], None] | None = None) -> FileEntry:
        if path.parts[-2:] == ("step-00000002", "optimizer-00002.safetensors"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, progress)

    monkeypatch.setattr(files, "hash_file", broken)
    used = manifests.newest_usable(tmp_path)
    assert used is not None
    assert used[1].step == 1
    assert used[2] == ["step-00000002: optimizer-00002.safetensors cannot be read: Input/output error"]


# Committing


def test_a_committed_checkpoint_is_whole_and_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    manifest = manifests.verify(path)
    assert path == tmp_path / "step-00000005"
    assert names(tmp_path) == ["step-00000005"]
    assert set(names(path)) == {FILE_NAME, *manifest.files}
    assert differences(path, 5) == []


def test_everything_is_on_disk_before_the_name_is_given_and_the_name_before_commit_returns(tmp_path: Path, disk: list[str]) -> None:
    """What a power cut may undo is what was not synced; the order of the calls decides it."""
    save(tmp_path, 5)
    named = next(place for place, line in enumerate(disk) if line.startswith("rename "))
    partial = disk[named].split(" ")[1]
    assert disk[named] == f"rename {partial} step-00000005"
    for name in names(tmp_path / "step-00000005"):
        last_write = max(place for place, line in enumerate(disk) if line == f"write {name}")
        synced = disk.index(f"sync {name}")
        assert last_write < synced < disk.index(f"sync {partial}") < named, name
    assert disk[named + 1 :] == [f"sync {tmp_path.name}"]


def test_a_damaged_directory_of_the_same_step_is_moved_aside(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (path,) = small(tmp_path, 5)
        assert names(tmp_path) == ["step-00000005", *(f"step-00000005.damaged-{before}" for before in range(1, number))]
        damage(path, "state.json")
    (tmp_path / "step-00000005").rename(tmp_path / "elsewhere")
    (tmp_path / "step-00000005").write_text("not even a directory")
    (path,) = small(tmp_path, 5)
    assert manifests.verify(path).step == 5
    assert (tmp_path / "step-00000005.damaged-3").read_text() == "not even a directory"


def test_a_good_checkpoint_of_this_run_stays(tmp_path: Path) -> None:
    (path,) = small(tmp_path, 5)
    before = {name: (path / name).stat().st_ino for name in names(path)}
    assert small(tmp_path, 5) == [path]
    assert {name: (path / name).stat().st_ino for name in names(path)} == before
    assert names(tmp_path) == ["step-00000005"], "the new one is dropped"


def test_a_good_checkpoint_of_another_run_is_not_taken_away(tmp_path: Path) -> None:
    (path,) = small(tmp_path, 5, run_id=OTHER_RUN)
    with pytest.raises(CheckpointError, match=r"step-00000005 is a checkpoint of another run; name another run\.dir") as caught:
        small(tmp_path, 5)
    assert caught.value.exit_code == 4
    assert manifests.verify(path).run_id == OTHER_RUN
    manifests.clean(tmp_path)
    assert names(tmp_path) == ["step-00000005"]


@pytest.mark.parametrize("broken", ["write_piece", "sync", "rename"])
def test_what_the_disk_refuses_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    partial = tmp_path / partial_name(5)
    manifest = write(partial, 5, shapes=SMALL)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, broken, fail)
        with pytest.raises(OSError, match="Input/output error"):
            manifests.commit(partial, manifest)
    assert manifests.newest_usable(tmp_path) is None


def test_a_name_that_may_not_be_on_disk_yet_is_an_error_but_the_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path, 4)
    partial = tmp_path / partial_name(5)
    manifest = write(partial, 5, shapes=SMALL)
    real = files.sync_directory

    def fail_above(directory: Path) -> None:
        if directory == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        real(directory)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync_directory", fail_above)
        with pytest.raises(OSError, match="Input/output error"):
            manifests.commit(partial, manifest)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    assert manifests.verify(tmp_path / "step-00000005") == manifest


# Cleaning


def test_cleaning_removes_what_was_not_finished_and_nothing_else(tmp_path: Path) -> None:
    manifests.clean(tmp_path / "absent")
    good, damaged = small(tmp_path, 5, 6)
    damage(damaged)
    write(tmp_path / "step-00000007.tmp-0123456789ab", 7, shapes=SMALL)
    (tmp_path / "step-00000008.tmp-f").mkdir()
    (tmp_path / ".trash-step-00000001-01234567" / "inner").mkdir(parents=True)
    (tmp_path / ".trash-step-00000001-01234567" / "inner" / "file").write_text("x")
    stay = ["notes.txt", "step-00000005.damaged-1", "step-00000009.tmp", "step-00000009.tmp-copy", "mine.tmp-0123"]
    for name in stay[1:]:
        (tmp_path / name).mkdir()
    (tmp_path / "notes.txt").write_text("a user's")
    manifests.clean(tmp_path)
    assert names(tmp_path) == sorted([good.name, damaged.name, *stay])


# Rotating


def rotate(directory: Path, keep: int = 2, verified: Verified | None = None) -> list[str]:
    return manifests.rotate(directory, keep, RUN, verified or Verified())


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    small(tmp_path, 1, 2, 3, 4, 5)
    assert rotate(tmp_path, keep) == []
    assert names(tmp_path) == [f"step-0000000{step}" for step in range(1, 6)][-keep:]


def test_damaged_ones_do_not_count_and_are_left_and_named(tmp_path: Path) -> None:
    paths = small(tmp_path, 1, 2, 3, 4, 5, 6)
    damage(paths[5])
    damage(paths[3], FILE_NAME)
    damage(paths[0])
    lines = rotate(tmp_path, 2)
    # 1 and 2 are older than what is kept, and go unread.
    assert names(tmp_path) == [f"step-0000000{step}" for step in (3, 4, 5, 6)]
    assert [line.split(":")[0] for line in lines] == ["step-00000006", "step-00000004"]
    assert lines[1].endswith("MANIFEST.json is damaged: its content is not what its own hash says")


def test_checkpoints_of_another_run_neither_count_nor_go(tmp_path: Path) -> None:
    small(tmp_path, 1, 4, 7, run_id=OTHER_RUN)
    small(tmp_path, 2, 3, 5, 6)
    assert rotate(tmp_path, 2) == []
    assert names(tmp_path) == [f"step-0000000{step}" for step in (1, 4, 5, 6, 7)]


def test_good_ones_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, 1, 2)
    (third,) = small(tmp_path, 3)
    read: list[Path] = []
    real = files.hash_file

    def hash_file(path: Path, progress: Callable[[], None] | None = None) -> FileEntry:
        read.append(path.parent)
        return real(path, progress)

    monkeypatch.setattr(files, "hash_file", hash_file)
    verified = Verified()
    verified.remember(third, manifests.read_manifest(third))
    rotate(tmp_path, 9, verified)
    assert {path.name for path in read} == {"step-00000001", "step-00000002"}, "the third was remembered"
    read.clear()
    rotate(tmp_path, 9, verified)
    assert read == []


def test_damaged_ones_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, damaged, _ = small(tmp_path, 1, 2, 3)
    damage(damaged)
    verified = Verified()
    lines = rotate(tmp_path, 2, verified)
    assert len(lines) == 1
    with monkeypatch.context() as patch:
        patch.setattr(files, "hash_file", lambda *_: pytest.fail("read again"))
        assert rotate(tmp_path, 2, verified) == lines
    damage(damaged)
    assert rotate(tmp_path, 9, verified) == [], "the same bit again: it is good, and that is seen"


@pytest.mark.parametrize("name", ["optimizer-00002.safetensors", "state.json", FILE_NAME])
@pytest.mark.parametrize("way", ["in place", "in place, its time set back", "replaced", "removed"])
def test_a_file_that_changed_after_it_was_found_good_is_seen(tmp_path: Path, name: str, way: str) -> None:
    paths = small(tmp_path, 1, 2, 3)
    verified = Verified()
    assert rotate(tmp_path, 3, verified) == []
    path = paths[2] / name
    content, times = path.read_bytes(), path.stat()
    changed = content[:-2] + bytes([content[-2] ^ 4]) + content[-1:]
    if way == "removed":
        path.unlink()
    elif way == "replaced":
        (tmp_path / "new").write_bytes(changed)
        (tmp_path / "new").rename(path)
    else:
        change(path, lambda: path.write_bytes(changed))
    if way == "in place, its time set back":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.stat().st_mtime_ns == times.st_mtime_ns
    (line,) = rotate(tmp_path, 2, verified)
    assert line.startswith(f"step-00000003: {name} ")
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"], "the damaged one does not stand for a good one"


def test_a_removal_that_is_refused_leaves_the_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, *_ = small(tmp_path, 1, 2, 3)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files, "rename", refuse)
    with pytest.raises(PermissionError):
        rotate(tmp_path, 2)
    assert manifests.verify(oldest).step == 1


def test_rotation_takes_the_name_away_first(tmp_path: Path, disk: list[str]) -> None:
    small(tmp_path, 1, 2, 3)
    del disk[:]
    rotate(tmp_path, 2)
    assert disk[0].startswith("rename step-00000001 .trash-step-00000001-")
    assert disk[1] == f"sync {tmp_path.name}"
    assert {line.split(" ")[0] for line in disk[2:]} == {"remove"}


def test_another_manifest_in_the_same_place_is_another_checkpoint(tmp_path: Path) -> None:
    """Found good once does not mean that what is now under the name is good."""
    old, new = small(tmp_path, 1, 2)
    verified = Verified()
    rotate(tmp_path, 2, verified)
    content = replace(manifests.read_manifest(new), samples=1).encode()
    change(new / FILE_NAME, lambda: (new / FILE_NAME).write_bytes(content))
    assert verified.check(new).samples == 1
    shutil.rmtree(new)
    shutil.copytree(old, new)
    with pytest.raises(DamagedError):
        verified.check(new)


# The files that tensors are in

TENSORS = {
    "matrix": torch.randn(5, 7),
    "vector": torch.randn(3),
    "one": torch.randn(1),
    "cube": torch.randn(2, 3, 5),
    "none": torch.randn(0),
    "scalar": torch.randn(()),
    "odd": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45]),
    "Größe": torch.randn(11, 1),
}


def test_a_tensor_file_is_one_that_safetensors_reads(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "file", {name: tuple(tensor.shape) for name, tensor in TENSORS.items()})
    for name, tensor in TENSORS.items():
        assert not file.complete
        file.add(name, tensor)
    assert file.complete
    assert file.close() == files.hash_file(tmp_path / "file")
    with safe_open(tmp_path / "file", framework="pt") as opened:
        assert set(opened.keys()) == set(TENSORS)
        assert opened.metadata() == {"format": "pt"}
        for name, tensor in TENSORS.items():
            read = opened.get_tensor(name)
            assert read.dtype == torch.float32
            assert read.shape == tensor.shape
            assert torch.equal(read.view(torch.int32), tensor.view(torch.int32)), name


@given(shapes=st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=6), padding=st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_tensor_files_of_any_shapes_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, ...]], padding: int
) -> None:
    tensors = {f"{'x' * padding}{number}": torch.randn(shape) for number, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("file") / "file"
    file = TensorFile(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        file.add(name, tensor)
    file.close()
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0, "tensors begin where a processor likes them"
    with safe_open(path, framework="pt") as opened:
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_tensors_that_lie_otherwise_in_memory_are_written_by_value(tmp_path: Path) -> None:
    values = torch.arange(24, dtype=torch.float32).view(4, 6)
    tensors = {
        "transposed": values.t(),
        "strided": values[:, ::2],
        "bfloat16": values.to(torch.bfloat16),
        "with gradient": values.clone().requires_grad_(),
    }
    file = TensorFile(tmp_path / "file", {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        file.add(name, tensor)
    file.close()
    with safe_open(tmp_path / "file", framework="pt") as opened:
        assert all(torch.equal(opened.get_tensor(name), tensor.detach().float()) for name, tensor in tensors.items())


def test_tensors_come_in_order_and_in_shape(tmp_path: Path) -> None:
    for name, tensor in (("b", torch.zeros(2)), ("a", torch.zeros(3))):
        file = TensorFile(tmp_path / name, {"a": (2,), "b": (2,)})
        with pytest.raises(RuntimeError, match="the next tensor is a"):
            file.add(name, tensor)
        file.abandon()


def test_a_tensor_file_that_cannot_be_begun_is_not_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abandoned = []
    monkeypatch.setattr(files.HashedFile, "abandon", lambda self: abandoned.append(self))

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_piece", fail)
    with pytest.raises(OSError, match="No space left"):
        TensorFile(tmp_path / "file", {"a": (2,)})
    assert len(abandoned) == 1


PARAMETERS = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.lists(st.integers(1, 60), min_size=1, max_size=2).map(tuple), min_size=1
)


@given(shapes=PARAMETERS, ranks=st.integers(1, 5), limit=st.integers(1, 4000))
@settings(max_examples=200, deadline=None)
def test_every_parameter_is_dealt_to_one_file_and_bytes_are_balanced(shapes: dict[str, tuple[int, ...]], ranks: int, limit: int) -> None:
    plan = deal(shapes, ranks, limit)
    assert sorted(name for _, held in plan for name in held) == sorted(shapes)
    assert all(0 <= rank < ranks and held for rank, held in plan)
    sizes = {name: 4 * math.prod(shape) for name, shape in shapes.items()}
    loads = [sum(sizes[name] for rank, held in plan if rank == number for name in held) for number in range(ranks)]
    assert max(loads) - min(loads) <= max(sizes.values())
    for _, held in plan:
        assert len(held) == 1 or sum(sizes[name] for name in held) <= limit, "a file is too large only if one parameter is"
    for _, held in plan:
        order = [list(shapes).index(name) for name in held]
        assert order == sorted(order), "in a file, parameters lie in the order in which they are gathered"


def test_a_real_models_bytes_are_dealt_evenly() -> None:
    total = 4 * sum(math.prod(shape) for shape in SHAPES.values())
    layers = {f"{layer}.{name}": shape for layer in range(34) for name, shape in SHAPES.items()}
    for ranks in range(1, 6):
        plan = deal(layers, ranks)
        loads = [0] * ranks
        for rank, held in plan:
            loads[rank] += sum(4 * math.prod(layers[name]) for name in held)
        assert sum(loads) == 34 * total
        assert max(loads) <= 1.02 * 34 * total / ranks
