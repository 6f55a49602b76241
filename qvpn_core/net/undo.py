"""Undo: run records, latest first, all of them whatever fails.

A change is undone from records that were kept *before* it was made (:mod:`qvpn_core.net.records`).
"""

from __future__ import annotations

from collections.abc import Sequence

from qvpn_core.errors import QvpnError
from qvpn_core.net import firewall, nft, sysctl
from qvpn_core.net.links import VERSIONS, Kernel
from qvpn_core.net.records import (
    FlushRoutes,
    Record,
    RemoveClientFirewall,
    RemoveRules,
    RestoreSetting,
)


def run(records: Sequence[Record]) -> list[QvpnError]:
    """Undo `records` in reverse order; the failures."""
    failures = []
    for record in reversed(records):
        try:
            _undo(record)
        except QvpnError as error:
            failures.append(error)
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
        case RestoreSetting(name, previous, ours):
            sysctl.restore(name, previous, ours)
