"""HTTP for tools: to public addresses only, to the very address that was checked, with bounds on time and size.

A model decides what is asked, so a request must not be able to reach what only this machine can reach: services on its loopback and private
networks, or the metadata service of a cloud.

- Only http and https, on their standard ports, without credentials in the URL.
- The host is resolved here, every address it has is checked, and the connection goes to one of these: a name that resolves differently the
  next time changes nothing. The Host header, and the name that the certificate is checked against, are those of the URL.
- An address is written in one way only: `127.1`, `0177.0.0.1` and `2130706433` are refused as names.
- Redirects are not followed, proxies of the environment not used, compressed answers refused, cookies neither kept nor sent.

Services on private addresses, such as a search server on this machine, are allowed by name: `allow=["127.0.0.1:8123"]`.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from moss_train.errors import UsageError
from moss_train.inference.tools.deadline import run_together
from moss_train.inference.tools.failure import ToolFailure

DEFAULT_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
_VISIBLE = re.compile(r"[!-~]{1,2000}")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_BRACKETS = re.compile(r"\[[0-9a-fA-F:.]+\](:[0-9]*)?")
# A last label such as 1, 0x7f or 0177 makes resolvers read the whole name as an IPv4 address.
_NUMBER_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
# IPv6 that is handed out to hosts; all of the special and embedding ranges but these lie outside.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_EMBEDDING = [ipaddress.IPv6Network(one) for one in ("2001::/23", "2002::/16", "2001:db8::/32", "3fff::/20")]
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")


class Target(NamedTuple):
    """Where a URL points.

    Attributes:
        host: Without brackets.
        path: With the query.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def place(self) -> str:
        """Host and port, as `allow` has them."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Answer(NamedTuple):
    """What a server said."""

    status: int
    content_type: str
    body: bytes


def parse_url(url: str) -> Target:
    """Takes a URL apart.

    Raises:
        UsageError: It is not http or https, carries credentials, or writes its host or port in an unusual way.
    """
    if not _VISIBLE.fullmatch(url) or "\\" in url:
        raise UsageError(f"{url[:100]!r}: a URL has printable ASCII characters only, without blanks and backslashes")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url[:100]!r} is not a URL: {error}") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise UsageError(f"{url[:100]!r}: only http:// and https:// are allowed")
    if "@" in parts.netloc or "%" in parts.netloc:
        raise UsageError("a URL may not hold a user name, a password or escapes before its path")
    host = parts.hostname or ""
    if "[" in parts.netloc or "]" in parts.netloc:
        if not _BRACKETS.fullmatch(parts.netloc):
            raise UsageError(f"{url[:100]!r}: {parts.netloc!r} is not a host")
        try:
            host = ipaddress.IPv6Address(host).compressed
        except ValueError:
            raise UsageError(f"{url[:100]!r}: [{host}] is not an IPv6 address") from None
    elif not _HOST.fullmatch(host):
        raise UsageError(f"{url[:100]!r}: {host!r} is not a host name")
    elif _NUMBER_LABEL.fullmatch(host.rpartition(".")[2]):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise UsageError(f"{url[:100]!r}: {host!r} is not an address; write four decimal numbers") from None
    path = parts.path or "/"
    return Target(
        parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port, f"{path}?{parts.query}" if parts.query else path
    )


# Public by number, and yet of the machine's own network: protocol assignments, and a cloud's service for its hosts.
_SPECIAL = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("168.63.129.16/32"))


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet and embeds no other."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv4Address):
        special = parsed.is_multicast or parsed.is_reserved or any(parsed in one for one in _SPECIAL)
        return parsed.is_global and not (special or parsed in _RELAYS)
    return parsed.is_global and not parsed.is_multicast and parsed in _UNICAST and not any(parsed in one for one in _EMBEDDING)


class StatusFailure(ToolFailure):
    """The server answered with another status than 200.

    Args:
        retry_after: Seconds that the server asks to wait, where it says so in seconds.
    """

    def __init__(self, place: str, status: int, retry_after: float | None):
        super().__init__(f"{place}: the server answered {status}")
        self.status, self.retry_after = status, retry_after


class Client:
    """Makes single requests.

    Args:
        allow: Places that need not be public, as `host:port`, or `host` for the standard ports; nothing of them is resolved or compared
            but the text.
        seconds: For a request, from resolving to the last byte.
        max_bytes: Of an answer.
        context: TLS settings, for a certificate authority of one's own; by default those of the system.
    """

    def __init__(
        self, *, allow: Collection[str] = (), seconds: float = 10.0, max_bytes: int = 2**20, context: ssl.SSLContext | None = None
    ):
        self.seconds, self.max_bytes = seconds, max_bytes
        self._allowed = {one.lower() for one in allow}
        self._context = context

    def post(self, url: str, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends `body`, with further `headers`, and reads the answer.

        Raises:
            StatusFailure: The answer has another status than 200 (and is no redirect).
            ToolFailure: The place is refused or not there, or the answer is not `200 OK` within the bounds.
        """
        end = time.monotonic() + self.seconds
        try:
            target = parse_url(url)
        except UsageError as error:
            raise ToolFailure(str(error)) from None
        connection = _open(target, self._addresses(target), end, self._context)
        guard = _Guard(connection.sock, end)
        try:
            own = {"Content-Type": content_type, "Accept-Encoding": "identity", "User-Agent": "moss-train", "Connection": "close"}
            connection.request("POST", target.path, body, {**own, **(headers or {})})
            return self._read(connection.getresponse(), target)
        except (OSError, http.client.HTTPException, ValueError) as error:
            why = f"no answer within {self.seconds:g} seconds" if guard.expired else str(error) or type(error).__name__
            raise ToolFailure(f"{target.place}: {why}") from None
        finally:
            in_time = guard.finish()
            connection.close()
            if not in_time:
                # The end of a body without a length looks the same as a connection that was cut.
                raise ToolFailure(f"{target.place}: no answer within {self.seconds:g} seconds")

    def _addresses(self, target: Target) -> list[str]:
        """The addresses of a host, each of them checked."""
        allowed = target.place in self._allowed or (target.place.rpartition(":")[0] in self._allowed and target.port in (80, 443))
        if not allowed and target.port != DEFAULT_PORTS[target.scheme]:
            raise ToolFailure(f"{target.place}: port {target.port} is not allowed; name the place in `allow`")
        # The system's resolver has no time limit of its own that could be set.
        (found,) = run_together([lambda: resolve(target.host, target.port)], self.seconds)
        if isinstance(found, Exception):
            raise ToolFailure(f"{target.host}: {found}")
        private = [address for address in found if not is_public(address)]
        if private and not allowed:
            raise ToolFailure(f"{target.place} is {private[0]}, which is not a public address; name the place in `allow` if it is meant")
        if not found:
            raise ToolFailure(f"{target.host} has no address")
        return found

    def _read(self, response: http.client.HTTPResponse, target: Target) -> Answer:
        if 300 <= response.status < 400:
            raise ToolFailure(f"{target.place}: redirects are not followed")
        if response.status != 200:
            wait = response.getheader("Retry-After", "")
            raise StatusFailure(target.place, response.status, float(wait) if re.fullmatch(r"\d{1,5}", wait) else None)
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise ToolFailure(f"{target.place}: the answer is compressed")
        body = response.read(self.max_bytes + 1)
        if len(body) > self.max_bytes:
            raise ToolFailure(f"{target.place}: the answer has more than {self.max_bytes} bytes")
        if response.length:
            raise ToolFailure(f"{target.place}: the answer is incomplete")
        return Answer(response.status, response.getheader("Content-Type", ""), body)


