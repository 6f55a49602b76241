"""The client's end of a TLS connection: a socket, trust, a keepalive, failures in words.

The counterpart of `dial.py`; HTTP/2 is in `http2.py`, TLS in `tls.py`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from qvpn_core.errors import (
    GatewayRefused,
    GatewayUnreachable,
    QvpnError,
    TunnelLost,
)
from qvpn_core.transport import settings, tls_settings
from qvpn_core.transport.dial import (
    ClosingHandler,
    Endpoint,
    RequestMaker,
    SocketFactory,
    StageHandler,
    authorities_error,
    refusal,
    unless_ended,
)
from qvpn_core.transport.http2 import Http2Connection
from qvpn_core.transport.http2_tunnel import Http2Tunnel
from qvpn_core.transport.http3 import Response
from qvpn_core.transport.interface import (
    Address,
    HttpStream,
    HttpTunnel,
    Refused,
    Request,
    TransportName,
    TunnelHandler,
)
from qvpn_core.transport.tls import Authorities, TlsChannel, client_context, verify_gateway
from qvpn_core.transport.tls_stream import TlsStream
from qvpn_core.transport.trust import Trust
from qvpn_core.transport.udp import address_text

_T = TypeVar("_T")


class TlsDial:
    """A client's connection; see `reach.Connection`."""

    def __init__(
        self, sock: socket.socket, endpoint: Endpoint, host: str, trust: Trust, known: Authorities
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._endpoint, self._host, self._trust, self._known = endpoint, host, trust, known
        self._channel = TlsChannel(client_context(), host)
        self._keepalive: asyncio.TimerHandle | None = None
        #: Done when the gateway may be asked: with its SETTINGS, and whether it takes tunnels.
        self.ready: asyncio.Future[bool] = self._loop.create_future()
        #: Why the connection ended, once it has.
        self.end: asyncio.Future[QvpnError] = self._loop.create_future()
        self.http: Http2Connection | None = None
        self._stream = TlsStream(
            sock,
            (endpoint.address[0], endpoint.address[1]),
            self._channel,
            established=self._established,
            ended=self._ended,
            linger=0.0,
        )
        self._stream.start()

    def _established(self) -> Http2Connection:
        where = address_text(self._endpoint.address)
        verify_gateway(self._channel.certificates(), self._host, self._trust, self._known)
        if self._channel.protocol != tls_settings.ALPN_HTTP2:
            raise GatewayRefused(
                f"the server at {where} does not speak HTTP/2",
                "check that the address is that of a qvpn gateway",
            )
        http = self.http = Http2Connection(self._stream)
        http.on_settings = self._settled
        self._keepalive = self._loop.call_later(tls_settings.KEEPALIVE, self._keep_alive)
        return http

    def _settled(self) -> None:
        assert self.http is not None
        if not self.ready.done():
            self.ready.set_result(bool(self.http.takes_tunnels))

    def _keep_alive(self) -> None:
        """Send a PING when it is due, and look again when the next may be."""
        assert self.http is not None
        silent = self._loop.time() - self._stream.last_received
        if silent >= tls_settings.IDLE_TIMEOUT:
            words = f"no packet from the peer for {tls_settings.IDLE_TIMEOUT:.0f} seconds"
            self._stream.fail(TunnelLost(words))
            return
        wait = tls_settings.KEEPALIVE - silent
        if wait <= 0:
            self.http.ping()
            wait = tls_settings.KEEPALIVE
        self._keepalive = self._loop.call_later(wait, self._keep_alive)

    def _ended(self, error: QvpnError) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
        self.fail(error)

    def fail(self, error: QvpnError) -> None:
        """Whoever waits for this connection is told that it failed."""
        if not self.end.done():
            self.end.set_result(error)

    def close(self) -> None:
        """Tell the peer, and give everything back."""
        self._stream.close()

    async def is_gateway(self) -> bool:
        """Wait for the handshake and the peer's settings: whether it takes tunnels."""
        return await unless_ended(self.end, self.ready)

    async def proven(self) -> None:
        """Nothing to wait for: a byte stream carries packets of every size."""

    def share(self) -> TlsClient:
        """Keep the connection, for any number of requests."""
        assert self.http is not None
        return TlsClient(self, self.http)

    async def open(
        self,
        request: Request | RequestMaker,
        handler: TunnelHandler,
        on_stage: StageHandler = lambda stage: None,
    ) -> HttpTunnel:
        """Ask for a tunnel; the connection closes with it. Raises as `reach.connect`."""
        assert self.http is not None
        if not isinstance(request, Request):
            request = request(self._channel.export_keying_material)
        on_stage("authenticating")
        wrapped = ClosingHandler(handler, self)
        answer: asyncio.Future[Http2Tunnel] = self._loop.create_future()
        self.http.request(request, wrapped, _settler(answer))
        tunnel = await self._answered(answer)
        wrapped.open = True
        return tunnel

    async def fetch(self, make: Callable[..., tuple[Request, bytes]], limit: int) -> Response:
        """Make one ordinary request, then close. Raises as `reach.fetch`."""
        assert self.http is not None
        request, body = make(self._channel.export_keying_material)
        answer: asyncio.Future[Response] = self._loop.create_future()
        self.http.fetch(request, body, limit, _settler(answer))
        response = await self._answered(answer)
        self.close()
        return response

    @property
    def peer(self) -> Address:
        """The gateway's address."""
        return self._stream.peer

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        """The TLS exporter (RFC 8446 section 7.5)."""
        return self._channel.export_keying_material(label, context, length)

    async def _answered(self, answer: asyncio.Future[_T]) -> _T:
        try:
            return await unless_ended(self.end, answer)
        except Refused as refused:
            raise refusal(refused.status) from None


class TlsClient:
    """An open connection; see `interface.HttpConnection`."""

    transport: TransportName = "tls"

    def __init__(self, dial: TlsDial, http: Http2Connection) -> None:
        self._dial, self._http = dial, http
        self._room = asyncio.Event()
        http.on_room = self._room.set
        self._left: QvpnError | None = None

    @property
    def peer(self) -> Address:
        return self._dial.peer

    @property
    def rtt(self) -> float:
        return self._http.carrier.rtt

    @property
    def silence(self) -> float:
        return self._http.carrier.silence

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._dial.export_keying_material(label, context, length)

    async def open_stream(self, request: Request) -> HttpStream:
        return await self._ask(lambda done: self._http.open_stream(request, done))

    async def open_tunnel(self, request: Request, handler: TunnelHandler) -> HttpTunnel:
        return await self._ask(lambda done: self._http.request(request, handler, done))

    async def _ask(self, ask: Callable[[Callable[[_T | Exception], None]], int]) -> _T:
        end, loop = self._dial.end, asyncio.get_running_loop()
        while not end.done() and self._left is None and not self._http.may_ask:
            # The peer allows no more streams; QUIC would wait by itself.
            self._room.clear()
            await unless_ended(end, asyncio.ensure_future(self._room.wait()))
        if end.done():
            raise end.result()
        if self._left is not None:
            raise self._left
        answer: asyncio.Future[_T] = loop.create_future()
        number = ask(_settler(answer))
        try:
            return await unless_ended(end, answer)
        except asyncio.CancelledError:
            self._http.cancel(number)
            raise

    @property
    def closed(self) -> bool:
        return self._dial.end.done()

    def leave(self) -> None:
        if self._left is None:
            http = self._http
            self._left = TunnelLost("the connection was left")
            http.withdraw(self._left)
            self._room.set()
            if not http.in_use:
                self.close()

            def vacant() -> None:
                # Not at once: the last stream says so in the middle of its end.
                http.carrier.soon(self.close)

            http.on_vacant = vacant

    async def ended(self) -> QvpnError:
        return await asyncio.shield(self._dial.end)

    def close(self) -> None:
        self._dial.fail(TunnelLost("the connection was closed"))
        self._dial.close()


def _settler(future: asyncio.Future[_T]) -> Callable[[_T | Exception], None]:
    def settle(outcome: _T | Exception) -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
            future.exception()  # who waits may be told of the connection's end instead
        else:
            future.set_result(outcome)

    return settle


@asynccontextmanager
async def dialled(
    endpoint: Endpoint,
    host: str,
    trust: Trust,
    timeout: float,
    socket_factory: SocketFactory,
    on_stage: StageHandler,
) -> AsyncIterator[TlsDial]:
    """A connection that is ready for requests; it is closed when what is done inside fails.

    `timeout` seconds are for all of it. Raises GatewayUnreachable, CertificateUntrusted,
    GatewayRefused, UsageError.
    """
    where = address_text(endpoint.address)
    try:
        known = settings.authorities(trust)
    except (OSError, ValueError) as error:
        raise authorities_error(trust, error) from error
    dial: TlsDial | None = None
    sock = await socket_factory(endpoint.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        on_stage("handshake")
        async with asyncio.timeout(timeout):
            try:
                await asyncio.get_running_loop().sock_connect(sock, endpoint.address)
                dial = TlsDial(sock, endpoint, host, trust, known)
            except OSError as error:
                raise GatewayUnreachable(
                    f"nothing answers at {where} on TCP ({os.strerror(error.errno or 0)})",
                    "check the address and that the gateway runs",
                ) from error
            try:
                takes_tunnels = await dial.is_gateway()
            except TunnelLost as error:
                raise GatewayUnreachable(
                    f"the handshake with {where} on TCP failed ({error.what})",
                    "try again, or ask the gateway's administrator",
                ) from error
            if not takes_tunnels:
                raise GatewayRefused(
                    f"the server at {where} offers no IP tunnels",
                    "check that the address is that of a qvpn gateway",
                )
            yield dial
    except TimeoutError:
        _give_back(dial, sock)
        raise GatewayUnreachable(
            f"no answer from {where} on TCP within {timeout:.0f} seconds",
            "check the address and that the gateway runs",
        ) from None
    except BaseException:
        _give_back(dial, sock)
        raise


def _give_back(dial: TlsDial | None, sock: socket.socket) -> None:
    if dial is not None:
        dial.close()
    else:
        sock.close()
