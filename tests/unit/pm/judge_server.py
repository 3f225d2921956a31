"""A judge on the loopback: an OpenAI-compatible endpoint that behaves as a test wants."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behave = Callable[[str, int], tuple[int, str]]
"""(prompt, number of the request) -> status, and what the model says."""


class Server(ThreadingHTTPServer):
    """Attributes: requests: Bodies, in order. keys: Values of the header Authorization. retry_after: What failures say."""

    daemon_threads = True

    def __init__(self, behave: Behave):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave = behave
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.retry_after: str | None = None

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.keys.append(self.headers["Authorization"])
            number = len(self.server.requests)
        status, text = self.server.behave(body["messages"][0]["content"], number)
        if self.path != "/v1/chat/completions":
            status = 404
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status != 200 and self.server.retry_after is not None:
            self.send_header("Retry-After", self.server.retry_after)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(behave: Behave) -> Iterator[Server]:
    """The server, for as long as the context lasts."""
    server = Server(behave)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answers(prompt: str) -> tuple[str, str]:
    """Answers A and B of a prompt."""
    found = re.search(r"\[Answer A\]\n(.*)\n\[The end of answer A\].*\[Answer B\]\n(.*)\n\[The end of answer B\]", prompt, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def prefers_first(prompt: str, number: int) -> tuple[int, str]:
    """Whatever stands first."""
    return 200, "The first. [[A]]"


def prefers_longer(prompt: str, number: int) -> tuple[int, str]:
    """By content."""
    first, second = map(len, answers(prompt))
    return 200, f"Reasons [[B]]? No: [[{'A' if first > second else 'B' if second > first else 'C'}]]"
