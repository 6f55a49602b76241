"""The client's end of a QUIC connection: `connect` opens a tunnel, `fetch` asks for a resource.

Thin: a socket, a keepalive, and the translation of failures into words. HTTP/3 and everything else
that is timed is in `http3.py`; the gateway's end is in `listen.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from aioquic.quic import events as quic_events
from aioquic.quic.connection import NetworkAddress
from aioquic.tls import SessionTicket

from qvpn_core.auth.exporter import Exporter
from qvpn_core.errors import (
    AuthenticationFailed,
    CertificateUntrusted,
    GatewayRefused,
    GatewayUnreachable,
    NameNotResolved,
    QvpnError,
    TunnelLost,
    UsageError,
)
from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_adapter import TunnelConnection
from qvpn_core.transport.http3 import (
    Http3Connection,
    Response,
    lost,
    too_narrow,
)
from qvpn_core.transport.interface import (
    Address,
    HttpStream,
    HttpTunnel,
    Refused,
    Request,
    TransportName,
    TunnelHandler,
)
from qvpn_core.transport.tickets import TicketJar, pack_ticket, unpack_ticket
from qvpn_core.transport.trust import Trust, spki_pin
from qvpn_core.transport.udp import UdpSocket, address_text, connected_udp

#: Makes an unbound, unconnected socket of an address family and a type, SOCK_DGRAM or SOCK_STREAM.
#: The caller marks it, which may take a privileged process and therefore time.
SocketFactory = Callable[[int, int], Awaitable[socket.socket]]
#: Told the stages of connecting: ``resolving``, ``handshake``, ``authenticating``.
StageHandler = Callable[[str], None]
#: Makes a request once the connection is there whose exporter its credential is made from.
RequestMaker = Callable[[Exporter], Request]

_T = TypeVar("_T")


async def open_socket(family: int, kind: int) -> socket.socket:
    """The plain `SocketFactory`, for whoever needs no mark."""
    return socket.socket(family, kind)  # Python's sockets are not inherited (PEP 446)


_TLS_ALERT = 0x100  # CRYPTO_ERROR, RFC 9001 section 4.8
_NO_APPLICATION_PROTOCOL = _TLS_ALERT + 120
_BAD_CERTIFICATE = _TLS_ALERT + 42
_CERTIFICATE_ALERTS = range(_TLS_ALERT + 42, _TLS_ALERT + 50)  # RFC 8446 section 6.2


class _Dial:
    """A client's connection with its socket and keepalive."""

    def __init__(
        self,
        sock: UdpSocket,
        peer: NetworkAddress,
        host: str,
        trust: Trust,
        tickets: TicketJar | None,
    ) -> None:
        configuration = settings.client_configuration(host, trust)
        #: The pin under which the connection that is resumed was made.
        self._resumed_pin = ""
        if tickets is not None:
            data = tickets.load()
            usable = unpack_ticket(data, trust) if data is not None else None
            if usable is not None:
                configuration.session_ticket, self._resumed_pin = usable
        quic = TunnelConnection(
            configuration=configuration,
            session_ticket_handler=None if tickets is None else self._new_ticket,
        )
        self._tickets = tickets
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._peer = peer
        self._trust = trust
        self._keepalive: asyncio.TimerHandle | None = None
        #: Why the connection ended, once it has.
        self.end: asyncio.Future[QvpnError] = self._loop.create_future()
        self.http = Http3Connection(
            quic, self._send, on_end=self._on_end, blocked=lambda: sock.blocked
        )
        self.http.on_handshake = self._check_pin
        self._loop.add_reader(sock.fileno(), self._readable)

    def start(self) -> None:
        """Send the first flight."""
        self.http.quic.connect(self._peer, self._loop.time())
        self.http.flush()
        self._keepalive = self._loop.call_later(settings.KEEPALIVE, self._keep_alive)

    def _send(self, datagrams: Sequence[bytes], address: NetworkAddress) -> list[int]:
        if address != self._peer:
            return []  # a connected socket; a server's preferred address is not followed
        refused = self._socket.send(datagrams, None, None)
        if self._socket.blocked:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        return refused

    def _writable(self) -> None:
        self._socket.flush()
        if not self._socket.blocked:
            self._loop.remove_writer(self._socket.fileno())
            self.http.transmit_datagrams()

    def _readable(self) -> None:
        now = self._loop.time()
        try:
            received = self._socket.receive()
        except OSError as error:
            # Only believed before the handshake: anybody can forge ICMP.
            if not self.http.quic.established and error.errno in (
                errno.ECONNREFUSED,
                errno.EHOSTUNREACH,
                errno.ENETUNREACH,
            ):
                self._finish(
                    GatewayUnreachable(
                        f"nothing answers at {address_text(self._peer)}"
                        f" ({os.strerror(error.errno)})",
                        "check the address and that the gateway runs",
                    )
                )
            return
        self.http.receive([data for data, _sender, _local in received], self._peer, now)
        self.http.flush()

    def _new_ticket(self, ticket: SessionTicket) -> None:
        assert self._tickets is not None
        certificate = self.http.quic.peer_certificate
        pin = self._resumed_pin if certificate is None else spki_pin(certificate)
        self._tickets.save(pack_ticket(ticket, self._trust, pin))

    def _check_pin(self) -> None:
        if self.http.quic.resumed:
            return  # with whom we shared the ticket's secret had a key that we still trust
        certificate = self.http.quic.peer_certificate
        if self._trust.pins and (certificate is None or not self._trust.accepts(certificate)):
            self.http.quic.close(error_code=_BAD_CERTIFICATE, reason_phrase="")
            self._finish(
                CertificateUntrusted(
                    f"the gateway at {address_text(self._peer)} does not have the pinned key",
                    "somebody may be in between; ask the administrator for the gateway's pin",
                )
            )

    def _keep_alive(self) -> None:
        """Send a PING when it is due, and look again when the next may be."""
        quic = self.http.quic
        wait = quic.last_received + settings.KEEPALIVE - self._loop.time()
        if wait <= 0:
            if quic.established:
                self.http.keep_alive()
            wait = settings.KEEPALIVE
        self._keepalive = self._loop.call_later(wait, self._keep_alive)

    def _on_end(self, event: quic_events.ConnectionTerminated) -> None:
        usable = self.http.ready.exception() is None
        self._finish(lost(event) if usable else _handshake_error(event, self._peer))

    def _finish(self, error: QvpnError) -> None:
        self.fail(error)
        self._release()

    def _release(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._loop.call_soon(self._socket.close)

    def fail(self, error: QvpnError) -> None:
        """The tunnel ended before its owner had it: whoever waits for it is told."""
        if not self.end.done():
            self.end.set_result(error)

    def close(self, reason: str = "") -> None:
        """Tell the peer, and give everything back."""
        if not self.http.quic.ended:
            self.http.close(reason)
        self.http.abandon()
        self._release()


class _ClosingHandler:
    """Forwards to the owner's handler, and closes the connection when its only tunnel ends.

    An end before `open` is set is the failure of `connect`, and not told to the handler.
    """

    def __init__(self, handler: TunnelHandler, dial: _Dial) -> None:
        self.capsule_data = handler.capsule_data
        self.capsule_end = handler.capsule_end
        self.packets = handler.packets
        self.packet_too_big = handler.packet_too_big
        self.mtu_changed = handler.mtu_changed
        self._closed = handler.closed
        self._dial = dial
        self.open = False

    def closed(self, error: QvpnError | None) -> None:
        if self.open:
            self._dial.close()
            self._closed(error)
        else:
            self._dial.fail(error or TunnelLost("the gateway closed the tunnel at once"))


async def connect(
    host: str,
    port: int,
    *,
    trust: Trust,
    request: Request | RequestMaker,
    handler: TunnelHandler,
    addresses: Sequence[str] = (),
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    socket_factory: SocketFactory = open_socket,
    on_stage: StageHandler = lambda stage: None,
    tickets: TicketJar | None = None,
) -> HttpTunnel:
    """Open a tunnel: resolve, shake hands, check trust, prove the path, ask.

    Tries the host's addresses in the resolver's order, sharing `timeout` (seconds). `addresses` of
    an earlier session spare the resolver, which may itself be behind the tunnel; the certificate
    is checked against `host` all the same. Closing the tunnel closes its connection. With `tickets`
    the handshake is shorter when the gateway remembers the last one.

    Raises NameNotResolved, GatewayUnreachable, CertificateUntrusted, AuthenticationFailed,
    GatewayRefused, PathTooNarrow, UsageError, and TunnelLost when it ended at once. The handler's
    `closed` is called only for a tunnel that was returned.
    """
    on_stage("resolving")
    endpoints = [
        endpoint for name in addresses or (host,) for endpoint in await _resolve(name, port)
    ]
    deadline = asyncio.get_running_loop().time() + timeout
    failure: QvpnError | None = None
    for index, (family, address) in enumerate(endpoints):
        remaining = deadline - asyncio.get_running_loop().time()
        share = remaining / (len(endpoints) - index)
        try:
            return await _connect_to(
                family, address, host, trust, request, handler, share, socket_factory, on_stage,
                tickets,
            )  # fmt: skip
        except GatewayUnreachable as error:
            failure = failure or error
    assert failure is not None
    raise failure


async def _resolve(host: str, port: int) -> list[tuple[int, NetworkAddress]]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP
        )
    except (socket.gaierror, ValueError) as error:
        raise NameNotResolved(
            f"cannot find the address of {host}", "check the name and this machine's DNS"
        ) from error
    unique = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
    return [(family, address) for family, address in unique]


