"""The gateway's end: UDP sockets, and a dispatch to the connections on them by connection ID.

Who may open a connection under load is decided in `admission.py`; HTTP/3 is in `http3.py`, the
client's end in `dial.py`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from aioquic.buffer import Buffer
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from aioquic.tls import SessionTicket

from qvpn_core.errors import (
    NetworkSetupFailed,
    PermissionMissing,
    PortInUse,
    QvpnError,
    UsageError,
)
from qvpn_core.transport import settings
from qvpn_core.transport.admission import Admission, Strangers, Verdict
from qvpn_core.transport.aioquic_offload import OffloadConnection
from qvpn_core.transport.http3 import (
    Http3Connection,
)
from qvpn_core.transport.interface import (
    Address,
    IncomingRequest,
)
from qvpn_core.transport.offload import OffloadEngine
from qvpn_core.transport.tickets import TicketStore
from qvpn_core.transport.udp import Received, UdpPath, UdpSocket, address_text

_MIN_DATAGRAM = 1200  # RFC 9000 section 14.1


class _Accepted:
    """One connection at the gateway, on whichever socket its client reaches us by."""

    def __init__(
        self, listener: QuicListener, quic: OffloadConnection, tickets: list[SessionTicket]
    ) -> None:
        self._listener = listener
        #: Tickets that the peer was sent, which are worth something once it is known.
        self._tickets = tickets
        self.ids: set[bytes] = set()
        self.http = Http3Connection(
            quic,
            self._send,
            on_request=listener.on_request,
            on_end=self._on_end,
            on_connection_id=self._on_connection_id,
            blocked=lambda: self._path.sock.blocked,
        )
        self.http.on_handshake = self._on_handshake
        self.http.on_accept = self._on_accept
        # Else a device could collect connections by opening one tunnel after the other.
        self.http.on_vacant = lambda: listener.met_stranger(self)
        self._handshake_timer: asyncio.TimerHandle | None = asyncio.get_running_loop().call_later(
            settings.HANDSHAKE_TIMEOUT, self._handshake_expired
        )

    @property
    def _path(self) -> UdpPath:
        path = self.http.quic.get_peer_address()
        assert isinstance(path, UdpPath)
        return path

    def _send(self, datagrams: Sequence[bytes], path: UdpPath) -> list[int]:
        refused = path.sock.send(datagrams, path.to, path.local)
        if path.sock.blocked:
            self._listener.await_room(path.sock)
        return refused

    def _on_connection_id(self, connection_id: bytes, issued: bool) -> None:
        if issued:
            self._listener.bind(connection_id, self)
        else:
            self._listener.unbind(connection_id)

    def _on_handshake(self) -> None:
        self._stop_handshake_timer()
        self._listener.met_stranger(self)

    def _on_accept(self) -> None:
        self._listener.admitted(self)
        for ticket in self._tickets:
            self._listener.tickets.keep(ticket)
        self._tickets.clear()

    def _stop_handshake_timer(self) -> None:
        if self._handshake_timer is not None:
            self._handshake_timer.cancel()
            self._handshake_timer = None
            self._listener.admission.half_open -= 1

    def _handshake_expired(self) -> None:
        self.end()

    def _on_end(self, event: quic_events.ConnectionTerminated) -> None:
        del event
        self._release()

    @property
    def answered(self) -> bool:
        return self.http.answered

    def end(self, reason: str = "") -> None:
        """Close: the peer is told, tunnels end, and nothing is remembered."""
        self.http.close(reason)
        for tunnel in list(self.http.tunnels.values()):
            tunnel.ended(None)
        self._release()

    def _release(self) -> None:
        self._stop_handshake_timer()
        self.http.abandon()
        self._listener.forget(self)


class QuicListener:
    """The gateway's UDP sockets and the connections on them."""

    def __init__(
        self,
        certificate: Path,
        private_key: Path,
        on_request: Callable[[IncomingRequest], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._configuration = certificate_configuration(certificate, private_key)
        self._retry = QuicRetryTokenHandler()
        self._sockets: list[UdpSocket] = []
        self._engine: OffloadEngine | None = None
        self._by_id: dict[bytes, _Accepted] = {}
        self._accepted: set[_Accepted] = set()
        self._strangers = Strangers[_Accepted]()
        self.on_request = on_request
        self.admission = Admission()
        self.tickets = TicketStore()

    @classmethod
    async def start(
        cls,
        addresses: Sequence[Address],
        *,
        certificate: Path,
        private_key: Path,
        on_request: Callable[[IncomingRequest], None],
    ) -> QuicListener:
        """Bind and serve. Raises PortInUse, PermissionMissing, UsageError."""
        listener = cls(certificate, private_key, on_request)
        try:
            for address in addresses:
                listener._bind_socket(address)
        except BaseException:
            await listener.close(drain=0)
            raise
        return listener

    @property
    def addresses(self) -> list[Address]:
        """The bound addresses, with the real ports."""
        return [sock.address for sock in self._sockets]

    @property
    def connections(self) -> int:
        """Live connections."""
        return len(self._accepted)

    @property
    def half_open(self) -> int:
        """Connections whose handshake is not complete."""
        return self.admission.half_open

    def use_certificate(self, certificate: Path, private_key: Path) -> None:
        """Show another certificate from now on; live connections stay. Raises UsageError."""
        self._configuration = certificate_configuration(certificate, private_key)

    async def close(self, reason: str = "", drain: float = 0.0) -> None:
        """Close every connection with CONNECTION_CLOSE, wait `drain` seconds, close the sockets."""
        for accepted in list(self._accepted):
            accepted.end(reason)
        if drain:
            await asyncio.sleep(drain)
        self.reclaim()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()
        self._sockets.clear()

    def _bind_socket(self, address: Address) -> None:
        host, port = address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError as error:  # a kernel without IPv6
            raise bind_error("UDP", address, error) from error
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
        except OSError as error:
            sock.close()
            raise bind_error("UDP", address, error) from error
        udp = UdpSocket(sock)
        self._sockets.append(udp)
        self._loop.add_reader(udp.fileno(), self._readable, udp)

    def lend(self, engine: OffloadEngine) -> None:
        """Let an engine read the sockets; what is not its own comes back."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            engine.add_socket(sock, partial(self._received, sock))
        self._engine = engine

    def reclaim(self) -> None:
        """Read the sockets again. Idempotent."""
        engine, self._engine = self._engine, None
        if engine is not None:
            for sock in self._sockets:
                engine.remove_socket(sock)
                self._loop.add_reader(sock.fileno(), self._readable, sock)

    # Dispatch

    def _readable(self, sock: UdpSocket) -> None:
        try:
            received = sock.receive()
        except OSError:
            return  # an ICMP error about one peer says nothing about the socket
        self._received(sock, received)

    def _received(self, sock: UdpSocket, received: Received) -> None:
        now = self._loop.time()
        batches: dict[tuple[_Accepted, UdpPath], list[bytes]] = {}
        by_id = self._by_id
        id_end = 1 + settings.CONNECTION_ID
        path: UdpPath | None = None
        last: _Accepted | None = None  # whose packet came before on the same path
        for data, sender, local in received:
            if path is None or path.to != sender or path.local != local:
                path = UdpPath(sender[0], sender[1], sock, sender, local)
                last = None
            if data and data[0] & 0x80:
                accepted = self._long_header(data, path)
            else:
                accepted = by_id.get(data[1:id_end])
            if accepted is None:
                continue
            if accepted is not last:
                batch = batches.setdefault((accepted, path), [])
                last = accepted
            batch.append(data)
        for (accepted, path), batch in batches.items():
            accepted.http.receive(batch, path, now)
        for accepted in {accepted for accepted, _path in batches}:
            accepted.http.flush()

    def _long_header(self, data: bytes, path: UdpPath) -> _Accepted | None:
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=settings.CONNECTION_ID)
        except ValueError:
            return None
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None
        if header.version not in settings.VERSIONS:
            # RFC 9000 section 6.1: only for what could start a connection, so as not to amplify.
            if len(data) >= _MIN_DATAGRAM:
                answer = encode_quic_version_negotiation(
                    source_cid=header.destination_cid,
                    destination_cid=header.source_cid,
                    supported_versions=settings.VERSIONS,
                )
                path.sock.send([answer], path.to, path.local)
            return None
        accepted = self._by_id.get(header.destination_cid)
        if (
            accepted is None
            and header.packet_type == QuicPacketType.INITIAL
            and len(data) >= _MIN_DATAGRAM
        ):
            return self._initial(header, path)
        return accepted

    def _initial(self, header: QuicHeader, path: UdpPath) -> _Accepted | None:
        """The first packet of a connection; under load its address must be proven first."""
        original_id, retry_id = header.destination_cid, None
        if header.token:
            try:
                original_id = self._retry.validate_token(
                    address=path.to,
                    destination_cid=header.destination_cid,
                    token=header.token,
                    now=self._loop.time(),
                )
                retry_id = header.destination_cid
            except ValueError:
                return None  # stale or forged; the client starts over without it
        verdict = self.admission.judge(
            path.host, proven=retry_id is not None, now=self._loop.time()
        )
        if verdict is not Verdict.ACCEPT:
            if verdict is Verdict.RETRY:
                self._send_retry(header, path)
            return None
        tickets: list[SessionTicket] = []
        quic = OffloadConnection(
            configuration=self._configuration,
            original_destination_connection_id=original_id,
            retry_source_connection_id=retry_id,
            session_ticket_fetcher=self.tickets.take,
            session_ticket_handler=tickets.append,
        )
        accepted = _Accepted(self, quic, tickets)
        self._accepted.add(accepted)
        self.admission.half_open += 1
        self.bind(header.destination_cid, accepted)
        self.bind(quic.host_cid, accepted)
        return accepted

    def _send_retry(self, header: QuicHeader, path: UdpPath) -> None:
        source_id = os.urandom(settings.CONNECTION_ID)
        retry = encode_quic_retry(
            version=header.version or settings.VERSIONS[0],
            source_cid=source_id,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=self._retry.create_token(
                address=path.to,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source_id,
                now=self._loop.time(),
            ),
        )
        path.sock.send([retry], path.to, path.local)

    # From connections

    def await_room(self, sock: UdpSocket) -> None:
        """Go on sending once the kernel takes more from a blocked socket."""
        self._loop.add_writer(sock.fileno(), self._writable, sock)

    def _writable(self, sock: UdpSocket) -> None:
        sock.flush()
        if not sock.blocked:
            self._loop.remove_writer(sock.fileno())
            for accepted in list(self._accepted):
                accepted.http.transmit_datagrams()

    def bind(self, connection_id: bytes, accepted: _Accepted) -> None:
        """Route packets with a destination connection ID to a connection."""
        self._by_id[connection_id] = accepted
        accepted.ids.add(connection_id)

    def unbind(self, connection_id: bytes) -> None:
        """Stop routing a retired connection ID."""
        accepted = self._by_id.pop(connection_id, None)
        if accepted is not None:
            accepted.ids.discard(connection_id)

    def met_stranger(self, accepted: _Accepted) -> None:
        """A connection carries no tunnel, yet or any more."""
        if self._strangers.meet(accepted):
            # Not from inside of its receive: it may be in the batch that is being handled.
            self._loop.call_soon(self._dismiss_stranger)

    def _dismiss_stranger(self) -> None:
        if (stranger := self._strangers.dismiss()) is not None:
            stranger.end()

    def admitted(self, accepted: _Accepted) -> None:
        """A connection carries a tunnel."""
        self._strangers.forget(accepted)

    def forget(self, accepted: _Accepted) -> None:
        """Drop a connection that ended."""
        for connection_id in accepted.ids:
            self._by_id.pop(connection_id, None)
        accepted.ids.clear()
        self._strangers.forget(accepted)
        self._accepted.discard(accepted)


def certificate_configuration(certificate: Path, private_key: Path) -> QuicConfiguration:
    """What both transports show of a gateway. Raises UsageError for unusable files."""
    try:
        return settings.server_configuration(certificate, private_key)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot use the certificate {certificate} with its key ({error})",
            "give a readable PEM certificate and the key that belongs to it",
        ) from error


def bind_error(kind: str, address: Address, error: OSError) -> QvpnError:
    """Why a UDP or TCP socket (`kind`) cannot be bound, in words."""
    text = f"{kind} {address_text(address)}"
    if error.errno == errno.EADDRINUSE:
        return PortInUse(
            f"{text} is in use by another program",
            "stop it or choose another port with --listen",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionMissing(
            f"not allowed to listen on {text}", "run as root or choose a port above 1023"
        )
    return NetworkSetupFailed(
        f"cannot listen on {text} ({error.strerror})", "check the address in --listen"
    )
