"""Asking the world's services from inside a namespace: what tests and benchmarks measure with.

Every probe takes literal addresses (names are for programs started inside, which see the
namespace's resolv.conf), ends within its timeout, and raises OSError as sockets do.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import json
import re
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tests.world import plan
from tests.world.namespaces import Namespace
from tests.world.payload import BLOCK_SIZE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transfer:
    """A finished download or upload: bytes moved, seconds taken, and the SHA-256 in hex."""

    size: int
    seconds: float
    sha256: str

    @property
    def mbit_per_second(self) -> float:
        return self.size * 8 / self.seconds / 1e6


@dataclass(frozen=True, slots=True)
class Echoes:
    """What came back of a series of datagrams: their numbers in order of arrival.

    `damaged` counts those whose content had changed, `times` are round trips in seconds.
    """

    sent: int
    numbers: tuple[int, ...]
    damaged: int
    times: tuple[float, ...]

    @property
    def distinct(self) -> int:
        return len(set(self.numbers))

    @property
    def overtaken(self) -> int:
        """How many arrived after one that was sent later."""
        pairs = zip(self.numbers, self.numbers[1:], strict=False)
        return sum(later < earlier for earlier, later in pairs)


def http_get(namespace: Namespace, address: str, path: str, timeout: float = 5.0) -> bytes:
    """The body of a GET; raises OSError also for a status other than 200."""
    return _request(namespace, address, "GET", path, timeout, http.client.HTTPResponse.read)


def source_seen(namespace: Namespace, address: str, timeout: float = 5.0) -> str:
    """The source address that the site at `address` sees when asked from inside."""
    return http_get(namespace, address, "/ip", timeout).decode().strip()


def download(namespace: Namespace, address: str, size: int, timeout: float = 30.0) -> Transfer:
    """Fetch `size` bytes of payload; `timeout` limits each wait, not the whole."""
    begin = time.monotonic()

    def consume(response: http.client.HTTPResponse) -> Transfer:
        digest, got = hashlib.sha256(), 0
        while data := response.read1(BLOCK_SIZE):
            digest.update(data)
            got += len(data)
        return Transfer(got, time.monotonic() - begin, digest.hexdigest())

    return _request(namespace, address, "GET", f"/bytes/{size}", timeout, consume)


def upload(namespace: Namespace, address: str, data: bytes, timeout: float = 30.0) -> Transfer:
    """Send `data` to the sink; size and SHA-256 are what the site says it received."""
    begin = time.monotonic()
    read = http.client.HTTPResponse.read
    body = _request(namespace, address, "PUT", "/sink", timeout, read, data)
    size, sha256 = body.decode().split()
    return Transfer(int(size), time.monotonic() - begin, sha256)


def dns_queries(internet: Namespace) -> list[tuple[str, str, int, str, str]]:
    """All DNS questions so far: (asker, name, type number, udp or tcp, address asked)."""
    return [tuple(entry) for entry in json.loads(http_get(internet, "127.0.0.1", "/queries"))]


def udp_echo(
    namespace: Namespace,
    address: str,
    *,
    count: int = 1,
    size: int = 64,
    interval: float = 0.0,
    wait: float = 1.0,
    port: int = plan.ECHO_PORT,
) -> Echoes:
    """Send `count` numbered datagrams of `size` bytes (8 or more), `interval` seconds apart.

    Ends when all distinct ones are back, or `wait` seconds after the last was sent.
    """
    sock = namespace.socket(_family(address), socket.SOCK_DGRAM)
    with sock:
        sock.setblocking(False)
        sock.connect((address, port))
        numbers: list[int] = []
        times: list[float] = []
        damaged = 0
        sent_at: list[float] = []
        end = None
        while end is None or (time.monotonic() < end and len(set(numbers)) < count):
            now = time.monotonic()
            if len(sent_at) < count and (
                not sent_at or now >= sent_at[0] + len(sent_at) * interval
            ):
                _send(sock, _datagram(len(sent_at), size))
                sent_at.append(now)
            if len(sent_at) == count and end is None:
                end = now + wait
            pause = end if end is not None else sent_at[0] + len(sent_at) * interval
            if not select.select([sock], [], [], max(0.0, pause - time.monotonic()))[0]:
                continue
            data = _receive(sock)
            if data is None:
                continue
            number = int.from_bytes(data[:8], "big")
            if number >= len(sent_at) or data != _datagram(number, size):
                damaged += 1
            else:
                numbers.append(number)
                times.append(time.monotonic() - sent_at[number])
        return Echoes(count, tuple(numbers), damaged, tuple(times))


def ping_ms(namespace: Namespace, address: str, count: int = 3, interval: float = 0.05) -> float:
    """The shortest round trip of `count` pings in milliseconds; WorldError without answer."""
    argv = ["ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", "2", address]
    found = re.search(r"= ([\d.]+)/", namespace.run(argv).stdout)
    if found is None:
        raise OSError("ping printed no times")
    return float(found[1])


def _family(address: str) -> socket.AddressFamily:
    version = ipaddress.ip_address(address).version
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _datagram(number: int, size: int) -> bytes:
    return number.to_bytes(8, "big") + bytes((number + at) & 0xFF for at in range(size - 8))


def _send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except OSError:  # too big for the path, refused by a firewall, or a full buffer: not sent
        return


def _receive(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(65535)
    except OSError:  # an ICMP error about an earlier datagram
        return None


def _request(
    namespace: Namespace,
    address: str,
    method: str,
    path: str,
    timeout: float,
    consume: Callable[[http.client.HTTPResponse], T],
    body: bytes | None = None,
) -> T:
    def inside() -> T:
        connection = http.client.HTTPConnection(address, plan.HTTP_PORT, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            with connection.getresponse() as response:
                if response.status != 200:
                    raise OSError(f"{method} {path} was answered with {response.status}")
                return consume(response)

    return namespace.call(inside)
