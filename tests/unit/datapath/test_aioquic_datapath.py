"""What every datapath must do between a device and a tunnel, asked of the reference one.

The device is a SOCK_SEQPACKET socket pair: like a TUN it has a descriptor, keeps packets apart and
takes only so many. The tunnel records. Cases do not look inside the datapath, so that another one
can be put in its place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence

import pytest

from qvpn_core.datapath.aioquic import AioquicDatapath
from qvpn_core.datapath.interface import (
    BAD_DESTINATION,
    BAD_SOURCE,
    MALFORMED,
    TUN_REFUSED,
    Datapath,
    PacketDevice,
)
from qvpn_core.errors import TunUnavailable
from qvpn_core.packet import IPPROTO_ICMP, IPPROTO_ICMPV6, checksum, parse
from qvpn_core.transport.interface import Address, HttpTunnel, TransportName, TunnelCounters
from tests.unit.transport.helpers import Changes, in_loop

OWN_V4 = ipaddress.ip_address("10.9.0.2").packed
OWN_V6 = ipaddress.ip_address("fd00:9::2").packed
OTHER_V4 = ipaddress.ip_address("198.51.100.7").packed
OTHER_V6 = ipaddress.ip_address("2001:db8::7").packed
STRANGE_V4 = ipaddress.ip_address("192.168.1.5").packed
STRANGE_V6 = ipaddress.ip_address("fe80::1").packed


class SocketDevice:
    """A TUN's stand-in; `kernel` is the side that the kernel would be on."""

    def __init__(self) -> None:
        self._sock, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.setblocking(False)
        self.kernel.setblocking(False)
        self.reads: list[int] = []

    def fileno(self) -> int:
        return self._sock.fileno()

    def read_batch(self, limit: int) -> list[bytes]:
        packets: list[bytes] = []
        while len(packets) < limit:
            try:
                packet = self._sock.recv(65536)
            except BlockingIOError:
                break
            if not packet:
                raise TunUnavailable("the device is gone", "start the tunnel again")
            packets.append(packet)
        self.reads.append(len(packets))
        return packets

    def write_batch(self, packets: Iterable[bytes]) -> int:
        written = 0
        for packet in packets:
            try:
                self._sock.send(packet)
            except OSError:
                continue
            written += 1
        return written

    def delivered(self) -> list[bytes]:
        """What the kernel got."""
        packets = []
        while True:
            try:
                packets.append(self.kernel.recv(65536))
            except BlockingIOError:
                return packets

    def close(self) -> None:
        self._sock.close()
        self.kernel.close()


class RecordingTunnel:
    """A tunnel that remembers, and refuses what exceeds its MTU as a real one does."""

    transport: TransportName = "quic"
    peer: Address = ("192.0.2.1", 443)
    rtt = 0.0

    def __init__(self) -> None:
        self.mtu = 1400
        self.counters = TunnelCounters()
        self.changes = Changes()
        self.batches: list[list[bytes]] = []
        self.datapath: Datapath | None = None

    @property
    def sent(self) -> list[bytes]:
        return [packet for batch in self.batches for packet in batch]

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


class Bench:
    """A datapath between a device and a tunnel."""

    def __init__(self, make: Callable[[PacketDevice, HttpTunnel], Datapath]) -> None:
        self.device = SocketDevice()
        self.tunnel = RecordingTunnel()
        self.datapath = make(self.device, self.tunnel)
        self.tunnel.datapath = self.datapath

    def start(self) -> None:
        self.datapath.start([OWN_V4, OWN_V6])

    async def until_sent(self, count: int) -> None:
        await self.tunnel.changes.until(lambda: len(self.tunnel.sent) >= count, seconds=5.0)

    def close(self) -> None:
        self.datapath.close()
        self.device.close()


DATAPATHS: dict[str, Callable[[PacketDevice, HttpTunnel], Datapath]] = {"aioquic": AioquicDatapath}


def conformance(
    case: Callable[[Bench], object],
) -> Callable[[str], None]:
    """Run a case over every datapath that there is."""

    @pytest.mark.parametrize("name", DATAPATHS)
    @in_loop
    async def run(name: str) -> None:
        bench = Bench(DATAPATHS[name])
        assert bench.datapath.name == name
        try:
            result = case(bench)
            if asyncio.iscoroutine(result):
                await result
        finally:
            bench.close()

    run.__name__ = case.__name__
    run.__doc__ = case.__doc__
    return run


def v4(source: bytes, destination: bytes, size: int = 100, protocol: int = 17) -> bytes:
    head = bytes((0x45, 0)) + size.to_bytes(2, "big") + bytes((0, 0, 0, 0, 64, protocol))
    summed = checksum(head + bytes(2) + source + destination).to_bytes(2, "big")
    return (head + summed + source + destination).ljust(size, b"x")


def v6(source: bytes, destination: bytes, size: int = 100, protocol: int = 17) -> bytes:
    head = b"\x60\0\0\0" + (size - 40).to_bytes(2, "big") + bytes((protocol, 64))
    return (head + source + destination).ljust(size, b"x")


