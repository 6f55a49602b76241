"""What the short way promises, and what it takes for granted in aioquic.

A failure here after an update of aioquic means: read its changelog and its connection.py beside
qvpn_core/transport/aioquic_adapter.py before changing anything.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicProtocolVersion
from aioquic.tls import CipherSuite, Epoch
from hypothesis import assume, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qvpn_core.transport import aioquic_adapter, aioquic_streams, settings
from qvpn_core.transport.aioquic_adapter import TunnelConnection
from tests.unit.transport.helpers import Identity
from tests.unit.transport.wire import ALL_SUITES, DELAY, End, Wire, connected, make_wire

PREFIX = b"\0\0"
MTU_PACKET = 1452


@pytest.fixture
def wire(identity: Identity) -> Wire:
    """A connection that has finished its handshake, with full-size packets."""
    return wide(connected(make_wire(identity.certificate_file, identity.key_file)))


def wide(wire: Wire) -> Wire:
    for end in wire.ends:
        end.prefix = PREFIX
        end.tunnel.packet_size = MTU_PACKET
    return wire


def largest(end: End) -> int:
    return end.tunnel.max_datagram_payload - len(end.prefix)


def content(size: int, serial: int) -> bytes:
    return random.Random(serial << 16 | size).randbytes(size)


def send(end: End, payloads: Sequence[bytes]) -> list[bytes]:
    """Queue payloads; returns what the other side must see."""
    end.queue.extend(payloads)
    return [end.prefix + payload for payload in payloads]


def craft(end: End, plain: bytes, *, bits: int = 0, number_length: int = 2) -> bytes:
    """A correctly protected 1-RTT packet of `end` with any content and first-byte bits."""
    quic = end.quic
    number = quic._packet_number
    quic._packet_number += 1
    crypto = quic._cryptos[Epoch.ONE_RTT]
    first = 0x40 | quic._spin_bit << 5 | bits | crypto.key_phase << 2 | (number_length - 1)
    truncated = number & (1 << 8 * number_length) - 1
    header = bytes((first,)) + quic._peer_cid.cid + truncated.to_bytes(number_length, "big")
    return crypto.encrypt_packet(header, plain, number)


def stock_counterpart(identity: Identity, role: str, **changes: object) -> Wire:
    """Our connection with aioquic's own at the other end, which plays `role`."""
    stock = {"congestion_control_algorithm": "reno", **changes}
    wire = make_wire(
        identity.certificate_file,
        identity.key_file,
        client=stock if role == "client" else changes,
        server=stock if role == "server" else changes,
        client_class=QuicConnection if role == "client" else TunnelConnection,
        server_class=QuicConnection if role == "server" else TunnelConnection,
    )
    return connected(wire)


# Handshake


def test_the_handshake_speaks_version_1(wire: Wire) -> None:
    for end in wire.ends:
        assert end.quic._version == QuicProtocolVersion.VERSION_1
        assert end.tunnel.established
        assert not end.tunnel.ended
        assert end.tunnel.alpn == "h3"
        assert end.tunnel.peer_takes_datagrams
        assert end.tunnel.rtt == pytest.approx(2 * DELAY, abs=0.005)


def test_a_client_that_prefers_version_2_gets_it_without_another_round_trip(
    identity: Identity,
) -> None:
    wire = connected(
        make_wire(
            identity.certificate_file,
            identity.key_file,
            client={
                "original_version": QuicProtocolVersion.VERSION_1,
                "supported_versions": [
                    QuicProtocolVersion.VERSION_2,
                    QuicProtocolVersion.VERSION_1,
                ],
            },
        )
    )
    assert {end.quic._version for end in wire.ends} == {QuicProtocolVersion.VERSION_2}
    expected = send(wire.client, [content(1000, 1)])
    wire.run(lambda: wire.server.datagrams == expected)


def test_the_client_sees_the_certificate(wire: Wire, identity: Identity) -> None:
    assert wire.client.tunnel.peer_certificate == identity.certificate
    assert wire.server.tunnel.peer_certificate is None


# Datagrams


@pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)
def test_every_size_arrives_intact_in_both_directions(
    identity: Identity, suite: CipherSuite
) -> None:
    wire = wide(
        connected(
            make_wire(
                identity.certificate_file,
                identity.key_file,
                client={"cipher_suites": [suite]},
            )
        )
    )
    expected = {}
    for end in wire.ends:
        sizes = range(largest(end) + 1)
        expected[end.other] = send(end, [content(size, 0) for size in sizes])
    wire.run(lambda: all(len(end.datagrams) == len(expected[end]) for end in wire.ends))
    for end in wire.ends:
        assert end.datagrams == expected[end]
        assert max(map(len, end.packets)) == MTU_PACKET


@pytest.mark.parametrize("suite", ALL_SUITES, ids=lambda suite: suite.name)
@pytest.mark.parametrize("role", ["client", "server"])
def test_aioquic_itself_reads_what_we_send_and_we_what_it_sends(
    identity: Identity, suite: CipherSuite, role: str
) -> None:
    wire = stock_counterpart(identity, role, cipher_suites=[suite])
    expected = {}
    for end in wire.ends:
        end.prefix = PREFIX
        expected[end.other] = send(end, [content(size, 0) for size in range(0, 1150, 7)])
    wire.run(lambda: all(len(end.datagrams) == len(expected[end]) for end in wire.ends))
    for end in wire.ends:
        assert end.datagrams == expected[end]


