"""UDP sockets that see what the network says: marks on arriving packets, and the ICMP errors.

For tests about sizes, fragments, hop limits and traffic classes, where a plain echo is too coarse.
Works in either family; every wait is bounded and nothing here retries.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

from tests.world.namespaces import Namespace

Address = tuple[str, int]

# linux/in.h and linux/in6.h, as (level, IPv4 option) and (level, IPv6 option); Python has few.
_MTU_DISCOVER: Final = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
_MTU: Final = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
_RECVERR: Final = {4: (socket.IPPROTO_IP, 11), 6: (socket.IPPROTO_IPV6, 25)}
_RECV_HOP_LIMIT: Final = {4: (socket.IPPROTO_IP, 12), 6: (socket.IPPROTO_IPV6, 51)}
_RECV_TRAFFIC_CLASS: Final = {4: (socket.IPPROTO_IP, 13), 6: (socket.IPPROTO_IPV6, 66)}
_TRAFFIC_CLASS: Final = {4: (socket.IPPROTO_IP, 1), 6: (socket.IPPROTO_IPV6, 67)}
# As control messages, sent and received.
_HOP_LIMIT: Final = {4: (socket.IPPROTO_IP, 2), 6: (socket.IPPROTO_IPV6, 52)}
_DISCOVER: Final = {"never": 0, "want": 1, "always": 2}  # IP_PMTUDISC_*
_ORIGINS: Final = {1: "local", 2: "icmp", 3: "icmp"}  # linux/errqueue.h
#: Bytes of the IP and the UDP header.
HEADERS: Final = {4: 28, 6: 48}


@dataclass(frozen=True, slots=True)
class Received:
    """A datagram with what its IP header said."""

    data: bytes
    sender: Address
    hop_limit: int
    traffic_class: int


@dataclass(frozen=True, slots=True)
class NetworkError:
    """Why a datagram was not delivered (struct sock_extended_err, linux/errqueue.h).

    `type` and `code` are ICMP's, `mtu` that of a Packet Too Big, `reporter` who sent the ICMP
    message; all 0 or None when `origin` is this host's own kernel.
    """

    origin: str
    number: int
    type: int
    code: int
    mtu: int
    reporter: str | None


class Datagrams:
    """A UDP socket inside `namespace`, bound to `address`; use as a context manager.

    `dont_fragment` is the kernel's path MTU discovery: ``always`` sets Don't Fragment and refuses
    what exceeds the known path MTU, ``want`` (as usual) then fragments, ``never`` clears it.
    """

    def __init__(
        self,
        namespace: Namespace,
        address: str,
        port: int = 0,
        *,
        dont_fragment: Literal["never", "want", "always"] = "want",
    ) -> None:
        self.version = version = ipaddress.ip_address(address).version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._socket = sock = namespace.socket(family, socket.SOCK_DGRAM)
        for option in (_RECVERR, _RECV_HOP_LIMIT, _RECV_TRAFFIC_CLASS):
            sock.setsockopt(*option[version], 1)
        sock.setsockopt(*_MTU_DISCOVER[version], _DISCOVER[dont_fragment])
        sock.setblocking(False)
        sock.bind((address, port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    @property
    def address(self) -> Address:
        """Where datagrams arrive."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def send(
        self,
        data: bytes,
        to: Address,
        *,
        traffic_class: int | None = None,
        hop_limit: int | None = None,
    ) -> None:
        """Send one datagram. Raises OSError: EMSGSIZE when it exceeds the known path MTU."""
        marks = []
        if traffic_class is not None:
            marks.append((*_TRAFFIC_CLASS[self.version], struct.pack("=i", traffic_class)))
        if hop_limit is not None:
            marks.append((*_HOP_LIMIT[self.version], struct.pack("=i", hop_limit)))
        self._socket.sendmsg([data], marks, 0, to)

    def receive(self, timeout: float = 5.0) -> Received:
        """The next datagram. Raises TimeoutError, and OSError for an error that arrived first."""
        if not select.select([self._socket], [], [], timeout)[0]:
            raise TimeoutError(f"no datagram within {timeout} seconds")
        data, ancillary, _, sender = self._socket.recvmsg(65535, 256)
        marks = {kind: int.from_bytes(value[:4], "little") for _, kind, value in ancillary}
        return Received(
            data,
            (sender[0], sender[1]),
            marks[_HOP_LIMIT[self.version][1]],
            marks[_TRAFFIC_CLASS[self.version][1]],
        )

    def error(self, timeout: float = 5.0) -> NetworkError:
        """The next error about a datagram of ours. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self._socket, 0)  # an error is always told
        if not poll.poll(timeout * 1000):
            raise TimeoutError(f"no error within {timeout} seconds")
        _, ancillary, _, _ = self._socket.recvmsg(65535, 512, socket.MSG_ERRQUEUE)
        # The error is also pending on the socket, where it would fail the next call.
        self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        value = next(value for level, kind, value in ancillary if (level, kind) in _ERROR_MARKS)
        number, origin, kind, code, mtu = struct.unpack_from("=IBBBxI", value)
        return NetworkError(_ORIGINS[origin], number, kind, code, mtu, _reporter(value[16:]))


def path_mtu(namespace: Namespace, to: str) -> int:
    """What the kernel in `namespace` knows of the path to `to`, in bytes of the IP packet."""
    version = ipaddress.ip_address(to).version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with namespace.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((to, 9))
        return sock.getsockopt(*_MTU[version])


def forget_path_mtus(namespace: Namespace) -> None:
    """Make the kernel in `namespace` discover every path MTU anew."""
    namespace.run(["ip", "-4", "route", "flush", "cache"])
    namespace.run(["ip", "-6", "route", "flush", "cache"])


_ERROR_MARKS: Final = frozenset(_RECVERR.values())


def _reporter(name: bytes) -> str | None:
    """The address in a struct sockaddr, or None for none."""
    family = int.from_bytes(name[:2], "little")
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(name[4:8]))
    if family == socket.AF_INET6:
        return str(ipaddress.IPv6Address(name[8:24]))
    return None
