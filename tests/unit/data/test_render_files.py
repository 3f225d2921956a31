"""Files to rendered documents: however they are divided over processes, the documents of the files in their order."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_train.data import render_files, render_worker
from moss_train.data.cache import Cache
from moss_train.data.dialogue import read_dialogues
from moss_train.data.documents import JoinedDocuments, MemoryDocuments, StoredDocuments, id_type
from moss_train.data.records import split_file
from moss_train.data.render import Rendered, render_all
from moss_train.data.render_worker import RenderSettings, Report
from moss_train.data.tokenizer import MossTokenizer
from moss_train.errors import DataError, OutOfMemoryError

SETTINGS = RenderSettings(max_tokens=256)


def record(number: int, turns: int = 2) -> dict[str, Any]:
    """A plain dialogue."""
    turn = {"Human": f"<|Human|>: How many people live in {number}?<eoh>\n", "MOSS": f"<|MOSS|>: {number} 个。\u2028yes<eom>\n"}
    return {"conversation_id": number, "meta_instruction": "You are MOSS.\n", "chat": {f"turn_{n + 1}": turn for n in range(turns)}}


def write(path: Path, records: list[Any], blank_every: int = 7) -> Path:
    """JSONL, with blank lines between."""
    lines = [json.dumps(value, ensure_ascii=False) + "\n" + ("\n" if n % blank_every == 0 else "") for n, value in enumerate(records)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def render(
    paths: list[Path], tokenizer: MossTokenizer, folder: Path, limit: int | None = None, settings: RenderSettings = SETTINGS
) -> tuple[StoredDocuments, Report]:
    """The documents of files, through the cache."""
    said: list[str] = []

    def make(out: Path) -> dict[str, Any]:
        return render_files.render_files(paths, limit, settings, tokenizer, out, said.append, "data")

    entry, _ = Cache(folder).get("documents", "0" * 64, make, said.append)
    stored = StoredDocuments(entry, [str(path) for path in paths])
    return stored, Report.from_json(stored.record["report"])


def expected(paths: list[Path], tokenizer: MossTokenizer) -> tuple[list[Rendered], Counter[str]]:
    """The same, in this process and at once."""
    dialogues, _ = read_dialogues([str(path) for path in paths], on_bad="skip", max_bad_share=1.0)
    return render_all(dialogues, tokenizer, max_tokens=256)


def same(stored: StoredDocuments, rendered: list[Rendered]) -> None:
    """The documents, marks and origins are those."""
    assert len(stored.lengths) == len(rendered)
    for number, document in enumerate(rendered):
        ids, marks = stored.read(number)
        assert ids.tolist() == document.input_ids
        assert marks.tolist() == document.loss_mask
        assert stored.origin(number) == document.origin
        assert stored.supervised[number] == document.supervised_tokens
    assert stored.digest == MemoryDocuments(rendered).digest


@pytest.fixture
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few records, and worker processes for the smallest file."""
    monkeypatch.setattr(render_files, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(render_files, "_WORTH_A_PROCESS", 0)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Plain and packed files; one dialogue too long, some records bad."""
    bad: list[Any] = [{"chat": {}}, [1], record(1)]
    packed = tmp_path / "c.jsonl.gz"
    packed.write_bytes(gzip.compress("".join(json.dumps(record(n)) + "\n" for n in range(20)).encode()))
    return [
        write(tmp_path / "a.jsonl", [record(n, turns=1 + n % 4) for n in range(50)]),
        write(tmp_path / "b.jsonl", [record(1, turns=60), *bad, *(record(n) for n in range(30))]),
        packed,
    ]


def test_in_this_process_and_in_others(
    files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered, counts = expected(files, small_tokenizer)
    here, report = render(files, small_tokenizer, tmp_path / "here")
    same(here, rendered)
    monkeypatch.setattr(render_files, "_PIECE_BYTES", 2000)
    monkeypatch.setattr(render_files, "_WORTH_A_PROCESS", 0)
    there, other = render(files, small_tokenizer, tmp_path / "there")
    same(there, rendered)
    assert report == other
    assert report.counts == counts
    assert (report.records, report.readable, report.documents, report.bad) == (104, 104, len(rendered), 2)
    assert report.problems == {"no_chat": 1, "not_an_object": 1}
    assert report.metas == {"You are MOSS.\n": 102}
    assert (report.turns, report.middle_turns) == (counts["turns"], 0)
    assert [reject["origin"] for reject in there.rejects()] == [f"{files[1]}:3", f"{files[1]}:4"]
    assert report.describe(["a", "b", "c"]).startswith("b:3: ")
    assert [path.name for path in (tmp_path / "there").glob("documents-*/parts")] == []


def test_small_files_share_parts(small_tokenizer: MossTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_files, "_WORTH_A_PROCESS", 0)
    monkeypatch.setattr(render_files, "_LEAST_SIZE", render_files._PIECE_BYTES // 10)
    (tmp_path / "many").mkdir()
    paths = []
    for number in range(25):
        paths.append(tmp_path / "many" / f"{number:02}.json")
        paths[-1].write_text(json.dumps(record(number)) if number != 7 else "{", encoding="utf-8")
    jobs = render_files._jobs([(number, piece) for number, path in enumerate(paths) for piece in split_file(path, 2**20)])
    assert [len(job) for job in jobs] == [10, 10, 5]
    stored, report = render(paths, small_tokenizer, tmp_path / "cache")
    same(stored, expected(paths, small_tokenizer)[0])
    assert report.records == 25
    assert report.documents == 24
    assert report.shown[0]["file"] == 7


@pytest.mark.usefixtures("many_pieces")
@pytest.mark.parametrize("limit", [1, 49, 50, 51, 53, 104, 1000])
def test_a_limit_counts_records_from_the_front(files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path, limit: int) -> None:
    stored, report = render(files, small_tokenizer, tmp_path / "cache", limit)
    assert report.readable == min(limit, 104)
    rendered, _ = expected(files, small_tokenizer)
    same(stored, rendered[: len(stored.lengths)])
    assert len(stored.lengths) == report.documents == report.readable - report.bad


@pytest.mark.usefixtures("many_pieces")
def test_a_worker_that_is_killed_ends_the_rendering(
    files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = render_files._Worker.render

    def kill(self: Any, *arguments: Any) -> Report:
        os.kill(self._process.pid, signal.SIGKILL)
        return real(self, *arguments)

    monkeypatch.setattr(render_files._Worker, "render", kill)
    with pytest.raises(OutOfMemoryError, match=r"ended with -9 at .*a\.jsonl"):
        render(files, small_tokenizer, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"], "nothing is left"


@pytest.mark.usefixtures("many_pieces")
def test_an_error_of_a_worker_is_told_as_in_this_process(files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises((DataError, OSError), match="directory"):
        render([*files, tmp_path / "d.jsonl"], small_tokenizer, tmp_path / "cache")


def test_a_file_that_changes_meanwhile_is_refused(
    files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = render_worker.render_each

    def append(*arguments: Any) -> Any:
        yield from real(*arguments)
        with files[0].open("a") as file:
            file.write("\n")

    monkeypatch.setattr(render_worker, "render_each", append)
    with pytest.raises(DataError, match=r"a\.jsonl was changed while it was read"):
        render(files, small_tokenizer, tmp_path / "cache")


def test_settings_reach_the_renderer(files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    base, _ = render(files, small_tokenizer, tmp_path / "base")
    reply, _ = render(files, small_tokenizer, tmp_path / "release", settings=replace(SETTINGS, loss_on="release"))
    assert base.digest != reply.digest
    _, dropped = render(files, small_tokenizer, tmp_path / "drop", settings=replace(SETTINGS, on_long="drop"))
    assert dropped.counts["dialogues_dropped_too_long"] == 1
    _, refused = render(files, small_tokenizer, tmp_path / "error", settings=replace(SETTINGS, on_long="error"))
    assert refused.problems["too_long"] == 1
    assert ("too_long", 1, 1) in [(one["code"], one["file"], one["line"]) for one in refused.shown]


def test_documents_side_by_side(files: list[Path], small_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    first, _ = render(files[:1], small_tokenizer, tmp_path / "one")
    second, _ = render(files[2:], small_tokenizer, tmp_path / "two")
    joined = JoinedDocuments([first, second])
    count = len(first.lengths)
    assert joined.lengths.tolist() == [*first.lengths, *second.lengths]
    for number, (part, inside) in ((0, (first, 0)), (count - 1, (first, count - 1)), (count, (second, 0)), (count + 5, (second, 5))):
        assert joined.read(number)[0].tolist() == part.read(inside)[0].tolist()
        assert joined.origin(number) == part.origin(inside)
    assert joined.digest not in (first.digest, second.digest)
    assert JoinedDocuments([first]).digest == first.digest


def test_large_vocabularies_take_four_bytes_an_id() -> None:
    assert id_type(65536) == np.dtype("<u2")
    assert id_type(65537) == np.dtype("<u4")


def test_the_version_is_raised_with_what_records_become(small_tokenizer: MossTokenizer, tmp_path: Path) -> None:
    """Caches are named by it: where these ids or marks change, `render_files.VERSION` must be raised, and the digest here replaced."""
    records = [record(1), record(2, turns=9)]
    records[0]["chat"]["turn_1"] |= {
        "Inner Thoughts": "<|Inner Thoughts|>: a <|Human|>: b<eot>\n",
        "Commands": '<|Commands|>: Calculate("1+1")<eoc>\n',
        "Tool Responses": "<|Results|>:\nCalculate(\"1+1\") => '2'\n<eor>\n",
    }
    stored, _ = render([write(tmp_path / "a.jsonl", records)], small_tokenizer, tmp_path / "cache", settings=replace(SETTINGS, seed=3))
    assert (render_files.VERSION, stored.digest) == (1, "801be35adc875086fb37bae47363d73450d10c9a7d1a423eda68d03dd9cd3fcb")
