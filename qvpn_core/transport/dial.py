"""The client's end of a QUIC connection, which waits to be asked; `reach.py` does.

Thin: a socket and its successors, a keepalive, and the translation of failures into words. HTTP/3
and everything else that is timed is in `http3.py`; the gateway's end is in `listen.py`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

from aioquic.quic import events as quic_events
from aioquic.quic.connection import NetworkAddress
from aioquic.tls import SessionTicket

from qvpn_core.auth.exporter import Exporter
from qvpn_core.errors import (
    AuthenticationFailed,
    CertificateUntrusted,
    GatewayRefused,
    GatewayUnreachable,
    QvpnError,
    TunnelLost,
    UsageError,
)
from qvpn_core.transport import settings
from qvpn_core.transport.aioquic_offload import OffloadConnection
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
from qvpn_core.transport.liveness import Liveness, Step
from qvpn_core.transport.offload import OffloadEngine
from qvpn_core.transport.resolver import look_up
from qvpn_core.transport.tickets import TicketJar, pack_ticket, unpack_ticket
from qvpn_core.transport.trust import Trust, spki_pin
from qvpn_core.transport.udp import Received, UdpPath, address_text, connected_udp

#: Makes an unbound, unconnected socket of an address family and a type, SOCK_DGRAM or SOCK_STREAM.
#: The caller marks it, which may take a privileged process and therefore time.
SocketFactory = Callable[[int, int], Awaitable[socket.socket]]
#: What connecting is at, in this order; several connections that race are at the first of theirs.
ConnectStage = Literal["resolving", "handshake", "authenticating"]
#: Told each stage when it begins.
StageHandler = Callable[[ConnectStage], None]
#: Makes a request once the connection is there whose exporter its credential is made from.
RequestMaker = Callable[[Exporter], Request]

_T = TypeVar("_T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of a gateway: its family, and what `socket.connect` takes."""

    family: int
    address: NetworkAddress


async def open_socket(family: int, kind: int) -> socket.socket:
    """The plain `SocketFactory`, for whoever needs no mark."""
    return socket.socket(family, kind)  # Python's sockets are not inherited (PEP 446)


_MTU_SECONDS = 1.0  # for the path MTU, when nobody is in a hurry
_TLS_ALERT = 0x100  # CRYPTO_ERROR, RFC 9001 section 4.8
_NO_APPLICATION_PROTOCOL = _TLS_ALERT + 120
_BAD_CERTIFICATE = _TLS_ALERT + 42
_CERTIFICATE_ALERTS = range(_TLS_ALERT + 42, _TLS_ALERT + 50)  # RFC 8446 section 6.2


#: Seconds for which packets that were under way to a socket are still read after a move.
_FORMER_SECONDS = 2.0
#: Seconds that a handshake gets which only asks whether the gateway answers at all, and between two
#: of them.
_STRANGER_SECONDS = 2.0
_STRANGER_PAUSE = 0.5


