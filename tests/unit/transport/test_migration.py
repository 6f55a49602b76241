"""A connection changes its path (RFC 9000 section 9), and nobody else can make it do so.

Two connections and a wire, without sockets; the client's addresses are names.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import pull_quic_transport_parameters, push_quic_transport_parameters
from aioquic.tls import Epoch

from qvpn_core.transport.aioquic_adapter import AMPLIFICATION, BASE_PACKET, TunnelConnection
from tests.unit.transport.helpers import Identity
from tests.unit.transport.wire import CLIENT_ADDRESS, DELAY, End, Wire, connected, make_wire

PREFIX = b"\0\0"
LARGE = 1452
CABLE = ("198.51.100.7", 2222)
SAME_HOST = (CLIENT_ADDRESS[0], 3333)
ELSEWHERE = ("203.0.113.66", 6666)


@pytest.fixture
def wire(identity: Identity) -> Wire:
    """A connection at rest whose datagrams are packed to LARGE bytes."""
    wire = connected(make_wire(identity.certificate_file, identity.key_file))
    for end in wire.ends:
        end.prefix = PREFIX
        end.tunnel.packet_size = LARGE
    return wire


def send(end: End, *payloads: bytes) -> list[bytes]:
    end.queue.extend(payloads)
    return [PREFIX + payload for payload in payloads]


def client_at(wire: Wire) -> object:
    """Where the server sends to."""
    return wire.server.quic.get_peer_address()


def connection_id(packet: bytes) -> bytes:
    return packet[1:9]


def numbered(count: int, size: int = 1200) -> list[bytes]:
    return [index.to_bytes(2, "big").ljust(size, b"\0") for index in range(count)]


# The client moves by its own will


@pytest.mark.parametrize("keep", [False, True], ids=["the old path is dead", "it still works"])
def test_datagrams_go_on_over_the_new_path_without_a_pause(wire: Wire, keep: bool) -> None:
    wire.migrate_client(CABLE, keep=keep)
    up = send(wire.client, b"first", bytes(1300))
    wire.rest(1.5 * DELAY)
    assert wire.server.datagrams == up, "in the first flight, no round trip earlier"
    down = send(wire.server, b"answer", bytes(1300))
    wire.run(lambda: wire.client.datagrams == down)
    assert client_at(wire) == CABLE
    wire.run(lambda: wire.server.tunnel.path_validated)


def test_what_was_under_way_to_the_old_address_is_still_read(wire: Wire) -> None:
    late = send(wire.server, *numbered(20))
    wire.transmit()
    wire.migrate_client(CABLE, keep=True)
    wire.run(lambda: wire.client.datagrams == late)


def test_no_connection_id_is_used_on_two_paths(wire: Wire) -> None:
    """RFC 9000 section 9.5: in neither direction, or observers could link the paths."""
    seen: dict[bytes, set[object]] = {}
    addresses = [("198.51.100.7", port) for port in range(1, 6)]

    def note(sender: End, _serial: int, packet: bytes) -> Sequence[float]:
        seen.setdefault(connection_id(packet), set()).add((sender.name, wire.client.address))
        return (0.0,)

    wire.hook = note
    for address in addresses:
        wire.migrate_client(address)
        send(wire.client, b"up")
        send(wire.server, b"down")
        wire.rest(1.0)
        assert client_at(wire) == address
    assert all(len(paths) == 1 for paths in seen.values())
    assert len(seen) >= 2 * len(addresses)


def test_a_client_can_move_for_ever(wire: Wire) -> None:
    """Retired connection IDs are replaced."""
    for port in range(1, 40):
        assert wire.client.tunnel.may_migrate()
        wire.migrate_client(("198.51.100.7", port))
        wire.rest(0.5)
        assert client_at(wire) == ("198.51.100.7", port)
    assert len(wire.server.quic._network_paths) <= 8
    assert len(wire.client.quic._network_paths) == 2
    assert wire.client.termination is wire.server.termination is None


def test_without_a_spare_connection_id_it_may_not_move(wire: Wire) -> None:
    wire.hook = lambda *_: ()  # nobody hears, so nobody issues new ones
    for port in range(1, 8):
        assert wire.client.tunnel.may_migrate()
        wire.migrate_client(("198.51.100.7", port))
        wire.transmit()
    assert not wire.client.tunnel.may_migrate()


def test_before_the_handshake_is_confirmed_it_may_not_move(identity: Identity) -> None:
    wire = make_wire(identity.certificate_file, identity.key_file)
    assert not wire.client.tunnel.may_migrate()
    connected(wire)
    assert wire.client.tunnel.may_migrate()
    assert not wire.server.tunnel.may_migrate(), "servers do not"
    wire.client.quic.close()
    assert not wire.client.tunnel.may_migrate()


class Anchored(TunnelConnection):
    """A server whose transport parameters forbid the client to move (RFC 9000 section 18.2)."""

    def _serialize_transport_parameters(self) -> bytes:
        parameters = pull_quic_transport_parameters(
            Buffer(data=super()._serialize_transport_parameters())
        )
        parameters.disable_active_migration = True
        buffer = Buffer(capacity=2048)
        push_quic_transport_parameters(buffer, parameters)
        return buffer.data


def test_a_server_that_forbids_it_is_obeyed(identity: Identity) -> None:
    wire = make_wire(identity.certificate_file, identity.key_file, server_class=Anchored)
    connected(wire)
    assert not wire.client.tunnel.may_migrate()


def test_aioquics_own_server_follows_us(identity: Identity) -> None:
    wire = connected(
        make_wire(
            identity.certificate_file,
            identity.key_file,
            server={"congestion_control_algorithm": "reno"},
            server_class=QuicConnection,
        )
    )
    wire.client.prefix = PREFIX
    wire.migrate_client(CABLE)
    sent = send(wire.client, b"x")
    wire.run(lambda: wire.server.datagrams == sent)
    wire.rest(0.5)
    assert client_at(wire) == CABLE
    assert wire.server.quic._network_paths[0].is_validated


@pytest.mark.parametrize("seed", range(5))
def test_a_move_onto_a_lossy_path_succeeds(wire: Wire, seed: int) -> None:
    dice = random.Random(seed)
    wire.hook = lambda *_: () if dice.random() < 0.3 else (0.0,)
    wire.migrate_client(CABLE)
    for _ in range(50):
        send(wire.client, b"up")
        send(wire.server, b"down")
        wire.rest(0.1)
    assert client_at(wire) == CABLE
    assert wire.server.tunnel.path_validated
    assert len(wire.client.datagrams) > 15


def test_a_stream_goes_on_after_a_move(wire: Wire) -> None:
    content = os.urandom(200_000)
    wire.client.quic.send_stream_data(0, content)
    wire.rest(2.5 * DELAY)
    wire.migrate_client(CABLE)  # what is under way is lost
    wire.run(lambda: wire.server.streams.get(0) == content)


def test_every_path_is_judged_for_itself(wire: Wire) -> None:
    """RFC 9000 section 9.4: round trip and congestion window begin anew, at both ends."""
    for end in wire.ends:
        assert end.tunnel.rtt == pytest.approx(2 * DELAY, rel=0.5)
        end.quic.send_stream_data(0 if end is wire.client else 1, bytes(300_000))
    wire.rest(1.0)
    windows = [end.quic._loss.congestion_window for end in wire.ends]
    wire.hook = lambda *_: (0.3,)
    send(wire.server, *numbered(10))  # under way on the old path
    wire.transmit()
    wire.migrate_client(CABLE, keep=True)
    assert wire.client.tunnel.rtt == 0.0
    assert wire.client.quic._loss.bytes_in_flight == 0
    wire.rest(2.0)
    send(wire.server, b"x")
    wire.rest(5.0)
    for end, window in zip(wire.ends, windows, strict=True):
        assert end.tunnel.rtt == pytest.approx(2 * (DELAY + 0.3), rel=0.2)
        assert end.quic._loss.congestion_window < window
        assert end.quic._loss.bytes_in_flight == 0


def test_another_port_of_the_same_host_is_the_same_path(wire: Wire) -> None:
    """As RFC 9000 section 9.4 allows: a NAT changes ports, and the path stays as it was."""
    rtt = wire.server.tunnel.rtt
    wire.move_client(SAME_HOST)
    send(wire.client, b"x")
    wire.rest(0.5)
    assert wire.server.tunnel.rtt == pytest.approx(rtt, rel=0.5)
    assert not wire.server.tunnel.moved


def test_what_validates_a_path_fits_every_path(wire: Wire) -> None:
    """Challenges are as large as allowed, and must arrive where the size of before does not."""
    wire.hook = lambda _end, _serial, packet: (0.0,) if len(packet) <= BASE_PACKET else ()
    sizes: list[int] = []
    wire.migrate_client(CABLE)
    sent = len(wire.server.packets)
    wire.rest(1.0)
    sizes = [len(packet) for packet in wire.server.packets[sent:]]
    assert client_at(wire) == CABLE
    assert wire.server.tunnel.path_validated
    assert max(sizes) == BASE_PACKET, "RFC 9000 section 8.2.1"


def test_a_move_is_no_black_hole(wire: Wire) -> None:
    wire.hook = lambda *_: ()
    for _ in range(10):
        send(wire.client, bytes(1400))
        wire.transmit()
    wire.hook = lambda *_: (0.0,)
    wire.migrate_client(CABLE)
    wire.rest(1.0)
    assert wire.client.tunnel.packets_lost == 10
    assert not wire.client.tunnel.black_hole_suspected


# Somebody moves it


def test_a_nat_that_gives_another_port_loses_no_datagram(wire: Wire) -> None:
    """Packets wait until the new address has answered, and none is dropped meanwhile."""
    wire.move_client(SAME_HOST)
    up = send(wire.client, b"hello again")
    down = send(wire.server, *numbered(60))
    wire.run(lambda: wire.server.datagrams == up)
    lost_in_the_nat = len(down) - len(wire.client.datagrams)
    more = send(wire.server, *numbered(200, 1300))
    wire.rest(1.0)
    assert lost_in_the_nat == 60, "sent before anybody could know"
    assert wire.client.datagrams == more
    assert client_at(wire) == SAME_HOST


def test_to_an_address_that_has_not_answered_little_is_sent(wire: Wire) -> None:
    """RFC 9000 sections 8.1 and 9.3.1: three times what came from there, challenges included."""
    wire.hook = lambda end, *_: (0.0,) if end is wire.client else ()
    send(wire.client, b"a packet from the client, taken by somebody and sent from another place")
    [(packet, _)] = wire.client.send(wire.now)
    wire.inject(wire.client, packet, source=ELSEWHERE)
    wire.run(lambda: client_at(wire) == ELSEWHERE)
    spent = [0]

    def note(end: End, _serial: int, packet: bytes) -> Sequence[float]:
        if end is wire.server and client_at(wire) == ELSEWHERE:
            spent[0] += len(packet)
        return (0.0,)

    wire.hook = note
    wire.client.reachable[ELSEWHERE] = ("nobody", 0)
    while client_at(wire) == ELSEWHERE:
        send(wire.server, *numbered(50))
        wire.rest(0.01)
    path = next(path for path in wire.server.quic._network_paths if path.addr == ELSEWHERE)
    assert not path.is_validated
    assert path.bytes_received == len(packet)
    assert 0 < path.bytes_sent <= AMPLIFICATION * path.bytes_received
    assert spent[0] <= path.bytes_sent + BASE_PACKET, "and a question to the former address"


def test_a_packet_copied_from_elsewhere_moves_the_session_for_an_instant_only(wire: Wire) -> None:
    """RFC 9000 section 9.3.3: the copy came first, and the real client is asked and comes back."""
    send(wire.client, b"genuine")
    [(packet, _)] = wire.client.send(wire.now)
    wire.inject(wire.client, packet, source=ELSEWHERE)  # the attacker is quicker
    wire.inject(wire.client, packet)
    wire.run(lambda: client_at(wire) == ELSEWHERE)
    wire.rest(2.5 * DELAY)  # although the client itself has nothing to say
    assert client_at(wire) == CLIENT_ADDRESS
    assert wire.server.tunnel.path_validated
    assert wire.server.datagrams == [PREFIX + b"genuine"]
    down = send(wire.server, *numbered(20))
    wire.rest(0.5)
    assert wire.client.datagrams == down


def test_an_attacker_that_copies_everything_late_gets_nothing(wire: Wire) -> None:
    def copied(end: End, _serial: int, packet: bytes) -> Sequence[float]:
        return (0.0,)

    wire.hook = copied
    for index in range(50):
        send(wire.client, index.to_bytes(2, "big"))
        packets = [packet for packet, _ in wire.client.send(wire.now)]
        for packet in packets:
            wire.inject(wire.client, packet)
        wire.rest(DELAY)
        for packet in packets:
            wire.inject(wire.client, packet, source=ELSEWHERE)
        send(wire.server, b"answer")
        wire.rest(DELAY)
        assert client_at(wire) == CLIENT_ADDRESS
    wire.rest(1.0)
    assert len(wire.client.datagrams) == 50
    assert len(wire.server.datagrams) == 50
    assert len(wire.server.quic._network_paths) == 1, "a duplicate is not even looked at"


def test_old_packets_from_elsewhere_change_nothing(wire: Wire) -> None:
    for packet in list(wire.client.packets):
        wire.inject(wire.client, packet, source=ELSEWHERE)
    wire.rest(1.0)
    assert client_at(wire) == CLIENT_ADDRESS
    assert wire.server.termination is None


def test_a_delayed_packet_from_the_old_address_does_not_bring_the_session_back(wire: Wire) -> None:
    send(wire.client, b"slow")
    [(slow, _)] = wire.client.send(wire.now)
    wire.migrate_client(CABLE, keep=True)
    wire.run(lambda: client_at(wire) == CABLE)
    wire.inject(wire.client, slow, source=CLIENT_ADDRESS)
    wire.rest(0.5)
    assert client_at(wire) == CABLE


def test_garbage_from_elsewhere_with_the_right_connection_id_changes_nothing(wire: Wire) -> None:
    send(wire.client, b"x")
    wire.rest(1.0)
    packet = wire.client.packets[-1]
    dice = random.Random(1)
    for _ in range(50):
        forged = packet[:9] + dice.randbytes(dice.randint(20, 1300))
        wire.inject(wire.client, forged, source=ELSEWHERE)
    sent = len(wire.server.packets)
    wire.rest(1.0)
    assert client_at(wire) == CLIENT_ADDRESS
    assert len(wire.server.packets) == sent, "and gets no answer"
    assert len(wire.server.quic._network_paths) == 1


def test_a_client_that_vanishes_in_a_move_is_sent_to_where_it_was_last_heard(wire: Wire) -> None:
    """The new address never answers (RFC 9000 section 9.3.2)."""
    wire.move_client(CABLE)
    send(wire.client, b"last words")
    wire.transmit()
    wire.hook = lambda *_: ()
    wire.rest(5.0)
    assert client_at(wire) == CLIENT_ADDRESS


def test_a_client_does_not_listen_to_other_servers(wire: Wire) -> None:
    send(wire.server, b"x")
    [(packet, _)] = wire.server.send(wire.now)
    wire.client.tunnel.receive_datagrams([packet], ELSEWHERE, wire.now)
    wire.client.collect()
    assert wire.client.datagrams == []


# What silence looks like


def test_a_debt_begins_with_the_first_question_and_ends_with_any_answer(wire: Wire) -> None:
    assert wire.client.tunnel.unanswered_since is None
    asked = wire.now
    send(wire.client, b"x")
    wire.transmit()
    assert wire.client.tunnel.unanswered_since == asked
    wire.rest(DELAY)
    send(wire.client, b"y")
    wire.transmit()
    assert wire.client.tunnel.unanswered_since == asked
    wire.rest(1.0)
    assert wire.client.tunnel.unanswered_since is None
    wire.hook = lambda *_: ()
    asked = wire.now
    wire.client.quic.send_ping(0)
    wire.rest(1.0)
    assert wire.client.tunnel.unanswered_since == asked


def test_the_state_that_is_reset_is_all_that_aioquic_keeps_of_a_path(wire: Wire) -> None:
    """What a new attribute in its loss recovery means for a move must be decided."""
    known = {
        "handshake_confirmed", "max_ack_delay", "peer_completed_address_validation", "spaces",
        "_logger", "_quic_logger", "_send_probe", "_pto_count", "_rtt_first_sample_time",
        "_rtt_initial", "_rtt_initialized", "_rtt_latest", "_rtt_min", "_rtt_smoothed",
        "_rtt_variance", "_time_of_last_sent_ack_eliciting_packet", "_cc", "_pacer",
    }  # fmt: skip
    assert set(vars(wire.client.quic._loss)) == known
    path = vars(wire.client.quic._network_paths[0])
    assert set(path) == {
        "addr", "bytes_received", "bytes_sent", "is_validated", "local_challenge_sent",
        "local_challenges", "peer_cid", "remote_challenges", "validation_deadline",
    }  # fmt: skip
    space = wire.client.quic._spaces[Epoch.ONE_RTT]
    assert space.ack_eliciting_in_flight == 0
