"""What can be undone, as data: a closed set of records, each harmless to run twice or in vain.

A record names a thing of ours by a fixed name or number, never a command or a path. It is written
down before the change that it undoes. Running records is :mod:`qvpn_core.net.undo`'s work; this
module stays light for the helper's start.
"""

from __future__ import annotations

from typing import Final

import msgspec

from qvpn_core.net import sysctl
from qvpn_core.net.dns.records import DnsRecord


class RemoveRules(msgspec.Struct, frozen=True, tag="rules"):
    """The rules that send traffic to our table, of both IP versions."""


class FlushRoutes(msgspec.Struct, frozen=True, tag="routes"):
    """Our routes in our table, also those that no device takes with it (throw, unreachable)."""


class RemoveClientFirewall(msgspec.Struct, frozen=True, tag="client-firewall"):
    """The client's nftables tables, but not a kill switch."""


class RemoveTun(msgspec.Struct, frozen=True, tag="tun"):
    """The client's TUN, should somebody still hold it: its holder can make it persistent."""


class RestoreSetting(msgspec.Struct, frozen=True, tag="setting"):
    """A kernel setting's value before us, put back only where ours still stands."""

    name: str
    previous: str
    ours: str

    def __post_init__(self) -> None:
        sysctl.check(self.name)


NetworkRecord = RemoveRules | FlushRoutes | RemoveClientFirewall | RemoveTun | RestoreSetting
Record = NetworkRecord | DnsRecord

#: What carries our names and numbers, whoever left it and whether or not a journal says so. Undone
#: from its end: without rules the rest is out of use.
LEFTOVERS: Final[tuple[NetworkRecord, ...]] = (
    RemoveTun(),
    FlushRoutes(),
    RemoveClientFirewall(),
    RemoveRules(),
)
