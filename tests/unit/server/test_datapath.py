"""The gateway's datapaths: both forward the same, refuse the same, and one follows the other.

The TUN is a socket pair, the sessions are real tunnels over loopback.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from qvpn_core.datapath.engine import CHOICE, available
from qvpn_core.errors import TunUnavailable
from qvpn_core.packet import parse
from qvpn_core.transport.interface import HttpTunnel, IncomingRequest
from qvpn_core.transport.trust import Trust
from qvpn_server.datapath import GatewayDatapath
from qvpn_server.forwarding import Forwarder
from qvpn_server.registry import GroupPolicy
from qvpn_server.sessions import Session, SessionTable
from tests.unit.datapath.benches import LOOPBACK_MTU, SocketDevice, until
from tests.unit.server.helpers import ICMP, gateway_config, ip_packet, make_session
from tests.unit.transport.helpers import Identity, RecordingHandler, in_loop, make_identity
from tests.unit.transport.peers import dial, gateway

SITE = "198.51.100.7"
ALICE, BOB = "10.86.0.2", "10.86.0.3"


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


class Handler(RecordingHandler):
    """What `DeviceTunnel` does with packets."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.session: Session | None = None

    def packets(self, packets: list[bytes]) -> None:
        assert self.session is not None
        self.world.forwarder.from_device(self.session, packets, self.world.loop.time())

    def mtu_changed(self, mtu: int) -> None:
        assert self.session is not None
        self.session.mtu = mtu


@dataclass
class Device:
    session: Session
    tunnel: HttpTunnel
    handler: RecordingHandler


