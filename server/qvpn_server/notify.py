"""sd_notify(3) without libsystemd: datagrams to the socket that systemd names, if it does."""

from __future__ import annotations

import asyncio
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


def watchdog_interval() -> float | None:
    """Seconds between two signs of life, half of what sd_watchdog_enabled(3) allows; None without.

    None also for a value that is no number of microseconds, and when another process is meant.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    limit = os.environ.get("WATCHDOG_USEC", "")
    return int(limit) / 2e6 if limit.isdecimal() and int(limit) > 0 else None


async def keep_alive() -> None:
    """Tell the service manager for ever that the event loop turns. Ends at once unwatched."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval)
