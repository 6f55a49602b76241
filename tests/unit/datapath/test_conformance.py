"""What every datapath must do between a device and a tunnel.

Cases do not look inside the datapath, so that another one can be put in its place: see `benches`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable

import pytest

from qvpn_core.datapath.engine import available
from qvpn_core.datapath.interface import BAD_DESTINATION, BAD_SOURCE, MALFORMED, TUN_REFUSED
from qvpn_core.packet import IPPROTO_ICMP, IPPROTO_ICMPV6, checksum, parse
from tests.unit.datapath.benches import BENCHES, Bench, reference_bench, until
from tests.unit.transport.helpers import Identity, in_loop

OWN_V4 = ipaddress.ip_address("10.9.0.2").packed
OWN_V6 = ipaddress.ip_address("fd00:9::2").packed
OTHER_V4 = ipaddress.ip_address("198.51.100.7").packed
OTHER_V6 = ipaddress.ip_address("2001:db8::7").packed
STRANGE_V4 = ipaddress.ip_address("192.168.1.5").packed
STRANGE_V6 = ipaddress.ip_address("fe80::1").packed
OWN = [OWN_V4, OWN_V6]

NATIVE = pytest.param(
    "native",
    marks=pytest.mark.skipif(not available(), reason="qvpn_datapath is not built (make native)"),
)


def conformance(case: Callable[[Bench], Awaitable[None]]) -> Callable[[str, Identity], None]:
    """Run a case over every datapath that there is."""

    @pytest.mark.parametrize("name", ["aioquic", NATIVE])
    @in_loop
    async def run(name: str, identity: Identity) -> None:
        async with BENCHES[name](identity) as bench:
            await case(bench)

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
    bench.datapath.start(OWN)
    packets = [
        packet
        for size in range(60, 100)
        for packet in (v4(OWN_V4, OTHER_V4, size), v6(OWN_V6, OTHER_V6, size))
    ]
    for packet in packets:
        bench.device.give(packet)
    await bench.until_sent(len(packets))
    assert bench.sent == packets
    assert bench.datapath.counters.dropped == {}


@in_loop
async def test_the_reference_takes_what_waits_as_one_batch() -> None:
    async with reference_bench() as bench:
        for serial in range(30):
            bench.device.give(v4(OWN_V4, OTHER_V4, 60 + serial))
        bench.datapath.start(OWN)
        await bench.until_sent(30)
        assert [len(batch) for batch in bench.recorder.batches] == [30]


@in_loop
async def test_the_reference_takes_a_flood_in_portions() -> None:
    async with reference_bench() as bench:
        bench.device.kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sent = 0
        while sent < 200:
            try:
                bench.device.give(v4(OWN_V4, OTHER_V4, 60))
            except BlockingIOError:
                break
            sent += 1
        bench.datapath.start(OWN)
        await bench.until_sent(sent)
        assert len(bench.recorder.batches) > 1
        assert max(map(len, bench.recorder.batches)) < sent


@conformance
async def test_packets_of_other_sources_do_not_leave(bench: Bench) -> None:
    bench.datapath.start(OWN)
    good = v4(OWN_V4, OTHER_V4)
    for packet in (
        v4(STRANGE_V4, OTHER_V4),
        v6(STRANGE_V6, OTHER_V6),
        v4(bytes(4), OTHER_V4),
        v6(bytes(16), OTHER_V6),
        v4(OTHER_V4, OWN_V4),
        good,
    ):
        bench.device.give(packet)
    await bench.until_sent(1)
    assert bench.sent == [good]
    assert bench.datapath.counters.dropped == {BAD_SOURCE: 5}


@conformance
async def test_a_source_of_the_other_version_is_not_taken_for_ours(bench: Bench) -> None:
    """Sixteen bytes that begin like our IPv4 address, and the other way round."""
    bench.datapath.start(OWN)
    good = v6(OWN_V6, OTHER_V6)
    bench.device.give(v6(OWN_V4 + bytes(12), OTHER_V6))
    bench.device.give(v4(OWN_V6[:4], OTHER_V4))
    bench.device.give(good)
    await bench.until_sent(1)
    assert bench.sent == [good]
    assert bench.datapath.counters.dropped == {BAD_SOURCE: 2}


@conformance
async def test_addresses_can_change(bench: Bench) -> None:
    bench.datapath.start(OWN)
    new = ipaddress.ip_address("10.9.0.3").packed
    bench.datapath.set_addresses([new])
    bench.device.give(v4(OWN_V4, OTHER_V4))
    bench.device.give(v4(new, OTHER_V4))
    await bench.until_sent(1)
    assert bench.sent == [v4(new, OTHER_V4)]
    bench.arrive([v4(OTHER_V4, OWN_V4), v4(OTHER_V4, new)])
    assert await bench.device.delivered(1) == [v4(OTHER_V4, new)]
    await bench.until_dropped({BAD_SOURCE: 1, BAD_DESTINATION: 1})


@conformance
async def test_nothing_moves_before_the_start(bench: Bench) -> None:
    bench.device.give(v4(OWN_V4, OTHER_V4))
    bench.arrive([v4(OTHER_V4, OWN_V4)])
    await bench.until_dropped({BAD_DESTINATION: 1})  # we have no address yet
    assert bench.sent == []
    assert bench.device.waiting() == []


# From the tunnel


@conformance
async def test_packets_to_us_enter_in_order(bench: Bench) -> None:
    bench.datapath.start(OWN)
    packets = [v4(OTHER_V4, OWN_V4, 60), v6(OTHER_V6, OWN_V6, 61), v4(STRANGE_V4, OWN_V4, 62)]
    bench.arrive(packets)
    assert await bench.device.delivered(len(packets)) == packets
    assert bench.datapath.counters.dropped == {}


@conformance
async def test_packets_to_others_do_not_enter(bench: Bench) -> None:
    bench.datapath.start(OWN)
    bench.arrive(
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
    assert await bench.device.delivered(1) == [v4(OTHER_V4, OWN_V4)]
    assert bench.device.waiting() == []
    await bench.until_dropped({BAD_DESTINATION: 7})


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
async def test_malformed_packets_do_not_enter(bench: Bench) -> None:
    bench.datapath.start(OWN)
    bench.arrive([*BROKEN.values(), v4(OTHER_V4, OWN_V4)])
    assert await bench.device.delivered(1) == [v4(OTHER_V4, OWN_V4)]
    assert bench.device.waiting() == []
    await bench.until_dropped({MALFORMED: len(BROKEN)})


@conformance
async def test_what_the_device_does_not_take_is_counted(bench: Bench) -> None:
    bench.datapath.start(OWN)
    bench.arrive([v4(OTHER_V4, OWN_V4, 1400)] * 1000)  # more than the socket holds
    await until(lambda: bool(bench.datapath.counters.dropped))
    taken = len(bench.device.waiting())
    assert taken
    dropped = bench.datapath.counters.dropped
    assert dropped.keys() == {TUN_REFUSED}
    assert taken + dropped[TUN_REFUSED] <= 1000


# Packets that are too big


@conformance
async def test_the_sender_of_an_ipv4_packet_that_is_too_big_is_told(bench: Bench) -> None:
    bench.datapath.start(OWN)
    big, small = v4(OWN_V4, OTHER_V4, bench.tunnel.mtu + 1), v4(OWN_V4, OTHER_V4, bench.tunnel.mtu)
    bench.device.give(big)
    bench.device.give(small)
    await bench.until_sent(1)
    assert bench.sent == [small]
    [answer] = await bench.device.delivered(1)
    told = parse(answer)
    assert (told.source, told.destination) == (OTHER_V4, OWN_V4)
    assert told.protocol == IPPROTO_ICMP
    message = answer[told.header_length :]
    assert message[:2] == b"\3\4"  # Destination Unreachable, fragmentation needed
    assert int.from_bytes(message[6:8], "big") == bench.tunnel.mtu
    assert message[8:36] == big[:28], "it quotes what it is about"
    assert checksum(answer[: told.header_length]) == 0
    assert checksum(message) == 0


@conformance
async def test_the_sender_of_an_ipv6_packet_that_is_too_big_is_told(bench: Bench) -> None:
    bench.datapath.start(OWN)
    big, small = v6(OWN_V6, OTHER_V6, bench.tunnel.mtu + 1), v6(OWN_V6, OTHER_V6, bench.tunnel.mtu)
    bench.device.give(big)
    bench.device.give(small)
    await bench.until_sent(1)
    assert bench.sent == [small]
    [answer] = await bench.device.delivered(1)
    told = parse(answer)
    assert (told.source, told.destination) == (OTHER_V6, OWN_V6)
    assert told.protocol == IPPROTO_ICMPV6
    message = answer[told.header_length :]
    assert message[:2] == b"\2\0"  # Packet Too Big
    assert int.from_bytes(message[4:8], "big") == bench.tunnel.mtu
    assert message[8:56] == big[:48]


@conformance
async def test_no_error_is_sent_about_an_error(bench: Bench) -> None:
    bench.datapath.start(OWN)
    error = bytearray(v4(OWN_V4, OTHER_V4, bench.tunnel.mtu + 1, IPPROTO_ICMP))
    error[20] = 3  # Destination Unreachable
    bench.device.give(error)
    bench.device.give(v4(OWN_V4, OTHER_V4))
    await bench.until_sent(1)
    assert bench.device.waiting() == []


# The end


@conformance
async def test_nothing_leaves_after_close(bench: Bench) -> None:
    bench.datapath.start(OWN)
    bench.datapath.close()
    bench.datapath.close()
    bench.device.give(v4(OWN_V4, OTHER_V4))
    await asyncio.sleep(0.02)
    assert bench.sent == []
    assert bench.device.fileno() >= 0, "the device stays open"


@conformance
async def test_closing_what_never_started(bench: Bench) -> None:
    bench.datapath.close()


@conformance
async def test_a_device_that_disappears_is_left_alone(bench: Bench) -> None:
    bench.datapath.start(OWN)
    bench.device.kernel.close()
    await until(lambda: bench.device.reads > 0)
    reads = bench.device.reads
    await asyncio.sleep(0.05)
    assert bench.device.reads == reads, "it would be readable for ever"
    bench.arrive([v4(OTHER_V4, OWN_V4)])
    await bench.until_dropped({TUN_REFUSED: 1})
    bench.datapath.close()
