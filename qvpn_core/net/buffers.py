"""How much a socket of ours may hold before we wake up."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

#: Bytes; a burst must not be lost.
RECEIVE_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h


def enlarge_receive_buffer(sock: socket.socket) -> None:
    """Let a UDP socket hold `RECEIVE_BUFFER` bytes, or what net.core.rmem_max allows without root.

    What another process, as root, gave it already stays.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except OSError:
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < RECEIVE_BUFFER:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
