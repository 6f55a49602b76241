"""UDP in batches on real loopback sockets: what goes in comes out, with and without offload."""

from __future__ import annotations

import errno
import random
import selectors
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qvpn_core.transport.udp import MAX_BATCH_BYTES, MAX_SEGMENTS, LocalAddress, UdpSocket

FAMILIES = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}

Received = tuple[bytes, tuple[str, int], LocalAddress | None]


def bound(host: str, *, v6only: bool = True) -> UdpSocket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return UdpSocket(sock)


def connected(to: UdpSocket) -> UdpSocket:
    host, port = to.address
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, port))
    return UdpSocket(sock)


def readable(sock: UdpSocket, seconds: float = 5.0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(sock.fileno(), selectors.EVENT_READ)
        return bool(selector.select(seconds))


def receive(sock: UdpSocket, count: int) -> list[Received]:
    """Exactly `count` datagrams."""
    received: list[Received] = []
    while len(received) < count:
        assert readable(sock), f"{len(received)} of {count} datagrams arrived"
        received += sock.receive()
    return received


def payloads(received: list[Received]) -> list[bytes]:
    return [data for data, _, _ in received]


def datagram(size: int, serial: int) -> bytes:
    return random.Random(serial).randbytes(size)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[UdpSocket, UdpSocket]]:
    """A client connected to a server."""
    server = bound(FAMILIES[request.param][1])
    client = connected(server)
    yield client, server
    client.close()
    server.close()


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no-gso"])
@pytest.mark.parametrize("size", [1, 20, 1199, 1200, 1280, 1452, 1472, 9000])
def test_datagrams_of_one_size_arrive_whole_and_in_order(
    pair: tuple[UdpSocket, UdpSocket], size: int, gso: bool
) -> None:
    client, server = pair
    client.gso = gso
    sent = [datagram(size, serial) for serial in range(150)]
    assert client.send(sent, None, None) == []
    assert payloads(receive(server, len(sent))) == sent
    assert client.send_errors == 0
    assert client.gso is gso, "loopback takes segmentation offload"


sizes = st.lists(st.sampled_from([1, 2, 63, 700, 1200, 1201, 1452, 9000]), max_size=200)


@pytest.mark.parametrize("version", [4, 6])
def test_any_mix_of_sizes_arrives_whole_and_in_order(version: int) -> None:
    server = bound(FAMILIES[version][1])
    client = connected(server)

    @given(sizes)
    @settings(max_examples=40)
    def check(lengths: list[int]) -> None:
        sent = [datagram(length, serial) for serial, length in enumerate(lengths)]
        assert client.send(sent, None, None) == []
        assert payloads(receive(server, len(sent))) == sent

    try:
        check()
        assert client.gso
        assert client.send_errors == 0
    finally:
        client.close()
        server.close()


def test_a_run_never_exceeds_what_one_call_may_carry() -> None:
    for size in (1, 500, 1472, 32_000, 65_000):
        run = [bytes(size)] * 300
        length = UdpSocket._run_length(run, 0)
        assert 1 <= length <= MAX_SEGMENTS
        assert length == 1 or length * size <= MAX_BATCH_BYTES


def test_a_segmented_burst_arrives_as_few_super_packets(
    pair: tuple[UdpSocket, UdpSocket],
) -> None:
    client, server = pair
    sent = [datagram(1400, serial) for serial in range(40)]
    client.send(sent, None, None)
    assert readable(server)
    assert payloads(server.receive(calls=1)) == sent, "one call, one system call, all segments"


def test_replies_come_from_the_address_that_was_asked() -> None:
    server = bound("0.0.0.0")
    client_socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client_socket.bind(("127.0.0.3", 0))
    client = UdpSocket(client_socket)
    try:
        for asked in ("127.0.0.1", "127.0.0.2"):
            client.send([b"ping"], (asked, server.address[1]), None)
            [(data, sender, local)] = receive(server, 1)
            assert data == b"ping"
            assert sender == client.address
            server.send([b"pong", b"pong"], sender, local)
            answers = receive(client, 2)
            assert [source[0] for _, source, _ in answers] == [asked, asked]
    finally:
        client.close()
        server.close()


def test_replies_on_an_ipv6_wildcard_go_back_to_the_sender() -> None:
    server = bound("::")
    client = bound("::1")
    try:
        client.send([b"ping"], ("::1", server.address[1]), None)
        [(_, sender, local)] = receive(server, 1)
        server.send([b"pong"], sender, local)
        [(data, source, _)] = receive(client, 1)
        assert data == b"pong"
        assert source[0] == "::1"
    finally:
        client.close()
        server.close()


@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no-gso"])
def test_sizes_that_the_interface_refuses_are_reported_and_the_others_arrive(
    pair: tuple[UdpSocket, UdpSocket], gso: bool
) -> None:
    client, server = pair
    client.gso = gso
    too_large = 65_600  # above what UDP can carry: EMSGSIZE everywhere
    small = [datagram(1000, serial) for serial in range(3)]
    refused = client.send([small[0], bytes(too_large), small[1], small[2]], None, None)
    assert refused == [too_large]
    assert payloads(receive(server, 3)) == small
    assert client.gso is gso, "a size is not the offload's fault"


def test_a_closed_port_is_reported_on_a_connected_socket() -> None:
    gone = bound("127.0.0.1")
    client = connected(gone)
    gone.close()
    try:
        client.send([b"anybody?"], None, None)
        assert readable(client)
        with pytest.raises(OSError, match="refused") as caught:
            client.receive()
        assert caught.value.errno == errno.ECONNREFUSED
        assert client.receive() == [], "reported once"
    finally:
        client.close()


@pytest.mark.parametrize("count", [1, 3])
def test_an_icmp_error_about_an_earlier_packet_does_not_concern_the_next(count: int) -> None:
    """Else a router's Packet Too Big would look like a refusal by the local interface."""
    gone = bound("127.0.0.1")
    host, port = gone.address
    client = connected(gone)
    gone.close()
    client.send([b"anybody?"], None, None)
    assert readable(client), "the error is pending"
    back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    back.bind((host, port))
    server = UdpSocket(back)
    try:
        sent = [b"%d" % serial for serial in range(count)]
        assert client.send(sent, None, None) == []
        assert payloads(receive(server, count)) == sent
        assert (client.send_errors, client.gso) == (0, True)
    finally:
        client.close()
        server.close()


def test_what_cannot_be_sent_is_a_loss_and_not_an_error() -> None:
    client = bound("127.0.0.1")
    try:
        # The kernel refuses to send from a loopback address to anywhere else.
        assert client.send([b"x", b"y"], ("203.0.113.1", 1), None) == []
        assert client.send_errors == 2
        assert client.gso, "that says nothing about the offload"
    finally:
        client.close()


def test_nothing_to_receive_is_an_empty_list(pair: tuple[UdpSocket, UdpSocket]) -> None:
    assert pair[0].receive() == []
    assert pair[1].send([], ("127.0.0.1", 1), None) == []


def test_one_drain_is_bounded(pair: tuple[UdpSocket, UdpSocket]) -> None:
    client, server = pair
    client.gso = False
    client.send([b"%03d" % serial for serial in range(100)], None, None)
    assert readable(server)
    assert len(server.receive(calls=4)) < 100
    # What is left is not lost.
    assert readable(server)


def test_fragmentation_is_forbidden(pair: tuple[UdpSocket, UdpSocket]) -> None:
    client, _ = pair
    if client._ipv6:
        assert client._sock.getsockopt(socket.IPPROTO_IPV6, 23) == 3
    else:
        assert client._sock.getsockopt(socket.IPPROTO_IP, 10) == 3