async def _connect_to(
    family: int,
    address: NetworkAddress,
    host: str,
    trust: Trust,
    request: Request | RequestMaker,
    handler: TunnelHandler,
    timeout: float,
    socket_factory: SocketFactory,
    on_stage: StageHandler,
    tickets: TicketJar | None,
) -> HttpTunnel:
    async with _dialled(
        family, address, host, trust, timeout, socket_factory, on_stage, tickets
    ) as dial:
        if not isinstance(request, Request):
            request = request(dial.http.quic.export_keying_material)
        on_stage("authenticating")
        wrapped = _ClosingHandler(handler, dial)
        tunnel = await _unless_ended(
            dial, asyncio.ensure_future(dial.http.request(request, wrapped))
        )
        if not await _unless_ended(dial, dial.http.path_usable):
            raise too_narrow()
        wrapped.open = True
        return tunnel


async def fetch(
    host: str,
    port: int,
    *,
    trust: Trust,
    make: Callable[[Exporter], tuple[Request, bytes]],
    limit: int,
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    socket_factory: SocketFactory = open_socket,
) -> Response:
    """Make one ordinary request with its content on a connection of its own.

    `limit` bounds the answer's content in bytes. Raises as `connect` does, and ProtocolViolation
    for a longer answer, and TunnelLost when the connection ends before the answer: the request may
    have been acted upon.
    """
    endpoints = await _resolve(host, port)
    deadline = asyncio.get_running_loop().time() + timeout
    failure: QvpnError | None = None
    for index, (family, address) in enumerate(endpoints):
        share = (deadline - asyncio.get_running_loop().time()) / (len(endpoints) - index)
        sent = False
        try:
            async with _dialled(
                family, address, host, trust, share, socket_factory, lambda stage: None, None
            ) as dial:
                request, body = make(dial.http.quic.export_keying_material)
                sent = True
                response = await _unless_ended(
                    dial, asyncio.ensure_future(dial.http.fetch(request, body, limit))
                )
                dial.close()
                return response
        except GatewayUnreachable as error:
            if sent:
                raise
            failure = failure or error
    assert failure is not None
    raise failure


