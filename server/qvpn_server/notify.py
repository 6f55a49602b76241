"""sd_notify(3) without libsystemd: one datagram to the socket that systemd names, if it does."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager `state`, such as ``READY=1``. Does nothing without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            # A leading @ stands for the NUL of the abstract namespace, unix(7).
            sock.sendto(
                state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address
            )
        except OSError:
            pass  # a manager that went away must not stop the gateway