# From the device


@conformance
async def test_own_packets_leave_in_order(bench: Bench) -> None:
    bench.start()
    packets = [
        packet
        for size in range(60, 100)
        for packet in (v4(OWN_V4, OTHER_V4, size), v6(OWN_V6, OTHER_V6, size))
    ]
    for packet in packets:
        bench.device.kernel.send(packet)
    await bench.until_sent(len(packets))
    assert bench.tunnel.sent == packets
    assert bench.datapath.counters.dropped == {}


@conformance
async def test_what_waits_leaves_in_one_batch(bench: Bench) -> None:
    for serial in range(30):
        bench.device.kernel.send(v4(OWN_V4, OTHER_V4, 60 + serial))
    bench.start()
    await bench.until_sent(30)
    assert [len(batch) for batch in bench.tunnel.batches] == [30]


@conformance
async def test_a_flood_is_taken_in_portions(bench: Bench) -> None:
    bench.device._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    bench.device.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sent = 0
    while sent < 200:
        try:
            bench.device.kernel.send(v4(OWN_V4, OTHER_V4, 60))
        except BlockingIOError:
            break
        sent += 1
    bench.start()
    await bench.until_sent(sent)
    assert len(bench.tunnel.batches) > 1
    assert max(map(len, bench.tunnel.batches)) < sent


@conformance
async def test_packets_of_other_sources_do_not_leave(bench: Bench) -> None:
    bench.start()
    good = v4(OWN_V4, OTHER_V4)
    for packet in (
        v4(STRANGE_V4, OTHER_V4),
        v6(STRANGE_V6, OTHER_V6),
        v4(bytes(4), OTHER_V4),
        v6(bytes(16), OTHER_V6),
        v4(OTHER_V4, OWN_V4),
        good,
    ):
        bench.device.kernel.send(packet)
    await bench.until_sent(1)
    assert bench.tunnel.sent == [good]
    assert bench.datapath.counters.dropped == {BAD_SOURCE: 5}


@conformance
async def test_a_source_of_the_other_version_is_not_taken_for_ours(bench: Bench) -> None:
    """Sixteen bytes that begin like our IPv4 address, and the other way round."""
    bench.start()
    good = v6(OWN_V6, OTHER_V6)
    bench.device.kernel.send(v6(OWN_V4 + bytes(12), OTHER_V6))
    bench.device.kernel.send(v4(OWN_V6[:4], OTHER_V4))
    bench.device.kernel.send(good)
    await bench.until_sent(1)
    assert bench.tunnel.sent == [good]
    assert bench.datapath.counters.dropped == {BAD_SOURCE: 2}


@conformance
async def test_addresses_can_change(bench: Bench) -> None:
    bench.start()
    new = ipaddress.ip_address("10.9.0.3").packed
    bench.datapath.set_addresses([new])
    bench.device.kernel.send(v4(OWN_V4, OTHER_V4))
    bench.device.kernel.send(v4(new, OTHER_V4))
    await bench.until_sent(1)
    assert bench.tunnel.sent == [v4(new, OTHER_V4)]
    bench.datapath.packets([v4(OTHER_V4, OWN_V4), v4(OTHER_V4, new)])
    assert bench.device.delivered() == [v4(OTHER_V4, new)]
    assert bench.datapath.counters.dropped == {BAD_SOURCE: 1, BAD_DESTINATION: 1}


@conformance
def test_nothing_moves_before_the_start(bench: Bench) -> None:
    bench.device.kernel.send(v4(OWN_V4, OTHER_V4))
    bench.datapath.packets([v4(OTHER_V4, OWN_V4)])
    assert bench.tunnel.batches == []
    assert bench.device.delivered() == []
    assert bench.datapath.counters.dropped == {BAD_DESTINATION: 1}, "we have no address yet"


# From the tunnel


@conformance
def test_packets_to_us_enter_in_order(bench: Bench) -> None:
    bench.start()
    packets = [v4(OTHER_V4, OWN_V4, 60), v6(OTHER_V6, OWN_V6, 61), v4(STRANGE_V4, OWN_V4, 62)]
    bench.datapath.packets(packets)
    assert bench.device.delivered() == packets
    assert bench.datapath.counters.dropped == {}


@conformance
def test_packets_to_others_do_not_enter(bench: Bench) -> None:
    bench.start()
    bench.datapath.packets(
        [
            v4(OTHER_V4, STRANGE_V4),
            v4(OTHER_V4, b"\xff\xff\xff\xff"),
            v4(OTHER_V4, ipaddress.ip_address("224.0.0.1").packed),
            v4(OTHER_V4, ipaddress.ip_address("127.0.0.1").packed),
            v6(OTHER_V6, STRANGE_V6),
            v6(OTHER_V6, ipaddress.ip_address("ff02::1").packed),
            v6(OTHER_V6, ipaddress.ip_address("::1").packed),
            v4(OTHER_V4, OWN_V4),
        ]
    )
    assert bench.device.delivered() == [v4(OTHER_V4, OWN_V4)]
    assert bench.datapath.counters.dropped == {BAD_DESTINATION: 7}


