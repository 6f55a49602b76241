"""UDP in batches: GSO out, GRO in (Linux UDP_SEGMENT and UDP_GRO, linux/udp.h).

One system call carries up to 64 datagrams of one size. Where the kernel or a driver refuses, the
same calls go on without the offload. Datagrams always carry Don't Fragment and the kernel's own
idea of the path MTU is not consulted (IP_PMTUDISC_PROBE), since path MTU discovery is ours.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

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

RECEIVE_BUFFER = 4 << 20  # bytes; a burst of a full window must not be lost before we wake up
_CMSG_SPACE = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(20)
_GRO_SIZE = struct.Struct("=i")
_GSO_SIZE = struct.Struct("=H")

Datagram = bytes
#: Ancillary data that pins the local address of a reply, from `receive`, for `send`.
LocalAddress = tuple[int, int, bytes]


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
        sock.setblocking(False)
        if self._ipv6:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_PROBE)
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, RECEIVE_BUFFER)
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

    def receive(
        self, calls: int = 16
    ) -> list[tuple[Datagram, tuple[str, int], LocalAddress | None]]:
        """Drain up to `calls` super-packets: datagram, sender, and the local address it came to.

        Raises OSError for what the network reported (ECONNREFUSED on a connected socket).
        """
        received: list[tuple[Datagram, tuple[str, int], LocalAddress | None]] = []
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

    def send(
        self, datagrams: Sequence[Datagram], to: tuple[str, int] | None, local: LocalAddress | None
    ) -> list[int]:
        """Send to one peer, in order; returns the sizes that the interface refuses (EMSGSIZE).

        `to` is None on a connected socket. Losing datagrams to a full socket buffer or a missing
        route is not an error: QUIC sees a loss.
        """
        refused: list[int] = []
        index = 0
        while index < len(datagrams):
            count = self._run_length(datagrams, index) if self.gso else 1
            batch = datagrams[index : index + count]
            if count > 1 and not self._send_segmented(batch, to, local):
                singly = self._send_singly(batch, to, local)
                # Refused together but not apart: a driver without checksum offload, an old kernel.
                self.gso = bool(singly)
                refused += singly
            elif count == 1:
                refused += self._send_singly(batch, to, local)
            index += count
        return refused

    def _send_segmented(
        self, batch: Sequence[Datagram], to: tuple[str, int] | None, local: LocalAddress | None
    ) -> bool:
        """One GSO call. False when the kernel does not take it as such."""
        ancillary = [] if local is None else [local]
        ancillary.append((socket.IPPROTO_UDP, UDP_SEGMENT, _GSO_SIZE.pack(len(batch[0]))))
        try:
            self._sendmsg(batch, ancillary, to)
        except OSError as error:
            if error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP):
                return False
            self.send_errors += len(batch)
        return True

    def _send_singly(
        self, batch: Sequence[Datagram], to: tuple[str, int] | None, local: LocalAddress | None
    ) -> list[int]:
        """A call for each; returns the sizes refused with EMSGSIZE."""
        refused: list[int] = []
        ancillary = [] if local is None else [local]
        for datagram in batch:
            try:
                self._sendmsg((datagram,), ancillary, to)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    refused.append(len(datagram))
                else:
                    self.send_errors += 1
        return refused

    def _sendmsg(
        self,
        buffers: Sequence[Datagram],
        ancillary: Sequence[LocalAddress],
        to: tuple[str, int] | None,
    ) -> None:
        if to is None:
            self._sock.sendmsg(buffers, ancillary)
        else:
            self._sock.sendmsg(buffers, ancillary, 0, to)

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