class QuicClient:
    """An open connection; see `interface.HttpConnection`."""

    transport: TransportName = "quic"

    def __init__(self, dial: _Dial) -> None:
        self._dial = dial

    @property
    def peer(self) -> Address:
        return self._dial.http.peer

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._dial.http.quic.export_keying_material(label, context, length)

    async def open_stream(self, request: Request) -> HttpStream:
        self._check()
        return await self._dial.http.open_stream(request)

    async def open_tunnel(self, request: Request, handler: TunnelHandler) -> HttpTunnel:
        self._check()
        return await self._dial.http.request(request, handler)

    async def ended(self) -> QvpnError:
        return await asyncio.shield(self._dial.end)

    def close(self) -> None:
        self._dial.fail(TunnelLost("the connection was closed"))
        self._dial.close()

    def _check(self) -> None:
        if self._dial.end.done():
            raise self._dial.end.result()


async def open_connection(
    host: str,
    port: int,
    *,
    trust: Trust,
    timeout: float = settings.HANDSHAKE_TIMEOUT,
    socket_factory: SocketFactory = open_socket,
    on_stage: StageHandler = lambda stage: None,
    tickets: TicketJar | None = None,
) -> QuicClient:
    """A connection for any number of requests; as `connect` in all else.

    It proves no path: what carries no IP packets does without a minimum. Raises NameNotResolved,
    GatewayUnreachable, CertificateUntrusted, GatewayRefused, UsageError.
    """
    on_stage("resolving")
    endpoints = await _resolve(host, port)
    deadline = asyncio.get_running_loop().time() + timeout
    failure: QvpnError | None = None
    for index, (family, address) in enumerate(endpoints):
        share = (deadline - asyncio.get_running_loop().time()) / (len(endpoints) - index)
        try:
            async with _dialled(
                family, address, host, trust, share, socket_factory, on_stage, tickets
            ) as dial:
                return QuicClient(dial)
        except GatewayUnreachable as error:
            failure = failure or error
    assert failure is not None
    raise failure


