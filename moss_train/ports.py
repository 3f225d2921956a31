"""Ports for ranks to meet at."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 20_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A port of this machine that nobody listens on.

    It is not of those that the kernel gives to whoever connects (ip(7), ip_local_port_range): one of these may be taken, by any process,
    between now and when rank 0 listens on it.
    """
    try:
        end = int(_RANGE.read_text(encoding="ascii").split()[0])
    except OSError:
        end = 32_768
    # Not the source that a run seeds: two runs with one seed may start at the same time.
    for port in random.SystemRandom().sample(range(_LOWEST, end), 100) if end >= _LOWEST + 100 else ():
        if _is_free(port):
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
