"""What there is to say while no agent of this user runs. It asks nobody and changes nothing."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from qvpn_core.client import instance, paths
from qvpn_core.client.states import FirewallPolicy
from qvpn_core.client.status import Status
from qvpn_core.net import killswitch


def idle_status() -> Status:
    """How the last agent failed, whose tunnel is up instead, and which kill switch still holds."""
    held = killswitch.holding()
    return replace(
        instance.last_failure() or Status(),
        other_user=instance.other_user(),
        kill_switch=held or "off",
        firewall=FirewallPolicy.BLOCK if held else FirewallPolicy.OPEN,
    )


def places() -> tuple[Path, ...]:
    """The directories in which something changes when `idle_status` does, or an agent starts."""
    return tuple(dict.fromkeys((paths.runtime_dir(), killswitch.MARKERS)))