@asynccontextmanager
async def _dialled(
    family: int,
    address: NetworkAddress,
    host: str,
    trust: Trust,
    timeout: float,
    socket_factory: SocketFactory,
    on_stage: StageHandler,
    tickets: TicketJar | None,
) -> AsyncIterator[_Dial]:
    """A connection that is ready for requests; it is closed when what is done inside fails.

    `timeout` seconds are for all of it.
    """
    sock = await socket_factory(family, socket.SOCK_DGRAM)
    try:
        sock.connect(address)
        udp = connected_udp(sock)
    except OSError as error:
        sock.close()
        raise GatewayUnreachable(
            f"cannot send to {address_text(address)} ({error.strerror})",
            "check this machine's network connection",
        ) from error
    try:
        dial = _Dial(udp, address, host, trust, tickets)
    except (OSError, ValueError) as error:
        udp.close()
        why = error.strerror if isinstance(error, OSError) else "no certificates in PEM"
        raise UsageError(
            f"cannot read the certification authorities in {trust.ca_file} ({why})",
            "give an existing PEM file",
        ) from error
    try:
        on_stage("handshake")
        dial.start()
        async with asyncio.timeout(timeout):
            if not await _unless_ended(dial, dial.http.ready):
                raise GatewayRefused(
                    f"the server at {address_text(address)} offers no IP tunnels",
                    "check that the address is that of a qvpn gateway",
                )
            yield dial
    except TimeoutError:
        dial.close()
        raise GatewayUnreachable(
            f"no answer from {address_text(address)} within {timeout:.0f} seconds",
            "check the address, that the gateway runs, and that UDP is not blocked",
        ) from None
    except Refused as refused:
        dial.close()
        raise refusal(refused.status) from None
    except BaseException:
        dial.close()
        raise


async def _unless_ended(dial: _Dial, wanted: asyncio.Future[_T]) -> _T:
    """The result of `wanted`, unless the connection ends first: then its reason is raised."""
    try:
        await asyncio.wait((wanted, dial.end), return_when=asyncio.FIRST_COMPLETED)
        if dial.end.done():
            raise dial.end.result()
        return wanted.result()
    finally:
        wanted.cancel()


def refusal(status: int | None) -> QvpnError:
    """Why a gateway that is reached opens nothing, by the status of its answer."""
    if status in (401, 403, 404, 405, 407):
        # A gateway shows callers without a valid credential an ordinary web site.
        return AuthenticationFailed(
            "the gateway does not know this device",
            "its credential is wrong or revoked, or the address is not that of a qvpn gateway",
        )
    if status == 503:
        return GatewayRefused(
            "the gateway has no room for another device", "try later or ask its administrator"
        )
    answer = f"status {status}" if status is not None else "a reset"
    return GatewayRefused(f"the gateway refused the tunnel with {answer}", "ask its administrator")


def _handshake_error(event: quic_events.ConnectionTerminated, address: NetworkAddress) -> QvpnError:
    """Why a connection that was never established ended."""
    code, reason = event.error_code, event.reason_phrase
    if code in _CERTIFICATE_ALERTS:
        if "not valid yet" in reason or "no longer valid" in reason or "expired" in reason:
            return CertificateUntrusted(
                f"the gateway's certificate is not valid now ({reason})",
                "check this machine's clock, then ask the administrator",
            )
        return CertificateUntrusted(
            f"the certificate of {address_text(address)} is not trusted ({reason})",
            "check the host name, or give the gateway's pin or certification authority",
        )
    if code == _NO_APPLICATION_PROTOCOL:
        return GatewayRefused(
            f"the server at {address_text(address)} does not speak HTTP/3",
            "check that the address is that of a qvpn gateway",
        )
    if reason == "Idle timeout":
        return GatewayUnreachable(
            f"no answer from {address_text(address)}",
            "check the address, that the gateway runs, and that UDP is not blocked",
        )
    return GatewayUnreachable(
        f"the gateway at {address_text(address)} ended the handshake (QUIC error {code:#x})",
        reason or "try again, or ask its administrator",
    )
