"""A client's session ticket to one gateway, in the state directory with mode 0600.

Whoever reads it can pass for the gateway's last connection in the handshake, not for the device.
Losing it costs a full handshake, so no failure of the disk is an error here.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from qvpn_core.client import paths

_MAX_FILE = 16 << 10  # bytes


class TicketFile:
    """The ticket of a profile; see `qvpn_core.transport.tickets.TicketJar`."""

    def __init__(self, profile: str) -> None:
        self._path: Path = paths.state_dir() / "tickets" / profile

    def load(self) -> bytes | None:
        """The ticket, which is thereby gone from the disk: one serves one connection."""
        with suppress(OSError):
            with self._path.open("rb") as file:
                data = file.read(_MAX_FILE)
            self._path.unlink()
            return data
        return None

    def save(self, data: bytes) -> None:
        """Replace the ticket."""
        with suppress(OSError):
            paths.make_private(self._path.parent)
            paths.write_private(self._path, data)

    def forget(self) -> None:
        """Remove the ticket."""
        with suppress(OSError):
            self._path.unlink()
