"""Tunnels that move, on real loopback sockets: the client's half, the listener's, and silence."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable

import pytest

from qvpn_core.errors import GatewayUnreachable, TunnelLost
from qvpn_core.transport import liveness, settings
from qvpn_core.transport.aioquic_adapter import TunnelConnection
from qvpn_core.transport.dial import open_socket
from qvpn_core.transport.http3 import Http3Tunnel
from qvpn_core.transport.interface import HttpTunnel
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import AcceptingServer, Identity, RecordingHandler, in_loop
from tests.unit.transport.peers import dial, gateway, ip_packet, relay


@pytest.fixture
def pinned(identity: Identity) -> Trust:
    """Trust in the gateway by its pin."""
    return Trust(pins=(identity.pin,))


def connection_of(tunnel: HttpTunnel) -> TunnelConnection:
    assert isinstance(tunnel, Http3Tunnel)
    return tunnel._connection.quic


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Sockets:
    """A socket factory that remembers what it made, and can be out of order."""

    def __init__(self) -> None:
        self.made: list[socket.socket] = []
        self.broken = False

    async def __call__(self, family: int, kind: int) -> socket.socket:
        if self.broken:
            raise GatewayUnreachable("no sockets today")
        self.made.append(await open_socket(family, kind))
        return self.made[-1]


# Another socket


@in_loop
async def test_a_tunnel_goes_on_from_another_socket(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        handler = RecordingHandler()
        tunnel = await dial(listener.addresses[0], pinned, handler)
        before = server.tunnels[0].peer
        assert await tunnel.rebind()
        tunnel.send_packets([ip_packet(900, 1)])
        await server.handlers[0].packets_arrived(1)
        await until(lambda: server.tunnels[0].peer != before)
        server.tunnels[0].send_packets([ip_packet(900, 2)])
        await handler.packets_arrived(1)
        assert listener.connections == 1
        tunnel.close()


@in_loop
async def test_no_packet_is_lost_by_a_move_under_load(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        handler = RecordingHandler()
        tunnel = await dial(listener.addresses[0], pinned, handler)
        for number in range(300):
            tunnel.send_packets([ip_packet(1000, number & 0xFF)])
            server.tunnels[0].send_packets([ip_packet(1000, number & 0xFF)])
            if number % 60 == 30:
                assert await tunnel.rebind()
            await asyncio.sleep(0)
        await server.handlers[0].packets_arrived(300)
        await handler.packets_arrived(300)
        assert tunnel.counters.dropped == server.tunnels[0].counters.dropped == {}
        tunnel.close()


@in_loop
async def test_only_the_former_socket_is_kept_and_only_for_a_while(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qvpn_core.transport.dial._FORMER_SECONDS", 0.3)
    server, sockets = AcceptingServer(), Sockets()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned, socket_factory=sockets)
        for _ in range(3):
            assert await tunnel.rebind()
        await asyncio.sleep(0)
        assert [sock.fileno() >= 0 for sock in sockets.made] == [False, False, True, True]
        await until(lambda: sockets.made[2].fileno() < 0)
        assert sockets.made[3].fileno() >= 0
        tunnel.close()
        await until(lambda: sockets.made[3].fileno() < 0)


@in_loop
async def test_moves_at_once_come_one_after_the_other(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert all(await asyncio.gather(*(tunnel.rebind() for _ in range(4))))
        tunnel.send_packets([ip_packet(100)])
        await server.handlers[0].packets_arrived(1)
        tunnel.close()


@in_loop
async def test_without_a_socket_the_tunnel_stays_as_it_was(
    identity: Identity, pinned: Trust
) -> None:
    server, sockets = AcceptingServer(), Sockets()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned, socket_factory=sockets)
        sockets.broken = True
        with pytest.raises(GatewayUnreachable):
            await tunnel.rebind()
        tunnel.send_packets([ip_packet(100)])
        await server.handlers[0].packets_arrived(1)
        tunnel.close()


@in_loop
async def test_a_closed_tunnel_and_a_gateway_do_not_move(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert not await server.tunnels[0].rebind()
        tunnel.close()
        assert not await tunnel.rebind()


@in_loop
async def test_who_slept_longer_than_the_gateway_waits_is_forgotten_there(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert await tunnel.rebind(slept=settings.IDLE_TIMEOUT / 2)
        assert not await tunnel.rebind(slept=settings.IDLE_TIMEOUT)
        tunnel.close()


@in_loop
async def test_a_move_onto_a_narrower_path_finds_its_size(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        await until(lambda: min(tunnel.mtu, server.tunnels[0].mtu) > 1420)
        path.treatment = lambda _direction, data: ((0.0, data),) if len(data) <= 1380 else ()
        assert await tunnel.rebind()
        await until(lambda: tunnel.mtu < 1380)
        packet = ip_packet(tunnel.mtu)
        tunnel.send_packets([packet])
        await server.handlers[0].until(lambda: packet in server.handlers[0].received)
        tunnel.close()


# No path at all


@in_loop
async def test_what_is_sent_while_there_is_no_path_leaves_when_there_is_one(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        tunnel.hold()
        held = [ip_packet(200, number) for number in range(20)]
        for packet in held:
            tunnel.send_packets([packet])
            await asyncio.sleep(0.01)  # together longer than a packet may wait otherwise
        assert server.handlers[0].received == []
        assert await tunnel.rebind()
        await server.handlers[0].packets_arrived(20)
        assert server.handlers[0].received == held
        tunnel.close()


# Silence


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead path is given up after three seconds; what is tested lasts not much longer."""
    monkeypatch.setattr(liveness, "GIVE_UP_AFTER", 12)


