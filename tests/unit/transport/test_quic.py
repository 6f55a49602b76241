"""QUIC tunnels on real loopback sockets: what goes right, and in what words what does not."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from aioquic.buffer import Buffer
from aioquic.h3.connection import FrameType, encode_frame
from aioquic.h3.events import H3Event, HeadersReceived
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from qvpn_core.errors import (
    AuthenticationFailed,
    CertificateUntrusted,
    GatewayRefused,
    GatewayUnreachable,
    NameNotResolved,
    PathTooNarrow,
    PermissionMissing,
    PortInUse,
    QvpnError,
    TunnelLost,
    UsageError,
)
from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_adapter import TunnelConnection, TunnelH3Connection
from qvpn_core.transport.http3 import TOO_BIG, UNKNOWN_CONTEXT, Http3Tunnel
from qvpn_core.transport.interface import (
    H3_DATAGRAM_ERROR,
    Address,
    HttpTunnel,
    IncomingRequest,
)
from qvpn_core.transport.listen import QuicListener
from qvpn_core.transport.reach import connect
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import (
    CONNECT_IP,
    DAY,
    AcceptingServer,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
    settle,
)
from tests.unit.transport.peers import (
    LOOPBACK,
    ForeignProtocol,
    closed_port,
    dial,
    foreign_server,
    gateway,
    ip_packet,
    relay,
    silent_port,
)


@pytest.fixture
def pinned(identity: Identity) -> Trust:
    """Trust in the gateway by its pin."""
    return Trust(pins=(identity.pin,))


class Pair:
    """An open tunnel with both of its ends."""

    def __init__(self, client: HttpTunnel, at_client: RecordingHandler, server: AcceptingServer):
        self.client = client
        self.at_client = at_client
        self.server = server.tunnels[-1]
        self.at_server = server.handlers[-1]


async def open_pair(address: Address, trust: Trust, server: AcceptingServer) -> Pair:
    handler = RecordingHandler()
    tunnel = await dial(address, trust, handler)
    return Pair(tunnel, handler, server)


def connection_of(tunnel: HttpTunnel) -> TunnelConnection:
    assert isinstance(tunnel, Http3Tunnel)
    return tunnel._connection.quic


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for something that has no event of its own."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# Connecting


@pytest.mark.parametrize("version", [4, 6])
@in_loop
async def test_a_tunnel_by_pin(identity: Identity, pinned: Trust, version: int) -> None:
    server = AcceptingServer()
    async with gateway(identity, server, [(LOOPBACK[version], 0)]) as listener:
        stages: list[str] = []
        handler = RecordingHandler()
        host, port = listener.addresses[0]
        tunnel = await connect(
            host,
            port,
            trust=pinned,
            request=CONNECT_IP,
            handler=handler,
            on_stage=stages.append,
        )
        assert stages == ["resolving", "handshake", "authenticating"]
        assert tunnel.transport == "quic"
        assert tunnel.peer == (host, port)
        assert tunnel.mtu >= 1280
        assert server.requests[0].request == CONNECT_IP.__class__(
            method="CONNECT",
            scheme="https",
            authority="localhost",
            path="/.well-known/masque/ip/*/*/",
            protocol="connect-ip",
            headers=(("capsule-protocol", "?1"),),
        )
        assert server.requests[0].transport == "quic"
        assert server.requests[0].peer[0] == host
        assert (listener.connections, listener.half_open) == (1, 0)
        tunnel.close()
        await until(lambda: listener.connections == 0)
        assert handler.closings == [None]


@in_loop
async def test_a_tunnel_by_certification_authority(authority: Identity, tmp_path: Path) -> None:
    issued = make_identity(tmp_path, issuer=authority)
    trust = Trust(ca_file=str(authority.certificate_file))
    server = AcceptingServer()
    async with gateway(issued, server) as listener:
        for host in ("127.0.0.1", "localhost"):
            tunnel = await connect(
                host,
                listener.addresses[0][1],
                trust=trust,
                request=CONNECT_IP,
                handler=RecordingHandler(),
            )
            tunnel.close()
        assert len(server.requests) == 2


@in_loop
async def test_one_of_several_pins_is_enough(identity: Identity) -> None:
    trust = Trust(pins=("sha256/" + "A" * 43 + "=", identity.pin))
    async with gateway(identity, AcceptingServer()) as listener:
        (await dial(listener.addresses[0], trust)).close()


@in_loop
async def test_addresses_of_an_earlier_session_spare_the_resolver(
    authority: Identity, tmp_path: Path
) -> None:
    issued = make_identity(tmp_path, hosts=("vpn.example",), issuer=authority)
    async with gateway(issued, AcceptingServer()) as listener:
        tunnel = await connect(
            "vpn.example",
            listener.addresses[0][1],
            trust=Trust(ca_file=str(authority.certificate_file)),
            request=CONNECT_IP,
            handler=RecordingHandler(),
            addresses=["127.0.0.1"],
        )
        tunnel.close()


@in_loop
async def test_twenty_clients_at_once(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        handlers = [RecordingHandler() for _ in range(20)]
        tunnels = await asyncio.gather(
            *(dial(listener.addresses[0], pinned, handler) for handler in handlers)
        )
        assert (listener.connections, listener.half_open) == (20, 0)
        for index, tunnel in enumerate(tunnels):
            tunnel.send_packets([ip_packet(100, index)])
        for handler in server.handlers:
            await handler.packets_arrived(1)
        seen = sorted(packet for handler in server.handlers for packet in handler.received)
        assert seen == sorted(ip_packet(100, index) for index in range(20))
        for tunnel in tunnels:
            tunnel.close()
        await until(lambda: listener.connections == 0)
        assert all(handler.closings == [None] for handler in handlers)


# What goes wrong while connecting


async def failure(
    address: Address, trust: Trust, *, host: str | None = None, timeout: float = 10.0
) -> QvpnError:
    """The error of an attempt; the handler must not have heard of it."""
    handler = RecordingHandler()
    with pytest.raises(QvpnError) as caught:
        await connect(
            host or address[0],
            address[1],
            trust=trust,
            request=CONNECT_IP,
            handler=handler,
            timeout=timeout,
            addresses=[address[0]],
        )
    assert handler.closings == [], "the exception says it"
    assert "\n" not in str(caught.value)
    return caught.value


@in_loop
async def test_another_key_than_the_pinned_one(identity: Identity) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        error = await failure(listener.addresses[0], Trust(pins=("sha256/" + "A" * 43 + "=",)))
        assert isinstance(error, CertificateUntrusted)
        assert "pin" in str(error)
        assert server.requests == [], "nothing is asked of a stranger"
        await until(lambda: listener.connections == 0)


@in_loop
async def test_an_unknown_authority(identity: Identity, authority: Identity) -> None:
    async with gateway(identity, AcceptingServer()) as listener:
        error = await failure(listener.addresses[0], Trust(ca_file=str(authority.certificate_file)))
        assert isinstance(error, CertificateUntrusted)
        assert "pin or certification authority" in str(error)


@in_loop
async def test_another_host_name(authority: Identity, tmp_path: Path) -> None:
    issued = make_identity(tmp_path, hosts=("elsewhere.example",), issuer=authority)
    async with gateway(issued, AcceptingServer()) as listener:
        error = await failure(
            listener.addresses[0],
            Trust(ca_file=str(authority.certificate_file)),
            host="vpn.example",
        )
        assert isinstance(error, CertificateUntrusted)
        assert "vpn.example" in str(error)
        assert "elsewhere.example" in str(error)


@pytest.mark.parametrize(
    ("not_before", "not_after"),
    [(-2 * DAY, -DAY), (DAY, 2 * DAY)],
    ids=["expired", "not yet valid"],
)
@in_loop
async def test_a_certificate_of_another_time(
    authority: Identity, tmp_path: Path, not_before: timedelta, not_after: timedelta
) -> None:
    issued = make_identity(tmp_path, issuer=authority, not_before=not_before, not_after=not_after)
    async with gateway(issued, AcceptingServer()) as listener:
        error = await failure(listener.addresses[0], Trust(ca_file=str(authority.certificate_file)))
        assert isinstance(error, CertificateUntrusted)
        assert "clock" in str(error)


@pytest.mark.parametrize("content", [None, "no certificate", ""])
@in_loop
async def test_an_unusable_file_of_authorities(
    identity: Identity, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    async with gateway(identity, AcceptingServer()) as listener:
        error = await failure(listener.addresses[0], Trust(ca_file=str(file)))
        assert isinstance(error, UsageError)
        assert str(file) in str(error)


@in_loop
async def test_a_closed_port() -> None:
    error = await failure(closed_port(), Trust(pins=("any",)))
    assert isinstance(error, GatewayUnreachable)
    assert "refused" in str(error)
    assert error.transient


@in_loop
async def test_a_port_that_never_answers() -> None:
    async with silent_port() as address:
        error = await failure(address, Trust(pins=("any",)), timeout=0.3)
    assert isinstance(error, GatewayUnreachable)
    assert "UDP" in str(error)


@in_loop
async def test_the_next_address_is_tried(identity: Identity, pinned: Trust) -> None:
    """The port is open on the second address only."""
    async with gateway(identity, AcceptingServer(), [("127.0.0.2", 0)]) as listener:
        tunnel = await connect(
            "localhost",
            listener.addresses[0][1],
            trust=pinned,
            request=CONNECT_IP,
            handler=RecordingHandler(),
            addresses=["127.0.0.1", "127.0.0.2"],
        )
        assert tunnel.peer[0] == "127.0.0.2"
        tunnel.close()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "bad\0name", ""])
@in_loop
async def test_a_name_without_an_address(host: str) -> None:
    with pytest.raises(NameNotResolved):
        await connect(host, 443, trust=Trust(), request=CONNECT_IP, handler=RecordingHandler())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, AuthenticationFailed),
        (401, AuthenticationFailed),
        (403, AuthenticationFailed),
        (503, GatewayRefused),
        (500, GatewayRefused),
        (301, GatewayRefused),
    ],
)
@in_loop
async def test_an_answer_that_is_no_tunnel(
    identity: Identity, pinned: Trust, status: int, kind: type[QvpnError]
) -> None:
    def refuse(request: IncomingRequest) -> None:
        request.respond(status, [("content-type", "text/plain")], b"no " * 2000)

    async with gateway(identity, refuse) as listener:
        error = await failure(listener.addresses[0], pinned)
        assert type(error) is kind
        await until(lambda: listener.connections == 0)


class Resetting(ForeignProtocol):
    """Resets every request."""

    h3_class = TunnelH3Connection

    def on_event(self, event: H3Event) -> None:
        assert isinstance(event, HeadersReceived)
        self._quic.reset_stream(event.stream_id, 0x10B)
        self.transmit()


class Trailing(ForeignProtocol):
    """Answers 404 with trailers."""

    h3_class = TunnelH3Connection

    def on_event(self, event: H3Event) -> None:
        assert isinstance(event, HeadersReceived)
        assert self.http is not None
        self.http.send_headers(event.stream_id, [(b":status", b"103")])
        self.http.send_headers(event.stream_id, [(b":status", b"404")])
        self.http.send_data(event.stream_id, b"no", end_stream=False)
        self.http.send_headers(event.stream_id, [(b"x-trailer", b"1")], end_stream=True)
        self.transmit()


class Mute(ForeignProtocol):
    """Accepts connections and never answers a request."""

    h3_class = TunnelH3Connection


@in_loop
async def test_a_reset_instead_of_an_answer(identity: Identity, pinned: Trust) -> None:
    async with foreign_server(identity, Resetting) as address:
        assert isinstance(await failure(address, pinned), GatewayRefused)


@in_loop
async def test_interim_answers_and_trailers_are_not_the_answer(
    identity: Identity, pinned: Trust
) -> None:
    async with foreign_server(identity, Trailing) as address:
        assert isinstance(await failure(address, pinned), AuthenticationFailed)


@in_loop
async def test_no_answer_to_the_request(identity: Identity, pinned: Trust) -> None:
    async with foreign_server(identity, Mute) as address:
        assert isinstance(await failure(address, pinned, timeout=0.5), GatewayUnreachable)


@pytest.mark.parametrize("max_datagram_frame_size", [None, 65535])
@in_loop
async def test_a_web_server_that_is_no_gateway(
    identity: Identity, pinned: Trust, max_datagram_frame_size: int | None
) -> None:
    async with foreign_server(
        identity, ForeignProtocol, max_datagram_frame_size=max_datagram_frame_size
    ) as address:
        error = await failure(address, pinned)
        assert isinstance(error, GatewayRefused)
        assert "no IP tunnels" in str(error)


@in_loop
async def test_a_server_of_another_protocol(identity: Identity, pinned: Trust) -> None:
    async with foreign_server(identity, ForeignProtocol, alpn="hq-interop") as address:
        error = await failure(address, pinned)
        assert isinstance(error, GatewayRefused)
        assert "HTTP/3" in str(error)


@in_loop
async def test_a_path_that_is_too_narrow_for_ipv6(identity: Identity, pinned: Trust) -> None:
    async with gateway(identity, AcceptingServer()) as listener:
        async with relay(listener.addresses[0]) as path:
            path.treatment = lambda _direction, data: ((0.0, data),) if len(data) <= 1300 else ()
            assert isinstance(await failure(path.address, pinned), PathTooNarrow)
            await until(lambda: listener.connections == 0)


@in_loop
async def test_a_tunnel_that_is_closed_at_once_was_never_open(
    identity: Identity, pinned: Trust
) -> None:
    def accept_and_reset(request: IncomingRequest) -> None:
        tunnel = request.accept(RecordingHandler())
        asyncio.get_running_loop().call_soon(tunnel.close, 0x10E)

    async with gateway(identity, accept_and_reset) as listener:
        async with relay(listener.addresses[0]) as path:
            loop = asyncio.get_running_loop()
            release = 0.0

            def hold_back(direction: str, data: bytes) -> Sequence[tuple[float, bytes]]:
                nonlocal release
                if direction == "up":
                    if len(data) > 1250 and not release:  # the request travels with the probes
                        release = loop.time() + 0.1
                    return ((0.0, data),)
                return ((max(0.0, release - loop.time()), data),)

            # Answer and reset arrive as one.
            path.treatment = hold_back
            error = await failure(path.address, pinned)
            # Whether the answer left before the reset overtook it is up to QUIC.
            assert isinstance(error, TunnelLost | GatewayRefused)


@pytest.mark.parametrize("stage", ["resolving", "handshake", "authenticating", "later"])
@in_loop
async def test_cancelling_at_any_stage_leaves_nothing_behind(
    identity: Identity, pinned: Trust, stage: str
) -> None:
    reached = asyncio.Event()

    def on_stage(name: str) -> None:
        if name == stage:
            reached.set()

    async with foreign_server(identity, Mute) as address:
        before = os.listdir("/proc/self/fd")
        attempt = asyncio.ensure_future(
            connect(
                *address,
                trust=pinned,
                request=CONNECT_IP,
                handler=RecordingHandler(),
                on_stage=on_stage,
            )
        )
        if stage == "later":
            await asyncio.sleep(0.3)  # it waits for an answer that never comes
        else:
            await reached.wait()
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await settle()
        async with asyncio.timeout(5):
            # The resolver's thread cannot be cancelled; it closes its own files when it is done.
            while len(os.listdir("/proc/self/fd")) != len(before):  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.01)
        # Timers of ours would find the socket closed, later, in a test of somebody else.
        assert not [
            handle
            for handle in asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
            if not handle.cancelled() and "qvpn_core" in repr(handle)
        ]


# Capsules and packets


@in_loop
async def test_capsules_arrive_in_order_and_split_anywhere(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        dice = random.Random(1)
        sent = b""
        for _ in range(200):
            piece = dice.randbytes(dice.choice([1, 2, 3, 100, 3000]))
            sent += piece
            pair.client.send_capsules(piece)
            pair.server.send_capsules(piece)
        await pair.at_server.until(lambda: len(pair.at_server.data) == len(sent))
        await pair.at_client.until(lambda: len(pair.at_client.data) == len(sent))
        assert pair.at_server.data == pair.at_client.data == sent
        pair.client.close()


@in_loop
async def test_packets_of_every_size_arrive_in_both_directions(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        await pair.at_client.until(lambda: pair.client.mtu > 1400)
        await pair.at_server.until(lambda: pair.server.mtu > 1400)
        for tunnel, handler in (
            (pair.client, pair.at_server),
            (pair.server, pair.at_client),
        ):
            sent = [ip_packet(size) for size in range(20, tunnel.mtu + 1)]
            for start in range(0, len(sent), 64):
                batch = sent[start : start + 64]
                tunnel.send_packets(batch)
                await handler.packets_arrived(start + len(batch))
            assert handler.received == sent
            assert tunnel.counters.tx_packets == len(sent)
            assert tunnel.counters.tx_bytes == sum(map(len, sent))
            assert tunnel.counters.dropped == {}
        assert pair.server.counters.rx_packets == pair.client.counters.tx_packets
        assert pair.server.counters.rx_bytes == pair.client.counters.tx_bytes
        assert pair.client.rtt > 0
        pair.client.close()


@in_loop
async def test_a_packet_that_is_too_big_comes_back(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        mtu = pair.client.mtu
        big, small = ip_packet(mtu + 1), ip_packet(mtu)
        pair.client.send_packets([big, small])
        assert pair.at_client.too_big == [(big, mtu)]
        assert pair.client.counters.dropped == {TOO_BIG: 1}
        await pair.at_server.until(lambda: pair.at_server.received == [small])
        pair.client.close()


@in_loop
async def test_unknown_contexts_are_dropped_and_stall_nothing(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        quic = connection_of(pair.client)
        now = asyncio.get_running_loop().time()
        strange = deque([b"\x01" + ip_packet(50), b"\x3f", b"\x40\x00" + ip_packet(50)])
        batch = quic.pack_datagrams(strange, b"\0", now)  # this tunnel, contexts 1, 63 and 0
        other = quic.pack_datagrams(deque([ip_packet(60)]), b"\x07\0", now)  # no such stream
        assert isinstance(pair.client, Http3Tunnel)
        address = quic.get_peer_address()
        assert address is not None
        for packets in (batch.packets, other.packets):
            pair.client._connection._send(packets, address)
        pair.client.send_packets([ip_packet(70)])
        await pair.at_server.until(lambda: ip_packet(70) in pair.at_server.received)
        assert pair.at_server.received == [ip_packet(70)]
        assert pair.server.counters.dropped[UNKNOWN_CONTEXT] >= 2
        pair.client.close()


@in_loop
@pytest.mark.parametrize("datagram", [b"", b"\xc0\0\0"], ids=["empty", "cut short"])
async def test_a_datagram_without_a_stream_ends_its_connection(
    identity: Identity, pinned: Trust, datagram: bytes
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        quic = connection_of(pair.client)
        assert isinstance(pair.client, Http3Tunnel)
        both = deque([datagram, pair.client.prefix + ip_packet(60)])  # one alone is too short
        batch = quic.pack_datagrams(both, b"", asyncio.get_running_loop().time())
        address = quic.get_peer_address()
        assert address is not None
        pair.client._connection._send(batch.packets, address)
        await pair.at_client.until(lambda: pair.at_client.closings)
        assert hex(H3_DATAGRAM_ERROR) in str(pair.at_client.closings[0])


@in_loop
async def test_two_tunnels_on_one_connection_do_not_mix(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        assert isinstance(pair.client, Http3Tunnel)
        handler = RecordingHandler()
        second = await pair.client._connection.request(CONNECT_IP, handler)
        pair.client.send_packets([ip_packet(100, 1)])
        second.send_packets([ip_packet(100, 2)])
        for at_server, serial in zip(server.handlers, (1, 2), strict=True):
            await at_server.packets_arrived(1)
            assert at_server.received == [ip_packet(100, serial)]
        assert [tunnel.counters.dropped for tunnel in server.tunnels] == [{}, {}]
        server.tunnels[1].send_packets([ip_packet(100, 3)])
        await handler.until(lambda: handler.received == [ip_packet(100, 3)])
        second.close()
        await server.handlers[1].until(lambda: server.handlers[1].ends)
        pair.client.send_packets([ip_packet(100, 4)])
        await pair.at_server.packets_arrived(2)
        pair.client.close()


@in_loop
async def test_capsules_are_prompt_beside_a_flood_of_packets(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        loop = asyncio.get_running_loop()
        packets = [ip_packet(pair.client.mtu)] * 64
        pair.client.send_capsules(b"capsule")
        started = loop.time()
        while not pair.at_server.data:
            pair.client.send_packets(packets)
            await asyncio.sleep(0)
            assert loop.time() - started < 10
        pair.client.close()


@in_loop
async def test_a_lost_capsule_arrives_even_when_only_packets_flow(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            pair = await open_pair(path.address, pinned, server)
            await asyncio.sleep(0.1)
            lost: list[bytes] = []

            def lose_one(direction: str, data: bytes) -> Sequence[tuple[float, bytes]]:
                if direction == "up" and not lost:
                    lost.append(data)
                    return ()
                return ((0.0, data),)

            path.treatment = lose_one
            pair.client.send_capsules(b"capsule")
            for serial in range(200):
                pair.client.send_packets([ip_packet(300, serial)])
                await asyncio.sleep(0.005)
                if pair.at_server.data:
                    break
            assert pair.at_server.data == b"capsule"
            pair.client.close()


# The end


@in_loop
async def test_the_client_closes(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        pair.client.close()
        pair.client.close()
        pair.client.send_packets([ip_packet(50)])
        pair.client.send_capsules(b"late")
        assert pair.at_client.closings == [None]
        await pair.at_server.until(lambda: pair.at_server.closings)
        await until(lambda: listener.connections == 0)
        assert len(pair.at_server.closings) == 1
        pair.server.close()
        pair.server.send_packets([ip_packet(50)])
        pair.server.send_capsules(b"late")
        assert len(pair.at_server.closings) == 1


@pytest.mark.parametrize("error", [None, 0x33])
@in_loop
async def test_the_gateway_closes_a_tunnel(
    identity: Identity, pinned: Trust, error: int | None
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        pair.server.close(error)
        pair.server.close(error)
        assert pair.at_server.closings == [None]
        if error is None:
            await pair.at_client.until(lambda: pair.at_client.ends)
            assert pair.at_client.closings == [], "the client may still have something to say"
            pair.client.close()
            assert pair.at_client.closings == [None]
        else:
            await pair.at_client.until(lambda: pair.at_client.closings)
            assert isinstance(pair.at_client.closings[0], TunnelLost)
            assert "0x33" in str(pair.at_client.closings[0])
        await until(lambda: listener.connections == 0)
        await settle()
        assert len(pair.at_client.closings) == len(pair.at_server.closings) == 1


@in_loop
async def test_closing_from_within_a_callback(identity: Identity, pinned: Trust) -> None:
    class Closing(RecordingHandler):
        def capsule_data(self, data: bytes) -> None:
            super().capsule_data(data)
            server.tunnels[0].close(0x10E)
            server.tunnels[0].send_packets([ip_packet(50)])

    class Server(AcceptingServer):
        def make_handler(self) -> RecordingHandler:
            return Closing()

    server = Server()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        pair.client.send_capsules(b"x")
        await pair.at_client.until(lambda: pair.at_client.closings)
        assert isinstance(pair.at_client.closings[0], TunnelLost)
        assert pair.at_server.closings == [None]
        await until(lambda: listener.connections == 0)


@in_loop
async def test_the_listener_closes(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        await listener.close("maintenance until noon", drain=0.01)
        assert pair.at_server.closings == [None]
        await pair.at_client.until(lambda: pair.at_client.closings)
        [error] = pair.at_client.closings
        assert isinstance(error, TunnelLost)
        assert "maintenance until noon" in str(error)
        assert error.transient


@in_loop
async def test_a_peer_that_falls_silent(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "IDLE_TIMEOUT", 2.0)
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            pair = await open_pair(path.address, pinned, server)
            path.treatment = lambda _direction, _data: ()
            await pair.at_client.until(lambda: pair.at_client.closings)
            await pair.at_server.until(lambda: pair.at_server.closings)
            for handler in (pair.at_client, pair.at_server):
                assert len(handler.closings) == 1
                assert isinstance(handler.closings[0], TunnelLost)
            assert listener.connections == 0


@in_loop
async def test_a_keepalive_holds_an_idle_tunnel_open(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "IDLE_TIMEOUT", 3.0)
    monkeypatch.setattr(settings, "KEEPALIVE", 0.5)
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        pair = await open_pair(listener.addresses[0], pinned, server)
        await asyncio.sleep(4.5)
        assert pair.at_client.closings == pair.at_server.closings == []
        pair.client.close()


# The path


@in_loop
async def test_the_mtu_follows_the_path(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            path.treatment = lambda _direction, data: ((0.0, data),) if len(data) <= 1400 else ()
            pair = await open_pair(path.address, pinned, server)
            assert pair.client.mtu >= 1280
            overhead = connection_of(pair.client).packet_size_for(2)
            await pair.at_client.until(lambda: pair.client.mtu > 1400 - overhead - 16)
            assert pair.at_client.mtus[-1] == pair.client.mtu
            await pair.at_server.until(lambda: pair.server.mtu > 1400 - overhead - 16)
            packet = ip_packet(pair.client.mtu)
            pair.client.send_packets([packet])
            await pair.at_server.until(lambda: pair.at_server.received == [packet])
            pair.client.close()


@in_loop
async def test_a_path_that_becomes_narrower_is_noticed(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            pair = await open_pair(path.address, pinned, server)
            await pair.at_client.until(lambda: pair.client.mtu > 1420)
            path.treatment = lambda _direction, data: ((0.0, data),) if len(data) <= 1380 else ()

            async def send_for_ever() -> None:
                while True:
                    pair.client.send_packets([ip_packet(pair.client.mtu), ip_packet(100)])
                    await asyncio.sleep(0.01)

            sending = asyncio.ensure_future(send_for_ever())
            await pair.at_client.until(lambda: 1280 <= pair.client.mtu <= 1380)
            await pair.at_server.until(
                lambda: max(map(len, pair.at_server.received)) >= 1280, seconds=5.0
            )
            sending.cancel()
            assert pair.at_client.closings == []
            pair.client.close()


@in_loop
async def test_the_gateway_follows_a_client_to_another_port(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            pair = await open_pair(path.address, pinned, server)
            before = pair.server.peer
            path.rebind()
            pair.client.send_packets([ip_packet(100, 1)])
            await pair.at_server.until(lambda: pair.at_server.received)
            await until(lambda: pair.server.peer != before)
            pair.server.send_packets([ip_packet(100, 2)])
            await pair.at_client.until(lambda: pair.at_client.received == [ip_packet(100, 2)])
            pair.client.close()
            await until(lambda: listener.connections == 0)


@in_loop
async def test_loss_duplicates_and_mangled_copies_break_nothing(
    identity: Identity, pinned: Trust
) -> None:
    dice = random.Random(5)

    def treat(_direction: str, data: bytes) -> Sequence[tuple[float, bytes]]:
        kind = dice.random()
        if kind < 0.1:
            return ()
        if kind < 0.2:
            return ((0.0, data), (0.002, data))
        if kind < 0.3:
            return ((0.0, data[: dice.randrange(1, len(data))]), (0.001, data))
        if kind < 0.4:
            mangled = bytearray(data)
            mangled[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            return ((0.0, bytes(mangled)), (0.0, data))
        return ((0.0, data),)

    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            path.treatment = treat
            pair = await open_pair(path.address, pinned, server)
            content = dice.randbytes(20_000)
            pair.client.send_capsules(content)
            sent = [ip_packet(dice.randrange(20, 1280), serial) for serial in range(300)]
            for start in range(0, len(sent), 20):
                pair.client.send_packets(sent[start : start + 20])
                await asyncio.sleep(0.002)
            await pair.at_server.until(lambda: pair.at_server.data == content)
            await until(lambda: len(pair.at_server.received) > 200)
            assert set(pair.at_server.received) <= set(sent)
            assert len(set(pair.at_server.received)) == len(pair.at_server.received)
            path.treatment = lambda _direction, data: ((0.0, data),)
            pair.client.close()
            await until(lambda: listener.connections == 0)


# The gateway's door


def first_flight() -> bytes:
    """A client's first Initial, whose client then says no more."""
    quic = TunnelConnection(
        configuration=settings.client_configuration("localhost", Trust(pins=("any",)))
    )
    quic.connect(("127.0.0.1", 1), 0.0)
    return quic.datagrams_to_send(0.0)[0][0]


