"""What was learnt about the networks that this machine has been in: whether UDP got through.

One small file in the state directory. A network is known by a hash of its interface and its router,
which says nothing to who reads the file; there is no place, name or time of day in it. Losing it
costs the next connection a third of a second, so no failure of the disk is an error here, and what
was learnt is only where to begin: every session tries QUIC as well.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from qvpn_core.client import paths
from qvpn_core.transport.interface import TransportName

#: Networks that are remembered; the one that was used longest ago goes first.
MAX_NETWORKS: Final = 64
#: Seconds after which a network may have changed its mind.
GOOD_FOR: Final = 7 * 86400.0

_MAX_FILE: Final = 64 << 10  # bytes
_UP_AND_GATEWAY: Final = 0x3  # RTF_UP, RTF_GATEWAY (linux/route.h)
_PROC = Path("/proc/net")


class _Known(msgspec.Struct, frozen=True):
    transport: TransportName
    #: UNIX seconds.
    seen: float


class Networks:
    """The memory of one user, for one gateway (HOST:PORT)."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway
        self._path = paths.state_dir() / "networks.json"

    def udp_was_blocked(self) -> bool:
        """Whether the last session in the network that we are in now had to use TLS."""
        known = self._load().get(self._key())
        return (
            known is not None
            and known.transport == "tls"
            and abs(time.time() - known.seen) < GOOD_FOR
        )

    def note(self, transport: TransportName) -> None:
        """A session in this network uses `transport`, which was not the user's choice."""
        networks, key = self._load(), self._key()
        networks.pop(key, None)
        networks[key] = _Known(transport, round(time.time()))
        for oldest in list(networks)[:-MAX_NETWORKS]:
            del networks[oldest]
        with suppress(OSError):
            paths.make_private(self._path.parent)
            paths.write_private(self._path, msgspec.json.encode(networks))

    def _load(self) -> dict[str, _Known]:
        with suppress(OSError, msgspec.MsgspecError), self._path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_FILE), type=dict[str, _Known])
        return {}

    def _key(self) -> str:
        text = f"{default_router()} {self._gateway}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def default_router() -> str:
    """The interface of the default route with its router's addresses, or "" without one.

    The kernel's IPv4 router and its hardware address; without IPv4 the IPv6 router, whose address
    is its own on every link.
    """
    for line in _lines("route"):
        fields = line.split()
        # Iface Destination Gateway Flags RefCnt Use Metric Mask: hexadecimal, in host order.
        if len(fields) > 7 and fields[1] == fields[7] == "00000000":
            if int(fields[3], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
                router = ".".join(str(byte) for byte in bytes.fromhex(fields[2])[::-1])
                return f"{fields[0]} {router} {_hardware_address(router)}"
    for line in _lines("ipv6_route"):
        fields = line.split()
        if len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00":
            if int(fields[8], 16) & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
                return f"{fields[9]} {fields[4]}"
    return ""


def _hardware_address(router: str) -> str:
    for line in _lines("arp"):
        fields = line.split()
        if len(fields) > 3 and fields[0] == router:
            return fields[3]
    return ""


def _lines(name: str) -> list[str]:
    with suppress(OSError, ValueError):
        return (_PROC / name).read_text().splitlines()
    return []