def resolve(host: str, port: int) -> list[str]:
    """All IP addresses of a host."""
    return list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def _open(target: Target, addresses: list[str], end: float, context: ssl.SSLContext | None) -> http.client.HTTPConnection:
    """A connection to the first address that answers, its host name still that of the URL."""
    problem: Exception = OSError("no time left")
    for address in addresses:
        left = end - time.monotonic()
        if left <= 0:
            break
        try:
            plain = socket.create_connection((address, target.port), timeout=left)
        except OSError as error:
            problem = error
            continue
        connection = http.client.HTTPConnection(target.host, target.port, timeout=left)
        connection.sock = plain
        # It must never connect by itself, which would resolve the name once more.
        connection.auto_open = 0
        if target.scheme == "http":
            return connection
        guard = _Guard(plain, end)
        try:
            # Host in the request line is written for port 80 by this class; for https the standard port is another.
            connection.default_port = DEFAULT_PORTS["https"]
            connection.sock = (context or ssl.create_default_context()).wrap_socket(plain, server_hostname=target.host)
        except OSError as error:
            plain.close()
            raise ToolFailure(f"{target.place}: {error}") from None
        finally:
            guard.finish()
        return connection
    raise ToolFailure(f"{target.place}: {problem}")


class _Guard:
    """Cuts a connection at a point in time, whatever is being waited for: a timeout of a socket begins anew with every byte."""

    def __init__(self, sock: socket.socket, end: float):
        self.expired = False
        # The descriptor of the original may have moved into a TLS socket by then.
        self._copy = socket.socket(fileno=os.dup(sock.fileno()))
        self._timer = threading.Timer(max(0.0, end - time.monotonic()), self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        self.expired = True
        # The other side may have been faster.
        with contextlib.suppress(OSError):
            self._copy.shutdown(socket.SHUT_RDWR)

    def finish(self) -> bool:
        """Whether all went in time."""
        self._timer.cancel()
        self._timer.join()
        self._copy.close()
        return not self.expired
