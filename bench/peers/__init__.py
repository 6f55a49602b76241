"""The tunnels that are compared, each behind the calls of :class:`~bench.peers.base.Peer`."""

from __future__ import annotations

from bench.peers.base import Peer, Raw
from bench.peers.openvpn import OpenVpn, OpenVpnTcp
from bench.peers.qvpn import Qvpn, QvpnPython, QvpnTls
from bench.peers.wireguard import WireGuardGo

#: In the order of a round.
PEERS: tuple[type[Peer], ...] = (
    Raw,
    WireGuardGo,
    OpenVpn,
    Qvpn,
    QvpnPython,
    OpenVpnTcp,
    QvpnTls,
)

__all__ = ["PEERS", "Peer"]
