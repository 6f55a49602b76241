"""Peers that mean harm, or are broken: what they do hurts their own session and nobody else's.

First devices of our gateway and strangers to it, then a gateway that our client meets.
"""

from __future__ import annotations

import asyncio
import random
import re
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from ipaddress import ip_network

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicConnection

from qvpn_core.masque.connect_ip import (
    AssignedAddress,
    ConnectIpSession,
    Role,
    prefixes_to_ranges,
)
from qvpn_core.transport.interface import H3_MESSAGE_ERROR, HttpTunnel
from tests.integration.fake_gateway import FakeGateway, meanwhile, play
from tests.integration.raw_peer import (
    CONNECT_IP_PATH,
    Answer,
    Fields,
    RawDevice,
    connect_ip,
    quic_configuration,
    raw_peer,
)
from tests.unit.server.helpers import ip_packet
from tests.unit.transport.helpers import Identity, make_identity
from tests.world import plan, snapshot
from tests.world.vpn import (
    AT_ONCE,
    PATIENCE,
    POOL4,
    POOL6,
    Credentials,
    Vpn,
    VpnClient,
    leaves_nothing,
    own_memory,
    until,
)

pytestmark = pytest.mark.netns

#: The gateway advertises the networks of ALPHA and not those of BETA.
OPTIONS = ("--route", *plan.NETS[0], "--pool4", POOL4, "--pool6", POOL6)
MANY = 3000


@pytest.fixture(scope="module")
def vpn(namespaces_work: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vpn]:
    """A gateway with its second client connected: the bystander, who must not notice anything."""
    with Vpn(tmp_path_factory.mktemp("hostile"), *OPTIONS) as vpn:
        vpn.clients[1].up()
        yield vpn
        vpn.check_logs()


@pytest.fixture(scope="module")
def device(vpn: Vpn) -> Credentials:
    """What the hostile device authenticates with."""
    return vpn.gateway.token("evil")


@contextmanager
def bystander_unharmed(vpn: Vpn, *, lost: int = 0) -> Iterator[None]:
    """The second client's pings are all answered meanwhile, but for `lost` of them."""
    argv = ["ping", "-n", "-i", "0.05", plan.ALPHA.v4]
    with tempfile.TemporaryFile("w+") as said:

        def answered() -> set[int]:
            said.seek(0)
            return set(map(int, re.findall(r"icmp_seq=(\d+) ttl", said.read())))

        ping = vpn.clients[1].host.popen(argv, stdout=said)
        until(answered, "it has begun")
        try:
            yield
        finally:
            during = answered()
            # Those that are under way at the end are nobody's loss.
            until(lambda: len(answered()) > len(during) + 1, "the bystander is still answered")
            ping.send_signal(signal.SIGINT)
            ping.wait(PATIENCE)
        numbers = answered()
        assert len(numbers) >= max(numbers) - lost, f"{max(numbers) - len(numbers)} were lost"
    assert vpn.clients[1].peek()["state"] == "connected"


@asynccontextmanager
async def hostile_device(device: Credentials) -> AsyncIterator[RawDevice]:
    """A session of the hostile device."""
    async with raw_peer(plan.GATEWAY4) as peer:
        yield await RawDevice.open(peer, device)


def drops(vpn: Vpn) -> dict[str, int]:
    """The packets that the gateway dropped of the hostile device's session, by reason."""
    sessions = vpn.gateway.peek()["sessions"]
    found: dict[str, int] = next(one["drops"] for one in sessions if one["device"] == "evil")
    return found


# -- a device: capsules


def capsule(kind: int, value: bytes, *, length: int | None = None) -> bytes:
    """A capsule; `length` is what it announces if that is not the truth."""
    size = len(value) if length is None else length
    return encode_uint_var(kind) + encode_uint_var(size) + value


ASSIGN, REQUEST, ROUTES = 1, 2, 3
ANY4 = b"\x04\0\0\0\0\x20"
ALPHA_RANGE = b"\x04\xc0\0\2\0\xc0\0\2\xff\0"  # 192.0.2.0-192.0.2.255, every protocol
BETA_RANGE = b"\x04\xc6\x33\x64\0\xc6\x33\x64\xff\0"  # 198.51.100.0-198.51.100.255