@in_loop
async def test_a_dead_path_ends_the_tunnel_soon_and_with_words(
    identity: Identity, pinned: Trust, impatient: None
) -> None:
    server, sockets = AcceptingServer(), Sockets()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler, socket_factory=sockets)
        path.treatment = lambda _direction, _data: ()
        tunnel.send_packets([ip_packet(100)])
        await handler.until(lambda: handler.closings, seconds=settings.IDLE_TIMEOUT / 2)
        [error] = handler.closings
        assert isinstance(error, TunnelLost)
        assert "no answer from the gateway" in str(error)
        assert len(sockets.made) >= 2, "another socket was tried"
        await until(lambda: all(sock.fileno() < 0 for sock in sockets.made))


@in_loop
async def test_it_is_noticed_also_beside_a_stream_of_packets(
    identity: Identity, pinned: Trust, impatient: None
) -> None:
    """Packets that are sent on and on put off QUIC's own timer (RFC 9002 section 6.2.1)."""
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        path.treatment = lambda _direction, _data: ()

        async def send_for_ever() -> None:
            while True:
                tunnel.send_packets([ip_packet(100)])
                await asyncio.sleep(0.005)

        sending = asyncio.ensure_future(send_for_ever())
        await handler.until(lambda: handler.closings, seconds=settings.IDLE_TIMEOUT / 2)
        sending.cancel()


@in_loop
async def test_a_gateway_that_answers_strangers_and_not_us_has_forgotten_us(
    identity: Identity, pinned: Trust
) -> None:
    """As after a crash: another process has the address. Sooner than a dead path is given up."""
    server, other = AcceptingServer(), AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        async with gateway(identity, other) as successor:
            path.redirect(successor.addresses[0])
            begin = asyncio.get_running_loop().time()
            tunnel.send_packets([ip_packet(100)])
            await handler.until(lambda: handler.closings)
            assert "no answer from the gateway" in str(handler.closings[0])
            patience = liveness.PATIENCE + liveness.GIVE_UP_AFTER * liveness.INTERVAL
            assert asyncio.get_running_loop().time() - begin < patience
            assert other.requests == [], "it was only greeted"


