"""What a session needs at once, before the kernel's half is loaded: the right to be, and sockets.

It checks who is at the other end, takes the lock of the network namespace, and says whose it is.
Light on purpose, for a user waits for it; everything else is in `engine.py`.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qvpn_core.errors import GatewayUnreachable, NetworkSetupFailed, PermissionMissing
from qvpn_core.helper.errors import NetworkTaken
from qvpn_core.helper.rundir import Owner, RunDirectory
from qvpn_core.net.buffers import enlarge_receive_buffer
from qvpn_core.net.names import FWMARK

#: Seconds that a predecessor gets to finish undoing.
_PREDECESSOR: Final = 5.0
_STEP: Final = 0.02
UCRED: Final = struct.Struct("=iII")  # struct ucred, unix(7)


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that made the socket, as the kernel knows it."""

    pid: int
    uid: int


def peer_of(channel: socket.socket, started_for: str | None) -> Peer:
    """Who is at the other end. `started_for` is PKEXEC_UID, the user whom polkit has let through.

    Raises PermissionMissing when that is not the same user, or without pkexec anybody but root.
    """
    data = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    pid, uid, _gid = UCRED.unpack(data)
    if str(uid) != (started_for or "0"):
        raise PermissionMissing("the helper was started for another user", "start it with pkexec")
    return Peer(pid, uid)


class Entrance:
    """One session's beginning. `alive` tells whether somebody still waits at the other end."""

    def __init__(self, uid: int, alive: Callable[[], bool]) -> None:
        self._uid = uid
        self._alive = alive
        #: Held from `enter` on.
        self.directory: RunDirectory | None = None

    def enter(self) -> RunDirectory:
        """Take the lock, after a predecessor's end. Raises NetworkTaken, NetworkSetupFailed."""
        directory = RunDirectory()
        deadline = time.monotonic() + _PREDECESSOR
        while not directory.acquire():
            if time.monotonic() > deadline or not self._alive():
                raise NetworkTaken("another qvpn tunnel is active here", "end it with: qvpn down")
            time.sleep(_STEP)
        self.directory = directory
        directory.announce(Owner(self._uid, os.getpid()))
        return directory

    def leave(self) -> None:
        """Give the lock back. Idempotent."""
        directory, self.directory = self.directory, None
        if directory is not None:
            directory.release()


def open_socket(family: int, kind: int) -> socket.socket:
    """A socket whose packets skip our rules, so that the tunnel does not enter itself.

    Raises GatewayUnreachable without this address family, PermissionMissing without rights.
    """
    try:
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise NetworkSetupFailed(f"cannot open a socket ({error.strerror})") from error
        raise GatewayUnreachable(
            f"this machine cannot reach that kind of address ({error.strerror})",
            "use the gateway's other address",
        ) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, FWMARK)
    except OSError as error:
        sock.close()
        raise PermissionMissing(
            f"cannot mark packets ({error.strerror})", "qvpn needs CAP_NET_ADMIN"
        ) from error
    if kind == socket.SOCK_DGRAM:
        enlarge_receive_buffer(sock)  # for a user who may not
    return sock
