"""Where a proxied service is: the target of CONNECT and of CONNECT-UDP, as text and as a value.

`HOST:PORT` is the authority form of CONNECT (RFC 9110 section 7.1), and the path of CONNECT-UDP is
the default template of RFC 9298 section 2. Both take names, IPv4 addresses, and IPv6 addresses
without zone; whatever else a resolver might take for an address is refused here. It resolves no
name and allows nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import quote, unquote_to_bytes

from qvpn_core.masque.domain import check_hostname

IPAddress = IPv4Address | IPv6Address

_PORT = re.compile(r"[0-9]{1,5}")
_IPV4 = re.compile(r"[0-9.]+")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_UDP_PATH = re.compile(r"/\.well-known/masque/udp/([^/?#]+)/([^/?#]+)/")
#: Unreserved characters and escapes: what expansion of a template gives (RFC 6570 section 3.2.2).
_EXPANDED = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+")


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a host that is known by its address or by its name."""

    host: str | IPAddress
    port: int

    def __str__(self) -> str:
        """The authority form."""
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return f"{host}:{self.port}"

    @property
    def udp_path(self) -> str:
        """The `:path` of a CONNECT-UDP request (RFC 9298 section 3.4)."""
        return f"/.well-known/masque/udp/{quote(str(self.host), safe='')}/{self.port}/"


def make_target(host: str, port: int) -> Target:
    """A target from its parts; an IPv6 address has no brackets. Raises ValueError."""
    if not 0 < port <= 0xFFFF:
        raise ValueError(f"there is no port {port}")
    return Target(_parse_host(host), port)


def parse_authority(text: str) -> Target:
    """`HOST:PORT`, an IPv6 address in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text[:300]!r} is not HOST:PORT")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if bracketed != (":" in host):
        raise ValueError(f"{text[:300]!r} has no IPv6 address in brackets")
    return make_target(host, _parse_port(port))


def match_udp(path: str) -> Target | None:
    """The target of a CONNECT-UDP request's `:path`, or None for any other path."""
    parts = _UDP_PATH.fullmatch(path)
    if parts is None or not all(map(_EXPANDED.fullmatch, parts.groups())):
        return None
    try:
        host, port = (unquote_to_bytes(part).decode("ascii") for part in parts.groups())
        return make_target(host, _parse_port(port))
    except ValueError:
        return None


def _parse_port(text: str) -> int:
    if not _PORT.fullmatch(text):
        raise ValueError(f"{text[:20]!r} is not a port")
    return int(text)


def _parse_host(text: str) -> str | IPAddress:
    # ipaddress takes zone identifiers, which mean something only to the machine they come from.
    if _IPV4.fullmatch(text):
        return IPv4Address(text)
    if _IPV6.fullmatch(text):
        return IPv6Address(text)
    return check_hostname(text)
