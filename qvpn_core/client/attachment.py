"""What a tunnel holds of this machine's network: the TUN, its addresses, the routes and rules.

Outlives the sessions of one tunnel, so that after a loss the routes still point into the tunnel and
nothing that belongs there leaves beside it, and connections survive. Planning is not done here, nor
is anything done when it is dropped: `release` undoes.
"""

from __future__ import annotations

from qvpn_core.net.apply import ClientNetwork, clean_leftovers
from qvpn_core.net.names import CLIENT_TUN
from qvpn_core.net.plan import NetworkPlan
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
            self._tun = Tun.open(CLIENT_TUN, plan.mtu)
            self._network = ClientNetwork(self._tun)
            await self._network.apply(plan)
        elif plan != self.plan:
            await self._network.update(plan)
        self.plan = plan
        return self._tun

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