BAD_CAPSULES = {
    "a request for nothing": capsule(REQUEST, b""),
    "a request with ID 0": capsule(REQUEST, b"\0" + ANY4),
    "a request with one ID twice": capsule(REQUEST, (b"\1" + ANY4) * 2),
    "a request with a used ID": capsule(REQUEST, b"\1" + ANY4) * 2,
    "a request of IP version 5": capsule(REQUEST, b"\1\5\0\0\0\0\x20"),
    "a request for a /33": capsule(REQUEST, b"\1\4\0\0\0\0\x21"),
    "a request with host bits": capsule(REQUEST, b"\1\4\x0a\0\0\1\x08"),
    "a request cut short": capsule(REQUEST, b"\1\4\0\0"),
    "a thousand requests": b"".join(
        capsule(REQUEST, encode_uint_var(number) + ANY4) for number in range(1, 1100)
    ),
    "an assignment cut short": capsule(ASSIGN, b"\0\6\0\0"),
    "routes out of order": capsule(ROUTES, BETA_RANGE + ALPHA_RANGE),
    "routes that overlap": capsule(ROUTES, ALPHA_RANGE * 2),
    "a route that ends before it begins": capsule(ROUTES, b"\x04\xc0\0\2\xff\xc0\0\2\0\0"),
    "a route cut short": capsule(ROUTES, ALPHA_RANGE[:-1]),
    "a huge capsule": capsule(ASSIGN, b"", length=1 << 30),
}
CUT_STREAMS = {
    "a stream that ends in a capsule": capsule(ASSIGN, b"\0\4", length=7),
    "a stream that ends in an unknown capsule": capsule(0x2A17, b"abc", length=1 << 60),
    "a stream that ends in a capsule's type": b"\x9a",
}


@pytest.mark.parametrize(
    ("data", "end"),
    [(data, False) for data in BAD_CAPSULES.values()]
    + [(data, True) for data in CUT_STREAMS.values()],
    ids=[*BAD_CAPSULES, *CUT_STREAMS],
)
def test_a_bad_capsule_resets_its_stream_and_nothing_else(
    vpn: Vpn, device: Credentials, data: bytes, end: bool
) -> None:
    async def scenario() -> None:
        async with hostile_device(device) as evil:
            evil.capsules(data, end=end)
            await evil.peer.until(lambda: evil.answer.reset is not None)
            assert evil.answer.reset == H3_MESSAGE_ERROR
            # The connection lives on, and the device may try again.
            again = await RawDevice.open(evil.peer, device)
            await again.reaches(plan.ALPHA.v4)

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_an_endless_unknown_capsule_is_skipped_and_costs_no_memory(
    vpn: Vpn, device: Credentials
) -> None:
    async def scenario() -> None:
        async with hostile_device(device) as evil:
            before = resident(vpn)
            evil.capsules(capsule(0x2A17, b"", length=1 << 61))
            for _ in range(80):
                evil.capsules(bytes(100_000))
                await evil.reaches(plan.ALPHA.v4)
            assert resident(vpn) - before < 4_000_000
            assert evil.answer.reset is None

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_what_a_device_assigns_and_advertises_changes_nothing(
    vpn: Vpn, device: Credentials
) -> None:
    before = snapshot(vpn.world.gateway)

    async def scenario() -> None:
        async with hostile_device(device) as evil:
            evil.capsules(capsule(ROUTES, b"\x04\0\0\0\0\xff\xff\xff\xff\0"))
            evil.capsules(capsule(ASSIGN, b"\0\4\x0a\x56\0\1\x20"))  # the gateway's own 10.86.0.1
            await evil.reaches(plan.ALPHA.v4)

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())
    assert snapshot(vpn.world.gateway) == before


# -- a device: packets

OWN = {4: "own4", 6: "own6"}


