"""A datapath between a device and a tunnel, and what goes in and comes out of both."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.interface import Datapath
from qvpn_core.datapath.native import NativeDatapath
from qvpn_core.errors import TunUnavailable
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_core.transport.interface import Address, HttpTunnel, TransportName, TunnelCounters
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import AcceptingServer, Changes, Identity, RecordingHandler
from tests.unit.transport.peers import dial, gateway

#: Inside the tunnel, once path MTU discovery is done.
LOOPBACK_MTU = 1442
PLAIN = bytes(10)  # the virtio header of a packet without offloads


async def until(condition: Callable[[], bool]) -> None:
    """Wait until another thread has made `condition` true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # no event reaches us
            await asyncio.sleep(0.005)


class SocketDevice:
    """A TUN's stand-in on a SOCK_SEQPACKET pair; `kernel` is the side that the kernel would be on.

    With `vnet_header` packets have virtio headers in between, as an engine wants them.
    """

    def __init__(self, *, vnet_header: bool) -> None:
        self._sock, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self.kernel.setblocking(False)
        self.vnet_header = vnet_header
        self.offloads: list[bool] = []
        self.reads = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def set_offload(self, on: bool) -> None:
        self.offloads.append(on)

    def read_batch(self, limit: int) -> list[bytes]:
        self.reads += 1
        packets: list[bytes] = []
        while len(packets) < limit:
            try:
                packet = self._sock.recv(65600)
            except BlockingIOError:
                break
            if not packet:
                raise TunUnavailable("the device is gone", "start the tunnel again")
            packets.append(packet[10:] if self.vnet_header else packet)
        return packets

    def write_batch(self, packets: Iterable[bytes]) -> int:
        written = 0
        for packet in packets:
            try:
                self._sock.send(PLAIN + packet if self.vnet_header else packet)
            except OSError:
                continue
            written += 1
        return written

    def give(self, packet: bytes) -> None:
        """Have the kernel give a packet."""
        self.kernel.send(PLAIN + packet if self.vnet_header else packet)

    async def delivered(self, count: int) -> list[bytes]:
        """The next `count` packets that the kernel gets."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(10):
            got = [await loop.sock_recv(self.kernel, 65600) for _ in range(count)]
        return [self._plain(packet) for packet in got]

    def waiting(self) -> list[bytes]:
        """What the kernel has got and nobody looked at."""
        packets = []
        while True:
            try:
                packets.append(self._plain(self.kernel.recv(65600)))
            except BlockingIOError:
                return packets

    def close(self) -> None:
        self._sock.close()
        self.kernel.close()

    def _plain(self, packet: bytes) -> bytes:
        if not self.vnet_header:
            return packet
        assert packet[:10] == PLAIN
        return packet[10:]


class RecordingTunnel:
    """A tunnel that remembers, and refuses what exceeds its MTU as a real one does."""

    transport: TransportName = "quic"
    peer: Address = ("192.0.2.1", 443)
    rtt = 0.0
    mtu = 1400
    response_headers = ()

    def __init__(self) -> None:
        self.counters = TunnelCounters()
        self.changes = Changes()
        self.batches: list[list[bytes]] = []
        self.datapath: Datapath | None = None

    def send_packets(self, packets: Sequence[bytes]) -> None:
        assert self.datapath is not None
        for packet in packets:
            if len(packet) > self.mtu:
                self.datapath.packet_too_big(packet, self.mtu)
        self.batches.append([packet for packet in packets if len(packet) <= self.mtu])
        self.changes.note()

    def send_capsules(self, data: bytes) -> None:
        raise AssertionError("a datapath sends no capsules")

    def close(self, error: int | None = None) -> None:
        raise AssertionError("a datapath does not close its tunnel")


class Bench(ABC):
    """A datapath, its device, and a tunnel that remembers what it was given."""

    device: SocketDevice
    datapath: Datapath
    tunnel: HttpTunnel

    @property
    @abstractmethod
    def sent(self) -> list[bytes]:
        """What came out of the tunnel."""

    @abstractmethod
    async def until_sent(self, count: int) -> None:
        """Wait until that many packets have come out of the tunnel."""

    @abstractmethod
    def arrive(self, packets: list[bytes]) -> None:
        """Have the other end of the tunnel send packets."""

    async def until_dropped(self, dropped: dict[str, int]) -> None:
        """Wait until exactly these drops are counted."""
        await until(lambda: self.datapath.counters.dropped == dropped)


class ReferenceBench(Bench):
    """With a tunnel that only records."""

    def __init__(self) -> None:
        self.device = SocketDevice(vnet_header=False)
        self.recorder = RecordingTunnel()
        self.tunnel = self.recorder
        self.datapath = self.recorder.datapath = AioquicDatapath(self.device, self.tunnel)

    @property
    def sent(self) -> list[bytes]:
        return [packet for batch in self.recorder.batches for packet in batch]

    async def until_sent(self, count: int) -> None:
        await self.recorder.changes.until(lambda: len(self.sent) >= count)

    def arrive(self, packets: list[bytes]) -> None:
        self.datapath.packets(packets)


class Link(RecordingHandler):
    """A client's handler that passes packets on, as a session does."""

    datapath: Datapath | None = None

    def packets(self, packets: list[bytes]) -> None:
        super().packets(packets)
        if self.datapath is not None:
            self.datapath.packets(packets)

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        if self.datapath is not None:
            self.datapath.packet_too_big(packet, mtu)


class NativeBench(Bench):
    """With a real tunnel over loopback, whose far end is the reference's."""

    def __init__(self, link: Link, tunnel: Http3Tunnel, server: AcceptingServer) -> None:
        self.device = SocketDevice(vnet_header=True)
        self.link = link
        self.tunnel = tunnel
        self.datapath = link.datapath = NativeDatapath(self.device, tunnel)
        self.server = server
        self.far = server.handlers[0]
        self.far_tunnel = server.tunnels[0]

    @property
    def sent(self) -> list[bytes]:
        return self.far.received

    async def until_sent(self, count: int) -> None:
        await self.far.packets_arrived(count)

    def arrive(self, packets: list[bytes]) -> None:
        self.far_tunnel.send_packets(packets)


@asynccontextmanager
async def reference_bench(identity: Identity | None = None) -> AsyncIterator[ReferenceBench]:
    """The reference, closed afterwards; it needs no identity."""
    del identity
    bench = ReferenceBench()
    try:
        yield bench
    finally:
        bench.datapath.close()
        bench.device.close()


@asynccontextmanager
async def native_bench(identity: Identity) -> AsyncIterator[NativeBench]:
    """The native datapath on a path whose MTU is known, closed afterwards."""
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        link = Link()
        tunnel = await dial(listener.addresses[0], Trust(pins=(identity.pin,)), link)
        assert isinstance(tunnel, Http3Tunnel)
        await until(lambda: min(tunnel.mtu, server.tunnels[0].mtu) == LOOPBACK_MTU)
        bench = NativeBench(link, tunnel, server)
        try:
            yield bench
        finally:
            bench.datapath.close()
            tunnel.close()
            bench.device.close()


BENCHES = {"aioquic": reference_bench, "native": native_bench}
