"""What a tunnel holds of this machine's network: the TUN, its addresses, the routes and rules.

Outlives the sessions of one tunnel, so that after a loss the routes still point into the tunnel and
nothing that belongs there leaves beside it, and connections survive. Planning is not done here, nor
is anything done when it is dropped: `release` undoes.
"""

from __future__ import annotations

import socket

from qvpn_core.client.planner import Explanation, explain
from qvpn_core.datapath.engine import available
from qvpn_core.net.apply import ClientNetwork, clean_leftovers
from qvpn_core.net.names import CLIENT_TUN
from qvpn_core.net.plan import IPAddress, NetworkPlan
from qvpn_core.net.tun import Tun


class Attachment:
    """Empty until `attach`; `release` empties it again."""

    def __init__(self) -> None:
        #: What is in force; None when nothing is.
        self.plan: NetworkPlan | None = None
        self._tun: Tun | None = None
        self._network: ClientNetwork | None = None

    async def prepare(self) -> None:
        """Remove what a predecessor left that was killed with its guardian.

        Before connecting, because a stale rule may misroute the search for the gateway's name.
        Raises NetworkSetupFailed, PermissionMissing.
        """
        if self._tun is None:
            await clean_leftovers()

    async def attach(self, plan: NetworkPlan) -> Tun:
        """Make `plan` true, from nothing or from the plan in force, without a gap between the two.

        Raises TunUnavailable, PermissionMissing, NetworkSetupFailed. What was in place before
        stays until `release` when changing it fails.
        """
        if self._tun is None or self._network is None:
            self._tun = Tun.open(CLIENT_TUN, plan.mtu, vnet_header=available())
            self._network = ClientNetwork(self._tun)
            await self._network.apply(plan)
        elif plan != self.plan:
            await self._network.update(plan)
        self.plan = plan
        return self._tun

    def explain(self, destination: IPAddress) -> Explanation | None:
        """Which way packets to `destination` go; None when nothing is in force."""
        if self.plan is None:
            return None
        explanation = explain(self.plan, destination)
        if explanation.way != "direct" and _is_own(destination):
            # The kernel's table of its own addresses comes before ours.
            words = f"{destination} is this machine's own address"
            return Explanation(destination, "direct", None, words)
        return explanation

    async def release(self) -> None:
        """Undo everything in reverse. Idempotent."""
        tun, network = self._tun, self._network
        self.plan = self._tun = self._network = None
        try:
            if network is not None:
                await network.remove()
        finally:
            if tun is not None:
                tun.close()


def _is_own(address: IPAddress) -> bool:
    """Whether an interface of this machine has `address`: who talks to himself answers himself."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(address), 9))  # asks the routing tables, sends nothing
        except OSError:
            return False
        return bool(sock.getsockname()[0] == str(address))
