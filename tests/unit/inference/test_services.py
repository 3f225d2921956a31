"""The local search engine, and images over HTTP."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from moss_train.config import Plugin
from moss_train.errors import DataError
from moss_train.inference.plugins import make_toolbox
from moss_train.inference.tools.bm25 import Index, read_corpus, split_passages, terms_of
from moss_train.inference.tools.failure import ToolFailure
from moss_train.inference.tools.http import Client
from moss_train.inference.tools.search import Passage, Search
from moss_train.inference.tools.search_server import main, serving
from moss_train.inference.tools.text2image import Text2Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(shade: int) -> bytes:
    """One grey pixel."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b"")


def test_terms() -> None:
    assert terms_of("The GPT-3 模型很大，好") == ["the", "gpt", "3", "模型", "型很", "很大", "好"]


def test_ranking_prefers_rare_terms_and_short_passages() -> None:
    passages = [
        Passage("the cat sat"),
        Passage("the dog sat on the mat with the other dogs of the street"),
        Passage("the dog"),
        Passage("狗在街上"),
    ]
    index = Index(passages)
    assert index.search("the dog", 2) == [passages[2], passages[1]]
    assert index.search("街上的狗", 5) == [passages[3]]
    assert index.search("zebra", 5) == []
    # A title counts too.
    assert (
        Index([Passage("It is tall.", "Eiffel Tower"), Passage("It is high.", "Mont Blanc")]).search("mont blanc", 1)[0].text
        == "It is high."
    )


def test_long_texts_become_passages_of_whole_sentences() -> None:
    text = "第一句话。第二句话！" * 30 + "\n\nAn English sentence. Another one? " * 20
    passages = list(split_passages(text, 100))
    assert max(map(len, passages)) <= 100
    assert all(passage[-1] in "。！.?" for passage in passages)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert list(split_passages("x" * 250, 100)) == ["x" * 100, "x" * 100, "x" * 50]
    assert list(split_passages(" \n\n ")) == []


def test_a_corpus_of_records_and_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "One", "text": "first record", "url": "http://a.example/"}\n{"text": "第二条"}\n')
    (tmp_path / "notes.txt").write_text("from a file", encoding="utf-8")
    index = read_corpus([tmp_path / "a.jsonl", tmp_path / "notes.txt"])
    assert list(index.passages) == [Passage("first record", "One", "http://a.example/"), Passage("第二条"), Passage("from a file", "notes")]


@pytest.mark.parametrize("content", ['{"title": "no text"}', '{"text": 3}', "[1]", "", "{"])
def test_a_wrong_corpus_is_a_data_error(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(content)
    with pytest.raises(DataError):
        read_corpus([path])
    assert main([str(path), "--port", "0"]) == 3
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"query": 3}',
        b'{"query": "a", "count": 0}',
        b'{"query": "a", "count": true}',
        b'{"query": "a", "count": 1000}',
        b"x" * 99_999,
    ],
)
def test_the_server_refuses_what_is_not_in_the_protocol(body: bytes) -> None:
    with serving(Index([Passage("a")])) as server:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(server.url, data=body), timeout=5)
        assert refused.value.code == 400
        # It goes on.
        assert Search(server.url, Client(allow=[f"127.0.0.1:{server.server_address[1]}"]))("a") == [Passage("a")]


@pytest.mark.parametrize("query", ["", " ", "x" * 501])
def test_queries_are_bounded(query: str) -> None:
    with pytest.raises(ToolFailure, match="characters"):
        Search("http://search.example/", Client())(query)


def test_the_script_serves(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "a needle in the corpus"}\n')
    command = [sys.executable, "scripts/search_server.py", str(tmp_path / "corpus.jsonl"), "--port", "0"]
    with subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            passages, _, _, url = process.stdout.readline().split()
            found = Search(url, Client(allow=[url.split("/")[2]]))("needle")
        finally:
            process.terminate()
    assert (passages, found) == ("1", [Passage("a needle in the corpus")])


@pytest.fixture
def painter() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers with `state["answer"]`, and keeps the last request."""
    state: dict[str, Any] = {"answer": png(7)}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state["request"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(state["answer"])

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/draw", state
        server.shutdown()


def test_an_image_is_drawn_and_saved(painter: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, state = painter
    toolbox = make_toolbox(image_url=url, image_directory=tmp_path / "images", allow=[url.split("/")[2]])
    run = toolbox.run(' Text2Image("a painting of the rock")', [Plugin.text_to_image])
    assert run.results_text == " Image generated successfully."
    assert state["request"] == {"prompt": "a painting of the rock"}
    (image,) = run.images
    assert (image.parent, image.read_bytes()) == (tmp_path / "images", png(7))
    state["answer"] = png(8)
    assert toolbox.run(' Text2Image("again")', [Plugin.text_to_image]).images != run.images
    assert len(list((tmp_path / "images").iterdir())) == 2


@pytest.mark.parametrize(
    "answer", [b"", b"<svg/>", png(7)[:-1], b"\xff\xd8\xff", png(7) + b"<script>", png(7)[:8] + b"x" * 20_000 + png(7)[-12:]]
)
def test_what_is_not_an_image_is_not_saved(answer: bytes, painter: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, state = painter
    state["answer"] = answer
    draw = Text2Image(url, Client(allow=[url.split("/")[2]], max_bytes=10_000), tmp_path / "images")
    with pytest.raises(ToolFailure):
        draw("a rock")
    assert not (tmp_path / "images").exists()


def test_an_image_that_cannot_be_saved_is_no_result(painter: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    url, _ = painter
    (tmp_path / "images").write_text("a file is in the way")
    with pytest.raises(ToolFailure, match="cannot save"):
        Text2Image(url, Client(allow=[url.split("/")[2]]), tmp_path / "images")("a rock")
