"""The gateway with real clients over QUIC on the loopback interface, a list in place of the TUN."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest

from qvpn_core.auth.enrolment import ENROLMENT_PATH
from qvpn_core.errors import AuthenticationFailed, GatewayRefused, QvpnError
from qvpn_core.masque.connect_ip import (
    AddressAssign,
    ConnectIpSession,
    DnsAssign,
    Event,
    Role,
    RouteAdvertisement,
)
from qvpn_core.transport.interface import (
    H3_MESSAGE_ERROR,
    Headers,
    HttpTunnel,
    Request,
    TransportName,
    TunnelHandler,
)
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust
from qvpn_server import cli
from qvpn_server.admin_protocol import GatewayStatus, Revoked, RevokeRequest, StatusRequest
from qvpn_server.certificate import pin_of
from qvpn_server.config import load_config
from qvpn_server.credentials import new_token, token_hash
from qvpn_server.forwarding import Forwarder
from qvpn_server.gateway import Gateway
from qvpn_server.registry import Registry
from qvpn_server.sessions import SessionTable
from qvpn_server.statedir import StateDir
from tests.unit.server.helpers import ip_packet

PATH = "/.well-known/masque/ip/*/*/"
PATIENCE = 10.0  # seconds that an event may take on a busy machine


@dataclass
class Client:
    """A device's end of a tunnel: what it was told, and what arrived."""

    session: ConnectIpSession = field(default_factory=lambda: ConnectIpSession(Role.CLIENT))
    events: list[Event] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    errors: list[QvpnError | None] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    tunnel: HttpTunnel | None = None

    def capsule_data(self, data: bytes) -> None:
        self.events += self.session.receive(data)
        self.changed.set()

    def capsule_end(self) -> None:
        self.open_tunnel.close()

    def packets(self, packets: list[bytes]) -> None:
        self.received += packets
        self.changed.set()

    def packet_too_big(self, packet: bytes, mtu: int) -> None:
        raise AssertionError(f"{len(packet)} bytes do not fit {mtu}")

    def mtu_changed(self, mtu: int) -> None:
        self.changed.set()

    def closed(self, error: QvpnError | None) -> None:
        self.errors.append(error)
        self.changed.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something that an event of this client brings about."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    @property
    def addresses(self) -> list[str]:
        return [str(entry.prefix) for entry in self.session.local_addresses]

    @property
    def open_tunnel(self) -> HttpTunnel:
        assert self.tunnel is not None
        return self.tunnel


@dataclass
class World:
    """A running gateway on a port of the loopback interface."""

    gateway: Gateway
    registry: Registry
    forwarder: Forwarder
    sessions: SessionTable
    port: int
    trust: Trust
    tun: list[bytes]
    written: asyncio.Event
    clients: list[Client] = field(default_factory=list)

    def enrol(self, name: str) -> str:
        token = new_token()
        self.registry.add_device(name, token_hash(token), 0)
        return token

    async def connect(self, token: str | None, path: str = PATH) -> Client:
        client = Client()
        headers = (("authorization", f"Bearer {token}"),) if token is not None else ()
        request = Request("CONNECT", "https", "gw.example", path, "connect-ip", headers)
        client.tunnel = await connect(
            "127.0.0.1", self.port, trust=self.trust, request=request, handler=client
        )
        self.clients.append(client)
        return client

    async def device(self, name: str) -> Client:
        """A device that is enrolled, connected and configured."""
        client = await self.connect(self.enrol(name))
        await client.until(lambda: client.session.peer_routes)
        return client

    def status(self) -> GatewayStatus:
        reply = self.gateway.answer(StatusRequest(), 0)
        assert isinstance(reply, GatewayStatus)
        return reply