def test_what_is_no_packet_is_dropped_and_counted_and_stalls_nothing(
    vpn: Vpn, device: Credentials
) -> None:
    good = ip_packet("192.0.2.1", "192.0.2.2", 60)
    malformed = [
        b"",
        b"\x45",
        good[:19],
        good[:-1],  # shorter than it says
        good + b"\0",  # longer than it says
        b"\x41" + good[1:],  # a header of 4 bytes
        b"\x55" + good[1:],  # IP version 5
        b"\0" * 60,
        ip_packet("2001:db8::1", "2001:db8::2", 60)[:39],
        ip_packet("2001:db8::1", "2001:db8::2", 60) + b"\0",
    ]

    async def scenario() -> None:
        async with hostile_device(device) as evil:
            for data in malformed:
                evil.packet(data)
                await evil.reaches(plan.ALPHA.v4)
            assert drops(vpn) == {"malformed": len(malformed)}
            for context in (b"\1", b"\x40\x00\0", b"\xc0"):
                evil.peer.datagram(evil.prefix[:-1] + context + good)
            for stream in (1, 77, (1 << 60) - 1):
                evil.peer.datagram(encode_uint_var(stream) + b"\0" + good)
            await evil.reaches(plan.ALPHA.v6)
            # What is for no stream of ours is nobody's drop (RFC 9297 section 2.1).
            assert drops(vpn) == {"malformed": len(malformed), "unknown-context": 3}

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


@pytest.mark.parametrize(
    ("source", "destination", "reason", "icmp"),
    [
        ("10.86.0.200", plan.ALPHA.v4, "bad-source", (3, 13)),
        ("fd86:9484::200", plan.ALPHA.v6, "bad-source", (1, 5)),
        (plan.CLIENT4, plan.ALPHA.v4, "bad-source", (3, 13)),
        ("10.86.0.1", plan.ALPHA.v4, "bad-source", (3, 13)),
        (OWN[4], plan.BETA.v4, "no-route", (3, 0)),
        (OWN[6], plan.BETA.v6, "no-route", (1, 0)),
        (OWN[4], "the bystander", "prohibited", (3, 13)),
        (OWN[6], "the bystander", "prohibited", (1, 1)),
        ("the bystander", plan.ALPHA.v4, "bad-source", (3, 13)),
        (OWN[4], "127.0.0.1", "not-forwardable", None),
        (OWN[4], "169.254.1.1", "not-forwardable", None),
        (OWN[4], "224.0.0.251", "not-forwardable", None),
        (OWN[4], "255.255.255.255", "not-forwardable", None),
        (OWN[4], "0.0.0.0", "not-forwardable", None),
        (OWN[6], "::1", "not-forwardable", None),
        (OWN[6], "fe80::1", "not-forwardable", None),
        (OWN[6], "ff02::1", "not-forwardable", None),
        (OWN[6], "::ffff:192.0.2.10", "not-forwardable", None),
    ],
)
def test_a_packet_that_must_not_pass_is_dropped_counted_and_answered(
    vpn: Vpn,
    device: Credentials,
    source: str,
    destination: str,
    reason: str,
    icmp: tuple[int, int] | None,
) -> None:
    version = 6 if ":" in destination + source or OWN[6] in source else 4
    bystander = vpn.clients[1].address(version)

    async def scenario() -> None:
        async with hostile_device(device) as evil:
            names = {OWN[4]: evil.v4, OWN[6]: evil.v6, "the bystander": bystander}
            packet = ip_packet(names.get(source, source), names.get(destination, destination), 80)
            evil.packet(packet)
            if icmp is not None:
                # To the source that the packet claims, by the tunnel that it came from.
                await evil.peer.until(lambda: evil.packets)
                [error] = evil.packets
                at = 20 if version == 4 else 40
                assert tuple(error[at : at + 2]) == icmp
                assert error[at + 8 :].startswith(packet[:28])
            evil.peer.datagrams.clear()
            await evil.reaches(plan.ALPHA.v4)
            assert drops(vpn) == {reason: 1}

    play(vpn.world.client, scenario())


