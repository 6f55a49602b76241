"""Which services a device may use through the gateway: rules as text, and what they allow.

A rule is `[tcp/|udp/]WHERE[:PORT[-PORT]]`; WHERE is a prefix, an address, a host name, `*.DOMAIN`
or `*`. What decides is always the address that would be connected to, however it was found: a name
that leads to the gateway itself opens no more than that address does. Pure values and functions;
nothing here resolves or connects.

Addresses fall into classes, and a rule opens only some of them:

=========  ===================================================  =================================
class      addresses                                            opened by
=========  ===================================================  =================================
public     all others                                           every rule that covers them
private    RFC 1918, RFC 6598, unique local and the like        a prefix within, or an exact name
guarded    loopback, link-local, metadata services, the         a prefix within
           gateway's own addresses and those of its devices
never      unspecified, broadcast, multicast                    nothing
=========  ===================================================  =================================
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Literal

from qvpn_core.errors import UsageError
from qvpn_core.masque.domain import check_hostname
from qvpn_server.pool import IPAddress, IPNetwork

Protocol = Literal["tcp", "udp"]
EVERYWHERE = "*"
_HINT = "write [tcp/|udp/]WHERE[:PORT[-PORT]], such as 10.0.0.0/8:22, *:443 or git.example.org"
_RULE = re.compile(
    r"(?:(?P<protocol>tcp|udp)/)?(?:\[(?P<inside>[^\[\]]+)\]|(?P<where>[^\[\]:]+|"
    r"[0-9A-Fa-f.]*(?::[0-9A-Fa-f.]*){2,}(?:/[0-9]+)?))"
    r"(?::(?P<low>[0-9]{1,5})(?:-(?P<high>[0-9]{1,5}))?)?"
)


class AddressClass(Enum):
    """How addresses are treated by rules; see the module."""

    PUBLIC = "public"
    PRIVATE = "private"
    GUARDED = "guarded"
    NEVER = "never"


_SPECIAL = {
    AddressClass.NEVER: "0.0.0.0/32 224.0.0.0/4 255.255.255.255/32 ::/128 ff00::/8",
    AddressClass.GUARDED: (
        "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 240.0.0.0/4 "
        "::/96 fe80::/10 fec0::/10 fd00:ec2::254/128"
    ),
    AddressClass.PRIVATE: (
        "10.0.0.0/8 100.64.0.0/10 172.16.0.0/12 192.0.0.0/24 192.168.0.0/16 198.18.0.0/15 "
        "64:ff9b:1::/48 100::/64 2001::/23 fc00::/7"
    ),
}
#: The special-purpose registries of RFC 6890 as of 2026, the metadata services of clouds that are
#: not link-local, and what is multicast. The first entry that covers an address decides.
SPECIAL = tuple(
    (ip_network(prefix), kind) for kind, prefixes in _SPECIAL.items() for prefix in prefixes.split()
)
#: Prefixes in which an IPv4 address stands inside of an IPv6 one, and the bits behind it: the
#: translated one is what matters (RFC 4291 section 2.5.5.2, RFC 6052 section 2.1, RFC 3056).
_EMBEDDING = (
    (ip_network("::ffff:0:0/96"), 0),
    (ip_network("64:ff9b::/96"), 0),
    (ip_network("2002::/16"), 80),
)


@dataclass(frozen=True, slots=True)
class ServiceRule:
    """One rule. `where` is a prefix, a name in lower case, `*.DOMAIN`, or EVERYWHERE."""

    where: IPNetwork | str
    protocol: Protocol | None = None
    #: First and last port; None: all.
    ports: tuple[int, int] | None = None

    def __str__(self) -> str:
        where = str(self.where)
        if self.ports is not None and ":" in where:
            where = f"[{where}]"
        protocol = f"{self.protocol}/" if self.protocol else ""
        if self.ports is None:
            return protocol + where
        low, high = self.ports
        return f"{protocol}{where}:{low}" + (f"-{high}" if high != low else "")

    def speaks_of(self, protocol: Protocol, port: int) -> bool:
        """Whether the rule is about that protocol and port."""
        low, high = self.ports or (0, 0xFFFF)
        return self.protocol in (None, protocol) and low <= port <= high


def parse_rule(text: str) -> ServiceRule:
    """Read a rule. Raises UsageError."""
    parts = _RULE.fullmatch(text)
    if parts is None:
        raise UsageError(f"{text[:200]!r} is no rule for services", _HINT)
    where = parts["inside"] or parts["where"]
    ports = None
    if parts["low"] is not None:
        ports = int(parts["low"]), int(parts["high"] or parts["low"])
        if not 1 <= ports[0] <= ports[1] <= 0xFFFF:
            raise UsageError(f"{text!r} has no such ports", "ports are 1 to 65535")
    protocol: Protocol | None = None
    if parts["protocol"]:
        protocol = "tcp" if parts["protocol"] == "tcp" else "udp"
    return ServiceRule(_parse_where(where, text), protocol, ports)


def _parse_where(where: str, text: str) -> IPNetwork | str:
    if where == EVERYWHERE:
        return where
    try:
        network = ip_network(where)
        if "%" not in where:  # a zone means nothing here
            return network
    except ValueError:
        pass
    try:
        check_hostname(where.removeprefix("*."))
    except ValueError:
        raise UsageError(f"{text[:200]!r} is no rule for services", _HINT) from None
    return where.lower().removesuffix(".")


@dataclass(frozen=True, slots=True)
class Place:
    """The class of an address, and the prefix that makes it special, if it is."""

    kind: AddressClass
    special: IPNetwork | None = None


_PUBLIC = Place(AddressClass.PUBLIC)


def classify(address: IPAddress, guarded: Iterable[IPNetwork] = ()) -> Place:
    """Where a plain address (see :func:`plain`) is; `guarded` are prefixes of this gateway's own.

    Of those the narrowest decides; what is loopback is loopback first.
    """
    own = sorted(guarded, key=lambda network: -network.prefixlen)
    places = (
        *((network, kind) for network, kind in SPECIAL if kind is not AddressClass.PRIVATE),
        *((network, AddressClass.GUARDED) for network in own),
        *((network, kind) for network, kind in SPECIAL if kind is AddressClass.PRIVATE),
    )
    for network, kind in places:
        if _covers(network, address):
            return Place(kind, network)
    return _PUBLIC


def plain(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, if it does; else the address itself."""
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDING:
            if address in network:
                return IPv4Address(int(address) >> shift & 0xFFFF_FFFF)
    return address


def allowed(
    rules: Iterable[ServiceRule],
    protocol: Protocol,
    host: str | IPAddress,
    address: IPAddress,
    port: int,
    place: Place,
) -> bool:
    """Whether `address`, which was given or found for the name `host`, may be connected to.

    `address` is plain and `place` is where it is.
    """
    return any(
        rule.speaks_of(protocol, port) and _opens(rule.where, host, address, place)
        for rule in rules
    )


def _opens(where: IPNetwork | str, host: str | IPAddress, address: IPAddress, place: Place) -> bool:
    kind = place.kind
    if kind is AddressClass.NEVER:
        return False
    if not isinstance(where, str):
        return _covers(where, address) and (place.special is None or _within(where, place.special))
    if where == EVERYWHERE:
        return kind is AddressClass.PUBLIC
    if not isinstance(host, str):
        return False
    name = host.lower().removesuffix(".")
    if where.startswith("*."):
        return kind is AddressClass.PUBLIC and name.endswith(where[1:])
    return kind in (AddressClass.PUBLIC, AddressClass.PRIVATE) and name == where


def _covers(network: IPNetwork, address: IPAddress) -> bool:
    return network.version == address.version and address in network


def _within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and _covers(outer, inner.network_address)
