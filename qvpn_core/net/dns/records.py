"""What undoes a change of the machine's resolver, as data: part of the closed set of records.

Each is enough for another process, also after a reboot, and harmless to run twice or in vain. They
name things of ours by fixed names; running them is :func:`qvpn_core.net.dns.restore`'s work. This
module stays light: it imports nothing but msgspec.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

#: Bytes of a resolv.conf that we keep; a larger one is not touched.
MAX_FILE: Final = 32 << 10
#: Names in each list of NetworkManager's configuration; more is not touched.
MAX_NAMES: Final = 256
_INTERFACE: Final = re.compile(r"qvpn[a-z0-9]{0,11}")


class RevertLink(msgspec.Struct, frozen=True, tag="dns-link"):
    """Our device's name servers and domains in systemd-resolved. They also go with the device."""

    interface: str
    index: int

    def __post_init__(self) -> None:
        _check_interface(self.interface)
        if self.index <= 0:
            raise ValueError(f"interface index {self.index}")


class GlobalDomain(msgspec.Struct, frozen=True):
    """The name servers of one domain in NetworkManager's global configuration; ``*`` is all."""

    name: str
    servers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class GlobalDns(msgspec.Struct, frozen=True):
    """NetworkManager's GlobalDnsConfiguration; without domains there is none."""

    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domains: tuple[GlobalDomain, ...] = ()


class RestoreGlobalDns(msgspec.Struct, frozen=True, tag="dns-networkmanager"):
    """NetworkManager's global DNS configuration before us, put back where ours still stands."""

    previous: GlobalDns


class RemoveResolvconfEntry(msgspec.Struct, frozen=True, tag="dns-resolvconf"):
    """Our interface's entry in resolvconf."""

    interface: str

    def __post_init__(self) -> None:
        _check_interface(self.interface)


class RestoreResolvConf(msgspec.Struct, frozen=True, tag="dns-file"):
    """Our /etc/resolv.conf gives way to what is kept beside it, or goes where there was none."""


class RewriteResolvConf(msgspec.Struct, frozen=True, tag="dns-mounted-file"):
    """Our lines in an /etc/resolv.conf that cannot be replaced, only rewritten."""

    previous: bytes
    mtime_ns: int

    def __post_init__(self) -> None:
        if len(self.previous) > MAX_FILE:
            raise ValueError(f"a resolv.conf of {len(self.previous)} bytes")


DnsRecord = (
    RevertLink | RestoreGlobalDns | RemoveResolvconfEntry | RestoreResolvConf | RewriteResolvConf
)
#: Records that are kept already.
Held = tuple[DnsRecord, ...]


def _check_interface(name: str) -> None:
    if not _INTERFACE.fullmatch(name):
        raise ValueError(f"{name[:32]!r} is not an interface of ours")