def test_spoofed_packets_never_reach_the_internet_nor_another_device(
    vpn: Vpn, device: Credentials
) -> None:
    """Nothing of what is dropped is seen on either side of the gateway."""
    bystander = vpn.clients[1]
    with (
        bystander.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as inside,
        vpn.world.internet.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
    ):
        inside.bind(("0.0.0.0", 9999))
        outside.bind(("0.0.0.0", 9999))

        async def scenario() -> None:
            async with hostile_device(device) as evil:
                for source in ("10.86.0.200", bystander.address(4), evil.v4):
                    for target in (plan.BETA.v4, bystander.address(4), plan.ALPHA.v4):
                        evil.packet(udp(source, target, 9999, f"{source} {target}".encode()))
                await evil.reaches(plan.ALPHA.v4)
                outside.settimeout(PATIENCE)
                words, sender = outside.recvfrom(100)
                assert words == f"{evil.v4} {plan.ALPHA.v4}".encode()
                assert sender[0] == plan.GATEWAY4

        play(vpn.world.client, scenario())
        for sock in (inside, outside):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(100)


def test_a_flood_of_bad_packets_leaves_the_gateway_able_to_work(
    vpn: Vpn, device: Credentials
) -> None:
    async def scenario() -> None:
        async with hostile_device(device) as evil:
            before = resident(vpn)
            bad = [
                b"nonsense",
                ip_packet("10.86.0.200", plan.ALPHA.v4, 1000),
                ip_packet(evil.v4, plan.BETA.v4, 1000),
                ip_packet(evil.v6, "ff02::1", 1000),
            ]
            for number in range(MANY):
                evil.packet(bad[number % len(bad)])
                if number % 100 == 0:
                    await asyncio.sleep(0)
            await evil.reaches(plan.ALPHA.v4)
            # What was lost on the way was not dropped by the gateway; most of it arrived.
            assert sum(drops(vpn).values()) > MANY / 2
            assert len(evil.packets) < MANY / 4, "ICMP errors are limited"
            assert resident(vpn) - before < 8_000_000

    with bystander_unharmed(vpn, lost=20):
        play(vpn.world.client, scenario())
    with bystander_unharmed(vpn):
        until(lambda: len(vpn.gateway.peek()["sessions"]) == 1, "the session is over")


# -- strangers


def page(answer: Answer) -> tuple[dict[str, str], bytes]:
    """What a stranger can tell one answer from another by; the date changes by itself."""
    return {key: value for key, value in answer.fields.items() if key != "date"}, answer.body


def get(path: str, method: str = "GET") -> Fields:
    """The head of an ordinary request."""
    authority = (":authority", plan.GATEWAY4)
    return [(":method", method), (":scheme", "https"), authority, (":path", path)]


def with_fields(device: Credentials, *fields: tuple[str, str]) -> Fields:
    """A CONNECT-IP request in which some fields are others; an empty value leaves one out."""
    replaced = dict(connect_ip(device)) | dict(fields)
    return [(key, value) for key, value in replaced.items() if value]


def test_whatever_a_stranger_asks_he_sees_the_same_ordinary_site(
    vpn: Vpn, device: Credentials
) -> None:
    with_token = partial(with_fields, device)
    requests: list[tuple[str, Fields, bytes]] = [
        ("200", get("/"), b""),
        ("200", get("/index.html"), b""),
        ("404", get(CONNECT_IP_PATH), b""),
        ("404", get("/.well-known/masque/udp/192.0.2.1/53/"), b""),
        ("405", get("/", "POST"), b"user=admin"),
        ("405", get("/", "POST"), bytes(200_000)),
        ("405", get("/", "PUT"), b"x"),
        ("405", get("/", "DELETE"), b""),
        ("405", get("/", "OPTIONS"), b""),
        ("405", get("/", "BREW"), b""),
        ("404", [(":method", "CONNECT"), (":authority", "192.0.2.1:80")], b""),
        ("404", with_token(("authorization", "")), b""),
        ("404", with_token(("authorization", f"Bearer {'0' * 64}")), b""),
        ("404", with_token(("authorization", "Bearer")), b""),
        ("404", with_token(("authorization", f"Basic {device.token}")), b""),
        ("404", with_token(("authorization", f"Bearer {device.token[:-1]}")), b""),
        ("405", with_token((":path", "/")), b""),
        ("404", with_token((":protocol", "connect-udp")), b""),
        ("404", with_token((":protocol", "websocket"), ("authorization", "")), b""),
    ]

    async def scenario() -> None:
        async with raw_peer(plan.GATEWAY4) as stranger:
            answers = [stranger.request(fields, body) for _status, fields, body in requests]
            await stranger.until(lambda: all(answer.ended for answer in answers))
            usual: dict[str, object] = {}
            for (status, fields, _body), answer in zip(requests, answers, strict=True):
                head, _content = page(answer)
                assert head[":status"] == status, fields
                # One page for each status, whatever was asked and whatever was shown.
                assert page(answer) == usual.setdefault(status, page(answer)), fields
            assert stranger.end is None

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())
    assert len(vpn.gateway.peek()["sessions"]) == 1