BROKEN = {
    "empty": b"",
    "one byte": b"\x45",
    "short IPv4": v4(OTHER_V4, OWN_V4)[:19],
    "short IPv6": v6(OTHER_V6, OWN_V6)[:39],
    "longer than it says": v4(OTHER_V4, OWN_V4) + b"x",
    "shorter than it says": v6(OTHER_V6, OWN_V6)[:-1],
    "header length of nothing": b"\x40" + v4(OTHER_V4, OWN_V4)[1:],
    "version 5": b"\x55" + v4(OTHER_V4, OWN_V4)[1:],
    "version 0": bytes(60),
    "not IP at all": b"\xff" * 100,
}


@conformance
def test_malformed_packets_do_not_enter(bench: Bench) -> None:
    bench.start()
    bench.datapath.packets([*BROKEN.values(), v4(OTHER_V4, OWN_V4)])
    assert bench.device.delivered() == [v4(OTHER_V4, OWN_V4)]
    assert bench.datapath.counters.dropped == {MALFORMED: len(BROKEN)}


@conformance
def test_what_the_device_does_not_take_is_counted(bench: Bench) -> None:
    bench.start()
    packets = [v4(OTHER_V4, OWN_V4, 9000)] * 1000  # more than the socket holds
    bench.datapath.packets(packets)
    taken = len(bench.device.delivered())
    assert 0 < taken < 1000
    assert bench.datapath.counters.dropped == {TUN_REFUSED: 1000 - taken}


# Packets that are too big


@conformance
async def test_the_sender_of_an_ipv4_packet_that_is_too_big_is_told(bench: Bench) -> None:
    bench.start()
    big, small = v4(OWN_V4, OTHER_V4, 1401), v4(OWN_V4, OTHER_V4, 1400)
    bench.device.kernel.send(big)
    bench.device.kernel.send(small)
    await bench.until_sent(1)
    assert bench.tunnel.sent == [small]
    [answer] = bench.device.delivered()
    told = parse(answer)
    assert (told.source, told.destination) == (OTHER_V4, OWN_V4)
    assert told.protocol == IPPROTO_ICMP
    message = answer[told.header_length :]
    assert message[:2] == b"\3\4"  # Destination Unreachable, fragmentation needed
    assert int.from_bytes(message[6:8], "big") == 1400
    assert message[8:36] == big[:28], "it quotes what it is about"
    assert checksum(answer[: told.header_length]) == 0
    assert checksum(message) == 0


@conformance
async def test_the_sender_of_an_ipv6_packet_that_is_too_big_is_told(bench: Bench) -> None:
    bench.start()
    big, small = v6(OWN_V6, OTHER_V6, 1401), v6(OWN_V6, OTHER_V6, 1400)
    bench.device.kernel.send(big)
    bench.device.kernel.send(small)
    await bench.until_sent(1)
    assert bench.tunnel.sent == [small]
    [answer] = bench.device.delivered()
    told = parse(answer)
    assert (told.source, told.destination) == (OTHER_V6, OWN_V6)
    assert told.protocol == IPPROTO_ICMPV6
    message = answer[told.header_length :]
    assert message[:2] == b"\2\0"  # Packet Too Big
    assert int.from_bytes(message[4:8], "big") == 1400
    assert message[8:56] == big[:48]


@conformance
async def test_no_error_is_sent_about_an_error(bench: Bench) -> None:
    bench.start()
    error = bytearray(v4(OWN_V4, OTHER_V4, 1401, IPPROTO_ICMP))
    error[20] = 3  # Destination Unreachable
    bench.device.kernel.send(error)
    bench.device.kernel.send(v4(OWN_V4, OTHER_V4))
    await bench.until_sent(1)
    assert bench.device.delivered() == []


# The end


@conformance
async def test_nothing_leaves_after_close(bench: Bench) -> None:
    bench.start()
    bench.datapath.close()
    bench.datapath.close()
    bench.device.kernel.send(v4(OWN_V4, OTHER_V4))
    await asyncio.sleep(0.02)
    assert bench.tunnel.batches == []
    assert bench.device.fileno() >= 0, "the device stays open"


@conformance
def test_closing_what_never_started(bench: Bench) -> None:
    bench.datapath.close()


@conformance
async def test_a_device_that_disappears_is_left_alone(bench: Bench) -> None:
    bench.start()
    bench.device.kernel.close()
    await asyncio.sleep(0.02)
    reads = len(bench.device.reads)
    await asyncio.sleep(0.05)
    assert len(bench.device.reads) == reads, "it would be readable for ever"
    bench.datapath.packets([v4(OTHER_V4, OWN_V4)])
    assert bench.datapath.counters.dropped == {TUN_REFUSED: 1}
    bench.datapath.close()
