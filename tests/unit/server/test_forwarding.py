"""The packet path, between a recording tunnel and a list in place of the TUN."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvpn_core.packet import parse
from qvpn_server.forwarding import Forwarder
from qvpn_server.sessions import ICMP_BURST, ICMP_RATE, Session, SessionTable
from tests.unit.server.helpers import (
    ICMP,
    ICMP6,
    RecordingTunnel,
    gateway_config,
    ip_packet,
    make_session,
)

NOW = 1000.0


class RecordingTun(list[bytes]):
    """What was written to the TUN; the kernel refuses `refuse` packets of each batch."""

    refuse = 0

    def write(self, packets: Sequence[bytes]) -> int:
        self += packets
        return len(packets) - self.refuse


@dataclass
class Bench:
    """A forwarder with the devices alice and bob."""

    forwarder: Forwarder
    sessions: SessionTable
    alice: Session
    to_alice: RecordingTunnel
    bob: Session
    to_bob: RecordingTunnel
    tun: RecordingTun


def make_bench(**changes: object) -> Bench:
    config = gateway_config(**changes)
    sessions = SessionTable()
    tun = RecordingTun()
    alice, to_alice = make_session("alice", "10.86.0.2", "fd00:86::2", config=config)
    bob, to_bob = make_session("bob", "10.86.0.3", "fd00:86::3", config=config)
    sessions.add(alice)
    sessions.add(bob)
    forwarder = Forwarder(
        sessions=sessions,
        own={address.version: address.packed for address in config.gateway_addresses},
        write_tun=tun.write,
    )
    return Bench(forwarder, sessions, alice, to_alice, bob, to_bob, tun)


@pytest.fixture
def bench() -> Bench:
    return make_bench()


FAMILIES = pytest.mark.parametrize(
    ("own", "other", "outside", "gateway"),
    [
        ("10.86.0.2", "10.86.0.3", "192.0.2.1", "10.86.0.1"),
        ("fd00:86::2", "fd00:86::3", "2001:db8::1", "fd00:86::1"),
    ],
    ids=["ipv4", "ipv6"],
)


def icmp(packet: bytes) -> tuple[int, int]:
    """Type and code of an ICMP error."""
    parsed = parse(packet)
    assert parsed.protocol in (ICMP, ICMP6)
    return packet[parsed.header_length], packet[parsed.header_length + 1]


@FAMILIES
def test_a_device_reaches_the_outside_and_the_gateway_in_one_batch(
    bench: Bench, own: str, other: str, outside: str, gateway: str
) -> None:
    packets = [ip_packet(own, outside), ip_packet(own, gateway), ip_packet(own, outside, 1280)]
    bench.forwarder.from_device(bench.alice, packets, NOW)
    assert bench.tun == packets
    assert bench.alice.drops == {}


@FAMILIES
def test_a_borrowed_source_address_is_dropped_and_said_to_be_bad(
    bench: Bench, own: str, other: str, outside: str, gateway: str
) -> None:
    bench.forwarder.from_device(bench.alice, [ip_packet(other, outside)], NOW)
    assert bench.tun == []
    assert bench.alice.drops == {"bad-source": 1}
    (answer,) = bench.to_alice.packets
    assert icmp(answer) == ((3, 13) if "." in own else (1, 5))
    assert parse(answer).source == parse(ip_packet(gateway, own)).source


@FAMILIES
def test_isolated_devices_do_not_reach_each_other(
    bench: Bench, own: str, other: str, outside: str, gateway: str
) -> None:
    bench.forwarder.from_device(bench.alice, [ip_packet(own, other)], NOW)
    assert bench.tun == []
    assert bench.alice.drops == {"prohibited": 1}
    assert [icmp(p) for p in bench.to_alice.packets] == [(3, 13) if "." in own else (1, 1)]


@FAMILIES
def test_devices_that_may_meet_do(own: str, other: str, outside: str, gateway: str) -> None:
    bench = make_bench(isolation=False)
    packet = ip_packet(own, other)
    bench.forwarder.from_device(bench.alice, [packet], NOW)
    bench.forwarder.from_tun(bench.tun, NOW)  # the kernel routes it back into the TUN
    assert bench.to_bob.packets == [packet]


@FAMILIES
def test_outside_the_advertised_routes_there_is_no_route(
    own: str, other: str, outside: str, gateway: str
) -> None:
    bench = make_bench(routes=["198.51.100.0/24", "2001:db8:5::/48"])
    bench.forwarder.from_device(bench.alice, [ip_packet(own, outside)], NOW)
    assert bench.tun == []
    assert bench.alice.drops == {"no-route": 1}
    assert [icmp(p) for p in bench.to_alice.packets] == [(3, 0) if "." in own else (1, 0)]


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("10.86.0.2", "224.0.0.251"),
        ("10.86.0.2", "127.0.0.1"),
        ("10.86.0.2", "169.254.169.254"),
        ("10.86.0.2", "255.255.255.255"),
        ("fe80::1", "ff02::2"),
        ("fd00:86::2", "ff02::fb"),
        ("fd00:86::2", "fe80::1"),
        ("fd00:86::2", "::1"),
    ],
)
def test_what_no_router_forwards_is_dropped_in_silence(
    bench: Bench, source: str, destination: str
) -> None:
    bench.forwarder.from_device(bench.alice, [ip_packet(source, destination)], NOW)
    assert bench.tun == []
    assert bench.to_alice.packets == []
    assert bench.alice.drops == {"not-forwardable": 1}


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_bytes_that_are_no_packets_harm_nothing(junk: list[bytes]) -> None:
    bench = make_bench()
    bench.forwarder.from_device(bench.alice, junk, NOW)
    assert bench.tun == []
    good = ip_packet("10.86.0.2", "192.0.2.1")
    bench.forwarder.from_device(bench.alice, [*junk, good, *junk], NOW)
    assert bench.tun == [good]


@given(st.data())
def test_whatever_header_bits_are_changed_no_foreign_source_gets_through(
    data: st.DataObject,
) -> None:
    bench = make_bench()
    family = data.draw(st.sampled_from([("10.86.0.2", "192.0.2.1"), ("fd00:86::2", "2001:db8::1")]))
    packet = bytearray(ip_packet(*family))
    for _ in range(data.draw(st.integers(1, 6))):
        packet[data.draw(st.integers(0, 39))] = data.draw(st.integers(0, 255))
    bench.forwarder.from_device(bench.alice, [bytes(packet)], NOW)
    for written in bench.tun:
        assert parse(written).source in (bench.alice.source4, bench.alice.source6)
        assert parse(written).total_length == len(written)


def test_a_device_without_ipv6_cannot_send_any() -> None:
    bench = make_bench(pool6="none")
    session, tunnel = make_session("carol", "10.86.0.9")
    bench.forwarder.from_device(session, [ip_packet("fd00:86::9", "2001:db8::1")], NOW)
    assert bench.tun == []
    assert tunnel.packets == []
    assert session.drops == {"bad-source": 1}


@FAMILIES
def test_packets_from_the_tun_are_grouped_by_device_and_keep_their_order(
    bench: Bench, own: str, other: str, outside: str, gateway: str
) -> None:
    to_alice = [ip_packet(outside, own, size) for size in (60, 61, 62)]
    to_bob = [ip_packet(outside, other, size) for size in (60, 61)]
    mixed = [to_alice[0], to_bob[0], to_alice[1], to_bob[1], to_alice[2]]
    bench.forwarder.from_tun(mixed, NOW)
    assert bench.to_alice.batches == [to_alice]
    assert bench.to_bob.batches == [to_bob]


@pytest.mark.parametrize(
    ("absent", "outside", "answer"),
    [("10.86.0.99", "192.0.2.1", (3, 1)), ("fd00:86::99", "2001:db8::1", (1, 3))],
)
def test_an_address_without_a_session_is_an_unreachable_host(
    bench: Bench, absent: str, outside: str, answer: tuple[int, int]
) -> None:
    bench.forwarder.from_tun([ip_packet(outside, absent)], NOW)
    assert [icmp(packet) for packet in bench.tun] == [answer]
    assert bench.forwarder.drops == {"no-session": 1}


def test_the_kernels_multicast_chatter_is_not_answered(bench: Bench) -> None:
    bench.forwarder.from_tun([ip_packet("fd00:86::1", "ff02::16", protocol=ICMP6)], NOW)
    assert bench.tun == []
    assert bench.forwarder.drops == {"multicast": 1}


@FAMILIES
def test_a_packet_that_exceeds_the_tunnel_is_answered_with_its_size(
    bench: Bench, own: str, other: str, outside: str, gateway: str
) -> None:
    bench.alice.mtu = 1300
    bench.forwarder.from_tun([ip_packet(outside, own, 1301), ip_packet(outside, own, 1300)], NOW)
    assert [len(packet) for packet in bench.to_alice.packets] == [1300]
    (answer,) = bench.tun
    assert icmp(answer) == ((3, 4) if "." in own else (2, 0))
    header = parse(answer).header_length
    assert int.from_bytes(answer[header + 4 : header + 8], "big") == 1300
    assert bench.alice.drops == {"too-big": 1}


def test_ipv4_that_allows_it_is_fragmented_in_place(bench: Bench) -> None:
    bench.alice.mtu = 1300
    small = ip_packet("192.0.2.1", "10.86.0.2", 100)
    large = ip_packet("192.0.2.1", "10.86.0.2", 1500, dont_fragment=False)
    bench.forwarder.from_tun([small, large, small], NOW)
    (batch,) = bench.to_alice.batches
    assert [len(packet) for packet in batch] == [100, 1300, 220, 100]
    assert bench.tun == []
    assert bench.alice.drops == {}


def test_icmp_errors_come_at_a_limited_rate_but_every_drop_counts(bench: Bench) -> None:
    spoofed = [ip_packet("10.9.9.9", "192.0.2.1")] * 500
    bench.forwarder.from_device(bench.alice, spoofed, NOW)
    assert len(bench.to_alice.packets) == ICMP_BURST
    assert bench.alice.drops == {"bad-source": 500}
    bench.forwarder.from_device(bench.alice, spoofed, NOW + 0.1)
    assert len(bench.to_alice.packets) == ICMP_BURST + ICMP_RATE / 10


def test_one_devices_errors_do_not_use_up_anothers(bench: Bench) -> None:
    bench.forwarder.from_device(bench.alice, [ip_packet("10.9.9.9", "192.0.2.1")] * 500, NOW)
    bench.forwarder.from_device(bench.bob, [ip_packet("10.9.9.9", "192.0.2.1")], NOW)
    assert len(bench.to_bob.packets) == 1


def test_what_the_kernel_refuses_is_counted(bench: Bench) -> None:
    bench.tun.refuse = 1
    bench.forwarder.from_device(bench.alice, [ip_packet("10.86.0.2", "192.0.2.1")] * 3, NOW)
    assert bench.forwarder.drops == {"tun-refused": 1}
