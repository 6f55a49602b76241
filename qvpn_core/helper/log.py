"""Lines to the system's log, by the datagram that syslog and journald take (RFC 3164 section 4.1).

Without such a log they go nowhere. It never raises and never waits.
"""

from __future__ import annotations

import os
import socket
from typing import Final

_DEVICE: Final = "/dev/log"
_DAEMON: Final = 3 << 3  # the facility
_WARNING: Final = 4
_INFO: Final = 6
_MAX_LINE: Final = 1000  # characters


class Log:
    """The helper's lines. No secrets are in them, for the helper has none."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def info(self, line: str) -> None:
        """What was done."""
        self._write(_INFO, line)

    def warning(self, line: str) -> None:
        """What somebody may have to look at."""
        self._write(_WARNING, line)

    def _write(self, severity: int, line: str) -> None:
        text = " ".join(line[:_MAX_LINE].split())  # nobody makes two lines of one
        data = f"<{_DAEMON | severity}>qvpn-helper[{os.getpid()}]: {text}"
        try:
            self._socket.sendto(data.encode(errors="replace"), _DEVICE)
        except OSError:
            pass  # no log here, or a full one