@in_loop
async def test_an_outage_of_seconds_is_a_pause(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        path.treatment = lambda _direction, _data: ()
        tunnel.send_packets([ip_packet(100)])
        await asyncio.sleep(4.0)  # what is tested
        path.treatment = lambda _direction, data: ((0.0, data),)
        await until(lambda: connection_of(tunnel).unanswered_since is None)
        tunnel.send_packets([ip_packet(100)])
        await server.handlers[0].packets_arrived(1)
        await asyncio.sleep(1.5)  # whatever doubted the gateway has come to its end
        assert handler.closings == []
        tunnel.close()


@in_loop
async def test_another_socket_helps_where_a_nat_has_a_dead_entry(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        path.dead = path.client
        tunnel.send_packets([ip_packet(100, 1)])
        await until(lambda: path.client != path.dead)
        server.tunnels[0].send_packets([ip_packet(100, 2)])
        await handler.packets_arrived(1)
        assert handler.closings == []
        tunnel.close()


@in_loop
async def test_a_slow_and_lossy_path_is_not_given_up(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a second there and back, every fifth packet lost each way, and little traffic."""
    dice = random.Random(5)
    monkeypatch.setattr(settings, "KEEPALIVE", 0.4)
    server, sockets = AcceptingServer(), Sockets()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler, socket_factory=sockets)
        path.treatment = lambda _direction, data: () if dice.random() < 0.2 else ((0.25, data),)
        for _ in range(16):
            tunnel.send_packets([ip_packet(100)])
            await asyncio.sleep(0.5)
        assert handler.closings == []
        tunnel.close()


@in_loop
async def test_without_a_path_silence_is_no_ones_fault(
    identity: Identity, pinned: Trust, impatient: None
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        path.treatment = lambda _direction, _data: ()
        tunnel.hold()
        tunnel.send_packets([ip_packet(100)])
        await asyncio.sleep(1.5 * (liveness.PATIENCE + liveness.GIVE_UP_AFTER * liveness.INTERVAL))
        assert handler.closings == []
        path.treatment = lambda _direction, data: ((0.0, data),)
        assert await tunnel.rebind()
        await server.handlers[0].packets_arrived(1)
        tunnel.close()


# The listener


@pytest.mark.parametrize("retry", [False, True], ids=["straight", "after a Retry"])
@in_loop
async def test_each_client_is_answered_from_where_it_reached_the_gateway(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch, retry: bool
) -> None:
    if retry:
        monkeypatch.setattr(settings, "RETRY_ABOVE", 0)
    server = AcceptingServer()
    async with gateway(identity, server, [("0.0.0.0", 0), ("::", 0)]) as listener:
        port4, port6 = (port for _, port in listener.addresses)
        for host, port in (("127.0.0.1", port4), ("127.0.0.9", port4), ("::1", port6)):
            handler = RecordingHandler()
            tunnel = await dial((host, port), pinned, handler)
            assert await tunnel.rebind()
            server.tunnels[-1].send_packets([ip_packet(100)])
            await handler.packets_arrived(1)
            tunnel.close()


@in_loop
async def test_a_session_can_be_carried_between_addresses_and_versions_of_ip(
    identity: Identity, pinned: Trust
) -> None:
    """The client's NAT changes what the gateway sees: its own address, the socket, the version."""
    server = AcceptingServer()
    async with gateway(identity, server, [("0.0.0.0", 0), ("::", 0)]) as listener:
        port4, port6 = (port for _, port in listener.addresses)
        async with relay(("127.0.0.1", port4)) as path:
            handler = RecordingHandler()
            tunnel = await dial(path.address, pinned, handler)
            for number, target in enumerate((("::1", port6), ("127.0.0.9", port4)), 1):
                path.redirect(target)
                tunnel.send_packets([ip_packet(100)])
                await server.handlers[0].packets_arrived(number)
                await until(lambda: connection_of(server.tunnels[0]).path_validated)
                server.tunnels[0].send_packets([ip_packet(100)])
                await handler.packets_arrived(number)
            assert listener.connections == 1
            tunnel.close()


@in_loop
async def test_a_forged_packet_does_not_change_where_answers_come_from(
    identity: Identity, pinned: Trust
) -> None:
    """Known connection ID, wrong content, another of the gateway's addresses."""
    server = AcceptingServer()
    async with gateway(identity, server, [("0.0.0.0", 0), ("::", 0)]) as listener:
        port4, port6 = (port for _, port in listener.addresses)
        handler = RecordingHandler()
        tunnel = await dial(("127.0.0.1", port4), pinned, handler)
        cid = connection_of(tunnel)._peer_cid.cid
        with contextlib.ExitStack() as stack:
            for host, port in (("127.0.0.9", port4), ("::1", port6)):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                for first in (0x40, 0xC0):
                    sock.sendto(bytes((first,)) + cid + bytes(1200), (host, port))
        peer = server.tunnels[0].peer
        await asyncio.sleep(0.1)  # they are there first: one queue for each socket
        server.tunnels[0].send_packets([ip_packet(100)])
        await handler.packets_arrived(1)
        assert server.tunnels[0].peer == peer
        tunnel.close()


@in_loop
async def test_a_slow_path_loses_nothing_when_a_nat_forgets_it(
    identity: Identity, pinned: Trust
) -> None:
    """Validation takes longer here than a packet may wait in a queue otherwise."""
    server = AcceptingServer()
    async with gateway(identity, server) as listener, relay(listener.addresses[0]) as path:
        handler = RecordingHandler()
        tunnel = await dial(path.address, pinned, handler)
        await until(lambda: tunnel.mtu > 1420)
        path.treatment = lambda _direction, data: ((0.15, data),)
        path.rebind()
        before = server.tunnels[0].peer
        tunnel.send_packets([ip_packet(100, 1)])
        await until(lambda: server.tunnels[0].peer != before)
        for number in range(40):
            server.tunnels[0].send_packets([ip_packet(1200, number)])
        await handler.packets_arrived(40)
        assert server.tunnels[0].counters.dropped == {}
        tunnel.close()
