"""CONNECT and CONNECT-UDP at a gateway on the loopback, whose services are there too."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qvpn_core.auth.concealed import Origin, authenticate
from qvpn_core.auth.device_key import DeviceKey
from qvpn_core.errors import TunnelLost
from qvpn_core.masque.capsule import encode_capsule
from qvpn_core.masque.connect_udp import PROTOCOL
from qvpn_core.masque.target import IPAddress, make_target
from qvpn_core.transport.interface import (
    H3_CONNECT_ERROR,
    HttpConnection,
    HttpStream,
    HttpTunnel,
    Refused,
    Request,
    StreamReset,
    TransportName,
)
from qvpn_core.transport.reach import open_connection
from qvpn_server import services
from qvpn_server.admin_protocol import GroupSetRequest, GroupSettings, RevokeRequest
from tests.unit.server.test_gateway import World, running
from tests.unit.transport.helpers import RecordingHandler

PATIENCE = 15.0
#: Over each transport.
BOTH = pytest.mark.parametrize("transport", ["quic", "tls"])
LOOPBACK = ("127.0.0.0/8", "[::1]:1-65535")


@asynccontextmanager
async def tcp_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


class Device:
    """A device that uses services, by its bearer token."""

    def __init__(self, connection: HttpConnection, token: str | None) -> None:
        self.connection = connection
        self.token = token

    async def tcp(self, host: str, port: int) -> HttpStream:
        credential = (("proxy-authorization", f"Bearer {self.token}"),) if self.token else ()
        target = str(make_target(host, port))
        return await self.connection.open_stream(
            Request("CONNECT", "", target, "", None, credential)
        )

    async def udp(self, host: str, port: int, handler: RecordingHandler) -> HttpTunnel:
        credential = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        path = make_target(host, port).udp_path
        request = Request("CONNECT", "https", "gw.example", path, PROTOCOL, credential)
        return await self.connection.open_tunnel(request, handler)

    async def refused(self, host: str, port: int) -> tuple[int | None, str]:
        """Status and Proxy-Status of a request that must be refused."""
        with pytest.raises(Refused) as caught:
            await self.tcp(host, port)
        return caught.value.status, dict(caught.value.headers).get("proxy-status", "")


@asynccontextmanager
async def device(
    world: World,
    name: str = "alice",
    *,
    known: bool = True,
    transport: TransportName = "quic",
) -> AsyncIterator[Device]:
    token = world.enrol(name) if known else None
    connection = await open_connection(
        "127.0.0.1", world.port, trust=world.trust, transports=(transport,)
    )
    try:
        yield Device(connection, token)
    finally:
        connection.close()


def allow(world: World, *rules: str) -> None:
    settings = GroupSettings(services=rules)
    world.gateway.answer(GroupSetRequest("everyone", settings), 0)


def story(directory: Path, tell: Callable[[World], Awaitable[None]], *rules: str) -> None:
    """Run a test on a gateway whose devices may use `rules`, LOOPBACK unless there are others."""

    async def play() -> None:
        async with running(directory) as world:
            allow(world, *(rules or LOOPBACK))
            try:
                async with asyncio.timeout(60):
                    await tell(world)
            finally:
                await world.gateway.services.close()
        assert len(world.gateway.services) == 0

    asyncio.run(play())


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to that")


async def read_all(stream: HttpStream) -> bytes:
    got = b""
    while data := await stream.receive():
        got += data
    return got


@BOTH
def test_a_stream_carries_bytes_and_the_status_shows_them(
    transport: TransportName, tmp_path: Path
) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world, transport=transport) as alice:
            stream = await alice.tcp("127.0.0.1", port)
            hop = dict(stream.response_headers)["proxy-status"]
            assert hop == f'qvpn; next-hop="127.0.0.1:{port}"'
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            [user] = world.status().services
            assert (user.device, user.open, user.opened) == ("alice", 1, 1)
            assert (user.rx_bytes, user.tx_bytes) == (5, 5)
            stream.end()
            assert await read_all(stream) == b""
            await until(lambda: not world.status().services)
            totals = world.status().service_totals
            assert (totals.open, totals.opened, totals.rx_bytes, totals.tx_bytes) == (0, 1, 5, 5)

    story(tmp_path, tell)


@BOTH
def test_a_half_close_is_carried_through_both_ways(
    transport: TransportName, tmp_path: Path
) -> None:
    async def tell(world: World) -> None:
        async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got = await reader.read()  # until the device's end
            writer.write(b"%d" % len(got))
            writer.close()

        async def first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"banner")
            writer.write_eof()
            heard.append(await reader.read())
            writer.close()

        heard: list[bytes] = []
        async with tcp_server(count) as port, device(world, transport=transport) as alice:
            stream = await alice.tcp("127.0.0.1", port)
            await stream.send(bytes(300_000))
            stream.end()
            assert await read_all(stream) == b"300000"
            async with tcp_server(first) as other:
                stream = await alice.tcp("127.0.0.1", other)
                assert await read_all(stream) == b"banner"
                await stream.send(b"still")
                stream.end()
                await until(lambda: heard == [b"still"])

    story(tmp_path, tell)


@BOTH
def test_resets_are_carried_through_both_ways(transport: TransportName, tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        seen: list[type[BaseException] | None] = []

        async def abort(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.read(1) == b"a":
                linger = b"\1\0\0\0\0\0\0\0"
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return
            try:
                await reader.read()
                seen.append(None)
            except ConnectionResetError as error:
                seen.append(type(error))
            writer.close()

        async with tcp_server(abort) as port, device(world, transport=transport) as alice:
            stream = await alice.tcp("127.0.0.1", port)
            await stream.send(b"a")
            with pytest.raises(StreamReset) as caught:
                await stream.receive()
            assert caught.value.code == H3_CONNECT_ERROR
            stream = await alice.tcp("127.0.0.1", port)
            await stream.send(b"b")
            await until(lambda: world.status().service_totals.rx_bytes == 2)
            stream.reset(H3_CONNECT_ERROR)
            await until(lambda: seen)
            assert seen == [ConnectionResetError]

    story(tmp_path, tell)


def test_a_service_that_does_not_read_holds_back_the_device(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        release = asyncio.Event()
        got = 0

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal got
            await release.wait()
            while data := await reader.read(1 << 16):
                got += len(data)
            writer.close()

        async with tcp_server(slow) as port, device(world) as alice:
            stream = await alice.tcp("127.0.0.1", port)
            sent = 0

            async def send() -> None:
                nonlocal sent
                while sent < 64 << 20:
                    await stream.send(bytes(1 << 16))
                    sent += 1 << 16

            sending = asyncio.ensure_future(send())
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.5)
            assert sent < 32 << 20  # what the kernel's buffers and one window hold
            release.set()
            await sending
            stream.end()
            await read_all(stream)
            assert got == 64 << 20

    story(tmp_path, tell)


@BOTH
def test_why_a_service_cannot_be_had(transport: TransportName, tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            closed = taken.getsockname()[1]
        async with device(world, transport=transport) as alice:
            assert await alice.refused("127.0.0.1", closed) == (
                502, "qvpn; error=connection_refused",
            )  # fmt: skip
            prohibited = (403, "qvpn; error=destination_ip_prohibited")
            for host in ("10.1.2.3", "169.254.169.254", "0.0.0.0", "::", "192.0.2.1"):
                assert await alice.refused(host, 80) == prohibited
            status, why = await alice.refused("no-such-host.invalid", 80)
            assert (status, why) in (
                (502, "qvpn; error=dns_error"),
                (504, "qvpn; error=dns_timeout"),  # without a name server
            )
            refused = world.status().service_totals.refused
            assert refused["destination_ip_prohibited"] == 5
            assert refused["connection_refused"] == 1

    story(tmp_path, tell)


def test_names_that_lead_to_the_gateway_itself_open_nothing(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice:
            status, why = await alice.refused("localhost", port)
            assert (status, why) == (403, "qvpn; error=destination_ip_prohibited")
            status, why = await alice.refused("::ffff:127.0.0.1", port)
            assert (status, why) == (403, "qvpn; error=destination_ip_prohibited")

    story(tmp_path, tell, "*", "0.0.0.0/0", "::/0", "localhost")


@BOTH
def test_strangers_see_the_site_and_nothing_else(transport: TransportName, tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with (
            tcp_server(echo) as port,
            device(world, known=False, transport=transport) as stranger,
        ):
            answers = []
            for ask in (
                stranger.tcp("127.0.0.1", port),
                stranger.tcp("0.0.0.0", 1),
                stranger.udp("127.0.0.1", port, RecordingHandler()),
                stranger.connection.open_stream(Request("CONNECT", "", "nonsense", "")),
            ):
                with pytest.raises(Refused) as caught:
                    await ask
                varying = ("date", "alt-svc")  # the second for what has an origin
                fields = [pair for pair in caught.value.headers if pair[0] not in varying]
                answers.append((caught.value.status, fields))
            assert {status for status, _ in answers} == {404}
            assert all(answer == answers[0] for answer in answers)
            assert "proxy-status" not in dict(answers[0][1])
            assert world.status().service_totals.opened == 0

    story(tmp_path, tell)


@BOTH
def test_a_key_signs_for_one_target_on_one_connection(
    transport: TransportName, tmp_path: Path
) -> None:
    async def tell(world: World) -> None:
        key = DeviceKey.generate()
        world.registry.create_invite("bob", key.public_key, 1 << 31, 0)
        device_key = DeviceKey.generate()
        world.registry.redeem_invite(key.key_id, device_key.public_key, 1)
        async with tcp_server(echo) as port, device(world, known=False, transport=transport) as bob:

            def request(signed: str, asked: str) -> Request:
                exporter = bob.connection.export_keying_material
                credential = authenticate(device_key, exporter, Origin.of("", signed))
                fields = (("proxy-authorization", credential),)
                return Request("CONNECT", "", asked, "", None, fields)

            target = f"127.0.0.1:{port}"
            stream = await bob.connection.open_stream(request(target, target))
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            with pytest.raises(Refused) as caught:
                await bob.connection.open_stream(request("other:1", target))
            assert caught.value.status == 404
            good = request(target, target)
            moved = replace(good, headers=(("authorization", good.headers[0][1]),))
            with pytest.raises(Refused):
                await bob.connection.open_stream(moved)

    story(tmp_path, tell)


@BOTH
def test_datagrams_go_both_ways_also_as_capsules(transport: TransportName, tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.setblocking(False)
            port = server.getsockname()[1]
            loop = asyncio.get_running_loop()
            async with device(world, transport=transport) as alice:
                handler = RecordingHandler()
                tunnel = await alice.udp("127.0.0.1", port, handler)
                assert ("capsule-protocol", "?1") in tunnel.response_headers
                tunnel.send_packets([b"one", b""])
                got, sender = await loop.sock_recvfrom(server, 100)
                assert got == b"one"
                assert (await loop.sock_recvfrom(server, 100))[0] == b""
                tunnel.send_capsules(encode_capsule(0, b"\0two"))
                assert (await loop.sock_recvfrom(server, 100))[0] == b"two"
                server.sendto(b"answer", sender)
                server.sendto(b"", sender)
                await handler.until(lambda: handler.received == [b"answer", b""])
                # Who is not the target is not heard.
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                    other.sendto(b"forged", sender)
                server.sendto(b"last", sender)
                await handler.until(lambda: b"last" in handler.received)
                assert b"forged" not in handler.received
                tunnel.close()
                await until(lambda: not world.status().services)
                if transport == "tls":
                    return  # datagrams are capsules there, and one without a context is dropped
                # A stream of capsules that breaks its format ends its own flow.
                other_handler = RecordingHandler()
                broken = await alice.udp("127.0.0.1", port, other_handler)
                broken.send_capsules(encode_capsule(0, b""))
                await other_handler.until(lambda: other_handler.closings)

    story(tmp_path, tell)


def test_revoking_a_device_cuts_its_streams_at_once(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice, device(world, "bob") as bob:
            hers = await alice.tcp("127.0.0.1", port)
            his = await bob.tcp("127.0.0.1", port)
            world.gateway.answer(RevokeRequest("alice"), 0)
            with pytest.raises(StreamReset):
                await hers.receive()
            assert (await alice.refused("127.0.0.1", port))[0] == 404
            await his.send(b"x")
            assert await his.receive() == b"x"

    story(tmp_path, tell)


def test_a_changed_policy_cuts_what_it_does_not_allow_any_more(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, tcp_server(echo) as other, device(world) as alice:
            stays = await alice.tcp("127.0.0.1", port)
            goes = await alice.tcp("127.0.0.1", other)
            allow(world, f"127.0.0.1:{port}")
            with pytest.raises(StreamReset):
                await goes.receive()
            await stays.send(b"x")
            assert await stays.receive() == b"x"
            assert (await alice.refused("127.0.0.1", other))[0] == 403

    story(tmp_path, tell)


def test_one_device_cannot_open_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_FLOWS", 20)

    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice, device(world, "bob") as bob:
            opened = [await alice.tcp("127.0.0.1", port) for _ in range(20)]
            full = (503, "qvpn; error=connection_limit_reached")
            assert await alice.refused("127.0.0.1", port) == full
            stream = await bob.tcp("127.0.0.1", port)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            opened[0].reset(H3_CONNECT_ERROR)
            await until(lambda: world.status().service_totals.open == 20)
            again = await alice.tcp("127.0.0.1", port)
            await again.send(b"y")
            assert await again.receive() == b"y"

    story(tmp_path, tell)


def test_connections_that_never_answer_end_and_hold_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "MAX_CONNECTING", 4)
    monkeypatch.setattr(services, "CONNECT_TIMEOUT", 4.0)
    connect = services.connect_tcp
    blackhole = 9

    async def hang(addresses: Sequence[IPAddress], port: int) -> socket.socket:
        if port == blackhole:
            await asyncio.Event().wait()
        return await connect(addresses, port)

    monkeypatch.setattr(services, "connect_tcp", hang)

    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice, device(world, "bob") as bob:
            flood = [asyncio.ensure_future(alice.tcp("127.0.0.1", blackhole)) for _ in range(50)]
            await until(lambda: world.status().service_totals.open == 50)
            stream = await bob.tcp("127.0.0.1", port)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            # Those that the device gives up are gone at once.
            for ask in flood[:25]:
                ask.cancel()
            await until(lambda: world.status().service_totals.open <= 26)
            answers = await asyncio.gather(*flood[25:], return_exceptions=True)
            assert [isinstance(answer, Refused) and answer.status for answer in answers] == (
                [504] * 25
            )

    story(tmp_path, tell)


def test_the_end_of_a_devices_connection_ends_what_it_used(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        ends = 0

        async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal ends
            with pytest.raises(ConnectionResetError):
                await reader.read()
            ends += 1
            writer.close()

        async with tcp_server(watch) as port:
            async with device(world) as alice:
                for _ in range(5):
                    await alice.tcp("127.0.0.1", port)
                assert world.status().service_totals.open == 5
            await until(lambda: ends == 5)
            assert world.status().services == []

    story(tmp_path, tell)


def test_the_end_of_the_gateway_resets_streams(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice:
            stream = await alice.tcp("127.0.0.1", port)
            await world.gateway.services.close()
            with pytest.raises(TunnelLost):
                await stream.receive()

    story(tmp_path, tell)


def test_services_need_no_tunnel_and_use_none(tmp_path: Path) -> None:
    async def tell(world: World) -> None:
        async with tcp_server(echo) as port, device(world) as alice:
            assert alice.token is not None
            tunnel = await world.connect(alice.token)
            stream = await alice.tcp("127.0.0.1", port)
            assert len(world.sessions) == 1
            tunnel.open_tunnel.close()
            await until(lambda: not world.status().sessions)
            await stream.send(b"x")
            assert await stream.receive() == b"x"

    story(tmp_path, tell)
