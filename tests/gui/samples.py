"""A status for every state that a window can show, and traffic to go with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec
from PySide6.QtGui import QPalette

from qvpn_core.client.states import State
from qvpn_core.client.status import Proxy, Status
from qvpn_gui import theme
from qvpn_gui.session_model import Sample

_NAMED: Final = Status(profile="work", gateway="vpn.example.org", mode="all")
_UP: Final = msgspec.structs.replace(
    _NAMED,
    state=State.CONNECTED,
    since="2026-11-23T09:41:00+00:00",
    transport="quic",
    datapath="aioquic",
    interface="qvpn0",
    addresses=("10.86.0.7/32", "fd86:9484::7/128"),
    routes=("0.0.0.0/0", "::/0"),
    dns=("10.86.0.1", "fd86:9484::1"),
    mtu=1393,
    rtt_ms=23.41,
    tx_bytes=48_300_000,
    rx_bytes=1_284_000_000,
    tx_packets=80_000,
    rx_packets=900_000,
    lost_packets=12,
)


def _failed(reason: str, error: str, state: State = State.FAILED) -> Status:
    return msgspec.structs.replace(_NAMED, state=state, reason=reason, error=error)


#: By the name that a picture of it has.
STATUSES: Final[Mapping[str, Status]] = MappingProxyType(
    {
        "disconnected": Status(),
        "connecting": msgspec.structs.replace(
            _NAMED, state=State.CONNECTING, stage="authenticating"
        ),
        "connected": _UP,
        "connected-only": msgspec.structs.replace(
            _UP, mode="only", destinations=("10.0.0.0/8", "fd00::/8"), routes=("10.0.0.0/8",)
        ),
        "reconnecting": _failed(
            "tunnel-lost", "the gateway closed the connection", State.RECONNECTING
        ),
        "proxy": msgspec.structs.replace(
            _NAMED,
            mode=None,
            state=State.CONNECTED,
            since="2026-11-23T09:41:00+00:00",
            transport="quic",
            proxies=(
                Proxy(kind="socks", listen="127.0.0.1:1080"),
                Proxy(kind="forward", listen="127.0.0.1:2222", target="git.example.org:22"),
            ),
        ),
        "disconnecting": msgspec.structs.replace(_NAMED, state=State.DISCONNECTING),
        "failed": _failed(
            "unreachable",
            "no answer from 203.0.113.9:443 within 10 seconds: check the address, that the "
            "gateway runs, and that UDP is not blocked",
        ),
        "portal": msgspec.structs.replace(
            _failed(
                "captive-portal",
                "this network lets nobody out before they have signed in: run qvpn sign-in, and "
                "open http://portal.example/login in a browser",
                State.RECONNECTING,
            ),
            portal="http://portal.example/login",
        ),
        "blocked": _failed("unreachable", "no answer from 203.0.113.9:443", State.BLOCKED),
    }
)


def traffic(count: int = 120) -> list[Sample]:
    """Two minutes of a download that swells and fades, with a little going back."""
    samples = []
    for second in range(count):
        wave = 0.5 + 0.5 * math.sin(second / 9) * math.cos(second / 31)
        received = 38e6 * wave + 2e6 * (second % 7)
        lost = int(second % 90 == 0)
        samples.append(Sample(float(second), received * 0.06 + 4e5, received, 400, lost))
    return samples


def dark() -> QPalette:
    """The colours of a dark desktop: without a desktop, Qt knows only the light ones."""
    return theme.dark_palette()
