"""A search engine over a corpus of one's own, for the protocol of `search.py`; reachable from this machine only.

    python scripts/search_server.py corpus.jsonl notes.txt --port 8123

It is what a chat can search without a service elsewhere, and what the tests search.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moss_train.data.strict_json import JsonProblem, parse_json
from moss_train.errors import MossTrainError, UsageError
from moss_train.inference.tools.bm25 import Index, read_corpus
from moss_train.inference.tools.search import MAX_QUERY

HOST = "127.0.0.1"
_MAX_BODY = 64 * 1024
_MAX_COUNT = 20


class SearchServer(ThreadingHTTPServer):
    """Answers searches in an index.

    Args:
        index: What is searched.
        port: 0 takes any that is free.
    """

    daemon_threads = True

    def __init__(self, index: Index, port: int = 0):
        super().__init__((HOST, port), _Handler)
        self.index = index

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_address[1]}/search"


class _Handler(BaseHTTPRequestHandler):
    server: SearchServer
    timeout = 10

    def do_POST(self) -> None:
        try:
            size = int(self.headers.get("Content-Length", "0"))
            if not 0 < size <= _MAX_BODY:
                raise ValueError(f"a body of 1 to {_MAX_BODY} bytes is expected")
            query, count = read_request(self.rfile.read(size))
        except (JsonProblem, ValueError) as error:
            self._answer(400, {"error": str(error)})
            return
        self._answer(200, {"results": [passage._asdict() for passage in self.server.index.search(query, count)]})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value, ensure_ascii=False).encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Queries are nobody's business."""


def read_request(body: bytes) -> tuple[str, int]:
    """Query and number of results of a request.

    Raises:
        ValueError: It is not in the protocol.
    """
    request = parse_json(body.decode())
    query, count = (request.get("query"), request.get("count", 3)) if isinstance(request, dict) else (None, None)
    if not isinstance(query, str) or len(query) > MAX_QUERY or type(count) is not int or not 1 <= count <= _MAX_COUNT:
        raise ValueError(f'{{"query": "...", "count": 1 to {_MAX_COUNT}}} is expected, the query with up to {MAX_QUERY} characters')
    return query, count


@contextmanager
def serving(index: Index, port: int = 0) -> Iterator[SearchServer]:
    """A server that runs in the background until the block ends."""
    with SearchServer(index, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is stopped; returns the exit code."""
    parser = argparse.ArgumentParser(prog="search_server", description="Search in a corpus over HTTP, from this machine only.")
    parser.add_argument("corpus", nargs="+", type=Path, help="records with `text` and `title` (JSONL, Parquet, ...), or .txt and .md files")
    parser.add_argument("--port", type=int, default=8123)
    arguments = parser.parse_args(argv)
    try:
        index = read_corpus(arguments.corpus)
        try:
            server = SearchServer(index, arguments.port)
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot listen on port {arguments.port}: {error}; choose another with --port") from None
    except MossTrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    with server:
        print(f"{len(index.passages)} passages at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped by Ctrl-C", file=sys.stderr)
    return 0
