"""Connecting to a service for a device: names, several addresses, and words for what fails.

Names are looked up in threads that may hang without holding up anybody, and addresses are tried as
RFC 8305 says. It decides nothing about who may connect where: the caller passes the addresses.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from qvpn_core.masque.target import IPAddress

#: Seconds until the next address is tried beside the first (RFC 8305 section 5).
ATTEMPT_DELAY = 0.25
#: Addresses of a name that are considered.
MAX_ADDRESSES = 8
#: Names that are looked up at a time, for all devices.
MAX_LOOKUPS = 128
#: Keepalives of TCP connections to services: seconds of silence, between probes, probes.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 30), (socket.TCP_KEEPCNT, 4))


class ServiceUnavailable(Exception):
    """A service cannot be used now. `error` is an error type of RFC 9209 section 2.3."""

    def __init__(self, status: int, error: str, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.error = error
        self.words = words


@dataclass(frozen=True, slots=True)
class _Failure:
    status: int
    error: str


_UNROUTABLE = _Failure(502, "destination_ip_unroutable")
_NO_ROOM = _Failure(503, "connection_limit_reached")
_FAILURES = {
    errno.ECONNREFUSED: _Failure(502, "connection_refused"),
    errno.ECONNRESET: _Failure(502, "connection_terminated"),
    errno.ETIMEDOUT: _Failure(504, "connection_timeout"),
    errno.EHOSTUNREACH: _Failure(502, "destination_unavailable"),
    errno.ENETUNREACH: _UNROUTABLE,
    errno.EACCES: _UNROUTABLE,
    errno.EPERM: _UNROUTABLE,
    errno.EINVAL: _UNROUTABLE,
    errno.EAFNOSUPPORT: _UNROUTABLE,
    errno.EADDRNOTAVAIL: _NO_ROOM,
    errno.EMFILE: _NO_ROOM,
    errno.ENFILE: _NO_ROOM,
    errno.ENOBUFS: _NO_ROOM,
    errno.ENOMEM: _NO_ROOM,
}
_OTHER = _Failure(502, "proxy_internal_error")


def unavailable(error: OSError) -> ServiceUnavailable:
    """What the kernel said about a connection, in HTTP's words."""
    failure = _FAILURES.get(error.errno or 0, _OTHER)
    words = os.strerror(error.errno) if error.errno else "it cannot be connected to"
    return ServiceUnavailable(failure.status, failure.error, words)


def timed_out() -> ServiceUnavailable:
    """Nobody answered in time."""
    return ServiceUnavailable(504, "connection_timeout", "it does not answer")


class Resolver:
    """Looks names up, by this machine's own configuration."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(MAX_LOOKUPS)

    async def lookup(self, name: str) -> list[IPAddress]:
        """The addresses of `name` in the order in which to try them. Raises ServiceUnavailable.

        Cancelling abandons the thread, which counts until it ends.
        """
        await self._room.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[IPAddress]] = loop.create_future()

        def done(found: list[IPAddress] | ServiceUnavailable) -> None:
            self._room.release()
            if answer.done():
                return  # nobody waits any more
            if isinstance(found, ServiceUnavailable):
                answer.set_exception(found)
            else:
                answer.set_result(found)

        def work() -> None:
            found = _lookup(name)
            try:
                loop.call_soon_threadsafe(done, found)
            except RuntimeError:  # the gateway has ended
                return

        # A daemon, so that one that hangs does not hold up the end of the gateway.
        threading.Thread(target=work, name="name lookup", daemon=True).start()
        return await answer


def _lookup(name: str) -> list[IPAddress] | ServiceUnavailable:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_FAIL):
            return ServiceUnavailable(502, "dns_error", "the name has no address")
        return ServiceUnavailable(504, "dns_timeout", "the name cannot be looked up now")
    except (OSError, UnicodeError):
        return ServiceUnavailable(502, "dns_error", "the name cannot be looked up")
    unique = dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return interleave(list(unique))[:MAX_ADDRESSES]


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """The families in turn, beginning with that of the first address (RFC 8305 section 4)."""
    first = [address for address in addresses if address.version == addresses[0].version]
    second = [address for address in addresses if address.version != addresses[0].version]
    longer = first if len(first) >= len(second) else second
    paired = [each for pair in zip(first, second, strict=False) for each in pair]
    return paired + longer[min(len(first), len(second)) :]


async def connect_tcp(addresses: Sequence[IPAddress], port: int) -> socket.socket:
    """A connection to whichever address accepts one first, non-blocking. Raises OSError.

    The error of the first address is the one that is told.
    """
    waiting = list(addresses)
    attempts: list[asyncio.Task[socket.socket]] = []
    failures: list[OSError] = []
    winner: socket.socket | None = None
    try:
        while waiting or len(failures) < len(attempts):
            if waiting:
                attempts.append(asyncio.create_task(_attempt(waiting.pop(0), port)))
            running = [attempt for attempt in attempts if not attempt.done()]
            if running:
                await asyncio.wait(
                    running,
                    timeout=ATTEMPT_DELAY if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finished = [attempt for attempt in attempts if attempt.done()]
            winner = next((each.result() for each in finished if not each.exception()), None)
            if winner is not None:
                return winner
            errors = [error for each in finished if (error := each.exception())]
            for error in errors:
                if not isinstance(error, OSError):
                    raise error  # a defect of ours
            failures = [error for error in errors if isinstance(error, OSError)]
        raise failures[0]
    finally:
        for attempt in attempts:
            attempt.cancel()
        for made in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(made, socket.socket) and made is not winner:
                made.close()


async def _attempt(address: IPAddress, port: int) -> socket.socket:
    sock = _open(address, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


def connect_udp(addresses: Sequence[IPAddress], port: int) -> socket.socket:
    """A socket connected to the first address that there is a route to. Raises OSError."""
    failure: OSError | None = None
    for address in addresses:
        sock = _open(address, socket.SOCK_DGRAM)
        try:
            sock.connect((str(address), port))
        except OSError as error:
            sock.close()
            failure = failure or error
        else:
            return sock
    assert failure is not None
    raise failure


def _open(address: IPAddress, kind: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    return sock