@asynccontextmanager
async def running(directory: Path, *options: str, max_sessions: int = 1024) -> AsyncIterator[World]:
    state = StateDir(directory / "state")
    init = ["init", "--state", str(state.path), "--host", "127.0.0.1", "--listen", "127.0.0.1:0"]
    assert cli.main([*init, "--pool6", "fd00:86::/64", *options]) == 0
    edited = state.config.read_text().replace("= 1024", f"= {max_sessions}")
    state.config.write_text(edited)
    config = load_config(state.config)
    sessions = SessionTable()
    tun: list[bytes] = []
    written = asyncio.Event()

    def write_tun(packets: Sequence[bytes]) -> int:
        tun.extend(packets)
        written.set()
        return len(packets)

    forwarder = Forwarder(
        sessions=sessions,
        own={address.version: address.packed for address in config.gateway_addresses},
        write_tun=write_tun,
    )
    with Registry.open(state.registry) as registry:
        gateway = Gateway(config, registry, sessions, forwarder, state)
        gateway.listener = await GatewayListener.start(
            config.listen,
            certificate=config.certificate,
            private_key=config.private_key,
            on_request=gateway.on_request,
        )
        try:
            port = gateway.listener.addresses[0][1]
            trust = Trust(pins=(pin_of(config.certificate),))
            world = World(gateway, registry, forwarder, sessions, port, trust, tun, written)
            try:
                yield world
            finally:
                for client in world.clients:
                    client.open_tunnel.close()
        finally:
            await gateway.listener.close()


def scenario(
    directory: Path,
    story: Callable[[World], Awaitable[None]],
    *options: str,
    max_sessions: int = 1024,
) -> None:
    async def play() -> None:
        async with running(directory, *options, max_sessions=max_sessions) as world:
            await story(world)

    asyncio.run(play())


def test_a_device_is_told_its_addresses_routes_and_resolvers_in_this_order(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        await client.until(lambda: client.session.dns)
        assert [type(event) for event in client.events] == [
            AddressAssign,
            RouteAdvertisement,
            DnsAssign,
        ]
        assert client.addresses == ["10.86.0.2/32", "fd00:86::2/128"]
        assert [(str(r.start), str(r.end), r.protocol) for r in client.session.peer_routes] == [
            ("0.0.0.0", "255.255.255.255", 0),
            ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0),
        ]
        (configuration,) = client.session.dns
        assert [str(a) for n in configuration.nameservers for a in n.addresses] == ["9.9.9.9"]

    scenario(tmp_path, story, "--dns", "9.9.9.9")


