"""Follows this machine's network without privilege: rtnetlink (linux/rtnetlink.h), spoken directly.

Two things. `find_way` asks the kernel which way a marked packet to a peer takes now: a question of
some microseconds. `NetworkWatch` tells that something about links, addresses, routes or rules has
changed, or that the machine has slept, so that one asks again. It does not read what has changed:
the answer to the question is all that counts, and it is right also after messages were lost.

It changes nothing, needs no pyroute2 (half a second to import), and judges nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from qvpn_core.net.names import FWMARK
from qvpn_core.net.plan import IPAddress
from qvpn_core.net.suspend import Suspension, resume_descriptor

#: Seconds from the first news to the report: a change of network is a dozen messages.
COALESCE: Final = 0.05

_NLMSG_ERROR: Final = 2  # linux/netlink.h
_NLM_F_REQUEST: Final = 1
_SOL_NETLINK: Final = 270
_NETLINK_ADD_MEMBERSHIP: Final = 1
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_NEWROUTE: Final = 24
_RTM_GETROUTE: Final = 26
_RTM_F_LOOKUP_TABLE: Final = 0x1000
_REACHABLE: Final = frozenset({1, 2})  # RTN_UNICAST, RTN_LOCAL
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_MARK, _RTA_VIA = 1, 4, 5, 7, 16, 18
_IFF_RUNNING: Final = 0x40  # linux/if.h: up, with a carrier, and not waiting for a key
_IFLA_EXT_MASK, _IFLA_CARRIER_UP_COUNT = 29, 47  # linux/if_link.h
_SKIP_STATISTICS: Final = 1 << 3  # RTEXT_FILTER_SKIP_STATS
#: RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV6_RULE
_GROUPS: Final = (1, 5, 7, 8, 9, 11, 19)

_HEADER: Final = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # rtattr
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # rtmsg
_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg
_U32: Final = struct.Struct("=I")
_BUFFER: Final = 1 << 16  # bytes of one answer
_MAX_MESSAGES: Final = 256  # read at one wake-up, so that a storm of routes starves nobody


@dataclass(frozen=True, slots=True)
class Way:
    """How packets to a peer leave this machine. Two that are equal are the same path."""

    interface: int
    source: IPAddress | None
    gateway: IPAddress | None
    #: How often the interface got its carrier: another network may hide behind equal addresses.
    carriers: int


#: Where nothing can be known: there may be a way, and it never changes.
UNKNOWN: Final = Way(0, None, None, 0)


def find_way(peer: str, mark: int = FWMARK) -> Way | None:
    """The way that a packet with `mark` to `peer` (an address) takes; None when there is none.

    There is none without a route, through a link without carrier, or from an address that is only
    good on its link (no lease yet). In a sandbox without rtnetlink it is always `UNKNOWN`. Raises
    ValueError for what is no address.
    """
    address = ip_address(peer.partition("%")[0])
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
    except OSError:
        return UNKNOWN
    try:
        with opened as netlink:
            netlink.setblocking(False)  # the kernel answers within `send`
            route = _ask(
                netlink,
                _RTM_GETROUTE,
                _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, _RTM_F_LOOKUP_TABLE)
                + _attribute(_RTA_DST, address.packed)
                + _attribute(_RTA_MARK, _U32.pack(mark)),
            )
            found = _read_route(route) if route is not None else None
            if found is None or (_only_local(found[1]) and not _only_local(address)):
                return None
            link = _ask(
                netlink,
                _RTM_GETLINK,
                _LINK.pack(socket.AF_UNSPEC, 0, found[0], 0, 0)
                + _attribute(_IFLA_EXT_MASK, _U32.pack(_SKIP_STATISTICS)),
            )
            carriers = _read_link(link) if link is not None else None
    except OSError:
        return None
    return None if carriers is None else Way(*found, carriers)


def _only_local(address: IPAddress | None) -> bool:
    return address is not None and address.is_link_local


def _ask(netlink: socket.socket, kind: int, body: bytes) -> bytes | None:
    """The body of the kernel's answer to one request; None when it refuses."""
    netlink.sendto(
        _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST, kind, 0) + body, (0, 0)
    )
    while True:
        data, (sender, _groups) = netlink.recvfrom(_BUFFER)
        if sender != 0:
            continue  # another process; only the kernel is asked
        return parse_answer(data, kind)