class QuicDial:
    """A client's connection with its socket and keepalive; see `reach.Connection`."""

    def __init__(
        self,
        path: UdpPath,
        endpoint: Endpoint,
        host: str,
        trust: Trust,
        tickets: TicketJar | None,
        socket_factory: SocketFactory,
    ) -> None:
        configuration = settings.client_configuration(host, trust)
        #: The pin under which the connection that is resumed was made.
        self._resumed_pin = ""
        if tickets is not None:
            data = tickets.load()
            usable = unpack_ticket(data, trust) if data is not None else None
            if usable is not None:
                configuration.session_ticket, self._resumed_pin = usable
        quic = OffloadConnection(
            configuration=configuration,
            session_ticket_handler=None if tickets is None else self._new_ticket,
        )
        self._tickets = tickets
        self._loop = asyncio.get_running_loop()
        self._path = path
        self._former: UdpPath | None = None
        self._endpoint = endpoint
        self._host = host
        self._socket_factory = socket_factory
        self._trust = trust
        self._keepalive: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.TimerHandle | None = None
        self._one_move = asyncio.Lock()
        self._doubting: asyncio.Task[None] | None = None
        #: Why the connection ended, once it has.
        self.end: asyncio.Future[QvpnError] = self._loop.create_future()
        self.http = Http3Connection(
            quic, self._send, on_end=self._on_end, blocked=lambda: self._path.sock.blocked
        )
        self.http.on_handshake = self._check_pin
        self.http.on_silence = self._on_silence
        self.http.rebind = self.rebind
        self.http.lend, self.http.reclaim = self._lend, self._reclaim
        #: Who reads the sockets in our place.
        self._engine: OffloadEngine | None = None
        self._read(path)

    @property
    def peer(self) -> str:
        """The gateway's address and port as people write them."""
        return address_text(self._path)

    def start(self) -> None:
        """Send the first flight."""
        self.http.quic.connect(self._path, self._loop.time())
        self.http.flush()
        self._keepalive = self._loop.call_later(settings.KEEPALIVE, self._keep_alive)

    def _send(self, datagrams: Sequence[bytes], path: NetworkAddress) -> list[int]:
        if not isinstance(path, UdpPath) or path.sock.fileno() < 0:
            return []  # a server's preferred address, which is not followed; a path of before
        refused = path.sock.send(datagrams, None, None)
        if path is self._path and path.sock.blocked:
            self._loop.add_writer(path.sock.fileno(), self._writable, path)
        return refused

    def _writable(self, path: UdpPath) -> None:
        path.sock.flush()
        if not path.sock.blocked:
            self._loop.remove_writer(path.sock.fileno())
            self.http.transmit_datagrams()

    # Who reads

    def _lend(self, engine: OffloadEngine) -> None:
        self._each_path(self._leave)
        self._engine = engine
        self._each_path(self._read)

    def _reclaim(self) -> None:
        self._each_path(self._leave)
        self._engine = None
        self._each_path(self._read)

    def _each_path(self, use: Callable[[UdpPath], None]) -> None:
        for path in (self._former, self._path):
            if path is not None and path.sock.fileno() >= 0:
                use(path)

    def _read(self, path: UdpPath) -> None:
        if self._engine is not None:
            self._engine.add_socket(path.sock, partial(self._received, path))
        else:
            self._loop.add_reader(path.sock.fileno(), self._readable, path)

    def _leave(self, path: UdpPath) -> None:
        if self._engine is not None:
            self._engine.remove_socket(path.sock)
        else:
            self._loop.remove_reader(path.sock.fileno())

    def _readable(self, path: UdpPath) -> None:
        try:
            received = path.sock.receive()
        except OSError as error:
            # Only believed before the handshake: anybody can forge ICMP.
            if not self.http.quic.established and error.errno in (
                errno.ECONNREFUSED,
                errno.EHOSTUNREACH,
                errno.ENETUNREACH,
            ):
                self._finish(
                    GatewayUnreachable(
                        f"nothing answers at {self.peer} ({os.strerror(error.errno)})",
                        "check the address and that the gateway runs",
                    )
                )
            return
        self._received(path, received)

    def _received(self, path: UdpPath, received: Received) -> None:
        self.http.receive([data for data, _sender, _local in received], path, self._loop.time())
        self.http.flush()

    # Moving

    async def rebind(self, slept: float) -> bool:
        """See `interface.HttpTunnel.rebind`."""
        silence = self._loop.time() - self.http.quic.last_received
        if silence + slept >= settings.IDLE_TIMEOUT or not await self._move():
            return False
        if self.http.liveness is not None:
            self.http.liveness.restart()
        return True

    async def _move(self) -> bool:
        async with self._one_move:
            if not self.http.quic.may_migrate():
                return False
            path = await _open_path(self._endpoint, self._socket_factory)
            if not self.http.quic.may_migrate():  # it ended meanwhile
                path.sock.close()
                return False
            self._forget_former()
            self._former, self._path = self._path, path
            self._loop.remove_writer(self._former.sock.fileno())
            self._forgetting = self._loop.call_later(_FORMER_SECONDS, self._forget_former)
            self._read(path)
            self.http.migrate(path)
            return True

    def _forget_former(self) -> None:
        former, self._former = self._former, None
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        if former is not None:
            self._close_socket(former)

    def _close_socket(self, path: UdpPath) -> None:
        if path.sock.fileno() >= 0:
            self._leave(path)
            self._loop.remove_writer(path.sock.fileno())
            self._loop.call_soon(path.sock.close)

    def _on_silence(self, step: Step) -> None:
        if step is Step.GIVE_UP:
            self._give_up()
        elif self._doubting is None:
            self._doubting = asyncio.create_task(self._doubt())

    def _give_up(self) -> None:
        silence = self._loop.time() - self.http.quic.last_received
        error = TunnelLost(f"no answer from the gateway for {silence:.0f} seconds")
        self.http.give_up(error)
        self._finish(error)

    async def _doubt(self) -> None:
        """The gateway is silent: try another socket, and see whether it answers strangers.

        One that does, and still not us, has forgotten us; else the path is down, which may pass.
        """
        heard = self.http.quic.last_received
        try:
            try:
                await self._move()
            except QvpnError as error:
                log.debug("no other socket: %s", error)
            begin, answered = 0.0, False
            while not answered:
                await asyncio.sleep(_STRANGER_PAUSE)
                if self.http.quic.last_received != heard:
                    return
                begin = self._loop.time()
                answered = await self._answers_strangers()
            # Long enough for answers to some of the questions that are asked meanwhile.
            await asyncio.sleep(max(_STRANGER_PAUSE, 2 * (self._loop.time() - begin)))
            if self.http.quic.last_received == heard:
                self._give_up()
        finally:
            self._doubting = None

    async def _answers_strangers(self) -> bool:
        try:
            async with dialled(
                self._endpoint, self._host, self._trust, _STRANGER_SECONDS, self._socket_factory,
                lambda _stage: None, None,
            ) as other:  # fmt: skip
                other.close()
        except QvpnError:
            return False
        return True

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
                    f"the gateway at {self.peer} does not have the pinned key",
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
        self._finish(lost(event) if usable else _handshake_error(event, self._path))

    def _finish(self, error: QvpnError) -> None:
        self.fail(error)
        self._release()

    def _release(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None
        if self._doubting is not None:
            self._doubting.cancel()
        self._forget_former()
        self._close_socket(self._path)

    def fail(self, error: QvpnError) -> None:
        """The tunnel ended before its owner had it: whoever waits for it is told."""
        if not self.end.done():
            self.end.set_result(error)

    async def open(
        self,
        request: Request | RequestMaker,
        handler: TunnelHandler,
        on_stage: StageHandler = lambda stage: None,
    ) -> HttpTunnel:
        """Ask for a tunnel; the connection closes with it. Raises as `reach.connect`."""
        if not isinstance(request, Request):
            request = request(self.http.quic.export_keying_material)
        on_stage("authenticating")
        wrapped = ClosingHandler(handler, self)
        asking = asyncio.ensure_future(self.http.request(request, wrapped))
        tunnel = await self._answered(asking)
        if not await self._unless_ended(self.http.path_usable):
            raise too_narrow()
        self.http.liveness = Liveness()
        wrapped.open = True
        return tunnel

    async def fetch(
        self, make: Callable[[Exporter], tuple[Request, bytes]], limit: int
    ) -> Response:
        """Make one ordinary request, then close. Raises as `reach.fetch`."""
        request, body = make(self.http.quic.export_keying_material)
        response = await self._answered(
            asyncio.ensure_future(self.http.fetch(request, body, limit))
        )
        self.close()
        return response

    async def proven(self) -> None:
        """Wait until the path carries what a tunnel needs, and for its MTU if that comes soon.

        Raises PathTooNarrow, TunnelLost.
        """
        if not await self._unless_ended(self.http.path_usable):
            raise too_narrow()
        with suppress(TimeoutError):
            async with asyncio.timeout(_MTU_SECONDS):
                await self.http.path_known.wait()

    def share(self) -> QuicClient:
        """Keep the connection, for any number of requests."""
        self.http.liveness = Liveness()
        return QuicClient(self)

    async def is_gateway(self) -> bool:
        """Wait for the handshake and the peer's settings: whether it takes tunnels."""
        return await self._unless_ended(self.http.ready)

    async def _answered(self, answer: asyncio.Future[_T]) -> _T:
        try:
            return await self._unless_ended(answer)
        except Refused as refused:
            raise refusal(refused.status) from None

    async def _unless_ended(self, wanted: asyncio.Future[_T]) -> _T:
        return await unless_ended(self.end, wanted)

    def close(self, reason: str = "") -> None:
        """Tell the peer, and give everything back."""
        if not self.http.quic.ended:
            self.http.close(reason)
        self.http.abandon()
        self._release()


class _Dial(Protocol):
    def close(self) -> None: ...

    def fail(self, error: QvpnError) -> None: ...


class ClosingHandler:
    """Forwards to the owner's handler, and closes the connection when its only tunnel ends.

    An end before `open` is set is the failure of `open`, and not told to the handler.
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


async def resolve(host: str, port: int) -> list[Endpoint]:
    """The addresses of a gateway, the resolver's first choice first. Raises NameNotResolved."""
    found = await look_up(host, port, socket.SOCK_DGRAM)
    unique = dict.fromkeys((int(family), address) for family, _, _, _, address in found)
    return [Endpoint(family, address) for family, address in unique]


class QuicClient:
    """An open connection; see `interface.HttpConnection`."""

    transport: TransportName = "quic"

    def __init__(self, dial: QuicDial) -> None:
        self._dial = dial
        self._left: QvpnError | None = None

    @property
    def peer(self) -> Address:
        return self._dial.http.peer

    @property
    def rtt(self) -> float:
        return self._dial.http.quic.rtt

    @property
    def silence(self) -> float:
        return self._dial.http.silence

    def export_keying_material(self, label: bytes, context: bytes, length: int) -> bytes:
        return self._dial.http.quic.export_keying_material(label, context, length)

    async def open_stream(self, request: Request) -> HttpStream:
        self._check()
        return await self._dial.http.open_stream(request)

    async def open_tunnel(self, request: Request, handler: TunnelHandler) -> HttpTunnel:
        self._check()
        return await self._dial.http.request(request, handler)

    @property
    def closed(self) -> bool:
        return self._dial.end.done()

    def leave(self) -> None:
        if self._left is None:
            http = self._dial.http
            self._left = TunnelLost("the connection was left")
            http.withdraw(self._left)
            if not http.in_use:
                self.close()

            def vacant() -> None:
                # Not at once: the last stream says so in the middle of its end.
                http.call_soon(self.close)

            http.on_vacant = vacant

    async def ended(self) -> QvpnError:
        return await asyncio.shield(self._dial.end)

    def close(self) -> None:
        self._dial.fail(TunnelLost("the connection was closed"))
        self._dial.close()

    def _check(self) -> None:
        if self._dial.end.done():
            raise self._dial.end.result()
        if self._left is not None:
            raise self._left


async def _open_path(endpoint: Endpoint, socket_factory: SocketFactory) -> UdpPath:
    """A socket of its own to an address. Raises GatewayUnreachable, and what the factory raises."""
    address = endpoint.address
    sock = await socket_factory(endpoint.family, socket.SOCK_DGRAM)
    try:
        sock.connect(address)
        return UdpPath(address[0], address[1], connected_udp(sock))
    except OSError as error:
        sock.close()
        raise GatewayUnreachable(
            f"cannot send to {address_text(address)} ({error.strerror})",
            "check this machine's network connection",
        ) from error


@asynccontextmanager
async def dialled(
    endpoint: Endpoint,
    host: str,
    trust: Trust,
    timeout: float,
    socket_factory: SocketFactory,
    on_stage: StageHandler,
    tickets: TicketJar | None,
) -> AsyncIterator[QuicDial]:
    """A connection that is ready for requests; it is closed when what is done inside fails.

    `timeout` seconds are for all of it. Raises GatewayUnreachable, CertificateUntrusted,
    GatewayRefused, UsageError.
    """
    path = await _open_path(endpoint, socket_factory)
    try:
        dial = QuicDial(path, endpoint, host, trust, tickets, socket_factory)
    except (OSError, ValueError) as error:
        path.sock.close()
        raise authorities_error(trust, error) from error
    try:
        on_stage("handshake")
        dial.start()
        async with asyncio.timeout(timeout):
            if not await dial.is_gateway():
                raise GatewayRefused(
                    f"the server at {dial.peer} offers no IP tunnels",
                    "check that the address is that of a qvpn gateway",
                )
            yield dial
    except TimeoutError:
        dial.close()
        raise GatewayUnreachable(
            f"no answer from {dial.peer} within {timeout:.0f} seconds",
            "check the address, that the gateway runs, and that UDP is not blocked",
        ) from None
    except BaseException:
        dial.close()
        raise


async def unless_ended(end: asyncio.Future[QvpnError], wanted: asyncio.Future[_T]) -> _T:
    """The result of `wanted`, unless the connection ends first: then its reason is raised."""
    try:
        await asyncio.wait((wanted, end), return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            raise end.result()
        return wanted.result()
    finally:
        wanted.cancel()


def authorities_error(trust: Trust, error: OSError | ValueError) -> UsageError:
    """What to say when the certification authorities cannot be read."""
    why = error.strerror if isinstance(error, OSError) else "no certificates in PEM"
    return UsageError(
        f"cannot read the certification authorities in {trust.ca_file} ({why})",
        "give an existing PEM file",
    )


def refusal(status: int | None) -> QvpnError:
    """What a gateway means that answers a request for a tunnel with `status`, None for a reset."""
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