def test_packets_flow_both_ways_and_are_counted(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        out = [ip_packet("10.86.0.2", "192.0.2.1"), ip_packet("fd00:86::2", "2001:db8::1", 1280)]
        client.open_tunnel.send_packets(out)
        async with asyncio.timeout(PATIENCE):
            while len(world.tun) < 2:
                world.written.clear()
                await world.written.wait()
        assert world.tun == out
        back = [ip_packet("192.0.2.1", "10.86.0.2"), ip_packet("2001:db8::1", "fd00:86::2")]
        world.forwarder.from_tun(back, 1.0)
        await client.until(lambda: len(client.received) == 2)
        assert client.received == back
        client.open_tunnel.send_packets([ip_packet("10.86.0.3", "192.0.2.1")])
        await client.until(lambda: len(client.received) == 3)  # ICMP: not your address
        (session,) = world.status().sessions
        assert (session.device, session.addresses) == ("alice", ["10.86.0.2", "fd00:86::2"])
        assert (session.rx_packets, session.tx_packets) == (3, 3)
        assert session.drops == {"bad-source": 1}
        assert session.mtu >= 1280
        assert session.peer.startswith("127.0.0.1:")

    scenario(tmp_path, story)


def test_an_address_request_is_answered_with_the_lease_and_refused_beyond_it(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        wishes = ["10.86.0.77/32", "0.0.0.0/32", "::/128"]
        client.open_tunnel.send_capsules(client.session.request_addresses(map(ip_network, wishes)))
        await client.until(lambda: isinstance(client.events[-1], AddressAssign))
        answer = client.events[-1]
        assert isinstance(answer, AddressAssign)
        assert [(entry.request_id, str(entry.prefix)) for entry in answer.addresses] == [
            (1, "10.86.0.2/32"),
            (2, "0.0.0.0/32"),
            (3, "fd00:86::2/128"),
        ]
        assert client.addresses == ["10.86.0.2/32", "fd00:86::2/128"]

    scenario(tmp_path, story)


def test_asking_for_one_family_does_not_lose_the_other(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        client.open_tunnel.send_capsules(client.session.request_addresses([ip_network("::/128")]))
        await client.until(lambda: isinstance(client.events[-1], AddressAssign))
        assert set(client.addresses) == {"10.86.0.2/32", "fd00:86::2/128"}

    scenario(tmp_path, story)


def test_a_malformed_capsule_ends_its_own_session_only(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        alice = await world.device("alice")
        bob = await world.device("bob")
        alice.open_tunnel.send_capsules(b"\x02\x00")  # an empty ADDRESS_REQUEST
        await alice.until(lambda: alice.errors)
        (error,) = alice.errors
        assert f"{H3_MESSAGE_ERROR:#x}" in str(error)
        assert [session.device for session in world.sessions] == ["bob"]
        world.forwarder.from_tun([ip_packet("192.0.2.1", "10.86.0.3")], 1.0)
        await bob.until(lambda: bob.received)
        assert bob.errors == []

    scenario(tmp_path, story)


@pytest.mark.parametrize("credential", ["none", "unknown", "revoked"])
def test_without_a_valid_credential_there_is_no_tunnel(tmp_path: Path, credential: str) -> None:
    async def story(world: World) -> None:
        token = world.enrol("alice") if credential == "revoked" else new_token()
        if credential == "revoked":
            world.registry.revoke("alice", 1)
        with pytest.raises(AuthenticationFailed):
            await world.connect(None if credential == "none" else token)
        assert len(world.sessions) == 0

    scenario(tmp_path, story)


class Stranger:
    """An `IncomingRequest` that keeps the answer."""

    transport: TransportName = "quic"
    peer = ("192.0.2.66", 4242)

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: tuple[int, Headers, bytes] | None = None

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return bytes(length)

    def read_body(self, limit: int, done: Callable[[bytes | None], None]) -> None:
        raise AssertionError("a stranger was listened to")

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        self.answer = status, headers, body

    def accept(self, handler: TunnelHandler, headers: Headers = ()) -> HttpTunnel:
        raise AssertionError("a stranger was let in")


def test_whatever_strangers_ask_the_answer_is_the_same(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        known = (("authorization", f"Bearer {world.enrol('alice')}"),)
        unknown = (("authorization", f"Bearer {new_token()}"),)
        basic = (("authorization", "Basic YWxpY2U6c2VjcmV0"),)
        strangers = [
            Request("GET", "https", "gw.example", "/elsewhere"),
            Request("GET", "https", "gw.example", "/elsewhere", None, known),
            Request("GET", "https", "gw.example", PATH, None, unknown),
            Request("POST", "https", "gw.example", ENROLMENT_PATH),
            Request("POST", "https", "gw.example", ENROLMENT_PATH, None, unknown),
            Request("POST", "https", "gw.example", ENROLMENT_PATH, None, known),
            Request("POST", "https", "gw.example", "/login", None, basic),
            Request("CONNECT", "https", "gw.example", PATH, "connect-ip"),
            Request("CONNECT", "https", "gw.example", PATH, "connect-ip", unknown),
            Request("CONNECT", "https", "gw.example", PATH, "connect-ip", basic),
            Request("CONNECT", "https", "gw.example", PATH, "connect-udp", known),
            Request("CONNECT", "https", "gw.example", PATH, "websocket", known),
            Request("CONNECT", "https", "gw.example", "/elsewhere", "connect-ip", known),
            Request("CONNECT", "https", "gw.example:443", "", None, known),
        ]
        answers = []
        for request in strangers:
            incoming = Stranger(request)
            world.gateway.on_request(incoming)
            assert incoming.answer is not None
            status, headers, body = incoming.answer
            answers.append((status, [h for h in headers if h[0] != "date"], body))
        assert answers == [answers[0]] * len(strangers)
        assert answers[0][0] == 404

    scenario(tmp_path, story)


def test_a_registry_that_fails_shows_strangers_nothing_new(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        headers = (("authorization", f"Bearer {world.enrol('alice')}"),)
        incoming = Stranger(Request("CONNECT", "https", "gw", PATH, "connect-ip", headers))
        with closing(sqlite3.connect(tmp_path / "state" / "registry.sqlite3")) as database:
            database.execute("ALTER TABLE devices RENAME TO gone")
        world.gateway.on_request(incoming)
        assert incoming.answer is not None
        assert incoming.answer[0] == 404

    scenario(tmp_path, story)


def test_a_tunnel_for_less_than_everything_is_not_implemented(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        with pytest.raises(GatewayRefused, match="501"):
            await world.connect(world.enrol("alice"), "/.well-known/masque/ip/192.0.2.1/17/")

    scenario(tmp_path, story)


def test_a_full_pool_refuses_further_devices_but_not_those_it_knows(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        token = world.enrol("alice")
        alice = await world.connect(token)
        with pytest.raises(GatewayRefused):
            await world.connect(world.enrol("bob"))
        again = await world.connect(token)
        await again.until(lambda: again.addresses)
        assert again.addresses == ["10.9.0.2/32"]
        await alice.until(lambda: alice.errors)

    scenario(tmp_path, story, "--pool4", "10.9.0.0/30", "--pool6", "none")


def test_the_session_limit_holds_except_for_a_reconnecting_device(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        token = world.enrol("alice")
        await world.connect(token)
        with pytest.raises(GatewayRefused):
            await world.connect(world.enrol("bob"))
        await world.connect(token)
        assert [session.device for session in world.sessions] == ["alice"]

    scenario(tmp_path, story, max_sessions=1)


def test_a_reconnecting_device_takes_its_address_over(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        token = world.enrol("alice")
        first = await world.connect(token)
        second = await world.connect(token)
        await first.until(lambda: first.errors)
        assert first.errors == [None], "ended in order"
        world.forwarder.from_tun([ip_packet("192.0.2.1", "10.86.0.2")], 1.0)
        await second.until(lambda: second.received)
        assert first.received == []

    scenario(tmp_path, story)


def test_revoking_cuts_the_session_and_bars_the_device(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        token = world.enrol("alice")
        client = await world.connect(token)
        reply = world.gateway.answer(RevokeRequest("alice"), 0)
        assert reply == Revoked("alice", disconnected=True)
        await client.until(lambda: client.errors)
        with pytest.raises(AuthenticationFailed):
            await world.connect(token)
        assert world.gateway.answer(RevokeRequest("alice"), 0) == Revoked("alice", False)

    scenario(tmp_path, story)


def test_totals_remember_sessions_that_ended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        world.forwarder.from_tun([ip_packet("192.0.2.1", "10.86.0.2", 700)], 1.0)
        await client.until(lambda: client.received)
        assert world.status().totals.tx_packets == 1
        world.gateway.answer(RevokeRequest("alice"), 0)
        assert world.status().sessions == []
        assert world.status().totals.tx_packets == 1
        assert world.status().memory_bytes > 1 << 20

    scenario(tmp_path, story)


def test_a_device_that_leaves_is_gone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        client = await world.device("alice")
        other = await world.device("bob")
        client.open_tunnel.close()
        # Bob's traffic is the clock: his packets arrive after alice's close was handled, or soon.
        async with asyncio.timeout(PATIENCE):
            while len(world.sessions) > 1:
                other.open_tunnel.send_packets([ip_packet("10.86.0.3", "192.0.2.1")])
                world.written.clear()
                await world.written.wait()
        world.forwarder.from_tun([ip_packet("192.0.2.1", "10.86.0.2")], 1.0)
        assert world.status().totals.drops["no-session"] == 1

    scenario(tmp_path, story)