def parse_answer(data: bytes, sequence: int) -> bytes | None:
    """The body of the one message in `data`; None for an error, or an answer to somebody else."""
    if len(data) < _HEADER.size:
        return None
    length, kind, _flags, number, _port = _HEADER.unpack_from(data)
    if kind == _NLMSG_ERROR or number != sequence or not _HEADER.size <= length <= len(data):
        return None
    return data[_HEADER.size : length]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`: type and value. Ends at the first that is cut off."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    data = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return data.ljust((len(data) + 3) & ~3, b"\0")


def _read_route(body: bytes) -> tuple[int, IPAddress | None, IPAddress | None] | None:
    """Interface, source and next hop of a route that leads somewhere."""
    if len(body) < _ROUTE.size or _ROUTE.unpack_from(body)[7] not in _REACHABLE:
        return None
    found = dict(attributes(body[_ROUTE.size :]))
    if len(found.get(_RTA_OIF, b"")) != _U32.size:
        return None
    gateway = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    return _U32.unpack(found[_RTA_OIF])[0], _address(found.get(_RTA_PREFSRC)), _address(gateway)


def _read_link(body: bytes) -> int | None:
    """How often a link got its carrier; None while it has none."""
    if len(body) < _LINK.size or not _LINK.unpack_from(body)[3] & _IFF_RUNNING:
        return None
    count = dict(attributes(body[_LINK.size :])).get(_IFLA_CARRIER_UP_COUNT, b"")
    return _U32.unpack(count)[0] if len(count) == _U32.size else 0


def _address(packed: bytes | None) -> IPAddress | None:
    return ip_address(packed) if packed is not None and len(packed) in (4, 16) else None


class NetworkWatch:
    """Calls `on_news` with the seconds slept, mostly 0.0, soon after something has changed.

    On the event loop that `start` is called on, whichever it is.
    """

    def __init__(self, on_news: Callable[[float], None]) -> None:
        self._on_news = on_news
        self._suspension = Suspension()
        self._netlink: socket.socket | None = None
        self._resume: int | None = None
        self._report: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin. Where the kernel refuses (a sandbox), there will just be no news."""
        self._loop = asyncio.get_running_loop()
        try:
            self._netlink = _subscribe()
        except OSError:
            pass
        else:
            self._loop.add_reader(self._netlink.fileno(), self._readable, self._netlink)
        self._await_resume()

    def close(self) -> None:
        """End; no news from now on. Idempotent."""
        if self._netlink is not None:
            self._loop.remove_reader(self._netlink.fileno())
            self._netlink.close()
            self._netlink = None
        self._forget_resume()
        if self._report is not None:
            self._report.cancel()
            self._report = None

    def _await_resume(self) -> None:
        self._resume = resume_descriptor()
        if self._resume is not None:
            self._loop.add_reader(self._resume, self._resumed)

    def _forget_resume(self) -> None:
        if self._resume is not None:
            self._loop.remove_reader(self._resume)
            os.close(self._resume)
            self._resume = None

    def _resumed(self) -> None:
        self._forget_resume()  # until the report: a clock that is set on and on shall cost little
        self._news()

    def _readable(self, netlink: socket.socket) -> None:
        try:
            for _ in range(_MAX_MESSAGES):
                netlink.recv(1)  # the rest of the message is discarded
        except OSError:
            pass  # nothing more; or ENOBUFS: lost messages are news too
        self._news()

    def _news(self) -> None:
        if self._report is None:
            self._report = self._loop.call_later(COALESCE, self._tell)

    def _tell(self) -> None:
        self._report = None
        if self._resume is None:
            self._await_resume()
        self._on_news(self._suspension.slept())


def _subscribe() -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        netlink.bind((0, 0))
        for group in _GROUPS:
            netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except BaseException:
        netlink.close()
        raise
    return netlink
