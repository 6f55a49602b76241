"""What the traffic of a connected client meets: protocols, sizes, fragments, marks, hops.

All tests share one client that stays connected with everything in the tunnel.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.world import Capture, Namespace, Seen, plan, probes
from tests.world.datagrams import HEADERS, Address, Datagrams, forget_path_mtus, path_mtu
from tests.world.packets import UDP
from tests.world.payload import payload_sha256
from tests.world.vpn import GATEWAY_PORT, INSIDE, Vpn, until

# Generous, for a machine that is busy with other tests.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

families = pytest.mark.parametrize("family", [4, 6])
needs_dig = pytest.mark.skipif(
    shutil.which("dig") is None, reason="needs dig (Debian: bind9-dnsutils)"
)
#: A tunnel's MTU on Ethernet, behind IPv4, UDP, QUIC and an HTTP Datagram's header.
MTU = 1442
GATEWAY = {4: plan.GATEWAY4, 6: plan.GATEWAY6}


@pytest.fixture
def client(connected: Vpn) -> Namespace:
    """The connected client, its path MTU known on both sides."""
    first = connected.clients[0]
    until(lambda: first.peek()["mtu"] == MTU, "the client's MTU reaches the path's")
    until(lambda: session(connected)["mtu"] == MTU, "so does the gateway's")
    return first.host


def session(vpn: Vpn) -> dict[str, Any]:
    """What the gateway says of the connected client."""
    found = vpn.gateway.session("first")
    assert found is not None
    return found


# -- every protocol, out and back


@pytest.mark.parametrize(
    "target",
    [*INSIDE.values(), *GATEWAY.values(), plan.ALPHA.v4, plan.ALPHA.v6, plan.ROUTER4, plan.ROUTER6],
)
def test_ping_passes(client: Namespace, target: str) -> None:
    client.run(["ping", "-n", "-c", "3", "-i", "0.05", "-W", "5", target])


@families
@pytest.mark.parametrize("where", [plan.ALPHA, plan.BETA])
def test_sites_see_the_gateway(client: Namespace, where: plan.Site, family: int) -> None:
    assert probes.source_seen(client, where.address(family)) == GATEWAY[family]


@families
def test_a_download_and_an_upload_arrive_whole(client: Namespace, family: int) -> None:
    size = 5_000_001
    down = probes.download(client, plan.ALPHA.address(family), size)
    assert (down.size, down.sha256) == (size, payload_sha256(size))
    data = os.urandom(size)
    up = probes.upload(client, plan.BETA.address(family), data)
    assert (up.size, up.sha256) == (size, hashlib.sha256(data).hexdigest())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_download_of_1_gib_arrives_byte_for_byte(client: Namespace) -> None:
    got = probes.download(client, plan.ALPHA.v4, 1 << 30)
    assert (got.size, got.sha256) == (1 << 30, payload_sha256(1 << 30))


@families
@pytest.mark.parametrize("size", [8, 500, MTU - 28, MTU - 27, 4000, 8000, 60_000])
def test_udp_echo_returns_datagrams_of_every_size(
    client: Namespace, internet_forgets: None, family: int, size: int
) -> None:
    target = plan.ALPHA.address(family)
    # An answer that sets Don't Fragment, as all IPv6 does, may first have to teach its sender the
    # path MTU, and a busy machine may lose one of many fragments.
    for _ in range(5):
        echo = until(
            lambda: echoed(probes.udp_echo(client, target, size=size)), "an answer of this size"
        )
        assert (echo.numbers, echo.damaged) == ((0,), 0)


def echoed(echoes: probes.Echoes) -> probes.Echoes | None:
    return echoes if echoes.numbers or echoes.damaged else None


@families
def test_small_packets_at_a_rate_keep_their_order(client: Namespace, family: int) -> None:
    target = plan.ALPHA.address(family)
    echoes = probes.udp_echo(client, target, count=2000, size=16, interval=0.001, wait=3.0)
    assert echoes.distinct >= 1980  # a busy machine may lose a few in a full device queue
    assert (len(echoes.numbers), echoes.overtaken, echoes.damaged) == (echoes.distinct, 0, 0)


@needs_dig
@families
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_questions_to_the_company_resolver_come_from_the_gateway(
    client: Namespace, connected: Vpn, family: int, transport: str
) -> None:
    server = plan.COMPANY_DNS.address(family)
    record = "A" if family == 4 else "AAAA"
    name = f"asked-{family}-{transport[1:]}.test"
    asking = ["dig", "+short", "+tries=1", transport, f"@{server}"]
    client.run([*asking, name])
    asked = [each for each in probes.dns_queries(connected.world.internet) if each[1] == name]
    used = "tcp" if transport == "+tcp" else "udp"
    assert [(each[0], *each[3:]) for each in asked] == [(GATEWAY[family], used, server)]
    assert client.run([*asking, "whoami.test", record]).stdout.strip() == GATEWAY[family]


@needs_dig
def test_questions_to_the_resolver_of_the_provider_come_from_the_gateway_too(
    client: Namespace,
) -> None:
    assert client.run(["dig", "+short", "whoami.test", "A"]).stdout.strip() == GATEWAY[4]


@needs_dig
def test_an_answer_that_is_too_large_for_udp_is_fetched_over_tcp(client: Namespace) -> None:
    asking = ["dig", "+short", "+noedns", f"@{plan.COMPANY_DNS.v6}", "big.test", "TXT"]
    assert len(client.run(asking).stdout.splitlines()) == 10


# -- towards the client


@families
@pytest.mark.parametrize("opener", ["gateway", "client"])
def test_gateway_and_client_reach_each_other_by_tcp(
    client: Namespace, connected: Vpn, family: int, opener: str
) -> None:
    """Either end of the tunnel can be the server, and both directions then carry a stream."""
    ends = {
        "client": (client, connected.clients[0].address(family)),
        "gateway": (connected.world.gateway, INSIDE[family]),
    }
    asking, asker = ends.pop(opener)
    serving, server = ends.popitem()[1]
    data = os.urandom(1_000_000)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with serving.socket(kind, socket.SOCK_STREAM) as listener:
        listener.settimeout(10)
        listener.bind((server, 0))
        listener.listen()
        with asking.call(
            socket.create_connection, listener.getsockname()[:2], 10, (asker, 0)
        ) as connection:
            accepted, peer = listener.accept()
            with accepted:
                assert peer[0] == asker
                assert transferred(connection, accepted, data) == data
                assert transferred(accepted, connection, data) == data


def transferred(sender: socket.socket, receiver: socket.socket, data: bytes) -> bytes:
    """What arrives of `data`, or of as much of it as its length says, within 10 s of silence."""
    sender.settimeout(10)
    receiver.settimeout(10)
    thread = threading.Thread(target=sender.sendall, args=(data,), daemon=True)
    thread.start()
    got = bytearray()
    while len(got) < len(data) and (more := receiver.recv(1 << 16)):
        got += more
    thread.join()
    return bytes(got)


@families
def test_the_internet_does_not_reach_a_device_unasked(
    client: Namespace, connected: Vpn, family: int
) -> None:
    """Not even a neighbour of the gateway that routes packets for devices to it."""
    address = connected.clients[0].address(family)
    internet = connected.world.internet
    sees = Capture(client, "qvpn0", lambda seen: seen.packet.source == plan.ALPHA.address(family))
    with route(internet, address, GATEWAY[family]), sees as capture:
        with Datagrams(internet, plan.ALPHA.address(family)) as stranger:
            for _ in range(10):
                stranger.send(b"knock", (address, 9))
        # What came behind it has arrived, so it would have too.
        client.run(["ping", "-n", "-c", "1", "-W", "5", INSIDE[family]])
    assert capture.count == 0


@contextlib.contextmanager
def route(host: Namespace, destination: str, gateway: str) -> Iterator[None]:
    host.ip(f"route add {destination} via {gateway}")
    try:
        yield
    finally:
        host.ip(f"route del {destination} via {gateway}")


# -- sizes


@pytest.fixture
def internet_forgets(connected: Vpn) -> None:
    """Nobody on the far side remembers a path MTU from another test."""
    forget_path_mtus(connected.world.internet)
    forget_path_mtus(connected.world.gateway)


class Conversation:
    """A UDP flow from the client to `far`, open in both directions, that never fragments."""

    def __init__(self, near: Datagrams, far: Datagrams) -> None:
        self.near, self.far = near, far
        near.send(b"hello", far.address)
        #: The client as the far end sees it, which is the gateway behind a NAT.
        self.seen = far.receive().sender

    def ends(self, direction: str) -> tuple[Datagrams, Datagrams, Address]:
        """Sender, receiver, and where to send."""
        if direction == "up":
            return self.near, self.far, self.far.address
        return self.far, self.near, self.seen


@pytest.fixture(params=["gateway", "internet"])
def conversation(
    request: pytest.FixtureRequest,
    client: Namespace,
    connected: Vpn,
    internet_forgets: None,
    family: int,
) -> Iterator[Conversation]:
    """One with the gateway itself, and one through its NAT."""
    far, address = {
        "gateway": (connected.world.gateway, INSIDE[family]),
        "internet": (connected.world.internet, plan.ALPHA.address(family)),
    }[request.param]
    own = connected.clients[0].address(family)
    with (
        Datagrams(client, own, dont_fragment="always") as near,
        Datagrams(far, address, dont_fragment="always") as other,
    ):
        yield Conversation(near, other)


@families
@pytest.mark.parametrize("direction", ["up", "down"])
def test_every_datagram_up_to_the_mtu_arrives_unfragmented(
    conversation: Conversation, family: int, direction: str
) -> None:
    sender, receiver, to = conversation.ends(direction)
    largest = MTU - HEADERS[family]
    for size in (0, 1, 2, 63, 64, 65, 1000, 1200, largest - 1, largest):
        data = os.urandom(size)
        sender.send(data, to)
        assert receiver.receive().data == data


@families
def test_larger_packets_of_the_client_are_refused_with_the_mtu(
    conversation: Conversation, family: int
) -> None:
    """The client's device has the tunnel's MTU, so its own kernel is the one that knows."""
    sender, _, to = conversation.ends("up")
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        sender.send(bytes(MTU - HEADERS[family] + 1), to)
    assert (refused := sender.error()).origin == "local"
    assert refused.mtu == MTU


@families
def test_larger_packets_to_the_client_are_answered_with_packet_too_big(
    conversation: Conversation, connected: Vpn, family: int
) -> None:
    sender, receiver, to = conversation.ends("down")
    before = too_big(connected)
    sender.send(bytes(MTU - HEADERS[family] + 1), to)
    told = sender.error()
    assert (told.origin, told.type, told.code) == ("icmp", *((3, 4) if family == 4 else (2, 0)))
    assert told.mtu == MTU
    # The source of the ICMP message is whom the sender talks to the client through.
    assert told.reporter in (INSIDE[family], GATEWAY[family])
    assert too_big(connected) == before + 1
    # The sender's kernel has learnt it: no further packet of that size leaves, smaller ones do.
    with pytest.raises(OSError, match=os.strerror(errno.EMSGSIZE)):
        sender.send(bytes(MTU - HEADERS[family] + 1), to)
    assert sender.error().origin == "local"
    data = os.urandom(MTU - HEADERS[family])
    sender.send(data, to)
    assert receiver.receive().data == data


def too_big(vpn: Vpn) -> int:
    """How many packets to the client the gateway did not send for their size."""
    return int(session(vpn)["drops"].get("too-big", 0))


@families
def test_a_far_host_learns_the_path_mtu_and_stays_reachable(
    client: Namespace, connected: Vpn, internet_forgets: None, family: int
) -> None:
    internet, own = connected.world.internet, connected.clients[0].address(family)
    assert path_mtu(internet, GATEWAY[family]) == 1500
    with (
        Datagrams(client, own) as near,
        Datagrams(internet, plan.BETA.address(family), dont_fragment="want") as far,
    ):
        near.send(b"hello", far.address)
        to = far.receive().sender
        far.send(bytes(1500 - HEADERS[family]), to)  # full-sized there, too big here
        assert far.error().mtu == MTU
        assert path_mtu(internet, GATEWAY[family]) == MTU
        data = os.urandom(1500 - HEADERS[family])
        far.send(data, to)  # now in fragments that fit
        assert near.receive().data == data


@pytest.mark.parametrize("size", [MTU - 27, 1472, 1473, 4000, 60_000])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_ipv4_without_dont_fragment_is_fragmented_and_never_refused(
    client: Namespace, connected: Vpn, internet_forgets: None, direction: str, size: int
) -> None:
    """At once, from the first packet on: on the way down the gateway cuts what is too large."""
    own = connected.clients[0].address(4)
    with (
        Datagrams(client, own, dont_fragment="never") as near,
        Datagrams(connected.world.internet, plan.ALPHA.v4, dont_fragment="never") as far,
    ):
        sender, receiver, to = Conversation(near, far).ends(direction)
        data = os.urandom(size)

        def passed() -> bool:
            sender.send(data, to)
            try:
                assert receiver.receive().data == data
            except TimeoutError:  # a busy machine may lose one of many fragments
                return False
            return True

        until(passed, "it arrives")


@families
@pytest.mark.parametrize("opener", ["client", "gateway"])
def test_a_ping_of_8000_bytes_passes_in_fragments(
    client: Namespace, connected: Vpn, internet_forgets: None, family: int, opener: str
) -> None:
    host, target = {
        "client": (client, plan.ALPHA.address(family)),
        "gateway": (connected.world.gateway, connected.clients[0].address(family)),
    }[opener]
    # With IPv6 only the sender fragments, and must hear of the path MTU before it does.
    argv = ["ping", "-n", "-c", "1", "-W", "1", "-s", "8000", "-M", "dont", target]
    until(lambda: host.run(argv, check=False).returncode == 0, "an answer")
    argv[argv.index("-W") + 1] = "5"
    assert [host.run(argv, check=False).returncode for _ in range(3)] == [0, 0, 0]


# -- marks


@families
@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_dscp_and_ecn_pass_unchanged_and_do_not_show_outside(
    conversation: Conversation, connected: Vpn, family: int, direction: str, ecn: int
) -> None:
    sender, receiver, to = conversation.ends(direction)
    with Capture(connected.world.router, "lan0", is_quic) as capture:
        for dscp in (0, 46, 63):
            sender.send(b"marked", to, traffic_class=dscp << 2 | ecn)
            assert receiver.receive().traffic_class == dscp << 2 | ecn
    # The outer packets are marked, if at all, as our own controller hears of it: Not-ECT or ECT(0),
    # whatever is inside (RFC 9484 section 9.1).
    outside = {seen.packet.data[1] for seen in capture.seen}
    assert outside
    assert outside <= {0, 2}


def is_quic(seen: Seen) -> bool:
    """Whether this is between a client and the gateway's port."""
    packet = seen.packet
    here, there = (packet.source, packet.source_port), (packet.destination, packet.destination_port)
    gateway = (plan.GATEWAY4, GATEWAY_PORT)
    return packet.version == 4 and packet.protocol == UDP and gateway in (here, there)


