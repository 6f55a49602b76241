"""What byte streams of CONNECT promise, over both transports, on the loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.masque.capsule import encode_capsule
from qvpn_core.transport import settings, tls_settings
from qvpn_core.transport.dial import QuicClient
from qvpn_core.transport.interface import (
    H3_CONNECT_ERROR,
    H3_REQUEST_CANCELLED,
    Address,
    HttpConnection,
    HttpStream,
    IncomingRequest,
    Refused,
    Request,
    StreamReset,
    TransportName,
)
from qvpn_core.transport.reach import open_connection
from qvpn_core.transport.streams import MAX_UNSENT, ByteStream
from qvpn_core.transport.tls_dial import TlsClient
from qvpn_core.transport.trust import Trust
from tests.unit.transport.helpers import (
    CONNECT_IP,
    AcceptingServer,
    Changes,
    Identity,
    RecordingHandler,
    in_loop,
    make_identity,
    settle,
)
from tests.unit.transport.test_streams import (
    PATIENCE,
    StreamServer,
    connect_to,
    echo,
    read_all,
)
from tests.unit.transport.test_transports import gateway

CONNECT_UDP = Request(
    "CONNECT", "https", "gw.example", "/.well-known/masque/udp/192.0.2.1/53/", "connect-udp"
)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(params=["quic", "tls"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    name: TransportName = request.param
    return name


@asynccontextmanager
async def client(
    transport: TransportName, address: Address, identity: Identity
) -> AsyncIterator[HttpConnection]:
    trust = Trust(pins=(identity.pin,))
    connection = await open_connection(*address, trust=trust, transports=(transport,))
    try:
        assert connection.transport == transport
        yield connection
    finally:
        connection.close()


@asynccontextmanager
async def pair(
    transport: TransportName, identity: Identity
) -> AsyncIterator[tuple[HttpStream, HttpStream, HttpConnection]]:
    """The two ends of an open stream."""
    server = StreamServer()
    async with gateway(identity, server) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            near = await connection.open_stream(connect_to())
            yield near, await server.stream(), connection


class Holding:
    """A gateway's `on_request` that answers later."""

    def __init__(self) -> None:
        self.changes = Changes()
        self.requests: list[IncomingRequest] = []
        self.held: list[HttpStream] = []

    def __call__(self, incoming: IncomingRequest) -> None:
        self.held.append(incoming.hold())
        self.requests.append(incoming)
        self.changes.note()

    async def request(self) -> IncomingRequest:
        await self.changes.until(lambda: self.requests)
        return self.requests[0]


@in_loop
async def test_a_request_names_only_its_authority(
    transport: TransportName, identity: Identity
) -> None:
    server = StreamServer()
    async with gateway(identity, server) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            stream = await connection.open_stream(connect_to("[2001:db8::1]:22"))
            request = server.requests[0].request
            assert (request.method, request.authority) == ("CONNECT", "[2001:db8::1]:22")
            assert (request.scheme, request.path, request.protocol) == ("", "", None)
            assert dict(stream.response_headers) == {"x-test": "yes"}


@in_loop
async def test_bytes_arrive_in_order_both_ways(
    transport: TransportName, identity: Identity
) -> None:
    data = random.Random(1).randbytes(3 << 20)
    async with pair(transport, identity) as (near, far, _), asyncio.TaskGroup() as group:
        group.create_task(echo(far))
        received = group.create_task(read_all(near))
        for start in range(0, len(data), 50_000):
            await near.send(data[start : start + 50_000])
        near.end()
        assert await received == data


