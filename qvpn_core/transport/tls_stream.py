"""A TCP socket with TLS on an event loop: thin, the same at both ends.

Moves ciphertext between the kernel and a `TlsChannel`, plaintext between that and HTTP. It asks
HTTP for more only when the kernel has taken all, so at most one chunk is ever committed and not
under way. What only Linux has (few unsent bytes, what TCP knows of the peer) is used there alone.
It refuses to wait: no call blocks, and whoever owns it keeps the time limits.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from qvpn_core.errors import QvpnError, TunnelLost
from qvpn_core.transport import tls_settings
from qvpn_core.transport.carrier import Speaker
from qvpn_core.transport.interface import Address
from qvpn_core.transport.tls import TlsChannel, TlsError

# linux/tcp.h; Python 3.11 has no name for the first
_TCP_NOTSENT_LOWAT: Final = 25
_TCP_INFO_BYTES: Final = 104
_TCP_INFO_UNACKED: Final = 24
_TCP_INFO_LAST_ACK: Final = 56  # milliseconds
_TCP_INFO_RTT: Final = 68  # microseconds

_READ: Final = 1 << 16
#: Reads at one wake-up, so that one peer cannot keep the loop.
_READS: Final = 4


class TlsStream:
    """One connection; a `carrier.Carrier`. Takes `sock` over, connected and non-blocking.

    `established` is called when the handshake is complete and gives who speaks from there on; a
    QvpnError that it raises is the end. `ended` is called once, when the descriptor is closed.
    `linger` is for how many seconds the end waits for the peer to have read the last bytes;
    `without_tls` is said to who speaks HTTP without TLS.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: Address,
        channel: TlsChannel,
        *,
        established: Callable[[], Speaker],
        ended: Callable[[QvpnError], None],
        linger: float,
        without_tls: bytes = b"",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self.peer = peer
        self._channel = channel
        self._established, self._ended, self._linger = established, ended, linger
        self._without_tls = without_tls
        self._backlog = b""
        self._finishing: asyncio.TimerHandle | None = None
        self._giving_up: asyncio.TimerHandle | None = None
        self._busy = False
        self._closed = False
        self._why: QvpnError | None = None
        self.http: Speaker | None = None
        #: When bytes last came, and when the kernel last took some (or nothing waited).
        self.last_received = self.last_progress = self._loop.time()
        self.now = self._loop.time
        self.soon: Callable[..., object] = self._loop.call_soon
        self.export_keying_material = channel.export_keying_material
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, tls_settings.NOTSENT_LOWAT)
            timeout = int(tls_settings.USER_TIMEOUT * 1000)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def rtt(self) -> float:
        return self._tcp_info(_TCP_INFO_RTT) / 1e6

    @property
    def silence(self) -> float:
        if self._tcp_info(_TCP_INFO_UNACKED) == 0:
            return 0.0
        return self._tcp_info(_TCP_INFO_LAST_ACK) / 1e3

    @property
    def stalled(self) -> bool:
        """Whether bytes wait because the kernel takes none."""
        return bool(self._backlog)

    @property
    def handshaking(self) -> bool:
        return self.http is None

    def start(self) -> None:
        """At the client: send the first flight."""
        self._channel.handshake()
        self._write(self._channel.take())

    def wake(self) -> None:
        """Send what HTTP has, as long as the kernel takes it."""
        http = self.http
        if http is None or self._busy or self._closed or self._finishing is not None:
            return
        self._busy = True  # what happens meanwhile wakes in vain: it is pulled here
        try:
            while not self._backlog and (data := http.pull()):
                self._channel.send(data)
                self._write(self._channel.take())
        except TlsError as error:
            self.fail(TunnelLost(f"the connection failed ({error})"))
        finally:
            self._busy = False
        if self._channel.worn_out:
            self.fail(TunnelLost("the key of the connection is used up"))
        elif http.over and not self._backlog:
            self._finish()
        elif http.over and self._giving_up is None and not self._closed:
            # It has still to take what was said before; not for ever.
            self._giving_up = self._loop.call_later(self._linger, self._release)

    def _readable(self) -> None:
        for _ in range(_READS):
            try:
                data = self._sock.recv(_READ)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.fail(_lost(error))
                return
            if not data:
                self.fail(TunnelLost("the peer closed the connection"))
                return
            if self._finishing is not None:
                continue  # read, so that the kernel does not answer with a reset
            self.last_received = self.now()
            self._take(data)
            if self._closed or len(data) < _READ:
                return

    def _take(self, data: bytes) -> None:
        try:
            plaintext = self._channel.receive(data)
        except TlsError as error:
            self._refuse(error)
            return
        self._write(self._channel.take())
        if self.http is None and self._channel.established:
            try:
                self.http = self._established()
            except QvpnError as error:
                self.fail(error)
                return
            self.wake()
        if plaintext and self.http is not None and not self._closed:
            self._busy = True
            self.http.receive(plaintext)
            self._busy = False
            self.wake()
        if self._channel.ended:
            self.fail(TunnelLost("the peer closed the connection"))

    def _write(self, data: bytes) -> None:
        if self._closed or not data:
            return
        if self._backlog:
            self._backlog += data
            if len(self._backlog) > tls_settings.MAX_BACKLOG:
                self.fail(TunnelLost("the peer does not take what it is told"))
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.fail(_lost(error))
            return
        if sent:
            self.last_progress = self.now()
        if sent < len(data):
            self._backlog = data[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        data, self._backlog = self._backlog, b""
        self._loop.remove_writer(self._sock.fileno())
        self._write(data)
        if not self._backlog:
            self.wake()

    def _refuse(self, error: TlsError) -> None:
        alert = self._channel.take()
        if self._without_tls and "http" in str(error):  # OpenSSL knows its methods
            self._write(self._without_tls)
            self._finish_sending()
            return
        self._write(alert)
        self.fail(TunnelLost(f"TLS failed ({error})"))

    def _finish(self) -> None:
        """Say close_notify, and close when the peer has it."""
        if self._closed or self._finishing is not None:
            return
        self._channel.finish()
        self._write(self._channel.take())
        self._finish_sending()

    def _finish_sending(self) -> None:
        if self._closed:
            return
        self._finishing = self._loop.call_later(self._linger, self._release)
        if not self._linger:
            self._release()
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._release()

    def close(self) -> None:
        """End in order; the peer is told as far as the kernel takes it at once."""
        if self._busy:
            self._loop.call_soon(self.close)  # what is about to be said comes first
            return
        if self.http is not None and not self._closed:
            self.http.close()  # wakes, and so finishes unless something waits
        self._release()

    def fail(self, error: QvpnError) -> None:
        """End at once because of `error`."""
        if self._closed:
            return
        self._why = self._why or error
        if self.http is not None:
            self.http.lost(error)
        self._release()

    def _release(self) -> None:
        if self._closed:
            return
        self._closed = True
        for timer in (self._finishing, self._giving_up):
            if timer is not None:
                timer.cancel()
        descriptor = self._sock.fileno()
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        self._sock.close()
        self._ended(self._why or TunnelLost("the connection was closed"))

    def _tcp_info(self, offset: int) -> int:
        if sys.platform != "linux":
            return 0  # proxies go on without, and tunnels are Linux only
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        except OSError:
            return 0  # closed
        value: int = struct.unpack_from("=I", info, offset)[0] if len(info) > offset + 4 else 0
        return value


def _lost(error: OSError) -> QvpnError:
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return TunnelLost("the peer closed the connection")
    return TunnelLost(f"the connection failed ({os.strerror(error.errno or 0)})")
