"""Ports for ranks to meet at."""

from __future__ import annotations

import socket
from pathlib import Path

from moss_train import ports


def test_it_is_free_and_none_that_a_connection_is_given() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    found = [ports.free_port() for _ in range(50)]
    assert len(set(found)) > 40
    for port in found:
        assert port < first
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_one_that_is_listened_on_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert not ports._is_free(listener.getsockname()[1])
