"""A client's :class:`NetworkPlan` in the kernel: applied, changed without a gap, repaired.

Synchronous and for root: the helper runs it. It touches one TUN, which it opens itself, and what
carries our numbers (:mod:`qvpn_core.net.names`). It undoes nothing: the records of what would are
handed out before the first change, for whoever is left to run them (:mod:`qvpn_core.net.undo`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from qvpn_core.errors import NetworkSetupFailed, TunUnavailable
from qvpn_core.net import firewall, sysctl, undo
from qvpn_core.net.links import VERSIONS, Kernel
from qvpn_core.net.names import CLIENT_TUN
from qvpn_core.net.plan import NetworkPlan, transition
from qvpn_core.net.records import LEFTOVERS, NetworkRecord, RestoreSetting
from qvpn_core.net.tun import Tun, set_mtu

#: Makes the reverse-path filter respect the mark that our firewall gives the gateway's packets.
_SRC_VALID_MARK: Final = "net/ipv4/conf/all/src_valid_mark"
_NOTHING: Final = NetworkPlan((), 0, ())

#: Keeps records, in place of those it kept, or raises and then nothing may be changed.
Hold = Callable[[Sequence[NetworkRecord]], None]


class ClientNetwork:
    """The network of one tunnel at a time."""

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._index = 0
        self._records: tuple[NetworkRecord, ...] = ()
        #: What is in force; no addresses when nothing is.
        self.plan = _NOTHING

    @property
    def index(self) -> int:
        """The TUN's interface index, 0 without one."""
        return self._index

    def open_tun(self, mtu: int) -> Tun:
        """Make the TUN, after removing whatever else has our names and numbers.

        The descriptor is the caller's; the device goes with it. Raises a QvpnError.
        """
        if self._index:
            raise NetworkSetupFailed("the tunnel's device is open already")
        undo.run(LEFTOVERS)
        self._records = _records()
        self._hold(self._records)
        tun = Tun.open(CLIENT_TUN, mtu)
        self._index = tun.index
        return tun

    def apply(self, plan: NetworkPlan) -> None:
        """Change to `plan`. Each destination goes the old way or the new one, never a third.

        Raises a QvpnError; then a mixture of both plans is in force, and undoing it or the same
        again is what is left to do.
        """
        self._check_device()
        plan = _without_missing_versions(plan)
        if not self.plan.addresses:
            self._prepare(plan)
        old, index = self.plan, self._index
        addresses = [address.ip for address in plan.addresses]
        firewall.install_client(CLIENT_TUN, addresses, plan.endpoints)
        # Below 1280 bytes the kernel drops IPv6 with its routes, so that must come last.
        if plan.mtu >= old.mtu:
            set_mtu(CLIENT_TUN, plan.mtu)
        with Kernel() as kernel:
            for address in plan.addresses:
                kernel.add_address(index, address)
            kernel.set_up(index)
            for wanted, route in transition(old.routes, plan.routes):
                if wanted:
                    kernel.put_route(index, route)
                else:
                    kernel.delete_route(route.prefix)
            for version in plan.versions:
                kernel.add_rule(version)
            for version in set(old.versions) - set(plan.versions):
                kernel.remove_rules(version)
            for address in old.addresses:
                if address not in plan.addresses:
                    kernel.remove_address(index, address)
        if plan.mtu < old.mtu:
            set_mtu(CLIENT_TUN, plan.mtu)
        self.plan = plan

    def repair(self) -> int:
        """Put back what somebody else has removed; how many things that were.

        Does nothing when the device itself is gone: its holder learns of that. Raises a QvpnError.
        """
        plan, index = self.plan, self._index
        if not plan.addresses or not _is_named(index):
            return 0
        repaired = 0
        if not firewall.client_installed():
            addresses = [address.ip for address in plan.addresses]
            firewall.install_client(CLIENT_TUN, addresses, plan.endpoints)
            repaired += 1
        with Kernel() as kernel:
            present = kernel.addresses(index)
            for address in plan.addresses:
                if address not in present:
                    kernel.add_address(index, address)
                    repaired += 1
            repaired += kernel.set_up(index)
            for version in VERSIONS:
                routes = [route for route in plan.routes if route.prefix.version == version]
                there = kernel.routes(version) if routes else {}
                for route in routes:
                    if there.get(route.prefix) != route.kind:
                        kernel.put_route(index, route)
                        repaired += 1
                if version in plan.versions and not kernel.has_rule(version):
                    kernel.add_rule(version)
                    repaired += 1
        return repaired

    def forget(self) -> None:
        """Everything was undone from the records; the next TUN is a new one."""
        self.plan, self._index, self._records = _NOTHING, 0, ()

    def _prepare(self, plan: NetworkPlan) -> None:
        """The settings: marks count for the way back, and on the device no link-local address,
        which a tunnel does not carry, and IPv6 where the tunnel has it.
        """
        if any(isinstance(record, RestoreSetting) for record in self._records):
            sysctl.write(_SRC_VALID_MARK, "1")
        device = f"net/ipv6/conf/{CLIENT_TUN}"
        if sysctl.read(f"{device}/addr_gen_mode") is None:
            return
        sysctl.write(f"{device}/addr_gen_mode", "1")
        if any(address.version == 6 for address in plan.addresses):
            sysctl.write(f"{device}/disable_ipv6", "0")

    def _check_device(self) -> None:
        if not self._index:
            raise NetworkSetupFailed("the tunnel has no device yet")
        if not _is_named(self._index):
            raise TunUnavailable(f"somebody removed the device {CLIENT_TUN}", "run qvpn up again")


def _records() -> tuple[NetworkRecord, ...]:
    """What undoes every plan, and what the kernel has now."""
    *things, rules = LEFTOVERS
    if sysctl.read(_SRC_VALID_MARK) == "0":
        return (*things, RestoreSetting(_SRC_VALID_MARK, "0", "1"), rules)
    return LEFTOVERS


def _is_named(index: int) -> bool:
    """Whether the device with our name is still the one that we made."""
    try:
        return socket.if_nametoindex(CLIENT_TUN) == index
    except OSError:
        return False


def _without_missing_versions(plan: NetworkPlan) -> NetworkPlan:
    """Without IPv6 where the kernel has none: then none can leak either."""
    if os.path.exists("/proc/net/if_inet6"):
        return plan
    return replace(
        plan,
        addresses=tuple(address for address in plan.addresses if address.version == 4),
        routes=tuple(route for route in plan.routes if route.prefix.version == 4),
    )
