"""What helps against a failure: one action for each reason. Pure; the words are in `words.py`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final


class Remedy(Enum):
    """The one thing to offer beside the words."""

    RETRY = "retry"
    #: The desktop's network settings.
    NETWORK = "network"
    #: The captive portal, in a browser.
    SIGN_IN = "sign-in"
    #: End the kill switch's block.
    RELEASE = "release"
    #: A new invite.
    INVITE = "invite"
    #: A proxy instead of a tunnel, which needs no rights and no second tunnel.
    PROXY = "proxy"
    #: Words to send to somebody who can help.
    COPY = "copy"


#: By the slug of an error; what is not here is for somebody who understands the details.
REMEDIES: Final[Mapping[str, Remedy]] = MappingProxyType(
    {
        "name-not-resolved": Remedy.NETWORK,
        "unreachable": Remedy.NETWORK,
        "no-network": Remedy.NETWORK,
        "path-mtu": Remedy.NETWORK,
        "refused": Remedy.RETRY,
        "tunnel-lost": Remedy.RETRY,
        "captive-portal": Remedy.RETRY,
        "stream-reset": Remedy.RETRY,
        "not-authorized": Remedy.RETRY,
        "helper-lost": Remedy.RETRY,
        "helper-ended": Remedy.RETRY,
        "agent-gone": Remedy.RETRY,
        "polkit-missing": Remedy.PROXY,
        "polkit-agent-missing": Remedy.PROXY,
        "helper-missing": Remedy.PROXY,
        "permission": Remedy.PROXY,
        "tun-unavailable": Remedy.PROXY,
        "network-taken": Remedy.PROXY,
        "authentication": Remedy.INVITE,
        "device-key": Remedy.INVITE,
    }
)

#: Programs that set up networks, those of a desktop first. All take no further choice.
_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "GNOME": ("gnome-control-center", "network"),
        "Unity": ("gnome-control-center", "network"),
        "KDE": ("systemsettings", "kcm_networkmanagement"),
        "X-Cinnamon": ("cinnamon-settings", "network"),
        "COSMIC": ("cosmic-settings", "network"),
        "": ("nm-connection-editor",),
    }
)


def remedy(reason: str | None, *, blocked: bool, portal: bool = False) -> Remedy:
    """The action for a failure, or for a kill switch that holds, or a portal that can be opened."""
    if portal:
        return Remedy.SIGN_IN
    if blocked:
        return Remedy.RELEASE
    found = REMEDIES.get(reason or "", Remedy.COPY)
    if found is Remedy.NETWORK and network_settings() is None:
        return Remedy.RETRY
    return found


def network_settings() -> tuple[str, ...] | None:
    """The command line that opens the desktop's network settings, None when there is none."""
    desktops = os.environ.get("XDG_CURRENT_DESKTOP", "").split(":")
    for desktop in (*desktops, ""):
        command = _SETTINGS.get(desktop)
        if command is not None and (program := shutil.which(command[0])):
            return (program, *command[1:])
    return None