@families
def test_the_gateway_is_one_hop_in_either_direction(
    client: Namespace, connected: Vpn, family: int
) -> None:
    own = connected.clients[0].address(family)
    internet = connected.world.internet
    with (
        Datagrams(client, own) as near,
        Datagrams(internet, plan.ALPHA.address(family)) as far,
    ):
        near.send(b"first hop", far.address, hop_limit=1)
        told = near.error()
        assert (told.origin, told.type) == ("icmp", 11 if family == 4 else 3)
        assert (told.code, told.reporter) == (0, INSIDE[family])
        near.send(b"second hop", far.address, hop_limit=2)
        arrived = far.receive()
        assert (arrived.data, arrived.hop_limit) == (b"second hop", 1)
        far.send(b"back", arrived.sender, hop_limit=2)
        assert near.receive().hop_limit == 1
        far.send(b"too short", arrived.sender, hop_limit=1)
        assert far.error().type == (11 if family == 4 else 3)


@families
def test_the_gateway_itself_is_no_hop_away(client: Namespace, connected: Vpn, family: int) -> None:
    own = connected.clients[0].address(family)
    gateway = connected.world.gateway
    with Datagrams(client, own) as near, Datagrams(gateway, INSIDE[family]) as far:
        near.send(b"direct", far.address, hop_limit=1)
        arrived = far.receive()
        far.send(b"back", arrived.sender, hop_limit=1)
        assert (arrived.hop_limit, near.receive().hop_limit) == (1, 1)


# -- what the status says


def test_counters_move_as_the_traffic_does(client: Namespace, connected: Vpn) -> None:
    first, size = connected.clients[0], 2_000_000
    before, gateway_before = first.status(), session(connected)
    probes.download(client, plan.ALPHA.v4, size)
    after, gateway_after = first.status(), session(connected)
    received = after["rx_bytes"] - before["rx_bytes"]
    assert size < received < 1.2 * size
    assert after["rx_packets"] - before["rx_packets"] >= received / MTU
    # Every second segment is acknowledged at the most, by a packet of about 52 bytes.
    assert 0 < after["tx_bytes"] - before["tx_bytes"] < size / 10
    assert 0 < after["rtt_ms"] < 1000
    sent_to_us = gateway_after["tx_bytes"] - gateway_before["tx_bytes"]
    assert sent_to_us == received
    assert after["state"] == "connected"
    assert after["since"] == before["since"]