@in_loop
async def test_under_load_addresses_are_proven_and_clients_still_get_in(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "RETRY_ABOVE", 0)
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with relay(listener.addresses[0]) as path:
            kinds: list[QuicPacketType] = []

            def watch(direction: str, data: bytes) -> Sequence[tuple[float, bytes]]:
                if direction == "down" and data[0] & 0x80:
                    kinds.append(pull_quic_header(Buffer(data=data), 8).packet_type)
                return ((0.0, data),)

            path.treatment = watch
            pair = await open_pair(path.address, pinned, server)
            assert kinds[0] is QuicPacketType.RETRY
            pair.client.close()
            await until(lambda: listener.connections == 0)


@in_loop
async def test_half_open_connections_are_few_and_do_not_stay(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HALF_OPEN_LIMIT", 5)
    monkeypatch.setattr(settings, "HANDSHAKE_TIMEOUT", 2.0)
    async with gateway(identity, AcceptingServer()) as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            for _ in range(12):
                attacker.sendto(first_flight(), listener.addresses[0])
            await until(lambda: listener.half_open)
            await settle()
            assert listener.half_open == listener.connections == 5
            await until(lambda: listener.half_open == 0)
        assert listener.connections == 0
        assert listener._by_id == {}
        monkeypatch.setattr(settings, "HANDSHAKE_TIMEOUT", 10.0)
        (await dial(listener.addresses[0], pinned)).close()


@in_loop
async def test_a_forged_retry_token_gets_no_answer(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway(identity, AcceptingServer()) as listener:
        quic = TunnelConnection(
            configuration=settings.client_configuration("localhost", Trust(pins=("any",)))
        )
        quic._peer_token = os.urandom(60)
        quic.connect(listener.addresses[0], 0.0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(quic.datagrams_to_send(0.0)[0][0], listener.addresses[0])
            client.sendto(first_flight(), listener.addresses[0])
            await until(lambda: listener.half_open)
        assert listener.connections == 1


@in_loop
async def test_an_unknown_version_is_told_the_known_ones(identity: Identity) -> None:
    def initial(size: int, cid: bytes) -> bytes:
        head = b"\xc0\x1a\x2a\x3a\x4a" + bytes((8,)) + b"original" + bytes((8,)) + cid
        return head.ljust(size, b"\0")

    async with gateway(identity, AcceptingServer()) as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(initial(1199, b"tooshort"), listener.addresses[0])
            client.sendto(initial(1200, b"rightone"), listener.addresses[0])
            answer = await asyncio.get_running_loop().run_in_executor(None, client.recv, 2000)
        header = pull_quic_header(Buffer(data=answer), 8)
        assert header.packet_type is QuicPacketType.VERSION_NEGOTIATION
        assert header.destination_cid == b"rightone"
        assert header.source_cid == b"original"
        assert set(settings.VERSIONS) <= set(header.supported_versions)
        assert len(answer) < 1200
        assert listener.connections == 0


@in_loop
async def test_garbage_at_the_door(
    identity: Identity, pinned: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HANDSHAKE_TIMEOUT", 2.0)
    dice = random.Random(11)
    flight = first_flight()
    garbage = [b"", b"\x40", b"\xc0", flight[:1199], flight[:30]]
    for _ in range(100):
        garbage.append(dice.randbytes(dice.choice([1, 8, 9, 20, 40, 1200, 1400])))
        garbage.append(bytes((dice.randrange(256),)) + flight[1:])
        mangled = bytearray(flight)
        mangled[dice.randrange(60)] = dice.randrange(256)
        garbage.append(bytes(mangled))
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            for start in range(0, len(garbage), 30):
                for datagram in garbage[start : start + 30]:
                    attacker.sendto(datagram, listener.addresses[0])
                await asyncio.sleep(0)
        (await dial(listener.addresses[0], pinned)).close()
        await until(lambda: listener.connections == listener.half_open == 0)
        assert listener._by_id == {}
        assert len(server.requests) == 1


# Requests of strangers


async def raw_request(
    address: Address, trust: Trust, send: Callable[[Http3Tunnel], None]
) -> RecordingHandler:
    """Open a tunnel, then do something strange on its connection."""
    handler = RecordingHandler()
    tunnel = await dial(address, trust, handler)
    assert isinstance(tunnel, Http3Tunnel)
    send(tunnel)
    tunnel._connection._transmit()
    return handler


REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
]


@in_loop
async def test_the_trailers_of_a_request_are_no_second_request(
    identity: Identity, pinned: Trust
) -> None:
    asked: list[IncomingRequest] = []
    accept = AcceptingServer()

    def serve(request: IncomingRequest) -> None:
        asked.append(request)
        if request.request.protocol:
            accept(request)
        else:
            request.respond(404, body=b"no")

    def post_with_trailers(tunnel: Http3Tunnel) -> None:
        h3 = tunnel._connection._h3
        assert h3 is not None
        stream = tunnel._connection.quic.get_next_available_stream_id()
        h3.send_headers(stream, REQUEST)
        h3.send_data(stream, b"body", end_stream=False)
        h3.send_headers(stream, [(b"x-trailer", b"1")], end_stream=True)

    async with gateway(identity, serve) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert isinstance(tunnel, Http3Tunnel)
        post_with_trailers(tunnel)
        tunnel._connection._transmit()
        tunnel.send_packets([ip_packet(50)])
        await accept.handlers[0].until(lambda: accept.handlers[0].received)
        await until(lambda: len(asked) == 2)
        await settle()
        assert [request.request.method for request in asked] == ["CONNECT", "POST"]
        tunnel.close()


@pytest.mark.parametrize("answer", ["respond", "accept"])
@pytest.mark.parametrize("error", [0x100, 0x10C])
@in_loop
async def test_a_request_whose_sender_wants_no_answer(
    identity: Identity, pinned: Trust, answer: str, error: int
) -> None:
    """HEADERS and STOP_SENDING in one packet: the stream is reset before the request is seen."""
    server = AcceptingServer()
    refused: list[IncomingRequest] = []

    def serve(request: IncomingRequest) -> None:
        if not server.requests or answer == "accept":
            server(request)
        else:
            refused.append(request)
            request.respond(404, body=b"no")

    def request_and_stop(tunnel: Http3Tunnel) -> None:
        h3 = tunnel._connection._h3
        assert h3 is not None
        quic = tunnel._connection.quic
        stream = quic.get_next_available_stream_id()
        h3.send_headers(stream, REQUEST)
        quic.stop_stream(stream, error)

    async with gateway(identity, serve) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert isinstance(tunnel, Http3Tunnel)
        request_and_stop(tunnel)
        tunnel._connection._transmit()
        await until(lambda: len(server.requests) + len(refused) == 2)
        tunnel.send_packets([ip_packet(50)])
        await server.handlers[0].until(lambda: server.handlers[0].received)
        if answer == "accept":
            await server.handlers[1].until(lambda: server.handlers[1].closings)
            assert len(server.handlers[1].closings) == 1
        tunnel.close()
        await until(lambda: listener.connections == 0)


@pytest.mark.parametrize("late", [False, True], ids=["in time", "too late"])
@pytest.mark.parametrize("answer", ["respond", "accept"])
@in_loop
async def test_an_answer_that_takes_time(
    identity: Identity, pinned: Trust, answer: str, late: bool
) -> None:
    waiting: list[IncomingRequest] = []
    async with gateway(identity, waiting.append) as listener:
        handler = RecordingHandler()
        attempt = asyncio.ensure_future(dial(listener.addresses[0], pinned, handler))
        await until(lambda: waiting)
        await asyncio.sleep(0.3)  # all acknowledgements and probes are done
        if late:
            attempt.cancel()
            await until(lambda: listener.connections == 0)
        at_server = RecordingHandler()
        if answer == "respond":
            waiting[0].respond(503)
            if not late:
                with pytest.raises(GatewayRefused):
                    await asyncio.wait_for(attempt, 10)
        else:
            tunnel = waiting[0].accept(at_server)
            if late:
                await at_server.until(lambda: at_server.closings)
                assert len(at_server.closings) == 1
                tunnel.send_packets([ip_packet(50)])
                tunnel.send_capsules(b"x")
                tunnel.close()
            else:
                (await asyncio.wait_for(attempt, 10)).close()
        if late:
            with pytest.raises(asyncio.CancelledError):
                await attempt


@in_loop
async def test_the_peer_stops_one_direction_of_an_open_tunnel(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        tunnel = await dial(listener.addresses[0], pinned)
        assert isinstance(tunnel, Http3Tunnel)
        tunnel.send_capsules(b"x")
        tunnel._connection.quic.stop_stream(tunnel._stream_id, 0x100)
        tunnel._connection._transmit()
        at_server = server.handlers[0]
        await at_server.until(lambda: at_server.closings)
        server.tunnels[0].send_capsules(b"late")
        server.tunnels[0].close()
        assert len(at_server.closings) == 1
        tunnel.close()


@in_loop
async def test_http3_that_breaks_the_rules_ends_only_its_own_connection(
    identity: Identity, pinned: Trust
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        good = await open_pair(listener.addresses[0], pinned, server)
        bad = await open_pair(listener.addresses[0], pinned, server)
        quic = connection_of(bad.client)
        quic.send_stream_data(
            quic.get_next_available_stream_id(), encode_frame(FrameType.SETTINGS, b"")
        )
        assert isinstance(bad.client, Http3Tunnel)
        bad.client._connection._transmit()
        await bad.at_client.until(lambda: bad.at_client.closings)
        assert isinstance(bad.at_client.closings[0], TunnelLost)
        assert "0x105" in str(bad.at_client.closings[0])
        await bad.at_server.until(lambda: bad.at_server.closings)
        good.client.send_packets([ip_packet(50)])
        await good.at_server.until(lambda: good.at_server.received)
        good.client.close()


@in_loop
async def test_a_handler_that_raises_ends_only_its_own_connection(
    identity: Identity, pinned: Trust, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(RecordingHandler):
        def capsule_data(self, data: bytes) -> None:
            raise RuntimeError("a defect")

    class Server(AcceptingServer):
        def make_handler(self) -> RecordingHandler:
            return RecordingHandler() if not self.handlers else Broken()

    server = Server()
    async with gateway(identity, server) as listener:
        good = await open_pair(listener.addresses[0], pinned, server)
        bad = await open_pair(listener.addresses[0], pinned, server)
        bad.client.send_capsules(b"x")
        await bad.at_client.until(lambda: bad.at_client.closings)
        await bad.at_server.until(lambda: bad.at_server.closings)
        good.client.send_packets([ip_packet(50)])
        await good.at_server.until(lambda: good.at_server.received)
        assert listener.connections == 1
        assert "a defect" in caplog.text
        good.client.close()


# Listening


@in_loop
async def test_a_port_that_is_taken(identity: Identity) -> None:
    async with gateway(identity, AcceptingServer()) as listener:
        with pytest.raises(PortInUse, match="--listen"):
            async with gateway(
                identity, AcceptingServer(), [("127.0.0.1", 0), listener.addresses[0]]
            ):
                pass


@in_loop
async def test_an_address_that_is_not_ours(identity: Identity) -> None:
    with pytest.raises(QvpnError, match="--listen"):
        async with gateway(identity, AcceptingServer(), [("192.0.2.1", 0)]):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may bind everywhere")
@in_loop
async def test_a_port_for_root_only(identity: Identity) -> None:
    with pytest.raises(PermissionMissing):
        async with gateway(identity, AcceptingServer(), [("127.0.0.1", 443)]):
            pass


@in_loop
async def test_a_certificate_with_the_key_of_another(
    identity: Identity, authority: Identity, tmp_path: Path
) -> None:
    for certificate, key in [
        (tmp_path / "missing.pem", identity.key_file),
        (identity.key_file, identity.key_file),
        (identity.certificate_file, identity.certificate_file),
        (identity.certificate_file, authority.key_file),
    ]:
        with pytest.raises(UsageError, match="certificate"):
            await QuicListener.start(
                [("127.0.0.1", 0)],
                certificate=certificate,
                private_key=key,
                on_request=AcceptingServer(),
            )


@in_loop
async def test_several_addresses_of_both_families(identity: Identity, pinned: Trust) -> None:
    server = AcceptingServer()
    async with gateway(identity, server, [("127.0.0.1", 0), ("::1", 0)]) as listener:
        for address in listener.addresses:
            (await dial(address, pinned)).close()
        assert len(server.requests) == 2
