"""One UDP flow of a device: a connected socket on one side, CONNECT-UDP (RFC 9298) on the other.

Payloads are passed on whole or dropped, never queued: UDP is like that. What the network says about
the target by ICMP is a drop too. It refuses datagrams from anybody but the target, since the kernel
does so for a connected socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from qvpn_core.errors import QvpnError
from qvpn_core.masque.capsule import CapsuleError
from qvpn_core.masque.connect_udp import UdpCapsules
from qvpn_core.transport.interface import HttpTunnel

#: Seconds without a packet after which a flow is closed (RFC 4787, requirement 5).
IDLE = 120.0
#: Packets read from a socket before others have their turn.
BATCH = 64
_MAX_DATAGRAM = 65535


class UdpFlow:
    """The handler of one flow's tunnel. `start` must follow the tunnel's acceptance at once."""

    def __init__(self, sock: socket.socket, drop: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._drop = drop
        self._capsules = UdpCapsules()
        self._tunnel: HttpTunnel | None = None
        self._moved_at = self._loop.time()
        #: Done when the flow is over.
        self.over: asyncio.Future[None] = self._loop.create_future()

    async def run(self, tunnel: HttpTunnel, idle: float = IDLE) -> None:
        """Carry packets until either end closes the flow or it is idle; closes everything."""
        self._tunnel = tunnel
        self._loop.add_reader(self._sock, self._readable)
        try:
            left = idle
            while left > 0 and not self.over.done():
                await asyncio.wait([self.over], timeout=left)
                left = self._moved_at + idle - self._loop.time()
        finally:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            tunnel.close()

    # From the tunnel

    def capsule_data(self, data: bytes) -> None:
        try:
            payloads = self._capsules.receive(data)
        except CapsuleError as error:
            self._close(error.code)
        else:
            if payloads:
                self.packets(payloads)

    def capsule_end(self) -> None:
        try:
            self._capsules.receive_end()
        except CapsuleError as error:
            self._close(error.code)
        else:
            self._close(None)

    def packets(self, packets: list[bytes]) -> None:
        if self.over.done():
            return
        self._moved_at = self._loop.time()
        for packet in packets:
            try:
                self._sock.send(packet)
            except BlockingIOError:
                self._drop("socket-full")
            except OSError:
                # ICMP about an earlier packet, or one that is too big for the path.
                self._drop("network-error")

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        """Counted by the tunnel; UDP has no way to tell its sender (RFC 9298 section 6.1)."""

    def mtu_changed(self, mtu: int) -> None:
        """Nothing to tell anybody."""

    def closed(self, error: QvpnError | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    # From the socket

    def _readable(self) -> None:
        packets = []
        for _ in range(BATCH):
            try:
                packets.append(self._sock.recv(_MAX_DATAGRAM))
            except BlockingIOError:
                break
            except OSError:
                self._drop("network-error")  # ICMP: port unreachable and the like
        if packets and self._tunnel is not None:
            self._moved_at = self._loop.time()
            self._tunnel.send_packets(packets)

    def _close(self, error: int | None) -> None:
        if self._tunnel is not None:
            self._tunnel.close(error)
