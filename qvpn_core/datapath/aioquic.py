"""The reference datapath: packets pass through Python, in batches, on the event loop.

One wake-up drains the TUN into one call of `HttpTunnel.send_packets`, which makes one or two system
calls of it; what one wake-up of the socket brought is written to the TUN at once. The only queue is
the tunnel's. It never waits and holds no packet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from qvpn_core.datapath.interface import (
    BAD_DESTINATION,
    BAD_SOURCE,
    MALFORMED,
    TUN_REFUSED,
    DatapathCounters,
    DatapathName,
    PacketDevice,
)
from qvpn_core.errors import QvpnError
from qvpn_core.packet import packet_too_big, well_formed
from qvpn_core.transport.interface import HttpTunnel

#: Packets taken from the TUN at one wake-up; more would only add delay to what the socket brings.
BATCH = 64


class AioquicDatapath:
    """Moves packets between `tun` and `tunnel`; see `interface.Datapath`."""

    name: DatapathName = "aioquic"

    def __init__(self, tun: PacketDevice, tunnel: HttpTunnel) -> None:
        self._tun = tun
        self._tunnel = tunnel
        self._loop = asyncio.get_running_loop()
        self._addresses: frozenset[bytes] = frozenset()
        self._reading = False
        self.counters = DatapathCounters()

    def start(self, addresses: Sequence[bytes]) -> None:
        self.set_addresses(addresses)
        self._reading = True
        self._loop.add_reader(self._tun.fileno(), self._readable)

    def set_addresses(self, addresses: Sequence[bytes]) -> None:
        self._addresses = frozenset(addresses)

    def close(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._tun.fileno())

    def _readable(self) -> None:
        try:
            packets = self._tun.read_batch(BATCH)
        except QvpnError:
            # Somebody deleted the device. There is nothing to read from now on; whoever watches the
            # links ends the session.
            self.close()
            return
        self.outgoing(packets)

    def outgoing(self, packets: list[bytes]) -> None:
        """Packets that came from the TUN."""
        own = self._addresses
        outgoing = [
            packet
            for packet in packets
            if (packet[12:16] if packet[0] >> 4 == 4 else packet[8:24]) in own
        ]
        if len(outgoing) < len(packets):
            # The kernel's own link-local chatter, or a program bound to another interface's
            # address.
            self.counters.drop(BAD_SOURCE, len(packets) - len(outgoing))
        if outgoing:
            self._tunnel.send_packets(outgoing)

    def packets(self, packets: list[bytes]) -> None:
        own = self._addresses
        incoming: list[bytes] = []
        for packet in packets:
            if not well_formed(packet):
                self.counters.drop(MALFORMED)
            elif (packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]) not in own:
                self.counters.drop(BAD_DESTINATION)
            else:
                incoming.append(packet)
        self._write(incoming)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        # From the packet's own destination: the one address that a host surely believes here.
        source = packet[16:20] if packet[0] >> 4 == 4 else packet[24:40]
        answer = packet_too_big(packet, mtu, source)
        if answer is not None:
            self._write([answer])

    def _write(self, packets: list[bytes]) -> None:
        if packets:
            refused = len(packets) - self._tun.write_batch(packets)
            if refused:
                self.counters.drop(TUN_REFUSED, refused)