@in_loop
async def test_one_direction_ends_and_the_other_goes_on(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as (near, far, _):
        await near.send(b"question")
        near.end()
        assert await read_all(far) == b"question"
        assert await far.receive() == b""  # and again
        await far.send(b"answer")
        await far.send(b" and more")
        far.end()
        assert await read_all(near) == b"answer and more"
        with pytest.raises(TunnelLost):
            await near.send(b"too late")


@in_loop
async def test_a_reset_reaches_whoever_waits_at_the_other_end(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as (near, far, connection):
        reading = asyncio.ensure_future(near.receive())
        breaking = asyncio.ensure_future(near.broken())
        far.reset(H3_CONNECT_ERROR)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(StreamReset) as caught:
                await reading
            assert await breaking is caught.value
        assert caught.value.code == H3_CONNECT_ERROR
        with pytest.raises(StreamReset):
            await near.send(b"x")
        # And is nobody else's business.
        other = await connection.open_stream(connect_to())
        other.end()


@in_loop
async def test_many_stalled_streams_do_not_hold_up_another(
    transport: TransportName, identity: Identity
) -> None:
    server = StreamServer()
    async with gateway(identity, server) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            fill = []
            for number in range(40):
                await connection.open_stream(connect_to())
                far = await server.stream(number)
                fill.append(asyncio.ensure_future(far.send(bytes(256 << 10))))
            near = await connection.open_stream(connect_to())
            far = await server.stream(40)
            async with asyncio.timeout(PATIENCE):
                await far.send(b"still here")
                assert await near.receive() == b"still here"
            for task in fill:
                task.cancel()


@in_loop
async def test_a_refusal_has_its_status_and_fields(
    transport: TransportName, identity: Identity
) -> None:
    def refuse(incoming: IncomingRequest) -> None:
        incoming.hold()
        incoming.respond(502, (("proxy-status", "gw; error=dns_error"),), b"no such name\n")

    async with gateway(identity, refuse) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            for _ in range(3):
                with pytest.raises(Refused) as caught:
                    await connection.open_stream(connect_to())
                assert caught.value.status == 502
                assert ("proxy-status", "gw; error=dns_error") in caught.value.headers


@in_loop
async def test_a_client_that_gives_up_is_noticed_before_the_answer(
    transport: TransportName, identity: Identity
) -> None:
    held: list[HttpStream] = []
    requests: list[IncomingRequest] = []
    changes = Changes()

    def hold(incoming: IncomingRequest) -> None:
        held.append(incoming.hold())
        requests.append(incoming)
        changes.note()

    async with gateway(identity, hold) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            opening = asyncio.ensure_future(connection.open_stream(connect_to()))
            await changes.until(lambda: held)
            opening.cancel()
            async with asyncio.timeout(PATIENCE):
                error = await held[0].broken()
            assert isinstance(error, StreamReset)
            assert error.code == H3_REQUEST_CANCELLED
            requests[0].respond(200)  # nobody hears it
            with pytest.raises(QvpnError):
                await requests[0].accept_stream().receive()


@pytest.mark.parametrize("end", ["client", "gateway"])
def test_the_end_of_the_connection_is_the_end_of_its_streams(
    transport: TransportName, identity: Identity, end: str
) -> None:
    @in_loop
    async def story() -> None:
        server = StreamServer()
        async with gateway(identity, server) as listener:
            async with client(transport, listener.addresses[0], identity) as connection:
                near = await connection.open_stream(connect_to())
                far = await server.stream()
                waits = [asyncio.ensure_future(stream.receive()) for stream in (near, far)]
                ended = asyncio.ensure_future(connection.ended())
                await asyncio.sleep(0)
                if end == "client":
                    connection.close()
                else:
                    await listener.close()
                async with asyncio.timeout(PATIENCE):
                    for wait in waits:
                        with pytest.raises(TunnelLost):
                            await wait
                    assert isinstance(await ended, TunnelLost)
                with pytest.raises(TunnelLost):
                    await connection.open_stream(connect_to())

    story()


@in_loop
async def test_a_sender_waits_for_a_reader_that_does_not_read(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as (near, far, connection):
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            while True:
                await near.send(bytes(16 << 10))
                sent += 16 << 10

        sending = asyncio.ensure_future(send_all())
        before = -1
        while sent != before:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.2)
        # What the window lets through, what waits to be sent, and the last piece.
        assert sent <= settings.MAX_STREAM_DATA + MAX_UNSENT + (16 << 10)
        # Another stream does not notice.
        other = await connection.open_stream(connect_to())
        other.end()
        got = 0
        async with asyncio.timeout(PATIENCE):
            while got < 1 << 20:  # reading makes it go on
                got += len(await far.receive())
        sending.cancel()
        near.reset(H3_REQUEST_CANCELLED)


@in_loop
async def test_more_streams_at_once_than_a_stranger_may_have(
    transport: TransportName, identity: Identity
) -> None:
    server = StreamServer()
    count = tls_settings.MAX_STREAMS + 60
    async with gateway(identity, server) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            async with asyncio.timeout(PATIENCE):
                streams = await asyncio.gather(
                    *(connection.open_stream(connect_to(f"host:{n + 1}")) for n in range(count))
                )
                ports = {request.request.authority for request in server.requests}
                assert len(ports) == len(streams) == count
                far = await server.stream(count - 1)
                await far.send(b"here")
                number = int(server.requests[-1].request.authority.partition(":")[2]) - 1
                assert await streams[number].receive() == b"here"


@in_loop
async def test_datagrams_of_udp_and_a_stream_side_by_side(
    transport: TransportName, identity: Identity
) -> None:
    server, far_handler, near_handler = StreamServer(), RecordingHandler(), RecordingHandler()
    tunnels = []

    def serve(incoming: IncomingRequest) -> None:
        if incoming.request.protocol is None:
            server(incoming)
        else:
            tunnels.append(incoming.accept(far_handler))

    async with gateway(identity, serve) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            near = await connection.open_stream(connect_to())
            tunnel = await connection.open_tunnel(CONNECT_UDP, near_handler)
            far = await server.stream()
            sending = asyncio.ensure_future(far.send(bytes(1 << 20)))
            tunnel.send_packets([b"question"])
            await far_handler.until(lambda: far_handler.received == [b"question"])
            tunnels[0].send_packets([b"answer"])
            # The stream's reader has not read yet, and what waits for it is not in the way.
            await near_handler.until(lambda: near_handler.received == [b"answer"])
            got = 0
            async with asyncio.timeout(PATIENCE):
                while got < 1 << 20:
                    got += len(await near.receive())
            await sending
            tunnel.close()


@in_loop
async def test_what_tls_carries_before_the_answer_is_kept(identity: Identity) -> None:
    holding, handler = Holding(), RecordingHandler()
    async with gateway(identity, holding) as listener:
        async with client("tls", listener.addresses[0], identity) as connection:
            assert isinstance(connection, TlsClient)
            http = connection._http
            for request in (connect_to(), CONNECT_IP):
                holding.requests.clear()
                asking = asyncio.ensure_future(
                    connection.open_stream(request)
                    if request.protocol is None
                    else connection.open_tunnel(request, RecordingHandler())
                )
                incoming = await holding.request()
                http.send(max(http._streams), b"early")
                if request.protocol is None:
                    stream = incoming.accept_stream()
                    async with asyncio.timeout(PATIENCE):
                        assert await stream.receive() == b"early"
                else:
                    incoming.accept(handler)
                    http.send(max(http._streams), b" and late")
                    await asking
                    await handler.until(lambda: handler.data == b"early and late")


class InOrder(RecordingHandler):
    """Remembers which came first."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[bytes | None] = []

    def capsule_data(self, data: bytes) -> None:
        self.told.append(data)
        super().capsule_data(data)

    def capsule_end(self) -> None:
        self.told.append(None)
        super().capsule_end()


def send_before_the_answer(connection: HttpConnection, data: bytes, *, end: bool) -> None:
    """Send on the one stream whose request is not answered."""
    if isinstance(connection, TlsClient):
        tls = connection._http
        tls.send(max(tls._streams), data)
        if end:
            tls.finish(max(tls._streams))
    else:
        assert isinstance(connection, QuicClient)
        quic = connection._dial.http
        quic.send_data(next(iter(quic._responses)), data)
        if end:
            quic.end_stream(next(iter(quic._responses)), None)


@in_loop
async def test_what_comes_before_and_with_the_answer_keeps_its_order(
    transport: TransportName, identity: Identity
) -> None:
    """The answer is given in the very moment in which more arrives."""
    early, late = encode_capsule(0x2A, b"early"), encode_capsule(0x2A, b"late")
    holding, handler = Holding(), InOrder()
    async with gateway(identity, holding) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            asking = asyncio.ensure_future(connection.open_tunnel(CONNECT_UDP, RecordingHandler()))
            incoming = await holding.request()
            send_before_the_answer(connection, early, end=False)
            held = holding.held[0]
            assert isinstance(held, ByteStream)
            async with asyncio.timeout(PATIENCE):
                while not held._received:
                    await settle()
            # Both are ready when the loop looks next: to answer, and to read what has come.
            send_before_the_answer(connection, late, end=True)
            asyncio.get_running_loop().call_soon(incoming.accept, handler)
            await handler.until(lambda: handler.ends)
            await asking
            assert (b"".join(handler.told[:-1]), handler.told[-1]) == (early + late, None)
            assert handler.ends == 1


@in_loop
async def test_a_request_that_ends_with_its_head_ends_once(
    transport: TransportName, identity: Identity
) -> None:
    server = AcceptingServer()
    async with gateway(identity, server) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            if isinstance(connection, QuicClient):
                connection._dial.http._send_request(CONNECT_UDP, end=True)
            else:
                assert isinstance(connection, TlsClient)
                asking = asyncio.ensure_future(
                    connection.open_tunnel(CONNECT_UDP, RecordingHandler())
                )
                await asyncio.sleep(0)
                connection._http.finish(max(connection._http._streams))
                await asking
            await server.changes.until(lambda: server.handlers)
            [handler] = server.handlers
            await handler.until(lambda: handler.ends)
            await settle()
            assert (handler.data, handler.ends) == (b"", 1)


@in_loop
async def test_a_connection_that_is_left_closes_behind_its_last_stream(
    transport: TransportName, identity: Identity
) -> None:
    async with pair(transport, identity) as (near, far, connection):
        connection.leave()
        connection.leave()
        with pytest.raises(TunnelLost):
            await connection.open_stream(connect_to())
        with pytest.raises(TunnelLost):
            await connection.open_tunnel(CONNECT_UDP, RecordingHandler())
        await near.send(b"still")
        assert await far.receive() == b"still"
        far.end()
        near.end()
        async with asyncio.timeout(PATIENCE):
            assert await near.receive() == b""
            await connection.ended()
        assert connection.closed


@in_loop
async def test_one_that_carries_nothing_closes_at_once(
    transport: TransportName, identity: Identity
) -> None:
    async with gateway(identity, StreamServer()) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            connection.leave()
            assert connection.closed
            await connection.ended()


@in_loop
async def test_a_request_without_an_answer_is_taken_back_when_its_connection_is_left(
    transport: TransportName, identity: Identity
) -> None:
    holding = Holding()
    async with gateway(identity, holding) as listener:
        async with client(transport, listener.addresses[0], identity) as connection:
            asking = [
                asyncio.ensure_future(connection.open_stream(connect_to())),
                asyncio.ensure_future(connection.open_tunnel(CONNECT_UDP, RecordingHandler())),
            ]
            await holding.changes.until(lambda: len(holding.requests) == len(asking))
            connection.leave()
            for each in asking:
                with pytest.raises(TunnelLost):
                    await each
            async with asyncio.timeout(PATIENCE):
                for held in holding.held:
                    await held.broken()


@in_loop
async def test_streams_on_tls_that_come_and_go_leave_nothing(identity: Identity) -> None:
    server = StreamServer()
    async with gateway(identity, server) as listener:
        async with client("tls", listener.addresses[0], identity) as connection:
            assert isinstance(connection, TlsClient)
            for number in range(60):
                near = await connection.open_stream(connect_to())
                far = await server.stream(number)
                # More in all than the connection's window: what nobody reads is given back.
                await far.send(bytes(60_000))
                if number % 3 == 0:
                    near.end()
                    far.end()
                    assert len(await read_all(near)) == 60_000
                elif number % 3 == 1:
                    near.reset(H3_REQUEST_CANCELLED)
                else:
                    far.reset(H3_CONNECT_ERROR)
                    with pytest.raises(StreamReset):
                        await read_all(near)
            [accepted] = listener.tls._accepted
            for http in (connection._http, accepted.http):
                for _ in range(1000):
                    if not http._streams and not http.streams.open:
                        break
                    await asyncio.sleep(0.02)
                assert (http._streams, http.streams.open, http.streams._windows) == ({}, {}, {})
                assert http.streams._growth_left == tls_settings.WINDOW


@in_loop
async def test_windows_on_tls_grow_for_a_reader_that_keeps_up(identity: Identity) -> None:
    async with pair("tls", identity) as (near, far, connection):
        assert isinstance(connection, TlsClient)
        streams = connection._http.streams
        reading = asyncio.ensure_future(read_all(near))
        for _ in range(64):
            await far.send(bytes(128 << 10))
        far.end()
        assert len(await reading) == 8 << 20
        [window] = streams._windows.values()
        assert tls_settings.STREAM_WINDOW < window.size <= tls_settings.MAX_STREAM_WINDOW
        near.end()
        assert (streams._windows, streams._growth_left) == ({}, tls_settings.WINDOW)
