"""The whole network state of a namespace as text, to be compared before and after.

Two snapshots are equal exactly when addresses, links, rules, routes, firewall, sysctls and the
resolver's configuration are. What changes by itself (packet counters, expiry times) is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from tests.world.namespaces import Namespace

_COMMANDS: Final = (
    ("ip", "-details", "address"),
    ("ip", "-4", "-details", "rule"),
    ("ip", "-6", "-details", "rule"),
    ("ip", "-4", "-details", "route", "show", "table", "all"),
    ("ip", "-6", "-details", "route", "show", "table", "all"),
    ("nft", "list", "ruleset"),
)
_VOLATILE: Final = re.compile(r" packets \d+ bytes \d+| expires \w+| numtxqueues.*")
_SYSCTLS: Final = Path("/proc/sys/net")


def snapshot(namespace: Namespace) -> str:
    """Everything a VPN could leave behind in `namespace`, one fact a line."""
    sections = namespace.call(_gather)
    try:
        sections["resolv.conf"] = namespace.resolv_conf.read_text()
    except FileNotFoundError:
        sections["resolv.conf"] = "(the host's)"
    return "".join(f"== {name}\n{text.rstrip()}\n" for name, text in sections.items())


def _gather() -> dict[str, str]:
    sections = {}
    for command in _COMMANDS:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sections[" ".join(command)] = _VOLATILE.sub("", done.stdout)
    sections["sysctls"] = "\n".join(_sysctls())
    return sections


def _sysctls() -> list[str]:
    """Every setting of both families, of all interfaces and of none."""
    lines = []
    # Not by a glob, which fails when a device goes while it looks.
    walked = [os.walk(_SYSCTLS / family) for family in ("ipv4", "ipv6")]
    files = [Path(at, name) for walk in walked for at, _, names in walk for name in names]
    for path in sorted(files):
        try:
            lines.append(f"{path.relative_to(_SYSCTLS)} = {path.read_text().strip()}")
        except OSError:  # a directory, one only to be written, or stable_secret before it was set
            continue
    return lines
