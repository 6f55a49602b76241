"""The gateway's end of the TLS transport: TCP sockets, and the connections on them.

The same certificate, requests and answers as on QUIC (`listen.py`). Who may shake hands under load
is decided in `admission.py`, HTTP is in `http2.py` and `http1.py`; what is here keeps the time:
how long a stranger may take, and how many of them stay.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from OpenSSL import SSL

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.transport import settings, tls_settings
from qvpn_core.transport.admission import Admission, Strangers, Verdict
from qvpn_core.transport.carrier import Speaker
from qvpn_core.transport.http1 import Http1Connection, plain_refusal
from qvpn_core.transport.http2 import Http2Connection
from qvpn_core.transport.interface import Address, IncomingRequest
from qvpn_core.transport.listen import bind_error, certificate_configuration
from qvpn_core.transport.tls import TlsChannel, server_context
from qvpn_core.transport.tls_stream import TlsStream

_BACKLOG = 512  # connections that the kernel has accepted and we not yet
_ACCEPTS = 64  # at one wake-up
_SWEEP = 2.0  # seconds between two looks for who has taken too long
_LINGER = 2.0  # seconds in which a peer may read our last words
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Accepted:
    """One connection at the gateway."""

    def __init__(self, listener: TlsListener, sock: socket.socket, peer: Address) -> None:
        self._listener = listener
        self._channel = TlsChannel(listener.context)
        self._opened = asyncio.get_running_loop().time()
        self._half_open = True
        self.http: Http1Connection | Http2Connection | None = None
        self.stream = TlsStream(
            sock,
            peer,
            self._channel,
            established=self._established,
            ended=self._ended,
            linger=_LINGER,
            without_tls=plain_refusal(400),
        )

    @property
    def is_device(self) -> bool:
        """Whether it carries something, or may again at any time."""
        return isinstance(self.http, Http2Connection) and (self.http.known or self.http.in_use)

    @property
    def answered(self) -> bool:
        return self.http is not None and self.http.answered

    def _established(self) -> Speaker:
        self._no_longer_half_open()
        listener = self._listener
        if self._channel.protocol == tls_settings.ALPN_HTTP2:
            http2 = Http2Connection(self.stream, listener.on_request)
            http2.on_accept = lambda: listener.admitted(self)
            http2.on_vacant = lambda: listener.met_stranger(self)
            self.http = http2
        else:
            self.http = Http1Connection(self.stream, listener.on_request)
        listener.met_stranger(self)
        return self.http

    def _no_longer_half_open(self) -> None:
        if self._half_open:
            self._half_open = False
            self._listener.admission.half_open -= 1

    def _ended(self, error: QvpnError) -> None:
        del error
        self._no_longer_half_open()
        self._listener.forget(self)

    def check(self, now: float) -> None:
        """End what has taken too long."""
        stream, http = self.stream, self.http
        if http is None:
            if now - self._opened > settings.HANDSHAKE_TIMEOUT:
                stream.fail(TunnelLost("the handshake took too long"))
        elif self.is_device:
            stalled = stream.stalled and now - stream.last_progress > tls_settings.IDLE_TIMEOUT
            if stalled or now - stream.last_received > tls_settings.IDLE_TIMEOUT:
                words = f"no packet from the peer for {tls_settings.IDLE_TIMEOUT:.0f} seconds"
                stream.fail(TunnelLost(words))
        elif http.last_request is None:
            if now - self._opened > tls_settings.HEAD_TIMEOUT:
                self.end()
        elif now - http.last_request > tls_settings.REQUEST_TIMEOUT:
            self.end()

    def end(self) -> None:
        """Close: the peer is told, tunnels end, and nothing is remembered."""
        self.stream.close()


class TlsListener:
    """The gateway's TCP sockets and the connections on them."""

    def __init__(
        self,
        certificate: Path,
        private_key: Path,
        on_request: Callable[[IncomingRequest], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.use_certificate(certificate, private_key)
        self._sockets: list[socket.socket] = []
        self._accepted: set[_Accepted] = set()
        self._strangers = Strangers[_Accepted]()
        self._sweeping: asyncio.TimerHandle | None = None
        self.on_request = on_request
        self.admission = Admission()

    @classmethod
    async def start(
        cls,
        addresses: Sequence[Address],
        *,
        certificate: Path,
        private_key: Path,
        on_request: Callable[[IncomingRequest], None],
    ) -> TlsListener:
        """Bind and serve. Raises PortInUse, PermissionMissing, NetworkSetupFailed, UsageError."""
        listener = cls(certificate, private_key, on_request)
        try:
            for address in addresses:
                listener._bind_socket(address)
        except BaseException:
            await listener.close()
            raise
        listener._sweep()
        return listener

    @property
    def addresses(self) -> list[Address]:
        """The bound addresses, with the real ports."""
        return [sock.getsockname()[:2] for sock in self._sockets]

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
        self.context: SSL.Context = server_context(
            certificate_configuration(certificate, private_key)
        )

    async def close(self) -> None:
        """Tell every peer, then close the sockets."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()
        for accepted in list(self._accepted):
            accepted.end()

    def _bind_socket(self, address: Address) -> None:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:  # a kernel without IPv6
            raise bind_error("TCP", address, error) from error
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise bind_error("TCP", address, error) from error
        sock.setblocking(False)
        self._sockets.append(sock)
        self._loop.add_reader(sock.fileno(), self._readable, sock)

    def _readable(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    # The kernel keeps them; asked again at once, it would say the same again.
                    self._loop.remove_reader(listening.fileno())
                    self._loop.call_later(_SWEEP / 2, self._listen_again, listening)
                    return
                continue  # this one ended before it began
            self._admit(sock, (peer[0], peer[1]))

    def _listen_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._readable, listening)

    def _admit(self, sock: socket.socket, peer: Address) -> None:
        """TCP has proven the address; what Retry is for on QUIC, the kernel has done."""
        now = self._loop.time()
        verdict = self.admission.judge(peer[0], proven=False, now=now)
        if verdict is Verdict.RETRY:
            verdict = self.admission.judge(peer[0], proven=True, now=now)
        if verdict is not Verdict.ACCEPT:
            sock.close()
            return
        sock.setblocking(False)
        try:
            accepted = _Accepted(self, sock, peer)
        except OSError:
            sock.close()  # the peer has gone again
            return
        self.admission.half_open += 1
        self._accepted.add(accepted)

    def _sweep(self) -> None:
        now = self._loop.time()
        for accepted in list(self._accepted):
            accepted.check(now)
        self._sweeping = self._loop.call_later(_SWEEP, self._sweep)

    def met_stranger(self, accepted: _Accepted) -> None:
        """A connection carries nothing, yet or any more."""
        if self._strangers.meet(accepted):
            self._loop.call_soon(self._dismiss_stranger)

    def _dismiss_stranger(self) -> None:
        if (stranger := self._strangers.dismiss()) is not None:
            stranger.end()

    def admitted(self, accepted: _Accepted) -> None:
        """A connection carries a tunnel or a stream."""
        self._strangers.forget(accepted)

    def forget(self, accepted: _Accepted) -> None:
        """Drop a connection that ended."""
        self._strangers.forget(accepted)
        self._accepted.discard(accepted)
