"""The cache: entries are whole or absent, made once, and made again when they are damaged; hashes are remembered, not believed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moss_train import files
from moss_train.data.cache import ENTRY, Cache, is_whole, key_of, read_entry
from moss_train.data.fingerprint import hash_inputs
from moss_train.errors import DataError, DiskFullError, UsageError

KEY = key_of("made", 1)


def silent(message: str) -> None:
    """Says nothing."""


class Maker:
    """Makes an entry, and counts how often."""

    def __init__(self, text: str = "content"):
        self.text, self.calls = text, 0

    def __call__(self, out: Path) -> dict[str, Any]:
        self.calls += 1
        (out / "data").write_text(self.text)
        return {"note": "ü"}


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    cache, make = Cache(tmp_path / "deep" / "cache"), Maker()
    assert cache.find("kind", KEY) is None
    first, made = cache.get("kind", KEY, make, silent)
    assert made
    assert cache.get("kind", KEY, make, silent) == (first, False)
    assert make.calls == 1
    assert read_entry(first)["note"] == "ü"
    assert cache.get("kind", key_of("made", 2), make, silent)[0] != first
    assert make.calls == 2


def test_what_seals_an_entry_sees_all_of_it_and_is_not_needed(tmp_path: Path) -> None:
    cache, seen = Cache(tmp_path), []

    def seal(out: Path) -> None:
        seen.append(sorted(path.name for path in out.iterdir()))
        (out / "sealed").write_text("")

    entry, _ = cache.get("kind", KEY, Maker(), silent, seal)
    assert seen == [[ENTRY, "data"]]
    (entry / "sealed").unlink()
    assert cache.get("kind", KEY, Maker(), silent, seal) == (entry, False)


def damage_nothing_left(entry: Path) -> None:
    (entry / "data").unlink()


def damage_cut(entry: Path) -> None:
    (entry / "data").write_text("conten")


def damage_no_record(entry: Path) -> None:
    (entry / ENTRY).unlink()


def damage_half_record(entry: Path) -> None:
    (entry / ENTRY).write_text((entry / ENTRY).read_text()[:20])


@pytest.mark.parametrize("damage", [damage_nothing_left, damage_cut, damage_no_record, damage_half_record])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: Any) -> None:
    cache, make, said = Cache(tmp_path), Maker(), []
    entry, _ = cache.get("kind", KEY, make, silent)
    damage(entry)
    assert cache.find("kind", KEY) is None
    assert cache.get("kind", KEY, make, said.append) == (entry, True)
    assert is_whole(entry)
    assert "incomplete" in said[0]


@pytest.mark.parametrize("call", ["sync_file", "write_new", "rename"])
def test_what_fails_half_way_is_never_read(tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache, make = Cache(tmp_path), Maker()
    with monkeypatch.context() as patch:
        patch.setattr(files, call, full)
        with pytest.raises(DiskFullError, match="data cache"):
            cache.get("kind", KEY, make, silent)
    assert cache.find("kind", KEY) is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{cache.path('kind', KEY).name}.lock"]
    assert cache.get("kind", KEY, make, silent)[1]


def test_what_a_killed_process_left_is_not_read_and_is_cleared(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from moss_train.data.cache import Cache\n"
        "def make(out):\n (out / 'data').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"Cache(Path(sys.argv[1])).get('kind', {KEY!r}, make, print)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    cache = Cache(tmp_path)
    assert any(".tmp-" in path.name for path in tmp_path.iterdir())
    assert cache.find("kind", KEY) is None
    entry, made = cache.get("kind", KEY, Maker(), silent)
    assert made
    assert (entry / "data").read_text() == "content"
    assert not any(".tmp-" in path.name for path in tmp_path.iterdir())


def test_two_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    calls, said, results = [], [], []

    def make(out: Path) -> dict[str, Any]:
        calls.append(out)
        time.sleep(0.5)
        (out / "data").write_text("content")
        return {}

    def want() -> None:
        results.append(Cache(tmp_path).get("kind", KEY, make, said.append))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert {path for path, _ in results} == {Cache(tmp_path).path("kind", KEY)}
    assert sum(made for _, made in results) == 1
    assert any("waiting" in message for message in said)


def test_without_locks_the_first_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "try_lock", lambda descriptor: True)

    def make(out: Path) -> dict[str, Any]:
        if not cache.path("kind", KEY).exists():
            Cache(tmp_path)._make(cache.path("kind", KEY), Maker("other"), None)
        return Maker("mine")(out)

    cache = Cache(tmp_path)
    entry, _ = cache.get("kind", KEY, make, silent)
    assert (entry / "data").read_text() == "other"
    assert not any(".tmp-" in path.name for path in tmp_path.iterdir())


def test_without_locks_only_what_is_idle_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "has_locks", lambda descriptor: False)
    cache = Cache(tmp_path)
    path = cache.path("kind", KEY)
    busy, dead = (path.with_name(f"{path.name}.tmp-{name}") for name in ("busy", "dead"))
    for directory in (busy, dead):
        directory.mkdir()
        (directory / "data").write_text("half")
    for old in (dead / "data", dead):
        os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.get("kind", KEY, Maker(), silent)
    assert (busy / "data").read_text() == "half"
    assert not dead.exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"data\.cache"):
        Cache(tmp_path / "file" / "cache")


def test_hashes_are_read_again_after_any_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moss_train.data.fingerprint._SETTLED_NANOSECONDS", 0)
    cache, path, reads = Cache(tmp_path / "cache"), tmp_path / "a", []
    path.write_text("one")
    real = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda *arguments: reads.append(arguments[0]) or real(*arguments))
    time.sleep(0.05)
    (first,) = hash_inputs([path], cache)
    assert hash_inputs([path], cache) == [first]
    assert len(reads) == 1, "remembered"
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (second,) = hash_inputs([path], cache)
    assert second != first, "the same size and time of writing, but another content"
    assert len(reads) == 2


def test_a_file_changed_a_moment_ago_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, path, reads = Cache(tmp_path / "cache"), tmp_path / "a", []
    path.write_text("one")
    real = files.hash_file
    monkeypatch.setattr(files, "hash_file", lambda *arguments: reads.append(arguments[0]) or real(*arguments))
    hash_inputs([path], cache)
    hash_inputs([path], cache)
    assert len(reads) == 2


def test_a_file_that_is_gone_or_being_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    with pytest.raises(DataError, match=str(path)):
        hash_inputs([path], Cache(tmp_path / "cache"))
    path.write_text("one")
    real = files.hash_file

    def grow(*arguments: Any) -> Any:
        found = real(*arguments)
        path.write_text("one and more")
        return found

    monkeypatch.setattr(files, "hash_file", grow)
    with pytest.raises(DataError, match="changes while it is read"):
        hash_inputs([path], Cache(tmp_path / "cache"))