def test_two_hundred_streams_are_all_answered(vpn: Vpn) -> None:
    async def scenario() -> None:
        async with raw_peer(plan.GATEWAY4) as stranger:
            answers = [stranger.request(get(f"/{number}")) for number in range(200)]
            await stranger.until(lambda: all(answer.ended for answer in answers))
            assert {answer.status for answer in answers} == {404}

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_requests_that_never_end_are_answered_all_the_same(vpn: Vpn) -> None:
    async def scenario() -> None:
        async with raw_peer(plan.GATEWAY4) as stranger:
            answers = [
                stranger.request(get("/", "POST"), bytes(1000), end=False) for _ in range(50)
            ]
            await stranger.until(lambda: all(answer.ended for answer in answers))
            await stranger.until(lambda: all(answer.stopped is not None for answer in answers))

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


@pytest.mark.parametrize(
    "data",
    [
        encode_uint_var(0) + encode_uint_var(5) + b"hello",  # DATA before HEADERS
        encode_uint_var(1) + encode_uint_var(3) + b"\xff\xff\xff",  # HEADERS that are no QPACK
        encode_uint_var(4) + encode_uint_var(0),  # SETTINGS on a request stream
    ],
)
def test_broken_http_ends_the_connection_it_came_on(vpn: Vpn, data: bytes) -> None:
    async def scenario() -> None:
        async with raw_peer(plan.GATEWAY4) as stranger:
            stranger.raw_stream(data + bytes(20_000))
            await stranger.until(lambda: stranger.end is not None)
            assert stranger.end is not None
            assert 0x100 <= stranger.end.error_code <= 0x202  # of HTTP/3 or QPACK

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_headers_without_end_are_not_gathered_in_memory(vpn: Vpn) -> None:
    """RFC 9114 section 10.5: what a peer may make us hold is limited."""

    async def scenario() -> None:
        async with raw_peer(plan.GATEWAY4) as stranger:
            before = resident(vpn)
            stranger.raw_stream(encode_uint_var(1) + encode_uint_var(1 << 40) + bytes(2_000_000))
            await stranger.until(lambda: stranger.end is not None)
            assert stranger.end is not None
            assert 0x100 <= stranger.end.error_code <= 0x202
            assert resident(vpn) - before < 1_000_000

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_garbage_at_the_port_is_ignored(vpn: Vpn, device: Credentials) -> None:
    chance = random.Random(9484)

    async def scenario() -> None:
        async with hostile_device(device) as honest:
            for _ in range(40):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.connect((plan.GATEWAY4, 443))
                    for _ in range(25):
                        data = bytearray(chance.randbytes(chance.choice([0, 1, 20, 1200, 1400])))
                        if data and chance.random() < 0.7:
                            version = chance.choice([b"\0\0\0\1", b"\x6b\x33\x43\xcf", b"\0\0\0\0"])
                            data[:6] = bytes([data[0] | 0xC0]) + version + b"\x08"
                        sock.send(data)
                await asyncio.sleep(0)
            await honest.reaches(plan.ALPHA.v4)

    with bystander_unharmed(vpn):
        play(vpn.world.client, scenario())


