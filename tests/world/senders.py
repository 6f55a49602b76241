"""Programs that never stop sending: what a leak test needs in the background.

:class:`Senders` opens TCP connections and sends datagrams and pings to one site, over IPv4 and
IPv6, from a namespace, many times a second, and counts what it tried. Whether anything arrives is
for a capture to say. Knows nothing about qvpn.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType
from typing import Final, Self

from tests.world.namespaces import Namespace
from tests.world.packets import ones_sum
from tests.world.plan import ECHO_PORT, HTTP_PORT, Site

#: Seconds between two rounds of one packet of each kind.
INTERVAL: Final = 0.01
_ECHO_REQUEST: Final = {4: 8, 6: 128}
_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_ICMP: Final = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


class Senders:
    """Sends between ``with`` and the end of the block. `rounds` may be read at any time."""

    def __init__(self, host: Namespace, site: Site) -> None:
        self.rounds = 0
        self._host = host
        self._site = site
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: host.call(self._send), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _send(self) -> None:
        # A connection that is refused leaves a socket in no state that lingers.
        while not self._over.wait(INTERVAL):
            for version in (4, 6):
                address = self._site.address(version)
                with contextlib.suppress(OSError), _socket(version, socket.SOCK_DGRAM) as udp:
                    udp.sendto(b"leak?", (address, ECHO_PORT))
                with contextlib.suppress(OSError), _socket(version, socket.SOCK_STREAM) as tcp:
                    tcp.connect_ex((address, HTTP_PORT))
                with (
                    contextlib.suppress(OSError),
                    _socket(version, socket.SOCK_RAW, _ICMP[version]) as raw,
                ):
                    raw.sendto(_echo_request(version, self.rounds), (address, 0))
            self.rounds += 1


def _socket(version: int, kind: int, protocol: int = 0) -> socket.socket:
    sock = socket.socket(_FAMILY[version], kind | socket.SOCK_NONBLOCK, protocol)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    return sock


def _echo_request(version: int, number: int) -> bytes:
    message = struct.pack("!BBHHH", _ECHO_REQUEST[version], 0, 0, 0x5156, number & 0xFFFF)
    if version == 6:
        return message  # whose checksum the kernel writes
    return message[:2] + struct.pack("!H", ~ones_sum(message) & 0xFFFF) + message[4:]
