"""Data is rendered once a machine: a second start only opens files; any change of what rows depend on renders again; nothing half-made is
read, whatever was killed, and runs that build at the same time do no harm."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from moss_train.data.cache import Cache, is_whole
from moss_train.data.tokenizer import MossTokenizer
from moss_train.sft.config import DialogueDataConfig, LossOn, OnLong, SFTConfig
from moss_train.sft.data import open_rows, render_inputs
from moss_train.sft.inputs import find_inputs, train_tokenizer
from tests.forked import Ranks, forked
from tests.launch import losses, succeeded
from tests.small_runs import BUNDLED, arguments

# Training rows of these runs: a real build of some seconds, in worker processes.
COPIES = 4


def silent(message: str) -> None:
    """Says nothing."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of its own, so that nothing in the cache is of it."""
    path = tmp_path / "dialogues.jsonl"
    shutil.copy(BUNDLED, path)
    return path


def fingerprint(config: DialogueDataConfig, vocabulary: int = 600) -> tuple[str, int]:
    """Of the rows of a configuration, and how many entries of documents the cache then has."""
    whole = SFTConfig(data=config)
    inputs = find_inputs(config)
    tokenizer = MossTokenizer.load(train_tokenizer(config, inputs, vocabulary, silent))
    rows = open_rows(whole, inputs, render_inputs(whole, inputs, tokenizer, silent), tokenizer, silent)
    return rows.fingerprint, len([path for path in Path(config.cache or "").glob("documents-*") if path.is_dir()])


def test_what_rows_depend_on_renders_again_and_nothing_else_does(data: Path, tmp_path: Path) -> None:
    base = DialogueDataConfig(train=f"{data}", cache=str(tmp_path / "cache"), seq_len=512, holdout=0.1)
    first, entries = fingerprint(base)
    assert entries == 1
    assert fingerprint(base) == (first, 1), "a second start"
    moved = tmp_path / "elsewhere" / "same.jsonl"
    moved.parent.mkdir()
    shutil.copy(data, moved)
    assert fingerprint(replace(base, train=[str(moved)])) == (first, 1), "the same content at another place"
    changes = [
        replace(base, loss_on=LossOn.release),
        replace(base, seq_len=256),
        replace(base, on_long=OnLong.drop, seq_len=256),
        replace(base, train=f"{data}#100"),
        replace(base, train=f"{data}#101"),
        replace(base, switch_off=0.5),
    ]
    seen = {first}
    for number, changed in enumerate(changes):
        found, entries = fingerprint(changed)
        assert found not in seen
        assert entries == 2 + number
        seen.add(found)
    found, entries = fingerprint(base, vocabulary=700)
    assert found not in seen, "another tokenizer"
    assert entries == 2 + len(changes)
    content = data.read_bytes()
    place = content.index(b"<eoh>") - 1
    data.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    found, entries = fingerprint(base)
    assert found not in seen, "one changed byte"
    assert entries == 3 + len(changes)


def test_a_share_kept_apart_needs_no_second_rendering(data: Path, tmp_path: Path) -> None:
    base = DialogueDataConfig(train=str(data), cache=str(tmp_path / "cache"), seq_len=512, holdout=0.1)
    first, _ = fingerprint(base)
    other, entries = fingerprint(replace(base, holdout=0.2))
    assert (other != first, entries) == (True, 1)


