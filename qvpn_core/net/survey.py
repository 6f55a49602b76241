"""What this machine's network looks like to anybody: the networks it is attached to, others' rules.

Three rtnetlink dumps (linux/rtnetlink.h), unprivileged and without pyroute2, whose import takes
longer than a connect. It reads only, takes a millisecond, and refuses to judge: what of this a
tunnel should leave alone is the planner's decision.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Final

from qvpn_core.net.names import CLIENT_TUN, PROTOCOL, RULE_PRIORITY
from qvpn_core.net.plan import Network

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/fib_rules.h
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_DUMP_REQUEST: Final = 0x301
_RTM_GETLINK: Final = 18
_RTM_GETADDR: Final = 22
_RTM_GETRULE: Final = 34
_IFLA_IFNAME: Final = 3
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_FRA_PRIORITY: Final = 6
_FRA_PROTOCOL: Final = 21
_ARPHRD_ETHER: Final = 1  # linux/if_arp.h; Wi-Fi, bridges and veth present themselves so
# linux/if.h
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_POINTOPOINT: Final = 0x10
_IFF_NOARP: Final = 0x80

_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_RULE_HEADER: Final = 12
_TIMEOUT: Final = 5.0
_BUFFER: Final = 1 << 16
#: Messages of one dump that are looked at: more networks than any machine can explain to a person.
_MAX_MESSAGES: Final = 65536


@dataclass(frozen=True, slots=True)
class Attached:
    """A network on a link of this machine, whose hosts it reaches without a router."""

    link: str
    network: Network


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found, in the kernel's order."""

    #: On links like Ethernet: wires, Wi-Fi, bridges of containers and virtual machines. Not
    #: link-local, and nothing on loopback or on tunnels, which have no neighbours.
    attached: tuple[Attached, ...] = ()
    #: Priorities of others' rules that decide before ours, but for the kernel's own at 0.
    rules_before: tuple[int, ...] = ()


def survey() -> Survey:
    """Look at the caller's network namespace. Raises OSError where netlink is refused."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT)
        links = dict(_links(netlink))
        attached = dict.fromkeys(
            Attached(links[index], network)
            for family in (socket.AF_INET, socket.AF_INET6)
            for index, network in _networks(netlink, family)
            if index in links
        )
        rules = {
            priority
            for family in (socket.AF_INET, socket.AF_INET6)
            for priority in _foreign_rules(netlink, family)
            if 0 < priority <= RULE_PRIORITY
        }
    return Survey(tuple(attached), tuple(sorted(rules)))


def _links(netlink: socket.socket) -> Iterator[tuple[int, str]]:
    for message in _dump(netlink, _RTM_GETLINK, socket.AF_UNSPEC, _LINK.size):
        _family, kind, index, flags, _change = _LINK.unpack_from(message)
        name = _attributes(message[_LINK.size :]).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
        neighbours = not flags & (_IFF_LOOPBACK | _IFF_POINTOPOINT | _IFF_NOARP)
        if kind == _ARPHRD_ETHER and flags & _IFF_UP and neighbours and name != CLIENT_TUN:
            yield index, name


def _networks(netlink: socket.socket, family: int) -> Iterator[tuple[int, Network]]:
    for message in _dump(netlink, _RTM_GETADDR, family, _ADDRESS.size):
        its_family, length, _flags, _scope, index = _ADDRESS.unpack_from(message)
        found = _attributes(message[_ADDRESS.size :])
        # A peer's address, where there is one, is IFA_ADDRESS, and then ours is IFA_LOCAL.
        packed = found.get(_IFA_ADDRESS) or found.get(_IFA_LOCAL)
        if its_family != family or packed is None:
            continue
        interface = ip_interface(f"{socket.inet_ntop(family, packed)}/{length}")
        if interface.network.num_addresses > 1 and not interface.is_link_local:
            yield index, ip_network(interface.network)


def _foreign_rules(netlink: socket.socket, family: int) -> Iterator[int]:
    for message in _dump(netlink, _RTM_GETRULE, family, _RULE_HEADER):
        found = _attributes(message[_RULE_HEADER:])
        if found.get(_FRA_PROTOCOL, b"\0")[0] != PROTOCOL:
            yield struct.unpack("=I", found.get(_FRA_PRIORITY, bytes(4)))[0]


def _dump(netlink: socket.socket, kind: int, family: int, header: int) -> Iterator[bytes]:
    """The messages of a dump, each without its netlink header; those too short are left out.

    A dump that changes meanwhile (NLM_F_DUMP_INTR) may lack an entry; the next look has it.
    """
    body = bytes([family]).ljust(header, b"\0")
    request = _HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_DUMP_REQUEST, kind, 0)
    netlink.sendto(request + body, (0, 0))
    seen = 0
    while True:
        data, sender = netlink.recvfrom(_BUFFER)
        if sender[0] != 0:
            continue  # not the kernel
        while len(data) >= _HEADER.size:
            length, its_kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
            if its_kind == _NLMSG_DONE or length < _HEADER.size:
                return
            payload = data[_HEADER.size : length]
            if its_kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", payload)[0]
                if code in (0, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                    return  # a kernel without IPv6 has none of its rules
                raise OSError(code, "the kernel refuses to list its network")
            seen += 1
            if len(payload) >= header and seen <= _MAX_MESSAGES:
                yield payload
            data = data[length + 3 & ~3 :]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[_ATTRIBUTE.size : length]  # NLA_TYPE_MASK
        data = data[length + 3 & ~3 :]
    return found