def test_half_open_handshakes_from_many_ports_keep_nobody_out(vpn: Vpn) -> None:
    """Retry (RFC 9000 section 8.1.2) makes each address prove itself, at no cost to the gateway."""
    before, memory = vpn.gateway.peek(), resident(vpn)
    honest = vpn.clients[0]
    retries = 0
    with bystander_unharmed(vpn), leaves_nothing(honest.host):
        sockets = [honest.host.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(400)]
        for sock in sockets:
            sock.connect((plan.GATEWAY4, 443))
            sock.send(first_flight())
        for sock in sockets:
            sock.settimeout(AT_ONCE)
            retries += sock.recv(2000)[0] & 0xF0 == 0xF0  # a long header of type Retry
        assert retries >= 400 - 64
        during = vpn.gateway.peek()
        assert during["connections"] - before["connections"] <= 64
        assert resident(vpn) - memory < 20_000_000
        honest.up()
        honest.down()
        for sock in sockets:
            sock.close()
    until(
        lambda: vpn.gateway.peek()["connections"] <= before["connections"],
        "what was half open is forgotten",
    )


def first_flight() -> bytes:
    """The datagram that begins a connection of which nobody will hear again."""
    quic = QuicConnection(configuration=quic_configuration())
    quic.connect(("192.0.2.1", 443), now=0.0)
    [(data, _address), *_] = quic.datagrams_to_send(now=0.0)
    return data


# -- a gateway, towards our client


@pytest.fixture
def client(vpn: Vpn) -> Iterator[VpnClient]:
    """The client that meets the hostile gateway; afterwards its namespace must be as it was."""
    client = vpn.clients[0]
    yield client
    if client.agent() is not None:
        client.command("down", check=False)
    assert snapshot(client.host) == vpn.before[client.host]
    vpn.check_logs()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """The hostile gateway's certificate."""
    return make_identity(tmp_path_factory.mktemp("fake"), hosts=(plan.GATEWAY4,))


FIRST, SECOND = "10.77.0.2", "10.77.0.9"


def assign(*addresses: str) -> bytes:
    """ADDRESS_ASSIGN with these and no other addresses."""
    entries = (AssignedAddress(0, ip_network(address)) for address in addresses)
    return ConnectIpSession(Role.PROXY).assign_addresses(entries)


def advertise(*prefixes: str) -> bytes:
    """ROUTE_ADVERTISEMENT for these prefixes."""
    ranges = prefixes_to_ranges(map(ip_network, prefixes))
    return ConnectIpSession(Role.PROXY).advertise_routes(ranges)


def configure(tunnel: HttpTunnel) -> None:
    """What an honest gateway says at first."""
    tunnel.send_capsules(assign(FIRST) + advertise("0.0.0.0/0"))


async def refused_by(fake: FakeGateway, client: VpnClient) -> tuple[str, str]:
    """The line with which `qvpn up` gives up a gateway, and the reason in its status."""

    def up() -> tuple[str, str]:
        client.write_profile(fake.credentials, "fake")
        with leaves_nothing(client.host, within=AT_ONCE):
            done = client.command("up", "fake", check=False, timeout=2 * PATIENCE)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        return line, client.status()["reason"]

    return await meanwhile(up)


async def connected_to(fake: FakeGateway, client: VpnClient) -> HttpTunnel:
    """The tunnel of our client, connected, at the gateway."""
    client.write_profile(fake.credentials, "fake")
    await meanwhile(client.up, name="fake")
    return fake.tunnels[-1]


async def becomes(client: VpnClient, state: str) -> None:
    """Wait for a state of the client."""
    words = f"the client is {state}"
    await meanwhile(until, lambda: client.peek().get("state") == state, words)


@pytest.mark.parametrize(
    "data",
    [
        capsule(ASSIGN, b"\0\5\0\0\0\0\x20"),
        capsule(ASSIGN, b"\0\4\x0a\0\0\1\x08"),
        capsule(ROUTES, BETA_RANGE + ALPHA_RANGE),
        capsule(ROUTES, ALPHA_RANGE * 2),
        capsule(REQUEST, b""),
        capsule(ROUTES, b"", length=1 << 30),
        capsule(0x1ACE79EC, b"\xff"),  # DNS_ASSIGN
    ],
)
def test_a_gateway_that_breaks_the_protocol_is_refused_and_told(
    vpn: Vpn, client: VpnClient, identity: Identity, data: bytes
) -> None:
    async def scenario() -> tuple[str, str]:
        async with FakeGateway(identity, greet=lambda tunnel: tunnel.send_capsules(data)) as fake:
            refusal = await refused_by(fake, client)
            [handler] = fake.handlers
            await handler.until(lambda: handler.closings)
            assert f"{H3_MESSAGE_ERROR:#x}" in str(handler.closings[0])
            return refusal

    line, reason = play(vpn.world.gateway, scenario())
    assert reason == "protocol"
    assert "capsule" in line
    assert "RFC 9484" in line


