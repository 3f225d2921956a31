"""Ports for ranks to meet at."""

from __future__ import annotations

import socket

from moss_train.ports import free_port


def test_it_is_free_and_none_that_a_connection_is_given() -> None:
    with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as given:
        first = int(given.read().split()[0])
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) > 40
    for port in ports:
        assert port < first
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_one_that_is_listened_on_is_not_given() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        assert not ports_free(listener.getsockname()[1])


def ports_free(port: int) -> bool:
    """As the search sees it."""
    from moss_train import ports

    return ports._is_free(port)
