"""Watching an interface: which packets crossed it, for tests about what must never leak.

A :class:`Capture` sees every packet from its start to its end, in both directions, as the network
layer sees it, and says so itself when the kernel dropped any: a leak test must not pass because
nobody was looking.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from tests.world.namespaces import Namespace, WorldError
from tests.world.packets import Packet, dissect

_ETH_P_ALL: Final = 0x0003  # linux/if_ether.h
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6  # linux/if_packet.h
_PACKET_OUTGOING: Final = 4
_BUFFER: Final = 32 << 20
#: The most matching packets that are kept; all are counted.
KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class Seen:
    """One IP packet on the interface; `outgoing` as its namespace sees it."""

    outgoing: bool
    packet: Packet


class Capture:
    """Counts the IP packets on an interface that match; use as a context manager.

    `count` and `seen` (the first KEPT of them) may be read at any time and are final after the
    ``with`` block, which raises WorldError when the kernel had to drop packets unseen. ARP and
    other non-IP traffic is not counted. Large sends appear as the stack sees them, before
    segmentation.
    """

    def __init__(
        self, namespace: Namespace, interface: str, match: Callable[[Seen], bool] = lambda _: True
    ) -> None:
        self.count = 0
        self.seen: list[Seen] = []
        self._match = match
        self._failure: Exception | None = None
        # With a protocol from the start it would see every interface until it is bound.
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
        self._socket.setblocking(False)
        self._wake = os.eventfd(0)
        namespace.call(self._socket.bind, (interface, _ETH_P_ALL))
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        statistics = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        dropped = struct.unpack("=II", statistics)[1]
        self._socket.close()
        os.close(self._wake)
        if error is None and self._failure is not None:
            raise self._failure
        if error is None and dropped:
            raise WorldError(f"the capture missed {dropped} packets: send fewer in this test")

    def _watch(self) -> None:
        try:
            ending = False
            while not ending:
                ready, _, _ = select.select([self._socket.fileno(), self._wake], [], [])
                ending = self._wake in ready
                self._drain()
        except Exception as error:  # the predicate is the test's own code
            self._failure = error

    def _drain(self) -> None:
        while True:
            try:
                data, address = self._socket.recvfrom(65535)
            except BlockingIOError:
                return
            packet = dissect(data)
            if packet is None:
                continue
            seen = Seen(outgoing=address[2] == _PACKET_OUTGOING, packet=packet)
            if self._match(seen):
                self.count += 1
                if len(self.seen) < KEPT:
                    self.seen.append(seen)
