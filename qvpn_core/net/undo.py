"""Undo: run records, latest first, all of them whatever fails.

A change is undone from records that were kept *before* it was made (:mod:`qvpn_core.net.records`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from qvpn_core.errors import QvpnError
from qvpn_core.net import dns, firewall, nft, sysctl
from qvpn_core.net.links import VERSIONS, Kernel
from qvpn_core.net.names import CLIENT_TUN
from qvpn_core.net.records import (
    FlushRoutes,
    Record,
    RemoveClientFirewall,
    RemoveRules,
    RemoveTun,
    RestoreSetting,
)

R = TypeVar("R", bound=Record)


def run(records: Sequence[R]) -> list[tuple[R, QvpnError]]:
    """Undo `records` in reverse order; those that could not be undone, and why."""
    failures = []
    for record in reversed(records):
        try:
            _undo(record)
        except QvpnError as error:
            failures.append((record, error))
    return failures


def _undo(record: Record) -> None:
    match record:
        case RemoveRules():
            with Kernel() as kernel:
                for version in VERSIONS:
                    kernel.remove_rules(version)
        case FlushRoutes():
            with Kernel() as kernel:
                for version in VERSIONS:
                    kernel.flush_routes(version)
        case RemoveClientFirewall():
            nft.run(firewall.remove_client_script())
        case RemoveTun():
            with Kernel() as kernel:
                kernel.remove_tun(CLIENT_TUN)
        case RestoreSetting(name, previous, ours):
            sysctl.restore(name, previous, ours)
        case _:
            dns.restore(record)
