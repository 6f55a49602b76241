"""The gateway's name while the kill switch keeps the system's resolver from asking for it.

Asks the name servers that the system is configured with, over sockets that carry the transport's
mark, for this one name and nothing else. What the system can still answer by itself (/etc/hosts)
goes first. Bounded in servers, time and addresses; no search domains, no cache, no TCP. A forged
answer gains what a forging name server always does: the gateway's key is checked afterwards.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from qvpn_core.errors import GatewayUnreachable, NameNotResolved
from qvpn_core.transport.dial import SocketFactory
from qvpn_core.transport.resolver import look_up

#: Where upstream name servers are listed: by the administrator, or by whoever runs a resolver on
#: loopback for them (systemd-resolved, NetworkManager with dnsmasq).
_LISTS: Final = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
_MAX_LIST: Final = 64 << 10  # bytes
_MAX_SERVERS: Final = 4
_MAX_ADDRESSES: Final = 8  # per IP version
#: Seconds for a server to answer, and how often all are asked.
_PATIENCE: Final = 2.0
_ROUNDS: Final = 2
#: Seconds that the system's own resolver gets after ours has an answer.
_GRACE: Final = 0.5
_PORT: Final = 53


async def resolve(
    host: str, socket_factory: SocketFactory, servers: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The addresses of `host`, IPv6 first; a literal address is its own.

    `servers` are the system's where none are given. Raises NameNotResolved, and what
    `socket_factory` does for lack of rights.
    """
    with suppress(ValueError):
        return (str(ip_address(host)),)
    system = asyncio.ensure_future(look_up(host, None, socket.SOCK_DGRAM))
    system.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen
    try:
        found = await _ask(host, socket_factory, system_servers() if servers is None else servers)
        await asyncio.wait((system,), timeout=_GRACE if found else _PATIENCE)
        if system.done() and not system.cancelled() and system.exception() is None:
            found = tuple(dict.fromkeys(str(entry[4][0]) for entry in system.result()))
    finally:
        system.cancel()
    if not found:
        raise NameNotResolved(
            f"cannot find the address of {host}", "check the name and this machine's DNS"
        )
    return found


def system_servers(lists: Iterable[Path] = _LISTS) -> tuple[str, ...]:
    """The upstream name servers, from the first list that names any beyond this machine."""
    for path in lists:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                lines = file.read(_MAX_LIST).splitlines()
        except OSError:
            continue
        words = (line.split() for line in lines)
        named = (it[1] for it in words if len(it) > 1 and it[0] == "nameserver")
        if found := tuple(address for address in named if _is_upstream(address)):
            return found[:_MAX_SERVERS]
    return ()


def _is_upstream(address: str) -> bool:
    try:
        return not ip_address(address).is_loopback
    except ValueError:
        return False


async def _ask(host: str, socket_factory: SocketFactory, servers: Sequence[str]) -> tuple[str, ...]:
    """What the first server that answers says; empty when none knows any address."""
    try:
        name = dns.name.from_text(host)
    except dns.exception.DNSException:
        return ()
    for server in (*servers,) * _ROUNDS:
        kinds = (dns.rdatatype.AAAA, dns.rdatatype.A)
        answers = await asyncio.gather(
            *(_query(name, kind, server, socket_factory) for kind in kinds)
        )
        if None not in answers:
            return tuple(address for answer in answers for address in answer or ())
    return ()


async def _query(
    name: dns.name.Name, kind: dns.rdatatype.RdataType, server: str, socket_factory: SocketFactory
) -> list[str] | None:
    """The addresses of one kind; None when the server does not answer, or not usefully."""
    (entry,) = socket.getaddrinfo(
        server, _PORT, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )
    query = dns.message.make_query(name, kind, use_edns=0, payload=1232)
    try:
        with await socket_factory(entry[0], socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(entry[4])  # so that the kernel drops what others send
            async with asyncio.timeout(_PATIENCE):
                reply = await _exchange(sock, query)
    except (OSError, GatewayUnreachable):  # a timeout, ICMP, no such address family
        return None
    if reply.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    try:
        answer = reply.resolve_chaining().answer
    except dns.exception.DNSException:
        return []
    return [] if answer is None else [item.address for item in answer][:_MAX_ADDRESSES]


async def _exchange(sock: socket.socket, query: dns.message.Message) -> dns.message.QueryMessage:
    """Send a question and wait for its answer; whatever else arrives is ignored."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, query.to_wire())
    while True:
        data = await loop.sock_recv(sock, 65535)
        try:
            reply = dns.message.from_wire(data, ignore_trailing=True)
            if isinstance(reply, dns.message.QueryMessage) and query.is_response(reply):
                return reply
        except Exception:  # noqa: S112 - hostile bytes must not end more than their own reading
            continue
