"""What the client says about itself: the fields of ``qvpn status --json``.

A value that programs read: fields may be added, these stay. It holds no secrets.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from qvpn_core.client.planner import RouteMode
from qvpn_core.client.proxy.options import Listener, ProxyKind
from qvpn_core.client.states import FirewallPolicy, KillSwitchMode, State
from qvpn_core.transport.interface import TransportName

#: What an attempt to connect is at, in this order.
Stage = Literal["permission", "resolving", "handshake", "authenticating", "addresses", "routes"]


class Proxy(msgspec.Struct, frozen=True, kw_only=True):
    """A place where programs of this machine are served."""

    kind: ProxyKind
    #: ADDR:PORT.
    listen: str
    #: Where a forward leads, as HOST:PORT.
    target: str | None = None

    @classmethod
    def of(cls, listener: Listener, listen: str) -> Proxy:
        """What is served for `listener` at `listen`."""
        target = str(listener.target) if listener.target is not None else None
        return cls(kind=listener.kind, listen=listen, target=target)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The tunnel at one moment. Everything below `profile` is null or empty without a session."""

    state: State = State.DISCONNECTED
    #: While an attempt to connect runs, what it is at.
    stage: Stage | None = None
    profile: str | None = None
    transport: TransportName | None = None
    datapath: str | None = None
    #: The TUN device's name.
    interface: str | None = None
    #: HOST:PORT from the profile.
    gateway: str | None = None
    #: Assigned addresses with their prefix lengths.
    addresses: tuple[str, ...] = ()
    #: Prefixes that go into the tunnel.
    routes: tuple[str, ...] = ()
    #: The route policy in force, while a tunnel is wanted: `destinations` belong to mode "only",
    #: `excluded` to any.
    mode: RouteMode | None = None
    destinations: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    #: Name servers that the gateway assigned.
    dns: tuple[str, ...] = ()
    #: Who is asked for which names, and why, in words.
    resolver: str | None = None
    #: The largest IP packet in bytes that the tunnel takes now.
    mtu: int | None = None
    rtt_ms: float | None = None
    tx_bytes: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    rx_packets: int = 0
    #: Of the packets sent, those that the transport declared lost.
    lost_packets: int = 0
    #: Packets dropped in this session, by reason.
    drops: dict[str, int] = {}
    #: When this state began (RFC 3339, UTC); null when nothing ever ran.
    since: str | None = None
    #: The slug of the last error while it explains the state (see qvpn_core.errors), and its line.
    reason: str | None = None
    error: str | None = None
    #: What to open in a browser to sign in to this network, while it lets nobody out before that.
    portal: str | None = None
    #: What the user chose, and what is in force.
    kill_switch: KillSwitchMode = "off"
    firewall: FirewallPolicy = FirewallPolicy.OPEN
    #: What a person may not expect of the routes on this machine, a line each.
    warnings: tuple[str, ...] = ()
    #: What is served instead of a tunnel; then there are no addresses and no routes.
    proxies: tuple[Proxy, ...] = ()
    #: Whose tunnel is up on this machine, when it is another user's.
    other_user: str | None = None