def test_small_datagrams_share_a_packet(wire: Wire) -> None:
    expected = send(wire.client, [content(100, serial) for serial in range(13)])
    before = len(wire.client.packets)
    wire.transmit()
    assert len(wire.client.packets) == before + 1
    wire.run(lambda: wire.server.datagrams == expected)


@given(st.lists(st.integers(0, MTU_PACKET), max_size=60), st.integers(0, 8))
@hypothesis_settings(max_examples=60)
def test_packing_keeps_order_and_never_exceeds_the_packet(sizes: list[int], bits: int) -> None:
    wire = PACKED.get()
    end = wire.client
    end.tunnel.packet_size = MTU_PACKET - bits
    payloads = [content(min(size, largest(end)), serial) for serial, size in enumerate(sizes)]
    pending = send(end, payloads)
    sent = len(end.packets)
    wire.run(lambda: len(wire.server.datagrams) >= len(pending))
    assert wire.server.datagrams == pending
    assert all(len(packet) <= end.tunnel.packet_size for packet in end.packets[sent:])
    wire.server.datagrams.clear()
    wire.rest(0.2)


class _Packed:
    """One connection for all examples of a property: a handshake costs more than an example."""

    wire: Wire

    def get(self) -> Wire:
        return self.wire


PACKED = _Packed()


@pytest.fixture(autouse=True, scope="module")
def _packed(identity: Identity) -> None:
    PACKED.wire = wide(connected(make_wire(identity.certificate_file, identity.key_file)))


def test_a_batch_says_what_it_holds(wire: Wire) -> None:
    end = wire.client
    end.queue.extend(content(size, 0) for size in (10, 20, largest(end), 0))
    batch = end.tunnel.pack_datagrams(end.queue, PREFIX, wire.now)
    assert (batch.payloads, batch.payload_bytes) == (4, 30 + largest(end))
    assert not end.queue


def test_what_a_silent_peer_leaves_unacknowledged_is_bounded(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aioquic_adapter, "MAX_UNACKNOWLEDGED", 50)
    end = wire.client
    end.queue.extend([bytes(largest(end))] * 200)
    batch = end.tunnel.pack_datagrams(end.queue, PREFIX, wire.now)
    assert 40 < batch.payloads <= 50
    assert end.tunnel.pack_datagrams(end.queue, PREFIX, wire.now) == ((), 0, 0)
    assert len(end.queue) == 200 - batch.payloads, "nothing is lost by waiting"


def test_nothing_is_packed_before_the_handshake_or_after_the_end(identity: Identity) -> None:
    wire = make_wire(identity.certificate_file, identity.key_file)
    wire.client.queue.append(b"x")
    packet = wire.client.tunnel.pack_datagrams(wire.client.queue, PREFIX, wire.now)
    assert packet == ((), 0, 0)
    wire.client.queue.clear()
    connected(wire)
    wire.client.quic.close()
    wire.client.queue.append(b"x")
    assert wire.client.tunnel.pack_datagrams(wire.client.queue, PREFIX, wire.now) == ((), 0, 0)


def test_the_peers_limit_for_frames_is_kept(identity: Identity) -> None:
    wire = connected(
        make_wire(
            identity.certificate_file, identity.key_file, server={"max_datagram_frame_size": 900}
        )
    )
    wire.client.prefix = PREFIX
    assert wire.client.tunnel.max_datagram_payload == 899
    expected = send(wire.client, [content(899 - len(PREFIX), 1)])
    wire.run(lambda: wire.server.datagrams == expected)


def test_a_peer_without_datagrams_is_known_as_such(identity: Identity) -> None:
    wire = connected(
        make_wire(
            identity.certificate_file, identity.key_file, server={"max_datagram_frame_size": None}
        )
    )
    assert not wire.client.tunnel.peer_takes_datagrams


# What a hostile or broken peer sends


