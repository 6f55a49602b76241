"""The gateway's key pair over time: which pins devices are told, and how it is replaced.

A device that pinned a key must learn the next one before it is used. So the next pair lies beside
the current one for a while, its pin is announced to every device that connects or enrols, and only
then do the two change places. It refuses to rotate a certificate that an authority issued: its
devices pin nothing.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from qvpn_core.errors import UsageError
from qvpn_server.certificate import is_self_signed, pin_of, self_signed
from qvpn_server.config import GatewayConfig
from qvpn_server.statedir import StateDir


def announced_pins(config: GatewayConfig, state: StateDir) -> tuple[str, ...]:
    """The pins that devices should hold: the current one first; none with an authority.

    Raises UsageError for unreadable files.
    """
    if not is_self_signed(config.certificate):
        return ()
    pins = [pin_of(config.certificate)]
    if state.next_certificate.exists():
        pins.append(pin_of(state.next_certificate))
    return tuple(pins)


def prepare_next(config: GatewayConfig, state: StateDir, now: datetime) -> str:
    """Make the next key pair, unless it is there, and return its pin. Raises UsageError."""
    _check_ours(config, state)
    if not state.next_certificate.exists():
        certificate, key = self_signed(config.host, now)
        state.create({state.next_private_key: key, state.next_certificate: certificate})
    return pin_of(state.next_certificate)


def switch_to_next(config: GatewayConfig, state: StateDir) -> str:
    """Put the next key pair in the place of the current one; returns its pin.

    Raises UsageError when none was prepared. Interrupted between its two steps, it is finished by
    calling it again.
    """
    _check_ours(config, state)
    if not state.next_certificate.exists():
        raise UsageError("no next key was announced yet", "run: qvpn-server rotate first")
    pin = pin_of(state.next_certificate)
    _move(state.next_private_key, state.private_key)
    _move(state.next_certificate, state.certificate)
    return pin


def _check_ours(config: GatewayConfig, state: StateDir) -> None:
    if config.certificate != state.certificate or not is_self_signed(config.certificate):
        raise UsageError(
            f"{config.certificate} was not made by qvpn-server",
            "replace the file and its key, then run: qvpn-server reload",
        )


def _move(source: Path, target: Path) -> None:
    if source.exists():
        os.replace(source, target)
