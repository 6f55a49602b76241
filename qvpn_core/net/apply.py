"""A client's :class:`NetworkPlan` in the kernel: applied, changed without a gap, undone.

Needs root. Nothing outlives the process: the device and its routes go with the TUN's descriptor,
everything else by the guardian (:mod:`qvpn_core.net.guardian`), which is told first.
"""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Final

from qvpn_core.errors import NetworkSetupFailed, PermissionMissing, QvpnError
from qvpn_core.net import firewall, sysctl, undo
from qvpn_core.net.guardian import Guardian
from qvpn_core.net.links import Kernel
from qvpn_core.net.names import CLIENT_TUN
from qvpn_core.net.plan import NetworkPlan, transition
from qvpn_core.net.records import (
    CLIENT_LEFTOVERS,
    FlushRoutes,
    Record,
    RemoveClientFirewall,
    RemoveRules,
    RestoreSetting,
)
from qvpn_core.net.tun import Tun
from qvpn_core.net.worker import in_thread

#: Makes the reverse-path filter respect the mark that our firewall gives the gateway's packets.
_SRC_VALID_MARK: Final = "net/ipv4/conf/all/src_valid_mark"
_NOTHING: Final = NetworkPlan((), 0, ())


class ClientNetwork:
    """The network of one TUN, for one caller at a time. Every method may be cancelled."""

    def __init__(self, tun: Tun) -> None:
        self._tun = tun
        self._guardian: Guardian | None = None
        self._plan = _NOTHING

    @property
    def plan(self) -> NetworkPlan | None:
        """The plan in force, or None."""
        return None if self._guardian is None else self._plan

    async def apply(self, plan: NetworkPlan) -> None:
        """Put `plan` in force. Raises a QvpnError, and then leaves nothing changed."""
        if self._guardian is not None:
            raise RuntimeError("a plan is in force already; use update")
        try:
            await in_thread(self._apply, plan)
        except BaseException as error:
            try:
                await self.remove()
            except QvpnError as also:
                error.add_note(str(also))
            raise

    async def update(self, plan: NetworkPlan) -> None:
        """Change to another plan. Each destination goes the old way or the new one, never a third.

        A cancellation takes effect after the change. Raises a QvpnError; then a mixture of both
        plans is in force and only `remove` is left to call.
        """
        if self._guardian is None:
            raise RuntimeError("no plan is in force; use apply")
        await in_thread(self._change, plan)

    async def remove(self) -> None:
        """Undo everything, in reverse. Idempotent. Raises NetworkSetupFailed for what stays."""
        await in_thread(self._remove)

    def _apply(self, plan: NetworkPlan) -> None:
        self._guardian = Guardian.start()
        # The device is ours and so is the lock: whatever else has our numbers is a leftover.
        undo.run(CLIENT_LEFTOVERS)
        valid_mark = sysctl.read(_SRC_VALID_MARK)
        records: list[Record] = [FlushRoutes(), RemoveClientFirewall()]
        if valid_mark == "0":
            records.append(RestoreSetting(_SRC_VALID_MARK, "0", "1"))
        # Last here, first undone: without rules the rest is out of use.
        records.append(RemoveRules())
        self._guardian.hold(records)
        if valid_mark == "0":
            sysctl.write(_SRC_VALID_MARK, "1")
        self._prepare_device(plan)
        self._change(plan)

    def _prepare_device(self, plan: NetworkPlan) -> None:
        """No link-local address, which a tunnel does not carry; IPv6 on where the tunnel has it."""
        device = f"net/ipv6/conf/{self._tun.name}"
        if sysctl.read(f"{device}/addr_gen_mode") is None:
            return
        sysctl.write(f"{device}/addr_gen_mode", "1")
        if any(address.version == 6 for address in plan.addresses):
            sysctl.write(f"{device}/disable_ipv6", "0")

    def _change(self, plan: NetworkPlan) -> None:
        plan = _without_missing_versions(plan)
        old, index = self._plan, self._tun.index
        addresses = [address.ip for address in plan.addresses]
        firewall.install_client(self._tun.name, addresses, plan.endpoints)
        # Below 1280 bytes the kernel drops IPv6 with its routes, so that must come last.
        if plan.mtu >= old.mtu:
            self._tun.set_mtu(plan.mtu)
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
        self._tun.set_mtu(plan.mtu)
        self._plan = plan

    def _remove(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        plan, self._plan = self._plan, _NOTHING
        try:
            guardian.release()
        finally:
            with Kernel() as kernel:
                for address in plan.addresses:
                    kernel.remove_address(self._tun.index, address)


async def clean_leftovers() -> None:
    """Remove what a client left whose guardian was killed too. For the start, before the TUN.

    Does nothing while a client's TUN exists here, for then somebody is using it. Raises
    PermissionMissing and NetworkSetupFailed.
    """

    def clean() -> list[QvpnError]:
        try:
            socket.if_nametoindex(CLIENT_TUN)
        except OSError:
            return undo.run(CLIENT_LEFTOVERS)
        return []

    failures = await in_thread(clean)
    for failure in failures:
        if isinstance(failure, PermissionMissing):
            raise failure
        raise NetworkSetupFailed(f"cannot remove what an earlier tunnel left: {failure}")


def _without_missing_versions(plan: NetworkPlan) -> NetworkPlan:
    """Without IPv6 where the kernel has none: then none can leak either."""
    if os.path.exists("/proc/net/if_inet6"):
        return plan
    return replace(
        plan,
        addresses=tuple(address for address in plan.addresses if address.version == 4),
        routes=tuple(route for route in plan.routes if route.prefix.version == 4),
    )