BROKEN: dict[str, tuple[bytes, QuicErrorCode]] = {
    "unknown frame": (b"\x21" + bytes(20), QuicErrorCode.FRAME_ENCODING_ERROR),
    "unknown frame behind a datagram": (b"\x31\x01x\x21", QuicErrorCode.FRAME_ENCODING_ERROR),
    "datagram longer than the packet": (b"\x31\x40\xffshort", QuicErrorCode.FRAME_ENCODING_ERROR),
    "datagram with a huge length": (
        b"\x31" + encode_uint_var(1 << 40) + b"x",
        QuicErrorCode.FRAME_ENCODING_ERROR,
    ),
    "datagram cut within its length": (b"\x01\x01\x31\x40", QuicErrorCode.FRAME_ENCODING_ERROR),
    "truncated ACK": (b"\x02\x05\x00\x03", QuicErrorCode.FRAME_ENCODING_ERROR),
    "ACK below packet 0": (b"\x02\x05\x00\x00\x09", QuicErrorCode.FRAME_ENCODING_ERROR),
    "truncated frame type": (b"\x01\x01\x01\x40", QuicErrorCode.FRAME_ENCODING_ERROR),
    "data on a stream that is ours alone": (
        b"\x08" + encode_uint_var(3) + b"x",
        QuicErrorCode.STREAM_STATE_ERROR,
    ),
    "a frame that only servers send": (b"\x1e\0\0", QuicErrorCode.PROTOCOL_VIOLATION),
    "a stream beyond the limit": (
        b"\x08" + encode_uint_var(4 * 5000) + b"x",
        QuicErrorCode.STREAM_LIMIT_ERROR,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_packet_closes_with_the_right_error(wire: Wire, name: str) -> None:
    plain, code = BROKEN[name]
    wire.inject(wire.client, craft(wire.client, plain))
    wire.run(lambda: wire.client.termination)
    assert wire.client.termination is not None
    assert wire.client.termination.error_code == code


def test_a_packet_without_frames_closes(wire: Wire) -> None:
    wire.inject(wire.client, craft(wire.client, b"", number_length=4))
    wire.run(lambda: wire.client.termination)
    assert wire.client.termination is not None
    assert wire.client.termination.error_code == QuicErrorCode.PROTOCOL_VIOLATION


def test_reserved_bits_close(wire: Wire) -> None:
    wire.inject(wire.client, craft(wire.client, b"\x01\0\0", bits=0x08))
    wire.run(lambda: wire.client.termination)
    assert wire.client.termination is not None
    assert wire.client.termination.error_code == QuicErrorCode.PROTOCOL_VIOLATION


def test_what_came_before_a_broken_frame_is_delivered(wire: Wire) -> None:
    wire.inject(wire.client, craft(wire.client, b"\x31\x03\0\0x\x21"))
    wire.run(lambda: wire.client.termination)
    assert wire.server.datagrams == [b"\0\0x"]


def test_padding_between_and_behind_frames_is_nothing(wire: Wire) -> None:
    wire.inject(wire.client, craft(wire.client, b"\0\0\x31\x03\0\0x\0\0\0\x31\x03\0\0y\0\0"))
    wire.inject(wire.client, craft(wire.client, bytes(50)))
    wire.rest(0.5)
    assert wire.server.datagrams == [b"\0\0x", b"\0\0y"]
    assert wire.server.tunnel.established


@pytest.mark.parametrize("position", ["first byte", "connection ID", "number", "body", "tag"])
def test_a_flipped_bit_makes_a_packet_nobody_sent(wire: Wire, position: str) -> None:
    at = {"first byte": 0, "connection ID": 5, "number": 9, "body": 40, "tag": -1}[position]
    for bit in range(8):
        packet = bytearray(craft(wire.client, b"\x30\0\0" + bytes(60)))
        packet[at] ^= 1 << bit
        wire.inject(wire.client, bytes(packet))
    wire.rest(0.5)
    assert wire.server.datagrams == []
    expected = send(wire.client, [b"still here"])
    wire.run(lambda: wire.server.datagrams == expected)


@given(st.lists(st.binary(max_size=80), max_size=8))
@hypothesis_settings(max_examples=50)
def test_garbage_with_the_right_connection_id_is_ignored(bodies: list[bytes]) -> None:
    wire = PACKED.get()
    cid = wire.server.quic.host_cid
    for body in bodies:
        wire.inject(wire.client, bytes((0x40 | len(body) & 0x3F,)) + cid + body)
    expected = send(wire.client, [b"still here"])
    wire.run(lambda: wire.server.datagrams == expected)
    wire.server.datagrams.clear()


# Loss, duplicates, reordering


def test_duplicates_are_delivered_once(wire: Wire) -> None:
    wire.hook = lambda _end, serial, _packet: (0.0, 0.0, 0.001, 0.03)
    expected = [
        entry for serial in range(50) for entry in send(wire.client, [content(900, serial)])
    ]
    wire.run(lambda: len(wire.server.datagrams) >= len(expected))
    wire.rest(1.0)
    assert wire.server.datagrams == expected


def test_reordered_datagrams_all_arrive(wire: Wire) -> None:
    dice = random.Random(7)
    wire.hook = lambda *_: (dice.random() * 0.02,)
    expected = send(wire.client, [content(900, serial) for serial in range(100)])
    wire.run(lambda: len(wire.server.datagrams) == len(expected))
    assert sorted(wire.server.datagrams) == sorted(expected)


def test_lost_stream_data_is_sent_again_and_lost_datagrams_are_not(wire: Wire) -> None:
    wire.hook = lambda end, serial, _packet: () if serial % 5 == 0 else (0.0,)
    data = content(60_000, 1)
    stream = wire.client.quic.get_next_available_stream_id()
    wire.client.quic.send_stream_data(stream, data, end_stream=True)
    sent = send(wire.client, [content(900, serial) for serial in range(100)])
    wire.run(lambda: wire.server.streams.get(stream) == data)
    wire.run(lambda: not wire.client.queue)
    wire.rest(1.0)
    arrived = wire.server.datagrams
    assert len(arrived) < len(sent)
    assert arrived == [datagram for datagram in sent if datagram in set(arrived)], "in order"
    assert wire.client.tunnel.packets_lost > 0


def test_datagrams_go_on_when_a_stream_waits_for_a_lost_packet(wire: Wire) -> None:
    lost: list[int] = []

    def lose_the_first(end: End, serial: int, _packet: bytes) -> Sequence[float]:
        if end is wire.client and not lost:
            lost.append(serial)
            return ()
        return (0.0,)

    wire.hook = lose_the_first
    stream = wire.client.quic.get_next_available_stream_id()
    wire.client.quic.send_stream_data(stream, b"capsule")
    wire.transmit()
    started = wire.now
    expected = send(wire.client, [b"packet"])
    wire.run(lambda: wire.server.datagrams == expected)
    assert wire.now - started < 2 * DELAY
    wire.run(lambda: wire.server.streams.get(stream) == b"capsule", seconds=1.0)


writes = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 30_000), st.booleans()), min_size=1, max_size=12
)


