"""What this process may do to the network: its effective capabilities (capabilities(7))."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Bits of <linux/capability.h>.
NET_ADMIN: Final = 12

_STATUS: Final = Path("/proc/thread-self/status")


def held(capability: int) -> bool:
    """Whether this thread has the capability in force."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False
