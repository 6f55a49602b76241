"""What every transport promises: one suite over QUIC and over TLS, on real loopback sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from qvpn_core.errors import (
    AuthenticationFailed,
    CertificateUntrusted,
    GatewayRefused,
    GatewayUnreachable,
    PortInUse,
    ProtocolViolation,
    QvpnError,
    TunnelLost,
)
from qvpn_core.masque.capsule import encode_capsule
from qvpn_core.transport.interface import (
    H3_MESSAGE_ERROR,
    Address,
    HttpTunnel,
    IncomingRequest,
    Request,
    TransportName,
)
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.reach import connect, fetch
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import (
    CONNECT_IP,
    DAY,
    AcceptingServer,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
)
from tests.unit.transport.peers import closed_port, ip_packet

pytestmark = pytest.mark.parametrize("transport", ["quic", "tls"])

LABEL, CONTEXT = b"EXPORTER-test", b"context"


@pytest.fixture
def pinned(identity: Identity) -> Trust:
    return Trust(pins=(identity.pin,))


@asynccontextmanager
async def gateway(
    identity: Identity, on_request: Callable[[IncomingRequest], None], host: str = "127.0.0.1"
) -> AsyncIterator[GatewayListener]:
    """Both listeners, closed afterwards."""
    listener = await GatewayListener.start(
        [(host, 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=on_request,
    )
    try:
        yield listener
    finally:
        await listener.close()


async def dial(
    transport: TransportName,
    address: Address,
    trust: Trust,
    handler: RecordingHandler | None = None,
    request: Request = CONNECT_IP,
    host: str | None = None,
) -> HttpTunnel:
    return await connect(
        host or address[0],
        address[1],
        trust=trust,
        request=request,
        handler=handler or RecordingHandler(),
        transports=(transport,),
        addresses=(address[0],),
    )


@dataclass
class Pair:
    """Both ends of an open tunnel."""

    client: HttpTunnel
    at_client: RecordingHandler
    gateway: HttpTunnel
    at_gateway: RecordingHandler
    request: IncomingRequest


@asynccontextmanager
async def pair(transport: TransportName, identity: Identity) -> AsyncIterator[Pair]:
    server, handler = AcceptingServer(), RecordingHandler()
    async with gateway(identity, server) as listener:
        trust = Trust(pins=(identity.pin,))
        tunnel = await dial(transport, listener.addresses[0], trust, handler)
        yield Pair(tunnel, handler, server.tunnels[-1], server.handlers[-1], server.requests[-1])
        tunnel.close()


@in_loop
async def test_a_tunnel_opens_and_says_what_carries_it(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as ends:
        for tunnel in (ends.client, ends.gateway):
            assert tunnel.transport == transport
            assert tunnel.peer[0] == "127.0.0.1"
            assert 1280 <= tunnel.mtu <= 1500
            assert 0 <= tunnel.rtt < 1
            assert tunnel.silence < 5
        assert ends.request.transport == transport
        assert ends.request.request.protocol == "connect-ip"
        assert ends.request.request.header("capsule-protocol") == "?1"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@in_loop
async def test_both_address_families(
    transport: TransportName, identity: Identity, pinned: Trust, host: str
) -> None:
    async with gateway(identity, AcceptingServer(), host) as listener:
        (await dial(transport, listener.addresses[0], pinned)).close()


@in_loop
async def test_packets_and_capsules_go_both_ways_and_are_counted(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as ends:
        sent = [ip_packet(size, size) for size in (20, 21, 63, 64, 576, 1280)]
        capsules = encode_capsule(0x2A17, b"x" * 100)
        for here, there in (
            (ends.client, ends.at_gateway),
            (ends.gateway, ends.at_client),
        ):
            here.send_packets(sent)
            here.send_capsules(capsules)
            here.send_packets([])
            await there.packets_arrived(len(sent))
            await there.until(lambda there=there: there.data == capsules)  # type: ignore[misc]
            assert sorted(there.received) == sorted(sent)
            assert here.counters.tx_packets == len(sent)
            assert here.counters.tx_bytes == sum(map(len, sent))
        assert ends.client.counters.rx_packets == ends.gateway.counters.rx_packets == len(sent)


@in_loop
async def test_what_is_too_large_is_handed_back(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as ends:
        mtu = ends.client.mtu
        fits, not_any_more = ip_packet(mtu), ip_packet(mtu + 1)
        ends.client.send_packets([not_any_more, fits])
        assert ends.at_client.too_big == [(not_any_more, mtu)]
        await ends.at_gateway.packets_arrived(1)
        assert ends.at_gateway.received == [fits]
        assert ends.client.counters.dropped == {"too-big": 1}


@in_loop
async def test_either_end_may_close_and_both_are_told_once(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as ends:
        ends.client.close()
        ends.client.close()
        assert ends.at_client.closings == [None]
        await ends.at_gateway.until(lambda: ends.at_gateway.closings)
        ends.client.send_packets([ip_packet(100)])
        ends.gateway.send_capsules(b"\x01\0")
    assert len(ends.at_gateway.closings) == len(ends.at_client.closings) == 1
    async with pair(transport, identity) as ends:
        ends.gateway.close()
        await ends.at_client.until(lambda: ends.at_client.ends)
        assert ends.at_gateway.closings == [None]
    async with pair(transport, identity) as ends:
        ends.gateway.close(H3_MESSAGE_ERROR)
        await ends.at_client.until(lambda: ends.at_client.closings)
        assert isinstance(ends.at_client.closings[0], TunnelLost)
        assert "reset" in str(ends.at_client.closings[0])


@in_loop
async def test_the_end_of_the_gateway_is_told(transport: TransportName, identity: Identity) -> None:
    handler = RecordingHandler()
    async with gateway(identity, AcceptingServer()) as listener:
        tunnel = await dial(transport, listener.addresses[0], Trust(pins=(identity.pin,)), handler)
        assert listener.connections == 1
    await handler.until(lambda: handler.closings)
    assert "the peer closed the connection" in str(handler.closings[0])
    tunnel.close()


@in_loop
async def test_both_ends_export_the_same_and_no_other_connection_does(
    transport: TransportName, identity: Identity, pinned: Trust
) -> None:
    values: list[tuple[bytes, bytes]] = []
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        for number in range(2):
            mine: list[bytes] = []

            def make(exporter: Callable[[bytes, bytes, int], bytes]) -> Request:
                mine.append(exporter(LABEL, CONTEXT, 48))  # noqa: B023
                return CONNECT_IP

            tunnel = await connect(
                *listener.addresses[0],
                trust=pinned,
                request=make,
                handler=RecordingHandler(),
                transports=(transport,),
            )
            theirs = server.requests[number].export_keying_material(LABEL, CONTEXT, 48)
            values.append((mine[0], theirs))
            tunnel.close()
    assert all(mine == theirs and len(mine) == 48 for mine, theirs in values)
    assert values[0] != values[1]


@pytest.mark.parametrize("size", [0, 1, 200_000])
@in_loop
async def test_content_goes_there_and_back(
    transport: TransportName, identity: Identity, pinned: Trust, size: int
) -> None:
    def echo(incoming: IncomingRequest) -> None:
        incoming.read_body(
            size + 1, lambda body: incoming.respond(200, (("x-kind", "echo"),), body or b"")
        )

    request = Request("POST", "https", "localhost", "/", None, ())
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with gateway(identity, echo) as listener:
        for limit, expected in ((1 << 20, body), (max(0, size - 1), None)):
            asking = fetch(
                *listener.addresses[0],
                trust=pinned,
                make=lambda _exporter: (request, body),
                limit=limit,
                transports=(transport,),
            )
            if expected is None and size:
                with pytest.raises(ProtocolViolation):
                    await asking
            else:
                response = await asking
                assert (response.status, response.body) == (200, body)
                assert ("x-kind", "echo") in response.headers


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, AuthenticationFailed), (503, GatewayRefused), (501, GatewayRefused)],
)
@in_loop
async def test_a_refusal_has_words(
    transport: TransportName,
    identity: Identity,
    pinned: Trust,
    status: int,
    error: type[QvpnError],
) -> None:
    async with gateway(identity, lambda incoming: incoming.respond(status)) as listener:
        with pytest.raises(error):
            await dial(transport, listener.addresses[0], pinned)


@in_loop
async def test_another_key_than_the_pinned_one_is_asked_nothing(
    transport: TransportName, identity: Identity
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        with pytest.raises(CertificateUntrusted):
            await dial(transport, listener.addresses[0], Trust(pins=("sha256/" + "A" * 43 + "=",)))
        assert server.requests == []


@in_loop
async def test_an_authority_and_a_name_are_trusted_or_not(
    transport: TransportName, authority: Identity, identity: Identity, tmp_path: Path
) -> None:
    trust = Trust(ca_file=str(authority.certificate_file))
    issued = make_identity(tmp_path, "issued", hosts=("vpn.example",), issuer=authority)
    late = make_identity(tmp_path, "late", issuer=authority, not_after=-DAY / 2)
    async with gateway(issued, AcceptingServer()) as listener:
        address = listener.addresses[0]
        (await dial(transport, address, trust, host="vpn.example")).close()
        with pytest.raises(CertificateUntrusted):
            await dial(transport, address, trust, host="other.example")
    for untrusted in (identity, late):
        async with gateway(untrusted, AcceptingServer()) as listener:
            with pytest.raises(CertificateUntrusted):
                await dial(transport, listener.addresses[0], trust)


@in_loop
async def test_another_certificate_is_shown_to_newcomers_and_sessions_stay(
    transport: TransportName, identity: Identity, pinned: Trust, tmp_path: Path
) -> None:
    second = make_identity(tmp_path, "second")
    server, handler = AcceptingServer(), RecordingHandler()
    async with gateway(identity, server) as listener:
        first = await dial(transport, listener.addresses[0], pinned, handler)
        listener.use_certificate(second.certificate_file, second.key_file)
        newcomer = await dial(transport, listener.addresses[0], Trust(pins=(second.pin,)))
        server.tunnels[0].send_packets([ip_packet(100)])
        await handler.packets_arrived(1)
        first.close()
        newcomer.close()


@in_loop
async def test_nobody_there(transport: TransportName, pinned: Trust) -> None:
    with pytest.raises(GatewayUnreachable):
        await dial(transport, closed_port(), pinned)


@in_loop
async def test_a_taken_port(transport: TransportName, identity: Identity) -> None:
    del transport
    async with gateway(identity, AcceptingServer()) as listener:
        with pytest.raises(PortInUse):
            await GatewayListener.start(
                listener.addresses,
                certificate=identity.certificate_file,
                private_key=identity.key_file,
                on_request=AcceptingServer(),
            )


@in_loop
async def test_a_capsule_stream_that_ends_inside_a_capsule(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as ends:
        ends.client.send_capsules(b"\x01\x05ab")
        ends.client.close()
        await ends.at_gateway.until(lambda: ends.at_gateway.ends or ends.at_gateway.closings)
        assert ends.at_gateway.data == b"\x01\x05ab"