@given(
    writes, st.sampled_from(["", "client", "server"]), st.integers(0, 40), st.integers(0, 1 << 16)
)
@example([(0, 200_000, True)], "", 0, 0)
@example([(0, 1, False), (1, 100_000, True), (0, 100_000, True)], "server", 20, 1)
@example(
    [
        *((2, 24138, False), (2, 42, True), (0, 1862, False)),
        *((0, 3479, False), (2, 722, False), (2, 722, False)),
    ],
    "client",
    34,
    6295,
)
@hypothesis_settings(max_examples=40)
def test_bytes_of_streams_arrive_whole_whatever_is_lost(
    identity: Identity, written: list[tuple[int, int, bool]], stock: str, loss: int, seed: int
) -> None:
    """Of several streams, in pieces, with small windows, also with aioquic's own at one end."""
    # With so much loss the pauses between two attempts of QUIC can exceed its idle timeout.
    small = {"max_stream_data": 20_000, "max_data": 50_000, "idle_timeout": 3600.0}
    if stock:
        wire = stock_counterpart(identity, stock, **small)
    else:
        wire = connected(
            make_wire(identity.certificate_file, identity.key_file, client=small, server=small)
        )
    dice = random.Random(seed)
    wire.hook = lambda *_: () if dice.random() * 100 < loss else (0.0,)
    expected: dict[int, bytes] = {}
    open_streams: dict[int, int] = {}
    for serial, (stream, size, end_stream) in enumerate(written):
        number = open_streams.get(stream)
        if number is None:
            number = open_streams[stream] = wire.client.quic.get_next_available_stream_id()
            wire.client.quic.send_stream_data(number, b"")
        data = content(size, serial)
        expected[number] = expected.get(number, b"") + data
        wire.client.quic.send_stream_data(number, data, end_stream)
        if end_stream:
            del open_streams[stream]
        wire.rest(dice.random() * 0.03)
    wanted = {number: data for number, data in expected.items() if data}

    def arrived() -> bool:
        return {number: data for number, data in wire.server.streams.items() if data} == wanted

    wire.run(arrived, seconds=3600.0)
    wire.hook = lambda *_: (0.0,)
    wire.rest(5.0)
    assert wire.client.quic._loss.bytes_in_flight == 0
    assert wire.client.termination is wire.server.termination is None


