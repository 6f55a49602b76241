"""UDP in batches: GSO out, GRO in (Linux UDP_SEGMENT and UDP_GRO, linux/udp.h).

On other systems :class:`PortableUdpSocket` does the same one by one, for clients.

One system call carries up to 64 datagrams of one size. Where the kernel or a driver refuses, the
same calls go on without the offload. Datagrams always carry Don't Fragment and the kernel's own
idea of the path MTU is not consulted (IP_PMTUDISC_PROBE), since path MTU discovery is ours.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from qvpn_core.net.buffers import enlarge_receive_buffer
from qvpn_core.transport.interface import Address

# linux/udp.h
UDP_SEGMENT = 103
UDP_GRO = 104
MAX_SEGMENTS = 64  # UDP_MAX_SEGMENTS before Linux 6.9
MAX_BATCH_BYTES = 65000  # below the 16-bit length of the super-packet with its headers

# linux/in.h, linux/in6.h; Python has no names for these
IP_MTU_DISCOVER = 10
IP_PKTINFO = 8
IPV6_MTU_DISCOVER = 23
PMTUDISC_PROBE = 3

BACKLOG = 256  # batches; connections that see `blocked` add only control packets to it
_GSO_REFUSALS = (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP)
_CMSG_SPACE = 96  # bytes; two of up to 20, each with its header (cmsg(3))
_GRO_SIZE = struct.Struct("=i")
_GSO_SIZE = struct.Struct("=H")

Datagram = bytes
#: Ancillary data that pins the local address of a reply, from `receive`, for `send`.
LocalAddress = tuple[int, int, bytes]


#: What a socket received: datagram, sender, and the local address that it came to.
Received = list[tuple[Datagram, tuple[str, int], LocalAddress | None]]


class UdpPath(NamedTuple):
    """Both ends of a way through the network (RFC 9000 section 9), where QUIC asks for an address.

    Two packets took the same path when all of this is equal. A gateway with several sockets or
    addresses so answers each client from where that client reached it.
    """

    host: str
    port: int
    sock: UdpSocket
    #: For `UdpSocket.send`: the peer, None on a connected socket, and our own address.
    to: tuple[str, int] | None = None
    local: LocalAddress | None = None


def address_text(address: Sequence[Any]) -> str:
    """An address and port as people write them."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class UdpSocket:
    """A non-blocking UDP socket that moves batches.

    Takes over `sock`, bound or connected. `receive` returns at most a few hundred datagrams, so a
    flood cannot starve the loop.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ipv6 = sock.family == socket.AF_INET6
        self.gso = True
        self.send_errors = 0
        self._backlog: deque[tuple[Sequence[Datagram], tuple[str, int] | None, LocalAddress | None]]
        self._backlog = deque(maxlen=BACKLOG)
        sock.setblocking(False)
        self._set_options(sock)

    def _set_options(self, sock: socket.socket) -> None:
        if self._ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        enlarge_receive_buffer(sock)
        try:
            sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        except OSError:
            pass  # a kernel before 5.0 delivers one by one

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._sock.fileno()

    @property
    def address(self) -> Address:
        """The local address."""
        host, port = self._sock.getsockname()[:2]
        return host, port

    def close(self) -> None:
        """Close the descriptor."""
        self._sock.close()

    def receive(self, calls: int = 16) -> Received:
        """Drain up to `calls` super-packets: datagram, sender, and the local address it came to.

        Raises OSError for what the network reported (ECONNREFUSED on a connected socket).
        """
        received: Received = []
        recvmsg = self._sock.recvmsg
        for _ in range(calls):
            try:
                data, ancillary, _flags, sender = recvmsg(65535, _CMSG_SPACE)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if received:
                    break  # the error is repeated by the next call, or was transient
                raise
            segment = 0
            local: LocalAddress | None = None
            for level, kind, value in ancillary:
                if level == socket.IPPROTO_UDP and kind == UDP_GRO:
                    segment = _GRO_SIZE.unpack(value)[0]
                elif level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                    # struct in_pktinfo: index, spec_dst, addr. Index 0 leaves routing free.
                    local = (level, kind, b"\0\0\0\0" + value[4:8] + b"\0\0\0\0")
                elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                    scoped = value[0] == 0xFE and value[1] & 0xC0 == 0x80
                    local = (level, kind, value if scoped else value[:16] + b"\0\0\0\0")
            if 0 < segment < len(data):
                received += [
                    (data[start : start + segment], sender, local)
                    for start in range(0, len(data), segment)
                ]
            else:
                received.append((data, sender, local))
        return received

    @property
    def blocked(self) -> bool:
        """Whether the kernel takes no more for now; wait until it is writable, then `flush`."""
        return bool(self._backlog)

    def flush(self) -> None:
        """Send what waited while the socket was blocked."""
        waiting = list(self._backlog)
        self._backlog.clear()
        for datagrams, to, local in waiting:
            self.send(datagrams, to, local)

    def send(
        self, datagrams: Sequence[Datagram], to: tuple[str, int] | None, local: LocalAddress | None
    ) -> list[int]:
        """Send to one peer, in order; returns the sizes that the interface refuses (EMSGSIZE).

        `to` is None on a connected socket. What the kernel has no room for waits in a backlog, see
        `blocked`. Losing datagrams to a missing route is not an error: QUIC sees a loss.
        """
        if self._backlog:
            self._backlog.append((datagrams, to, local))
            return []
        refused: list[int] = []
        index = 0
        while index < len(datagrams):
            count = self._run_length(datagrams, index) if self.gso else 1
            batch = datagrams[index : index + count]
            try:
                self._send_run(batch, to, local, refused)
            except BlockingIOError:
                self._backlog.append((datagrams[index:], to, local))
                break
            index += count
        return refused

    def _send_run(
        self,
        run: Sequence[Datagram],
        to: tuple[str, int] | None,
        local: LocalAddress | None,
        refused: list[int],
    ) -> None:
        """Send datagrams of one size as one call. Raises BlockingIOError before sending any."""
        ancillary = [] if local is None else [local]
        if len(run) > 1:
            segment = (socket.IPPROTO_UDP, UDP_SEGMENT, _GSO_SIZE.pack(len(run[0])))
            try:
                self._sendmsg(run, [*ancillary, segment], to)
                return
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno not in _GSO_REFUSALS:
                    self.send_errors += len(run)
                    return
        troubles = len(refused) + self.send_errors
        for index, datagram in enumerate(run):
            try:
                self._sendmsg((datagram,), ancillary, to)
            except BlockingIOError:
                if index == 0:
                    raise
                self.send_errors += len(run) - index
                break
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    refused.append(len(datagram))
                else:
                    self.send_errors += 1
        if len(run) > 1 and len(refused) + self.send_errors == troubles:
            # Refused together but not apart: a driver without checksum offload, an old kernel.
            self.gso = False

    def _sendmsg(
        self,
        buffers: Sequence[Datagram],
        ancillary: Sequence[LocalAddress],
        to: tuple[str, int] | None,
    ) -> None:
        if to is not None:
            self._sock.sendmsg(buffers, ancillary, 0, to)
            return
        try:
            self._sock.sendmsg(buffers, ancillary)
        except BlockingIOError:
            raise
        except OSError:
            # A connected socket reports an ICMP message about an earlier packet by failing the next
            # call, whatever that sends, and EMSGSIZE looks the same from a router as from the local
            # interface. Reported once, it is gone; what concerns this packet fails again.
            self._sock.sendmsg(buffers, ancillary)

    @staticmethod
    def _run_length(datagrams: Sequence[Datagram], start: int) -> int:
        """How many datagrams fit one GSO call: equal sizes, only the last may be shorter."""
        size = len(datagrams[start])
        limit = min(len(datagrams), start + MAX_SEGMENTS, start + max(1, MAX_BATCH_BYTES // size))
        index = start + 1
        while index < limit:
            length = len(datagrams[index])
            if length != size:
                return index - start + (length < size)
            index += 1
        return index - start


#: Don't Fragment by system: level, option. netinet/in.h and netinet6/in6.h of macOS and FreeBSD,
#: ws2ipdef.h of Windows.
_DONT_FRAGMENT = {
    "darwin": ((socket.IPPROTO_IP, 28), (socket.IPPROTO_IPV6, 62)),
    "freebsd": ((socket.IPPROTO_IP, 67), (socket.IPPROTO_IPV6, 62)),
    "win32": ((socket.IPPROTO_IP, 14), (socket.IPPROTO_IPV6, 14)),
}


class PortableUdpSocket(UdpSocket):
    """A connected UDP socket by what every system has."""

    def _set_options(self, sock: socket.socket) -> None:
        self.gso = False
        system = sys.platform.rstrip("0123456789") if sys.platform != "win32" else sys.platform
        options = _DONT_FRAGMENT.get(system)
        if options is not None:
            with suppress(OSError):  # then path MTU discovery sees what fragments can carry
                sock.setsockopt(*options[self._ipv6], 1)
        enlarge_receive_buffer(sock)

    def receive(self, calls: int = 64) -> Received:
        received: Received = []
        for _ in range(calls):
            try:
                data, sender = self._sock.recvfrom(65535)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                if received:
                    break
                raise
            received.append((data, sender, None))
        return received

    def _sendmsg(
        self,
        buffers: Sequence[Datagram],
        ancillary: Sequence[LocalAddress],
        to: tuple[str, int] | None,
    ) -> None:
        for datagram in buffers:
            try:
                self._sock.send(datagram)
            except BlockingIOError:
                raise
            except OSError:
                self._sock.send(datagram)  # as in UdpSocket


def connected_udp(sock: socket.socket) -> UdpSocket:
    """The best that this system has for a connected socket."""
    return (UdpSocket if sys.platform == "linux" else PortableUdpSocket)(sock)
