"""The seam between a TUN and whatever moves its packets to a tunnel and back.

`aioquic` is the reference and always works; `native` is an offload behind the same interface.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

DatapathName = Literal["aioquic", "native"]

# Why a packet was dropped between the TUN and the tunnel; keys of `DatapathCounters.dropped`.
BAD_SOURCE = "bad-source"
BAD_DESTINATION = "bad-destination"
MALFORMED = "malformed"
TUN_REFUSED = "tun-refused"


class PacketDevice(Protocol):
    """What the datapath needs of a TUN; `qvpn_core.net.tun.Tun` is one."""

    def fileno(self) -> int: ...

    def read_batch(self, limit: int) -> list[bytes]:
        """Up to `limit` waiting packets. Raises QvpnError when the device is gone."""

    def write_batch(self, packets: Iterable[bytes]) -> int:
        """Hand packets to the kernel; the number that it took."""


class OffloadDevice(PacketDevice, Protocol):
    """A TUN whose packets have a `virtio_net_hdr` on the descriptor."""

    def set_offload(self, on: bool) -> bool:
        """Let the kernel hand over super-packets, or not; False when it refuses."""


@dataclass(slots=True)
class DatapathCounters:
    """Packets dropped at the TUN side, by reason; the tunnel has counters of its own."""

    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` packets dropped for `reason`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count


class Datapath(Protocol):
    """A client's packet pump: everything from the TUN into the tunnel, and back."""

    @property
    def name(self) -> DatapathName:
        """Which implementation this is."""

    @property
    def counters(self) -> DatapathCounters:
        """Live counters, read only."""

    def start(self, addresses: Sequence[bytes]) -> None:
        """Begin to move packets.

        `addresses` are the assigned ones, 4 or 16 bytes each: only packets from them leave, and
        only packets to them enter (RFC 9484 section 7).
        """

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        """The gateway assigned other addresses."""

    def packets(self, packets: list[bytes]) -> None:
        """Packets that the tunnel received."""

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """The tunnel did not take `packet`: tell its sender by ICMP."""

    def close(self) -> None:
        """Stop. Idempotent; the TUN and the tunnel stay open."""