def test_bulk_goes_in_full_packets_and_its_streams_take_turns(wire: Wire) -> None:
    streams = []
    for _ in range(3):
        streams.append(wire.client.quic.get_next_available_stream_id())
        wire.client.quic.send_stream_data(streams[-1], content(30_000, 1), end_stream=True)
    wire.run(lambda: all(len(wire.server.streams.get(each, b"")) > 10_000 for each in streams))
    assert max(map(len, wire.server.streams.values())) < 20_000
    wire.run(lambda: all(len(wire.server.streams[each]) == 30_000 for each in streams))
    large = [packet for packet in wire.client.packets if len(packet) > 1200]
    assert len(large) >= 3 * (30_000 // MTU_PACKET)
    assert {len(packet) for packet in large} == {MTU_PACKET}


def test_bulk_keeps_the_congestion_window(wire: Wire) -> None:
    loss, stream = wire.client.quic._loss, wire.client.quic.get_next_available_stream_id()
    wire.client.quic.send_stream_data(stream, bytes(500_000), end_stream=True)
    full = 0

    def arrived() -> bool:
        nonlocal full
        assert loss.bytes_in_flight <= loss.congestion_window
        full += loss.bytes_in_flight > loss.congestion_window - MTU_PACKET
        return len(wire.server.streams.get(stream, b"")) == 500_000

    wire.run(arrived)
    assert full, "the window was the limit"


def test_pacing_allows_what_a_timer_makes_necessary_and_no_more(wire: Wire) -> None:
    quic = wire.client.quic
    stream = quic.get_next_available_stream_id()
    quic.send_stream_data(stream, bytes(4 << 20))
    quic._remote_max_data = quic._streams[stream].max_stream_data_remote = 1 << 30
    quic._loss._cc.congestion_window = 1 << 20
    quic._loss._pacer.update_rate(1 << 20, 0.1)  # 13 MB/s with the gain
    wire.now += 1.0
    allowed = aioquic_streams.PACING_GAIN * (1 << 20) / 0.1 * aioquic_streams.PACING_BURST
    before = len(wire.client.packets)
    wire.transmit()
    burst = sum(map(len, wire.client.packets[before:]))
    assert allowed / 2 < burst < allowed + 2 * MTU_PACKET
    timer = quic.get_timer()
    assert timer is not None
    assert wire.now < timer < wire.now + 0.001, "it goes on soon"


def test_after_a_silence_nothing_is_in_flight(wire: Wire) -> None:
    send(wire.client, [content(1000, serial) for serial in range(200)])
    wire.run(lambda: not wire.client.queue)
    wire.rest(1.0)
    space = wire.client.quic._spaces[Epoch.ONE_RTT]
    assert not space.sent_packets
    assert space.ack_eliciting_in_flight == 0
    assert wire.client.quic._loss.bytes_in_flight == 0
    assert wire.client.tunnel.packets_lost == 0


def test_an_outage_loses_packets_and_nothing_else(wire: Wire) -> None:
    wire.hook = lambda *_: ()
    send(wire.client, [content(1000, serial) for serial in range(20)])
    wire.rest(2.0)
    wire.hook = lambda *_: (0.0,)
    wire.server.datagrams.clear()
    wire.run(lambda: not wire.client.queue)
    wire.rest(2.0)
    wire.server.datagrams.clear()
    expected = send(wire.client, [b"after"])
    wire.run(lambda: wire.server.datagrams == expected)
    wire.rest(5.0)
    assert wire.client.quic._loss.bytes_in_flight == 0


# Acknowledgements


def test_one_batch_is_acknowledged_by_one_packet_within_the_delay(wire: Wire) -> None:
    send(wire.client, [content(1000, serial) for serial in range(8)])
    before = len(wire.server.packets)
    started = wire.now
    space = wire.client.quic._spaces[Epoch.ONE_RTT]
    wire.transmit()
    assert space.sent_packets
    wire.run(lambda: not space.sent_packets)
    assert wire.now - started <= 2 * DELAY + 0.002
    assert len(wire.server.packets) == before + 1


def test_an_acknowledgement_travels_with_what_the_peer_sends_anyway(wire: Wire) -> None:
    """An ACK that is due shares a packet with control frames, which then elicits one in turn."""
    send(wire.client, [content(1000, 1)])
    wire.run(lambda: wire.server.datagrams)
    wire.server.quic.send_ping(1)
    wire.rest(0.0015)  # the ACK delay
    sent = len(wire.server.packets)
    wire.rest(1.0)
    unacknowledged = wire.client.quic._spaces[Epoch.ONE_RTT].sent_packets.values()
    assert not [packet for packet in unacknowledged if packet.is_ack_eliciting]
    assert len(wire.server.packets) <= sent + 1


# Key updates


def keys(end: End) -> bytes:
    secret = end.quic._cryptos[Epoch.ONE_RTT].send.secret
    assert secret is not None
    return bytes(secret)


@pytest.mark.parametrize("initiators", [("client",), ("server",), ("client", "server")])
def test_keys_are_updated_in_time_without_losing_a_packet(
    identity: Identity, monkeypatch: pytest.MonkeyPatch, initiators: tuple[str, ...]
) -> None:
    monkeypatch.setattr(aioquic_streams, "KEY_UPDATE_PACKETS", 150)
    wire = wide(connected(make_wire(identity.certificate_file, identity.key_file)))
    for end in wire.ends:
        if end.name not in initiators:
            end.tunnel._key_update_at = 1 << 60
    seen = {end: {keys(end)} for end in wire.ends}
    expected: dict[End, list[bytes]] = {end: [] for end in wire.ends}
    for serial in range(600):
        for end in wire.ends:
            expected[end.other] += send(end, [content(1000, serial)])
        wire.rest(0.001)
        for end in wire.ends:
            seen[end].add(keys(end))
    wire.rest(1.0)
    for end in wire.ends:
        assert len(seen[end]) > 3, "keys changed several times"
        assert len(end.datagrams) == len(expected[end])
        assert end.datagrams == expected[end]
        assert end.tunnel.established
        assert end.tunnel.packets_lost == 0


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_key_update_that_aioquic_itself_starts_is_followed(identity: Identity, role: str) -> None:
    wire = stock_counterpart(identity, role)
    stock = wire.client if role == "client" else wire.server
    ours = stock.other
    before = keys(ours)
    stock.quic.request_key_update()
    expected = send(stock, [content(900, serial) for serial in range(20)])
    wire.run(lambda: ours.datagrams == expected)
    assert keys(ours) != before
    # aioquic itself forgets its old keys at once, so what we send waits until it sees the new.
    wire.rest(0.1)
    expected = send(ours, [content(900, serial) for serial in range(20)])
    wire.run(lambda: stock.datagrams == expected)


def test_packets_of_the_old_keys_that_arrive_late_are_still_read(wire: Wire) -> None:
    late = [craft(wire.client, b"\x30" + b"\0\0late %d" % index) for index in range(5)]
    wire.client.quic.request_key_update()
    expected = send(wire.client, [b"early"])
    wire.run(lambda: wire.server.datagrams == expected)
    for packet in late[:4]:
        wire.inject(wire.client, packet)
    wire.rest(0.05)
    assert len(wire.server.datagrams) == 5
    # Old keys do not live on: three probe timeouts later they are gone.
    expected = send(wire.client, [b"later"])
    wire.rest(1.0)
    wire.inject(wire.client, late[4])
    wire.rest(0.1)
    assert wire.server.datagrams[5:] == expected


def test_the_limit_is_far_below_that_of_the_cipher() -> None:
    """RFC 9001 section 6.6: 2^23 packets for AES-GCM."""
    assert aioquic_streams.KEY_UPDATE_PACKETS <= 1 << 22


# Probes of the path MTU


class Probes:
    """Remembers what became of probes."""

    def __init__(self) -> None:
        self.results: list[tuple[int, bool]] = []

    def __call__(self, size: int, arrived: bool) -> None:
        self.results.append((size, arrived))


def probe(wire: Wire, end: End, size: int, done: Callable[[int, bool], None]) -> bytes:
    [(packet, address)] = end.tunnel.probe(size, wire.now, done)
    assert address == end.other.address
    wire.inject(end, packet)
    return packet


@pytest.mark.parametrize("size", [1200, 1313, 1452, 1472, 9000])
def test_probes_are_exactly_as_large_as_asked_and_reported_once(wire: Wire, size: int) -> None:
    for end in wire.ends:
        done = Probes()
        assert len(probe(wire, end, size, done)) == size
        wire.rest(5.0)
        assert done.results == [(size, True)]


def test_a_lost_probe_is_reported_once_and_is_no_congestion(wire: Wire) -> None:
    end = wire.client
    window = end.quic._loss.congestion_window
    wire.hook = lambda _end, _serial, packet: () if len(packet) > 1400 else (0.0,)
    done = Probes()
    probe(wire, end, 1472, done)
    wire.run(lambda: done.results, seconds=1.0)
    wire.rest(5.0)
    assert done.results == [(1472, False)]
    assert end.quic._loss.congestion_window >= window
    assert end.tunnel.packets_lost == 0
    assert end.tunnel.established


def test_an_outage_says_nothing_about_a_probe(wire: Wire) -> None:
    """A probe is lost when what was sent after it arrived, not when nothing arrives."""
    wire.hook = lambda *_: ()
    done = Probes()
    probe(wire, wire.client, 1313, done)
    wire.rest(5.0)
    assert done.results == []
    wire.hook = lambda *_: (0.0,)
    wire.rest(5.0)
    assert done.results == [(1313, False)]


def test_a_probe_is_found_on_a_path_that_suddenly_became_slow(wire: Wire) -> None:
    wire.hook = lambda *_: (1.0,)
    done = Probes()
    probe(wire, wire.client, 1472, done)
    wire.rest(5.0)
    assert done.results == [(1472, True)]


def test_a_probe_has_a_round_trip_of_time_even_after_a_silence(wire: Wire) -> None:
    wire.rest(8.0)
    done = Probes()
    probe(wire, wire.client, 1472, done)
    wire.run(lambda: done.results)
    assert done.results == [(1472, True)]


def test_probes_need_no_room_in_the_congestion_window(wire: Wire) -> None:
    end = wire.client
    stream = end.quic.get_next_available_stream_id()
    end.quic.send_stream_data(stream, bytes(200_000))
    wire.hook = lambda *_: ()
    wire.rest(0.03)
    in_flight = end.quic._loss.bytes_in_flight
    assert in_flight > end.quic._loss.congestion_window - MTU_PACKET, "the window is full"
    assert len(end.tunnel.probe(1472, wire.now, Probes())) == 1
    assert end.quic._loss.bytes_in_flight == in_flight


def test_no_probe_without_a_connection(identity: Identity) -> None:
    wire = make_wire(identity.certificate_file, identity.key_file)
    assert wire.client.tunnel.probe(1472, wire.now, Probes()) == []
    connected(wire)
    wire.client.quic.close()
    wire.transmit()
    assert wire.client.tunnel.probe(1472, wire.now, Probes()) == []


# Black holes


def test_losing_only_large_packets_is_a_black_hole(wire: Wire) -> None:
    end = wire.client
    send(end, [bytes(largest(end)) for _ in range(30)])
    wire.run(lambda: len(wire.server.datagrams) == 30)
    wire.hook = lambda _end, _serial, packet: () if len(packet) >= MTU_PACKET else (0.0,)
    for _ in range(200):
        send(end, [bytes(largest(end)), bytes(largest(end)), bytes(100)])
        wire.rest(0.02)
        if end.tunnel.black_hole_suspected:
            break
        end.queue.clear()
    assert end.tunnel.black_hole_suspected
    end.tunnel.reset_black_hole()
    assert not end.tunnel.black_hole_suspected


def test_losing_small_packets_is_no_black_hole(wire: Wire) -> None:
    dice = random.Random(3)
    wire.hook = lambda _end, serial, packet: () if dice.random() < 0.5 else (0.0,)
    for _ in range(50):
        send(wire.client, [bytes(800), bytes(801)])
        wire.rest(0.02)
    assert wire.client.tunnel.packets_lost > 10
    assert not wire.client.tunnel.black_hole_suspected


# The short way beside aioquic's own


def snapshot(end: End) -> dict[str, object]:
    """Everything about reception that the two ways must agree on."""
    end.collect()
    quic = end.quic
    space = quic._spaces[Epoch.ONE_RTT]
    crypto = quic._cryptos[Epoch.ONE_RTT]
    state: dict[str, object] = {
        "close": (quic._close_pending, repr(quic._close_event), quic._state.name),
        "close_at": quic._close_at,
    }
    if quic._close_event is None:  # nothing that follows a close is handled
        state |= {
            "keys": (crypto.key_phase, crypto.recv.secret, crypto.send.secret),
            "datagrams": end.datagrams,
            "events": [repr(event) for event in end.events],
            "sent": [
                (number, packet.is_ack_eliciting) for number, packet in space.sent_packets.items()
            ],
            "loss": (quic._loss._rtt_smoothed, quic._loss.bytes_in_flight, space.loss_time),
            "acks": [(entry.start, entry.stop) for entry in space.ack_queue],
            "ack_at": space.ack_at,
            "largest": (space.largest_received_packet, space.largest_received_time),
            "expected": space.expected_packet_number,
            "known": [number in space.received_packets for number in range(200)],
            "spin": (quic._spin_bit, quic._spin_highest_pn),
            "idle": quic._ack_eliciting_sent_since_receipt,
            "used": quic._local_max_data.used,
            "streams": {
                number: (
                    part.highest_offset,
                    part._buffer_start,
                    bytes(part._buffer),
                    part._final_size,
                    part.is_finished,
                )
                for number, stream in quic._streams.items()
                for part in (stream.receiver,)
            },
        }
    return state


def in_child(action: Callable[[], dict[str, object]]) -> dict[str, object]:
    """What `action` returns in a copy of this process; here nothing has happened."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(action(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    result = pickle.loads(data)
    assert isinstance(result, dict)
    return result


frames = st.sampled_from(
    [
        b"\x30\0\0an IP packet",
        b"\x30",
        b"\x31\x02\0\0",
        b"\x31\x40\x50" + bytes(80),
        b"\x31\x80\0\0\x02\0\0",
        b"\x31\x7f\xff",
        b"\x31\x05\0\0",
        b"\x31",
        b"\0\0\0",
        bytes(40),
        b"\x01",
        b"\x02\x03\x01\x00\x02",
        b"\x02\x01\0\0\0",
        b"\x03\x01\0\0\0\1\1\1",
        b"\x02\x01\0",
        b"\x40\x31\x02\0\0",
        b"\x08\x00GET",
        b"\x0a\x00\x03GET",
        b"\x0e\x00\x03\x02 /",
        b"\x0e\x00\x01\x02ET",
        b"\x0f\x00\x03\x02 /",
        b"\x0c\x00\x05 behind",
        b"\x0e\x00\x04\x40\x40more",
        b"\x0e\x00\x80\x00\x00\x00\x41\x00" + bytes(256),
        b"\x0a\x00\x00",
        b"\x0a\x03\x01x",
        b"\x0a\x00\x7f\xff",
        b"\x0e\x00\xc0\0\0\0\x7f\xff\xff\xff\x01x",
        b"\x10\x44\0",
        b"\x1a12345678",
        b"\x21",
        b"\x1d\0\0",
    ]
)
plains = st.one_of(
    st.just(b"\x30\0\0an IP packet"),
    st.lists(frames, max_size=4).map(b"".join),
)
steps = st.lists(
    st.tuples(
        plains,
        st.sampled_from(["", "", "", "", "drop", "twice", "flip", "late", "update", "reserved"]),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=25,
)


@given(steps, st.sampled_from(["client", "server"]))
@example([(b"\x30\0\0x", "", 2), (b"\x1d\0\0", "", 2)], "server")  # the peer closes
@example([(b"\x30\0\0x", "", 2), (b"\x21\0\0", "", 2), (b"\x30\0\0y", "", 2)], "client")
@hypothesis_settings(max_examples=60)
def test_the_short_way_leaves_the_same_state_as_aioquics(
    train: list[tuple[bytes, str, int]], role: str
) -> None:
    wire = PACKED.get()
    receiver = wire.client if role == "client" else wire.server
    sender = receiver.other
    now = wire.now + 0.5

    def packets() -> list[bytes]:
        made: list[bytes] = []
        late: list[bytes] = []
        for plain, what, number_length in train:
            if what == "update":
                sender.quic.request_key_update()
            packet = craft(
                sender,
                plain.ljust(3, b"\0"),  # less could not be sampled
                bits=0x10 if what == "reserved" else 0,
                number_length=number_length,
            )
            if what == "flip":
                packet = packet[:-1] + bytes((packet[-1] ^ 1,))
            if what == "late":
                late.append(packet)
            elif what != "drop":
                made += [packet, packet] if what == "twice" else [packet]
        return made + late

    def short() -> dict[str, object]:
        receiver.tunnel.own_stream(0)
        receiver.tunnel.receive_datagrams(train_packets, sender.address, now)
        return snapshot(receiver)

    def original() -> dict[str, object]:
        receiver.tunnel.own_stream(0)
        for packet in train_packets:
            QuicConnection.receive_datagram(receiver.quic, packet, sender.address, now)
        return snapshot(receiver)

    # One update needs an answer before the next.
    assume(sum(what == "update" for _, what, _ in train) <= 1)
    with unchanged(sender):
        train_packets = packets()
        assert in_child(short) == in_child(original)


@contextmanager
def unchanged(end: End) -> Iterator[None]:
    """Take back what is sealed within: packet numbers and keys."""
    crypto = end.quic._cryptos[Epoch.ONE_RTT]
    objects = (crypto, crypto.send, crypto.recv)
    before = [dict(vars(entry)) for entry in objects]
    number = end.quic._packet_number
    try:
        yield
    finally:
        end.quic._packet_number = number
        for entry, state in zip(objects, before, strict=True):
            vars(entry).update(state)


# What we take for granted

PRIVATE_NAMES = {
    "connection": (
        "_ack_delay _ack_eliciting_sent_since_receipt _close_at _close_event _close_pending "
        "_configuration _cryptos _events _flush_builder _handle_ack_frame _handle_datagram_frame "
        "_handle_path_challenge_frame _handshake_complete _handshake_confirmed _host_cids "
        "_idle_timeout _initialize _is_client _local_max_data _loss _max_datagram_size "
        "_network_paths _pacing_at _packet_number _parse_transport_parameters _payload_received "
        "_peer_cid _peer_cid_available _peer_token _remote_max_data _remote_max_data_used "
        "_remote_max_datagram_frame_size _retire_peer_cid _spaces _spin_bit _spin_highest_pn "
        "_state _streams _streams_queue _version _write_path_challenge_frame "
        "change_connection_id host_cid tls"
    ),
    "connection.tls": "_peer_certificate alpn_negotiated",
    "connection._loss": (
        "_cc _pacer _pto_count _rtt_initialized _rtt_latest _rtt_min _rtt_smoothed _rtt_variance "
        "_time_of_last_sent_ack_eliciting_packet get_probe_timeout on_packet_sent"
    ),
    "crypto": "_update_key _update_key_requested decrypt_packet encrypt_packet key_phase recv send",
    "crypto.recv": "aead hp key_phase",
    "crypto.recv.aead": "_aead _iv",
    "crypto.recv.hp": "_encryptor _is_chacha20",
    "space": (
        "ack_at ack_eliciting_in_flight ack_queue expected_packet_number largest_received_packet "
        "largest_received_time received_packets sent_packets"
    ),
    "space.received_packets": "_lower _received add",
    "path": "addr bytes_received bytes_sent is_validated local_challenge_sent peer_cid",
}


@pytest.mark.parametrize("owner", PRIVATE_NAMES)
def test_the_names_that_the_adapter_uses_exist(wire: Wire, owner: str) -> None:
    quic = wire.client.quic
    root, _, rest = owner.partition(".")
    found: object = {
        "connection": quic,
        "crypto": quic._cryptos[Epoch.ONE_RTT],
        "space": quic._spaces[Epoch.ONE_RTT],
        "path": quic._network_paths[0],
    }[root]
    for name in rest.split(".") if rest else ():
        found = getattr(found, name)
    missing = [name for name in PRIVATE_NAMES[owner].split() if not hasattr(found, name)]
    assert not missing, f"aioquic changed: {owner} lacks {missing}; read its changelog"


def test_the_adapter_overrides_what_aioquic_calls(wire: Wire) -> None:
    """Frame handlers are looked up once, in a private table: it must hold our method."""
    table = wire.client.quic._QuicConnection__frame_handlers  # type: ignore[attr-defined]
    for kind in (QuicFrameType.DATAGRAM, QuicFrameType.DATAGRAM_WITH_LENGTH):
        assert table[kind][0].__func__ is TunnelConnection._handle_datagram_frame
    challenge = table[QuicFrameType.PATH_CHALLENGE][0].__func__
    assert challenge is TunnelConnection._handle_path_challenge_frame


def test_no_udp_payload_exceeds_the_frame_limit_that_we_announce() -> None:
    """So the check of RFC 9221 section 3 for received frames has nothing to find."""
    configuration = QuicConfiguration(max_datagram_frame_size=65535)
    assert configuration.max_datagram_frame_size is not None
    assert aioquic_adapter.AEAD_TAG + configuration.max_datagram_frame_size > 65507


# A process that stood still, because it was stopped or its machine slept


@pytest.fixture
def late(wire: Wire) -> Wire:
    """The server's acknowledgement is under way to the client."""
    send(wire.client, [b"question"] * 2)
    wire.run(lambda: len(wire.server.datagrams) == 2)
    count = len(wire.server.packets)
    wire.run(lambda: len(wire.server.packets) > count)
    return wire


@pytest.mark.parametrize("seconds", [2, settings.IDLE_TIMEOUT - 5])
def test_time_in_which_a_process_stood_still_is_no_round_trip(late: Wire, seconds: float) -> None:
    usual = late.client.tunnel.rtt, late.client.tunnel.probe_timeout()
    late.now += seconds
    late.rest(4 * DELAY)
    assert (late.client.tunnel.rtt, late.client.tunnel.probe_timeout()) == pytest.approx(
        usual, abs=DELAY
    )
    for serial in range(8):
        send(late.client, [content(100, serial)])
        late.rest(4 * DELAY)
    assert late.client.tunnel.rtt == pytest.approx(2 * DELAY, rel=0.5), "samples are taken again"


def test_an_acknowledgement_read_too_late_does_not_keep_a_connection(late: Wire) -> None:
    """RFC 9000 section 10.1: the peer gave up meanwhile, and has forgotten us."""
    late.now += settings.IDLE_TIMEOUT + 1
    late.rest(4 * DELAY)
    assert late.client.tunnel.ended