def test_a_gateway_that_breaks_the_protocol_later_ends_the_session(
    vpn: Vpn, client: VpnClient, identity: Identity
) -> None:
    async def scenario() -> None:
        async with FakeGateway(identity, greet=configure) as fake:
            tunnel = await connected_to(fake, client)
            tunnel.send_capsules(capsule(ROUTES, ALPHA_RANGE * 2))
            await meanwhile(until, lambda: client.agent() is None, "the client gives up")
            status = client.status()
            assert (status["state"], status["reason"]) == ("failed", "protocol")

    with leaves_nothing(client.host, within=AT_ONCE):
        play(vpn.world.gateway, scenario())


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        (b"", "gave no address within 10 seconds"),
        (assign("0.0.0.0/32") + advertise("0.0.0.0/0"), "has no address for us"),
    ],
)
def test_a_gateway_that_gives_too_little_is_given_up(
    vpn: Vpn, client: VpnClient, identity: Identity, greeting: bytes, words: str
) -> None:
    async def scenario() -> tuple[str, str]:
        greet = FakeGateway(identity, greet=lambda tunnel: tunnel.send_capsules(greeting))
        async with greet as fake:
            return await refused_by(fake, client)

    line, reason = play(vpn.world.gateway, scenario())
    assert words in line
    assert reason == "refused"


def test_a_gateway_with_a_million_routes_is_refused(
    vpn: Vpn, client: VpnClient, identity: Identity
) -> None:
    every_other = b"".join(
        b"\x04" + bytes((10, number >> 8, number & 0xFF, 1)) * 2 + b"\0" for number in range(5000)
    )

    async def scenario() -> tuple[str, str]:
        async with FakeGateway(
            identity,
            greet=lambda tunnel: tunnel.send_capsules(assign(FIRST) + capsule(ROUTES, every_other)),
        ) as fake:
            return await refused_by(fake, client)

    line, reason = play(vpn.world.gateway, scenario())
    assert "5000 routes" in line
    assert reason == "refused"


@pytest.mark.parametrize(("status", "words"), [(500, "status 500"), (403, "does not know this")])
def test_a_server_that_refuses_is_quoted(
    vpn: Vpn, client: VpnClient, identity: Identity, status: int, words: str
) -> None:
    async def scenario() -> tuple[str, str]:
        async with FakeGateway(identity, status=status) as fake:
            return await refused_by(fake, client)

    assert words in play(vpn.world.gateway, scenario())[0]


def test_the_client_follows_new_addresses_and_routes(
    vpn: Vpn, client: VpnClient, identity: Identity
) -> None:
    async def follows(**wanted: list[str]) -> None:
        await meanwhile(
            until, lambda: wanted.items() <= client.peek().items(), f"the client has {wanted}"
        )

    async def scenario() -> None:
        async with FakeGateway(identity, greet=configure) as fake:
            tunnel = await connected_to(fake, client)
            assert FIRST in client.host.ip("addr show dev qvpn0")
            tunnel.send_capsules(assign(SECOND, "fd77::9"))
            await follows(addresses=[f"{SECOND}/32", "fd77::9/128"])
            shown = client.host.ip("addr show dev qvpn0")
            assert SECOND in shown
            assert FIRST not in shown
            tunnel.send_capsules(advertise(*plan.NETS[0]))
            await follows(routes=list(plan.NETS[0]))
            assert "dev qvpn0" in client.host.ip(f"route get {plan.ALPHA.v4}")
            assert "dev eth0" in client.host.ip(f"route get {plan.BETA.v4}")
            tunnel.send_capsules(advertise())
            await follows(routes=[])
            assert "dev eth0" in client.host.ip(f"route get {plan.ALPHA.v4}")
            assert client.peek()["state"] == "connected"
            await meanwhile(client.down)

    with leaves_nothing(client.host):
        play(vpn.world.gateway, scenario())


