"""What can be undone, as data: a closed set of records, each harmless to run twice or in vain.

A record names a thing of ours by a fixed name or number, never a command or a path, so that a
privileged process may take records from a less trusted one. Running them is
:mod:`qvpn_core.net.undo`'s work; this module stays light for the guardian's start.
"""

from __future__ import annotations

from typing import Final

import msgspec

from qvpn_core.net import sysctl


class RemoveRules(msgspec.Struct, frozen=True, tag="rules"):
    """The rules that send traffic to our table, of both IP versions."""


class FlushRoutes(msgspec.Struct, frozen=True, tag="routes"):
    """Our routes in our table, also those that no device takes with it (throw, unreachable)."""


class RemoveClientFirewall(msgspec.Struct, frozen=True, tag="client-firewall"):
    """The client's nftables tables."""


class RestoreSetting(msgspec.Struct, frozen=True, tag="setting"):
    """A kernel setting's value before us, put back only where ours still stands."""

    name: str
    previous: str
    ours: str

    def __post_init__(self) -> None:
        sysctl.check(self.name)


Record = RemoveRules | FlushRoutes | RemoveClientFirewall | RestoreSetting

#: What a client can leave behind when even its guardian was killed. The device is never among it.
CLIENT_LEFTOVERS: Final[tuple[Record, ...]] = (
    FlushRoutes(),
    RemoveClientFirewall(),
    RemoveRules(),
)
