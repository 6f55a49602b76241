"""Live sessions: who holds which address, and one session per device. Pure bookkeeping, no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from qvpn_core.transport.interface import HttpTunnel
from qvpn_server.pool import IPAddress
from qvpn_server.ratelimit import TokenBucket

#: ICMP errors towards one device: per second in the long run, and at once.
ICMP_RATE = 100.0
ICMP_BURST = 50.0


@dataclass(slots=True, eq=False)
class Session:
    """One live tunnel of one device."""

    device: str
    addresses: tuple[IPAddress, ...]
    tunnel: HttpTunnel
    #: When it began, in UNIX seconds.
    since: float
    #: The largest packet in bytes that the tunnel takes now.
    mtu: int
    #: Packets that the gateway dropped, by reason; those of the tunnel itself come on top.
    drops: dict[str, int] = field(default_factory=dict)
    icmp: TokenBucket = field(default_factory=lambda: TokenBucket(ICMP_RATE, ICMP_BURST))
    #: The assigned addresses as they stand in a packet; empty without one of that family.
    source4: bytes = field(init=False)
    source6: bytes = field(init=False)

    def __post_init__(self) -> None:
        packed = {address.version: address.packed for address in self.addresses}
        self.source4 = packed.get(4, b"")
        self.source6 = packed.get(6, b"")

    def drop(self, reason: str, count: int = 1) -> None:
        """Count packets dropped for `reason`."""
        self.drops[reason] = self.drops.get(reason, 0) + count


class SessionTable:
    """All live sessions, by device and by address."""

    def __init__(self) -> None:
        #: From an address as it stands in a packet to its session; read by the packet path.
        self.by_address: dict[bytes, Session] = {}
        self._by_device: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_device)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_device.values()))

    def of_device(self, name: str) -> Session | None:
        """The live session of a device."""
        return self._by_device.get(name)

    def add(self, session: Session) -> Session | None:
        """Enter a session. Returns the one of the same device that it replaces, for closing.

        From here on packets for the device's addresses go to the new session.
        """
        replaced = self._by_device.get(session.device)
        if replaced is not None:
            self.remove(replaced)
        self._by_device[session.device] = session
        for address in session.addresses:
            self.by_address[address.packed] = session
        return replaced

    def remove(self, session: Session) -> bool:
        """Take a session out, unless another one has replaced it. Returns whether it was there."""
        if self._by_device.get(session.device) is not session:
            return False
        del self._by_device[session.device]
        for address in session.addresses:
            if self.by_address.get(address.packed) is session:
                del self.by_address[address.packed]
        return True
