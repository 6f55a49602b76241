"""What the test world's bad link does to packets, on a clock that the tests turn."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.world.impairment import CAPACITY, REORDER_HOLD, Impairment, Line
from tests.world.packets import UDP, dissect, flip_bit, ones_sum, packet_too_big

HOP = ("203.0.113.1", "2001:db8:1::1")
SOURCE = {4: "192.0.2.1", 6: "2001:db8::1"}
TARGET = {4: "198.51.100.7", 6: "2001:db8::7"}
versions = pytest.mark.parametrize("version", [4, 6])


def addresses(version: int) -> bytes:
    return b"".join(ipaddress.ip_address(side[version]).packed for side in (SOURCE, TARGET))


def udp(
    payload: bytes = b"payload!",
    *,
    version: int = 4,
    ports: tuple[int, int] = (5000, 443),
    dont_fragment: bool = True,
) -> bytes:
    """A UDP packet with a right checksum."""
    length = 8 + len(payload)
    segment = struct.pack("!HHHH", *ports, length, 0) + payload
    pseudo = addresses(version) + struct.pack("!I3xB", length, UDP)
    checksum = (~ones_sum(pseudo + segment) & 0xFFFF) or 0xFFFF
    segment = segment[:6] + checksum.to_bytes(2, "big") + segment[8:]
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, UDP, 64) + addresses(6) + segment
    flags = 0x4000 if dont_fragment else 0
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, flags, 64, UDP, 0)
    return header + addresses(4) + segment


def udp_checksum_right(packet: bytes, version: int) -> bool:
    segment = packet[20 if version == 4 else 40 :]
    pseudo = addresses(version) + struct.pack("!I3xB", len(segment), UDP)
    return ones_sum(pseudo + segment) == 0xFFFF


def numbered(count: int) -> list[bytes]:
    return [udp(number.to_bytes(8, "big")) for number in range(count)]


def carry(
    packets: list[bytes], impairment: Impairment, *, seed: int = 1, spacing: float = 0.0
) -> tuple[Line, list[tuple[float, bytes]]]:
    """Send packets `spacing` seconds apart from time 0; returns when each one left."""
    line = Line(seed, HOP)
    line.impair(impairment)
    for number, packet in enumerate(packets):
        line.push(packet, number * spacing)
    leaving = []
    while (due := line.next_due) is not None:
        leaving += [(due, packet) for packet in line.pop(due)]
    return line, leaving


def test_a_perfect_link_gives_packets_back_at_once_and_in_order() -> None:
    packets = numbered(10)
    line, leaving = carry(packets, Impairment())
    assert leaving == [(0.0, packet) for packet in packets]
    assert line.counters.left_bytes == sum(map(len, packets))


def test_delay_holds_a_packet_exactly_so_long() -> None:
    line = Line(1, HOP)
    line.impair(Impairment(delay=0.5))
    line.push(udp(), 10.0)
    assert line.next_due == 10.5
    assert line.pop(10.49) == []
    assert line.pop(10.5) == [udp()]
    assert line.next_due is None


@given(seed=st.integers(0, 1000), spacing=st.floats(0, 0.01))
def test_jitter_adds_to_the_delay_within_bounds_and_keeps_the_order(
    seed: int, spacing: float
) -> None:
    packets = numbered(30)
    _, leaving = carry(packets, Impairment(delay=0.1, jitter=0.05), seed=seed, spacing=spacing)
    assert [packet for _, packet in leaving] == packets
    for number, (due, _) in enumerate(leaving):
        assert number * spacing + 0.1 <= due <= number * spacing + 0.15


def test_jitter_differs_from_packet_to_packet() -> None:
    _, leaving = carry(numbered(30), Impairment(jitter=0.05), spacing=0.1)
    late = [due - number * 0.1 for number, (due, _) in enumerate(leaving)]
    assert min(late) < 0.01
    assert max(late) > 0.04


def test_loss_takes_its_share_and_the_same_seed_takes_the_same_packets() -> None:
    packets = numbered(2000)
    line, leaving = carry(packets, Impairment(loss=0.1), seed=7)
    assert 150 < line.counters.lost < 250
    assert len(leaving) == 2000 - line.counters.lost
    assert carry(packets, Impairment(loss=0.1), seed=7)[1] == leaving
    assert carry(packets, Impairment(loss=0.1), seed=8)[1] != leaving


def test_reordered_packets_are_overtaken_by_those_behind_them() -> None:
    packets = numbered(500)
    line, leaving = carry(packets, Impairment(reorder=0.1), spacing=0.001)
    assert 25 < line.counters.reordered < 100
    assert {packet for _, packet in leaving} == set(packets)
    late = [
        packet for due, packet in leaving if due == packets.index(packet) * 0.001 + REORDER_HOLD
    ]
    assert len(late) == line.counters.reordered
    assert [packet for _, packet in leaving] != packets


def test_duplicated_packets_arrive_twice_in_a_row() -> None:
    packets = numbered(500)
    line, leaving = carry(packets, Impairment(duplicate=0.1))
    arrived = [packet for _, packet in leaving]
    assert 25 < line.counters.duplicated < 100
    assert len(arrived) == 500 + line.counters.duplicated
    assert list(dict.fromkeys(arrived)) == packets


def test_a_rate_spaces_packets_and_its_queue_drops_what_does_not_fit() -> None:
    packets = [udp(bytes(972))] * 20  # 1000 bytes each: 8 ms at 1 Mbit/s
    line, leaving = carry(packets, Impairment(rate=1e6, queue=5))
    assert [due for due, _ in leaving] == pytest.approx([0.008, 0.016, 0.024, 0.032, 0.040])
    assert line.counters.queue_full == 15


def test_a_rate_slower_than_the_sender_does_not_slow_one_that_is_not() -> None:
    packets = [udp(bytes(972))] * 20
    line, leaving = carry(packets, Impairment(rate=1e6, queue=2), spacing=0.01)
    assert [due for due, _ in leaving] == pytest.approx([n * 0.01 + 0.008 for n in range(20)])
    assert line.counters.queue_full == 0


def test_packets_over_the_mtu_vanish() -> None:
    line = Line(1, HOP)
    line.impair(Impairment(mtu=1000))
    assert line.push(udp(bytes(972)), 0.0) is None
    assert line.push(udp(bytes(973)), 0.0) is None
    assert len(line.pop(0.0)) == 1
    assert line.counters.too_big == 1


@versions
def test_or_they_are_answered_with_the_mtu_to_use(version: int) -> None:
    line = Line(1, HOP)
    line.impair(Impairment(mtu=1300, mtu_icmp=True))
    packet = udp(bytes(1400), version=version)
    answer = line.push(packet, 0.0)
    assert answer is not None
    read = dissect(answer)
    assert read is not None
    assert (read.source, read.destination) == (HOP[version == 6], SOURCE[version])
    message = answer[read.transport :]
    if version == 4:
        assert message[:2] == b"\x03\x04"
        assert ones_sum(answer[:20]) == ones_sum(message) == 0xFFFF
        assert struct.unpack("!H", message[6:8]) == (1300,)
    else:
        assert message[:2] == b"\x02\x00"
        pseudo = answer[8:40] + struct.pack("!I3xB", len(message), 58)
        assert ones_sum(pseudo + message) == 0xFFFF
        assert struct.unpack("!I", message[4:8]) == (1300,)
        assert len(answer) <= 1280
    assert packet.startswith(message[8:])


def test_no_router_answers_for_a_packet_that_may_be_fragmented() -> None:
    assert packet_too_big(udp(bytes(1400), dont_fragment=False), 1300, *HOP) is None


@versions
@pytest.mark.parametrize(
    ("blocked", "ports", "passes"),
    [
        (True, (5000, 443), False),
        (443, (5000, 443), False),
        (443, (443, 5000), False),
        (443, (5000, 444), True),
    ],
)
def test_udp_is_blocked_wholly_or_by_port(
    version: int, blocked: bool | int, ports: tuple[int, int], passes: bool
) -> None:
    line, leaving = carry([udp(version=version, ports=ports)], Impairment(block_udp=blocked))
    assert bool(leaving) is passes
    assert line.counters.blocked == (not passes)


def test_blocked_udp_leaves_other_protocols_alone() -> None:
    packet = bytearray(udp())
    packet[9] = 6
    assert len(carry([bytes(packet)], Impairment(block_udp=True))[1]) == 1


def difference(before: bytes, after: bytes) -> list[int]:
    """The numbers of the bits that differ."""
    pairs = enumerate(zip(before, after, strict=True))
    return [at * 8 + bit for at, (x, y) in pairs for bit in range(8) if (x ^ y) >> bit & 1]


@versions
@given(payload=st.binary(min_size=1, max_size=200), choice=st.floats(0, 1, exclude_max=True))
def test_damage_to_udp_is_one_bit_of_payload_that_the_checksum_does_not_show(
    version: int, payload: bytes, choice: float
) -> None:
    packet = udp(payload, version=version)
    assert udp_checksum_right(packet, version)
    damaged = flip_bit(packet, choice)
    start = len(packet) - len(payload)
    assert len(difference(packet[start:], damaged[start:])) == 1
    assert damaged[: start - 2] == packet[: start - 2]
    assert udp_checksum_right(damaged, version)


@given(choice=st.floats(0, 1, exclude_max=True))
def test_damage_to_other_protocols_is_one_bit_after_the_ip_header(choice: float) -> None:
    packet = bytearray(udp())
    packet[9] = 6
    damaged = flip_bit(bytes(packet), choice)
    (bit,) = difference(bytes(packet), damaged)
    assert bit >= 20 * 8


def test_a_line_counts_what_it_corrupts() -> None:
    packets = numbered(500)
    line, leaving = carry(packets, Impairment(corrupt=0.1))
    assert 25 < line.counters.corrupted < 100
    assert sum(packet not in packets for _, packet in leaving) <= line.counters.corrupted


def test_what_a_line_holds_is_bounded() -> None:
    line, leaving = carry([udp()] * (CAPACITY + 10), Impairment(delay=1.0))
    assert len(leaving) == CAPACITY
    assert line.counters.queue_full == 10


probabilities = st.floats(0, 1)


@given(
    impairment=st.builds(
        Impairment,
        delay=st.floats(0, 1),
        jitter=st.floats(0, 1),
        loss=probabilities,
        reorder=probabilities,
        duplicate=probabilities,
        corrupt=probabilities,
        rate=st.none() | st.floats(1e3, 1e9),
        queue=st.integers(1, 10),
        mtu=st.none() | st.integers(0, 60),
        mtu_icmp=st.booleans(),
        block_udp=st.booleans() | st.just(443),
    ),
    packets=st.lists(st.binary(max_size=60) | st.builds(udp, st.binary(max_size=60)), max_size=30),
    seed=st.integers(),
)
def test_every_packet_is_accounted_for_whatever_it_is(
    impairment: Impairment, packets: list[bytes], seed: int
) -> None:
    line, leaving = carry(packets, impairment, seed=seed)
    counters = line.counters
    dropped = counters.lost + counters.queue_full + counters.too_big + counters.blocked
    assert counters.entered == len(packets)
    assert counters.left == len(leaving) == len(packets) - dropped + counters.duplicated


@given(st.binary(max_size=120), st.sampled_from([0x45, 0x4F, 0x60, 0x00]))
def test_no_bytes_are_too_strange_to_look_at(data: bytes, first: int) -> None:
    data = bytes([first]) + data
    dissect(data)
    packet_too_big(data, 1280, *HOP)
    assert len(flip_bit(data, 0.99)) == len(data)


def test_ports_are_read_behind_ipv6_extension_headers_and_not_in_later_fragments() -> None:
    plain = udp(version=6)
    options = bytes([UDP, 0, 1, 4, 0, 0, 0, 0])
    read = dissect(plain[:6] + b"\x00" + plain[7:40] + options + plain[40:])
    assert read is not None
    assert (read.protocol, read.destination_port) == (UDP, 443)
    fragment = bytes([UDP, 0, 0, 8, 0, 0, 0, 1])
    read = dissect(plain[:6] + b"\x2c" + plain[7:40] + fragment + plain[40:])
    assert read is not None
    assert (read.protocol, read.destination_port) == (UDP, None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Impairment(loss=1.1),
        lambda: Impairment(corrupt=-0.1),
        lambda: Impairment(delay=-1),
        lambda: Impairment(rate=0),
        lambda: Impairment(queue=0),
    ],
)
def test_impossible_links_are_refused(wrong: Callable[[], Impairment]) -> None:
    with pytest.raises(ValueError, match=r"is a probability|are seconds|is bits per second"):
        wrong()