def test_only_packets_for_the_client_enter(vpn: Vpn, client: VpnClient, identity: Identity) -> None:
    strangers = [
        udp("192.0.2.10", plan.CLIENT4, 9999, b"for the LAN address"),
        udp("192.0.2.10", "127.0.0.1", 9999, b"for the loopback"),
        udp("192.0.2.10", SECOND, 9999, b"for another device"),
        udp("192.0.2.10", "224.0.0.1", 9999, b"for everybody"),
        udp("192.0.2.10", plan.ROUTER4, 9999, b"to be forwarded"),
    ]

    async def scenario() -> None:
        async with FakeGateway(identity, greet=configure) as fake:
            tunnel = await connected_to(fake, client)
            with client.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("0.0.0.0", 9999))
                sock.settimeout(PATIENCE)
                tunnel.send_packets([*strangers, b"", b"nonsense", bytes(100)])
                tunnel.send_packets([udp("192.0.2.10", FIRST, 9999, b"for the client")])
                assert await meanwhile(sock.recv, 100) == b"for the client"
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(100)
            drops = client.peek()["drops"]
            assert drops["bad-destination"] == len(strangers)
            assert drops["malformed"] == 3
            await meanwhile(client.down)

    play(vpn.world.gateway, scenario())


def test_an_endless_capsule_from_the_gateway_is_skipped(
    vpn: Vpn, client: VpnClient, identity: Identity
) -> None:
    async def scenario() -> None:
        async with FakeGateway(identity, greet=configure) as fake:
            tunnel = await connected_to(fake, client)
            pid = client.agent()
            assert pid is not None
            before = own_memory(pid)
            tunnel.send_capsules(capsule(0x2A17, bytes(8_000_000)) + assign(SECOND))
            await meanwhile(
                until, lambda: client.peek()["addresses"] == [f"{SECOND}/32"], "it was skipped"
            )
            assert own_memory(pid) - before < 4_000_000
            await meanwhile(client.down)

    play(vpn.world.gateway, scenario())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("reset", "the peer reset the tunnel"),
        ("finish", "ended the session"),
        ("no addresses", "assigned no address"),
    ],
)
def test_a_session_that_the_gateway_ends_is_begun_anew(
    vpn: Vpn, client: VpnClient, identity: Identity, how: str, words: str
) -> None:
    async def scenario() -> None:
        async with FakeGateway(identity, greet=configure) as fake:
            tunnel = await connected_to(fake, client)
            known = len(client.log)
            match how:
                case "reset":
                    tunnel.close(0x10C)
                case "finish":
                    tunnel.close()
                case "no addresses":
                    tunnel.send_capsules(assign())
            # It lasts for less than a look at its state may take.
            said = re.compile(f"reconnecting: .*{words}")
            await meanwhile(until, lambda: said.search(client.log, known), said.pattern)
            await fake.until(lambda: len(fake.tunnels) == 2)
            await becomes(client, "connected")
            await meanwhile(client.down)

    with leaves_nothing(client.host):
        play(vpn.world.gateway, scenario())


def test_a_gateway_that_always_ends_the_session_can_be_left(
    vpn: Vpn, client: VpnClient, identity: Identity
) -> None:
    def slam(tunnel: HttpTunnel) -> None:
        configure(tunnel)
        asyncio.get_running_loop().call_later(1.5, tunnel.close, 0x10C)

    async def scenario() -> None:
        async with FakeGateway(identity, greet=slam) as fake:
            await connected_to(fake, client)
            await fake.until(lambda: len(fake.tunnels) >= 3)
            await meanwhile(client.down)

    with leaves_nothing(client.host):
        play(vpn.world.gateway, scenario())


def udp(source: str, destination: str, port: int, payload: bytes) -> bytes:
    """A UDP packet over IPv4, without a UDP checksum."""
    packet = ip_packet(source, destination, 28 + len(payload))
    ports = port.to_bytes(2, "big") * 2
    return packet[:20] + ports + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload


def resident(vpn: Vpn) -> int:
    """Bytes of memory that are the gateway's own."""
    assert vpn.gateway.process is not None
    return own_memory(vpn.gateway.process.pid)
