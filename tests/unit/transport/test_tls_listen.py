"""Strangers at the TCP port of a gateway: what an ordinary web server would say, and no more."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from qvpn_core.transport import settings, tls_settings
from qvpn_core.transport.interface import Address, IncomingRequest
from qvpn_core.transport.listeners import GatewayListener
from qvpn_core.transport.tls_listen import TlsListener
from tests.unit.transport.helpers import Identity, in_loop

PAGE = b"<h1>Bakery</h1>"


def site(incoming: IncomingRequest) -> None:
    """One page; what is posted is not read."""
    head = incoming.request.method == "HEAD"
    status = 200 if incoming.request.path == "/" else 404
    fields = (("content-type", "text/html"), ("content-length", str(len(PAGE))))
    incoming.respond(status, fields, b"" if head else PAGE)


@asynccontextmanager
async def gateway(
    identity: Identity, on_request: Callable[[IncomingRequest], None] = site
) -> AsyncIterator[TlsListener]:
    listener = await TlsListener.start(
        [("127.0.0.1", 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=on_request,
    )
    try:
        yield listener
    finally:
        await listener.close()


class Stranger:
    """A connection by Python's own TLS, or without any."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def says(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def hears(self) -> bytes:
        """Everything until the end of the connection."""
        async with asyncio.timeout(10):
            with suppress(ConnectionError, ssl.SSLError):
                return await self.reader.read()
        return b""

    async def hears_an_answer(self) -> tuple[bytes, bytes]:
        """Head and content of one answer."""
        async with asyncio.timeout(10):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await self.reader.readexactly(length)


@asynccontextmanager
async def stranger(
    listener: TlsListener, *, tls: bool = True, alpn: tuple[str, ...] = ()
) -> AsyncIterator[Stranger]:
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
    reader, writer = await asyncio.open_connection(*listener.addresses[0], ssl=context)
    try:
        yield Stranger(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError, TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), 5)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# An ordinary web server


@in_loop
async def test_pages_come_one_after_the_other_on_one_connection(identity: Identity) -> None:
    async with gateway(identity) as listener, stranger(listener) as caller:
        for path, status in ((b"/", b"200 OK"), (b"/none", b"404 Not Found"), (b"/", b"200 OK")):
            await caller.says(b"GET " + path + b" HTTP/1.1\r\nHost: gw:8443\r\n\r\n")
            head, body = await caller.hears_an_answer()
            assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
            assert b'Alt-Svc: h3=":8443"; ma=86400\r\n' in head
            assert body == PAGE