def large(path: Path) -> Path:
    """Some megabytes of bundled dialogues, with other ids."""
    records = [json.loads(line) for line in BUNDLED.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as out:
        for copy in range(COPIES):
            for record in records:
                out.write(json.dumps({**record, "conversation_id": f"{copy}-{record['conversation_id']}"}, ensure_ascii=False) + "\n")
    return path


def workers(mark: str) -> list[str]:
    """Processes that render for a run; tests beside this one have some too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            renders = b"moss_train.data.render_worker" in (folder / "cmdline").read_bytes()
            if renders and f"MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_a_killed_build_leaves_nothing_that_is_read_and_no_process(tmp_path: Path) -> None:
    """Two ranks are killed while workers render; the same command then builds anew, and trains on what an undisturbed run trains on."""
    data = large(tmp_path / "large.jsonl")
    line = arguments(tmp_path / "run", f"data.train={data}", f"data.cache={tmp_path / 'cache'}", "train.steps=1", "train.keep=0")
    ranks = Ranks(2, "scripts/sft.py", *line, MARK=str(tmp_path))
    until = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("documents-*/parts/*.ids")):
        assert time.monotonic() < until, ranks.output[-2000:]
        time.sleep(0.02)
    assert workers(str(tmp_path))
    ranks.kill()
    ranks.wait(30)
    assert not any(is_whole(path) for path in (tmp_path / "cache").glob("documents-*"))
    until = time.monotonic() + 30
    while workers(str(tmp_path)):
        assert time.monotonic() < until, "a worker outlives the run"
        time.sleep(0.1)
    succeeded(forked(2, "scripts/sft.py", *line))
    whole = [path for path in (tmp_path / "cache").glob("documents-*") if path.is_dir()]
    assert len(whole) == 1
    assert is_whole(whole[0])
    other = arguments(tmp_path / "other", f"data.train={data}", f"data.cache={tmp_path / 'fresh'}", "train.steps=1", "train.keep=0")
    succeeded(forked(2, "scripts/sft.py", *other))
    assert losses(tmp_path / "run") == losses(tmp_path / "other")


def test_two_runs_that_build_at_once(tmp_path: Path) -> None:
    data = large(tmp_path / "large.jsonl")
    common = (f"data.train={data}", f"data.cache={tmp_path / 'cache'}", "train.steps=1", "train.keep=0")
    runs = [Ranks(1, "scripts/sft.py", *arguments(tmp_path / name, *common)) for name in ("one", "two")]
    for run in runs:
        assert run.wait() == [0], run.output[-2000:]
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert sum("waiting for it" in run.output for run in runs) == 1
    kinds = [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert sorted(kinds) == ["documents", "plan", "tokenizer"]


def test_no_rank_waits_in_a_collective_while_another_renders(data: Path, tmp_path: Path) -> None:
    """Rendering takes longer than a collective may."""
    line = arguments(tmp_path / "run", f"data.train={data}", f"data.cache={tmp_path / 'cache'}", "train.steps=1", "train.hang_seconds=2")
    ranks = Ranks(2, "tests/programs/faulty.py", *line, FAULTS=json.dumps([{"kind": "slow_render", "seconds": 9}]))
    assert ranks.wait(120) == [0, 0], ranks.output[-3000:]


def test_no_machine_waits_in_a_collective_while_another_renders(data: Path, tmp_path: Path) -> None:
    """Each of two machines has its own cache, and one is slow."""
    line = arguments(tmp_path / "run", f"data.train={data}", "train.steps=1", "train.hang_seconds=2")
    hosts = [{"kind": "host", "rank": rank, "name": f"machine-{rank}", "cache": str(tmp_path / f"cache-{rank}")} for rank in (0, 1)]
    faults = [{"kind": "slow_render", "seconds": 9, "rank": 1}, *hosts]
    ranks = Ranks(2, "tests/programs/faulty.py", *line, FAULTS=json.dumps(faults))
    assert ranks.wait(120) == [0, 0], ranks.output[-3000:]
    assert all(list((tmp_path / f"cache-{rank}").glob("documents-*")) for rank in (0, 1))


def test_a_cache_that_cannot_be_used_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = arguments(tmp_path / "run", f"data.train={data}", f"data.cache={tmp_path / 'file'}")
    result = forked(2, "scripts/sft.py", *line)
    assert result.returncode == 2
    assert "data.cache" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_cache_is_where_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moss_train.data.cache import default_directory

    monkeypatch.setenv("MOSS_TRAIN_CACHE", str(tmp_path / "named"))
    assert Cache(default_directory()).directory == tmp_path / "named"
    monkeypatch.delenv("MOSS_TRAIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "moss_train"
    assert os.environ["XDG_CACHE_HOME"]
