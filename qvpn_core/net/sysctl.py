"""Kernel settings below /proc/sys/net, by a closed list of names.

A name is the path there (``net/ipv4/ip_forward``), because names of interfaces may hold dots. It
refuses every other file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import msgspec

from qvpn_core.errors import NetworkSetupFailed

ROOT: Final = Path("/proc/sys")
_ALLOWED: Final = re.compile(
    r"net/ipv4/ip_forward"
    r"|net/ipv4/conf/(?!\.\.?/)[^/\s]{1,15}/(forwarding|accept_redirects|send_redirects|src_valid_mark)"
    r"|net/ipv6/conf/(?!\.\.?/)[^/\s]{1,15}/(forwarding|accept_ra|addr_gen_mode|disable_ipv6)"
)


class RestoreSetting(msgspec.Struct, frozen=True, tag="setting"):
    """A record (:mod:`qvpn_core.net.records`): the value before us, put back where ours stands."""

    name: str
    previous: str
    ours: str

    def __post_init__(self) -> None:
        check(self.name)


def check(name: str) -> None:
    """Raise ValueError unless `name` is one of ours to touch."""
    if not _ALLOWED.fullmatch(name):
        raise ValueError(f"not a setting that qvpn touches: {name!r}")


def read(name: str) -> str | None:
    """The value, or None where this kernel has no such setting (no IPv6, interface gone)."""
    check(name)
    try:
        return (ROOT / name).read_text().strip()
    except OSError:
        return None


def write(name: str, value: str) -> None:
    """Set it. Raises NetworkSetupFailed."""
    check(name)
    try:
        (ROOT / name).write_text(value)
    except OSError as error:
        raise NetworkSetupFailed(
            f"cannot set {name} to {value} ({os.strerror(error.errno or 0)})",
            f"set it from outside this container with: sysctl -w {name}={value}",
        ) from error


def restore(name: str, previous: str, ours: str) -> None:
    """Write `previous` back where `ours` still stands; what somebody else has set since, stays."""
    if read(name) == ours:
        write(name, previous)