class World:
    """A gateway's packet path with devices that have sessions."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.loop = asyncio.get_running_loop()
        self.config = gateway_config(isolation=True)
        self.sessions = SessionTable()
        self.device = SocketDevice(vnet_header=True)
        self.forwarder = Forwarder(
            sessions=self.sessions,
            own={address.version: address.packed for address in self.config.gateway_addresses},
            write_tun=self.device.write_batch,
        )
        self.stopped: asyncio.Future[None] = self.loop.create_future()
        self.datapath = GatewayDatapath(self.device, self.forwarder, self.stopped)
        self.accepted: list[tuple[Handler, HttpTunnel]] = []
        self.devices: list[Device] = []

    def on_request(self, request: IncomingRequest) -> None:
        handler = Handler(self)
        tunnel = request.accept(handler)
        address = (ALICE, BOB)[len(self.accepted)]
        session, _ = make_session(address, address, config=self.config, policy=GroupPolicy())
        session.tunnel, session.mtu = tunnel, tunnel.mtu
        handler.session = session
        self.accepted.append((handler, tunnel))
        self.sessions.add(session)
        self.datapath.attach(session)

    async def connect(self, address: Any) -> Device:
        handler = RecordingHandler()
        tunnel = await dial(address, Trust(pins=(self.identity.pin,)), handler)
        own, far = self.accepted[-1]
        assert own.session is not None
        await until(lambda: min(tunnel.mtu, far.mtu) == LOOPBACK_MTU)
        return Device(own.session, tunnel, handler)


@asynccontextmanager
async def world_of(identity: Identity) -> AsyncIterator[World]:
    world = World(identity)
    async with gateway(identity, world.on_request) as listener:
        with world.datapath:
            world.devices = [await world.connect(listener.addresses[0]) for _ in range(2)]
            yield world
            for device in world.devices:
                device.tunnel.close()
    world.device.close()


def each_datapath(
    case: Callable[[World], Coroutine[Any, Any, None]],
) -> Callable[[str, Identity, pytest.MonkeyPatch], None]:
    native = pytest.param(
        "native",
        marks=pytest.mark.skipif(not available(), reason="qvpn_datapath is not built"),
    )

    @pytest.mark.parametrize("name", ["aioquic", native])
    def run(name: str, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(CHOICE, name)

        @in_loop
        async def body() -> None:
            async with world_of(identity) as world:
                assert world.datapath.name == name
                await case(world)

        body()

    run.__name__, run.__doc__ = case.__name__, case.__doc__
    return run


@each_datapath
async def test_packets_reach_the_device_that_has_the_address(world: World) -> None:
    for device, address in zip(world.devices, (ALICE, BOB), strict=True):
        packet = ip_packet(SITE, address, 300)
        world.device.give(packet)
        await device.handler.packets_arrived(1)
        assert device.handler.received == [packet]
        answer = ip_packet(address, SITE, 200)
        device.tunnel.send_packets([answer])
        assert await world.device.delivered(1) == [answer]


@each_datapath
async def test_devices_do_not_borrow_addresses_or_reach_each_other(world: World) -> None:
    alice, bob = world.devices
    own = world.config.gateway_addresses[0]
    for bad, reason in (
        (ip_packet(BOB, SITE), "bad-source"),
        (ip_packet(ALICE, BOB), "prohibited"),
        (ip_packet(ALICE, "127.0.0.1"), "not-forwardable"),
    ):
        alice.handler.received.clear()
        alice.tunnel.send_packets([bad])
        await until(lambda r=reason: alice.session.drops.get(r) == 1)  # type: ignore[misc]
        if reason != "not-forwardable" and reason != "bad-source":
            await alice.handler.packets_arrived(1)
            error = parse(alice.handler.received[0])
            assert (error.protocol, error.source) == (ICMP, own.packed)
    alice.tunnel.send_packets([b"no packet"])
    await until(lambda: alice.session.drops.get("malformed") == 1)
    assert world.device.waiting() == []
    assert bob.handler.received == []


@each_datapath
async def test_what_a_tunnel_cannot_carry_is_answered_once(world: World) -> None:
    world.device.give(ip_packet(SITE, ALICE, LOOPBACK_MTU + 1))
    [answer] = await world.device.delivered(1)
    message = answer[parse(answer).header_length :]
    assert message[:2] == b"\3\4"
    assert int.from_bytes(message[6:8], "big") == LOOPBACK_MTU
    world.device.give(ip_packet(SITE, "10.86.0.99"))
    [answer] = await world.device.delivered(1)
    assert answer[parse(answer).header_length] == 3
    assert world.datapath.drops()["no-session"] == 1


@each_datapath
async def test_a_changed_policy_applies_at_once(world: World) -> None:
    alice = world.devices[0]
    packet = ip_packet(ALICE, SITE)
    alice.tunnel.send_packets([packet])
    assert await world.device.delivered(1) == [packet]
    narrow = GroupPolicy(routes=(), destinations=())
    other, _ = make_session("x", ALICE, config=world.config, policy=narrow)
    alice.session.policy, alice.session.destinations = other.policy, other.destinations
    world.datapath.follow(alice.session)
    alice.tunnel.send_packets([packet])
    await until(lambda: bool(alice.session.drops))
    assert world.device.waiting() == []


@each_datapath
async def test_a_session_that_ends_takes_its_address_with_it(world: World) -> None:
    alice, bob = world.devices
    world.sessions.remove(alice.session)
    world.datapath.detach(alice.session)
    alice.session.tunnel.close()
    world.device.give(ip_packet(SITE, ALICE))
    [answer] = await world.device.delivered(1)
    assert answer[parse(answer).header_length] == 3
    world.device.give(ip_packet(SITE, BOB))
    await bob.handler.packets_arrived(1)


@each_datapath
async def test_a_tun_that_is_gone_ends_the_gateway(world: World) -> None:
    world.device.kernel.close()
    with pytest.raises(TunUnavailable):
        async with asyncio.timeout(10):
            await world.stopped


@pytest.mark.skipif(not available(), reason="qvpn_datapath is not built")
def test_a_fault_of_the_engine_costs_no_session(identity: Identity) -> None:
    @in_loop
    async def body() -> None:
        async with world_of(identity) as world:
            engine = world.datapath._engine
            assert engine is not None
            engine.engine.close()
            engine.close()
            world.datapath.failed()
            assert world.datapath.name == "aioquic"
            for device, address in zip(world.devices, (ALICE, BOB), strict=True):
                packet = ip_packet(SITE, address, 300)
                world.device.give(packet)
                await device.handler.packets_arrived(1)
                device.tunnel.send_packets([ip_packet(address, SITE)])
                await world.device.delivered(1)
                assert device.handler.closings == []

    body()