@in_loop
async def test_requests_that_were_sent_ahead_are_answered_in_order(identity: Identity) -> None:
    async with gateway(identity) as listener, stranger(listener) as caller:
        asked = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 5
        await caller.says(asked + b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        heard = await caller.hears()
    assert heard.count(b"HTTP/1.1 200 OK") == 5
    assert heard.index(b"404 Not Found") > heard.rindex(b"200 OK")


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET https://gw/ HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n", b"200"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc", b"200"),
        (b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (
            (
                b"GET /.well-known/masque/ip/*/*/ HTTP/1.1\r\nHost: a\r\n"
                b"Connection: Upgrade, close\r\nUpgrade: connect-ip\r\n\r\n"
            ),
            b"404",
        ),
        (b"BREW /pot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"404"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40_000 + b"\r\n\r\n", b"431"),
        (b"\x00" * 50_000, b"400"),
    ],
)
@in_loop
async def test_strange_requests_get_ordinary_answers(
    identity: Identity, said: bytes, status: bytes
) -> None:
    async with gateway(identity) as listener, stranger(listener) as caller:
        await caller.says(said)
        heard = await caller.hears()
        assert heard.startswith(b"HTTP/1.1 " + status)
        assert heard.count(b"HTTP/1.1 ") == 1


@in_loop
async def test_head_is_get_without_content(identity: Identity) -> None:
    async with gateway(identity) as listener, stranger(listener) as caller:
        await caller.says(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        heard = await caller.hears()
        assert b"Content-Length: %d\r\n" % len(PAGE) in heard
        assert heard.endswith(b"\r\n\r\n")


@in_loop
async def test_who_speaks_http_without_tls_is_told_so(identity: Identity) -> None:
    async with gateway(identity) as listener, stranger(listener, tls=False) as caller:
        await caller.says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await caller.hears()).startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x00\x05junk!", b"SSH-2.0-x\r\n", bytes(1000)])
@in_loop
async def test_junk_ends_its_connection(identity: Identity, junk: bytes) -> None:
    async with gateway(identity) as listener:
        async with stranger(listener, tls=False) as caller:
            await caller.says(junk)
            await caller.hears()
        await until(lambda: listener.connections == 0 and listener.half_open == 0)


@in_loop
async def test_only_tls_13_and_known_protocols(identity: Identity) -> None:
    async with gateway(identity) as listener:
        for change in ("version", "alpn"):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            if change == "version":
                context.maximum_version = ssl.TLSVersion.TLSv1_2
            else:
                context.set_alpn_protocols(["smtp"])
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(*listener.addresses[0], ssl=context)
        await until(lambda: listener.connections == 0)


# Those who take their time


@in_loop
async def test_a_handshake_that_does_not_go_on_is_ended(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HANDSHAKE_TIMEOUT", 0.1)
    async with gateway(identity) as listener, stranger(listener, tls=False) as caller:
        await caller.says(b"\x16\x03")
        assert await caller.hears() == b""
        assert listener.half_open == 0


@in_loop
async def test_a_head_that_comes_byte_by_byte_is_not_waited_for(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_settings, "HEAD_TIMEOUT", 0.2)
    async with gateway(identity) as listener, stranger(listener) as caller:
        with suppress(ConnectionError):
            for byte in b"GET / HTTP/1.1\r\nX-Slow: ":
                await caller.says(bytes([byte]))
                await asyncio.sleep(0.02)
        assert await caller.hears() == b""


@in_loop
async def test_who_reads_nothing_is_left_in_the_end(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_settings, "REQUEST_TIMEOUT", 0.3)
    big = b"x" * (8 << 20)
    async with gateway(identity, lambda incoming: incoming.respond(200, (), big)) as listener:
        async with stranger(listener) as caller:
            caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await caller.says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await until(lambda: listener.connections == 1)
            await until(lambda: listener.connections == 0)


@in_loop
async def test_who_asks_on_and_on_and_takes_no_answer_is_left(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_settings, "MAX_BUFFERED", 10_000)
    big = b"x" * (8 << 20)
    async with gateway(identity, lambda incoming: incoming.respond(200, (), big)) as listener:
        async with stranger(listener) as caller:
            caller.writer.transport.pause_reading()  # type: ignore[attr-defined]
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(10):
                    for _ in range(1000):
                        await caller.says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
            await until(lambda: listener.connections == 0)


@in_loop
async def test_of_strangers_only_the_newest_stay(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "STRANGERS", 3)
    async with gateway(identity) as listener:
        async with stranger(listener) as first:
            await first.says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await first.hears_an_answer()
            async with stranger(listener), stranger(listener), stranger(listener):
                assert await first.hears() == b""
                await until(lambda: listener.connections == 3)


@in_loop
async def test_half_open_connections_are_bounded(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "HALF_OPEN_LIMIT", 5)
    async with gateway(identity) as listener:
        sockets = [socket.create_connection(listener.addresses[0]) for _ in range(20)]
        await until(lambda: listener.half_open == 5)
        await asyncio.sleep(0.1)  # time for more, which must not come
        assert listener.half_open == listener.connections == 5
        for sock in sockets:
            sock.close()
        await until(lambda: listener.connections == 0)
        async with stranger(listener) as caller:  # and then there is room again
            await caller.says(b"GET / HTTP/1.0\r\n\r\n")
            assert (await caller.hears()).endswith(PAGE)


@in_loop
async def test_closing_tells_everybody(identity: Identity) -> None:
    async with gateway(identity) as listener:
        async with stranger(listener) as caller, stranger(listener, tls=False) as half_open:
            await caller.says(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await caller.hears_an_answer()
            await listener.close()
            assert await caller.hears() == b""
            assert await half_open.hears() == b""
        assert listener.connections == 0


@in_loop
async def test_a_port_that_is_free_on_udp_only_is_not_taken(
    identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    start = TlsListener.start

    async def busy_at_first(addresses: list[Address], **arguments: Any) -> TlsListener:
        asked.append(addresses[0][1])
        if len(asked) > 1:
            return await start(addresses, **arguments)
        with socket.create_server(addresses[0]):
            return await start(addresses, **arguments)

    monkeypatch.setattr(TlsListener, "start", busy_at_first)
    listener = await GatewayListener.start(
        [("127.0.0.1", 0)],
        certificate=identity.certificate_file,
        private_key=identity.key_file,
        on_request=site,
    )
    await listener.close()
    assert len(asked) == 2
