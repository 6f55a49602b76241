"""What a tunnel holds of this machine's network, by its helper: TUN, addresses, routes, names.

Outlives the sessions of one tunnel, so that after a loss the routes still point into the tunnel and
nothing that belongs there leaves beside it, and connections survive; and so that the user is asked
for permission once. Planning is not done here, nor is anything done when it is dropped: `release`
undoes, and `close` ends the helper too.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qvpn_core.client.explain import Explanation, explain
from qvpn_core.client.resting import Resting
from qvpn_core.errors import NetworkSetupFailed, QvpnError
from qvpn_core.helper.client import Helper
from qvpn_core.helper.errors import HelperEnded, HelperLost
from qvpn_core.helper.protocol import DnsState
from qvpn_core.net.dns.plan import DnsPlan
from qvpn_core.net.plan import IPAddress, KillSwitch, NetworkPlan
from qvpn_core.net.tun import Tun


class Attachment:
    """Empty until `attach`; `release` empties it again."""

    def __init__(self, resting: Resting | None = None) -> None:
        """`resting` keeps the helper of one tunnel for the next."""
        self._resting = resting
        #: What is in force; None when nothing is.
        self.plan: NetworkPlan | None = None
        self.dns_plan: DnsPlan | None = None
        #: How names are resolved, when the helper was asked to see to it.
        self.dns: DnsState | None = None
        #: The kill switch in force, as far as this tunnel set it.
        self.kill_switch: KillSwitch | None = None
        self._helper: Helper | None = None
        self._tun: Tun | None = None
        #: The helper was asked for something that `release` undoes.
        self._asked = False
        #: A helper was killed, and what it would have undone still stands.
        self._left = False

    @property
    def permitted(self) -> bool:
        """Whether a helper is there, so that `prepare` does not ask anybody."""
        if self._helper is None:
            return self._resting is not None and self._resting.ready
        return not self._helper.lost.done()

    async def prepare(self, kill_switch: KillSwitch | None) -> None:
        """Have a helper, which may ask the user, and this kill switch, or none, in force.

        Before connecting: a new helper undoes what a dead one left, and a stale rule may misroute
        the search for the gateway's name. Raises the errors of :mod:`qvpn_core.helper.errors`, and
        NetworkSetupFailed.
        """
        if self._helper is not None and self._helper.lost.done():
            if isinstance(self._helper.lost.result(), HelperEnded):
                raise self._helper.lost.result()
            await self._forget()
        fresh = self._helper is None
        if self._helper is None:
            rested = None if self._resting is None else await self._resting.take()
            self._helper = rested or await Helper.start()
            self._left = False
        # An earlier session's may be in force where this one wants none.
        if fresh or kill_switch != self.kill_switch:
            await self.set_kill_switch(kill_switch)

    @contextmanager
    def watched(self, lost: Callable[[QvpnError], None]) -> Iterator[None]:
        """Call `lost`, once, when the helper dies or is ended while the block runs."""

        def tell(future: asyncio.Future[QvpnError]) -> None:
            lost(future.result())

        ending = self._running.lost
        ending.add_done_callback(tell)
        try:
            yield
        finally:
            ending.remove_done_callback(tell)

    async def open_socket(self, family: int, kind: int) -> socket.socket:
        """A socket whose packets skip our rules, so that the tunnel does not enter itself."""
        return await self._running.open_socket(family, kind)

    async def attach(self, plan: NetworkPlan, dns: DnsPlan | None) -> Tun:
        """Make the plans true, from nothing or from those in force, without a gap between the two.

        Raises TunUnavailable, NetworkSetupFailed, HelperLost. What was in place before stays until
        `release` when changing it fails.
        """
        helper = self._running
        self._asked = True
        if self._tun is None:
            self._tun = await helper.open_tun(plan.mtu)
        self.dns = await helper.apply(plan, dns)
        self.plan, self.dns_plan = plan, dns
        return self._tun

    async def set_kill_switch(self, plan: KillSwitch | None) -> None:
        """Change to this kill switch, or to none. Raises NetworkSetupFailed, HelperLost."""
        await self._running.set_firewall(plan)
        self.kill_switch = plan

    async def sign_in(self, seconds: int) -> None:
        """Let the user reach a captive portal for `seconds` despite the kill switch."""
        await self._running.sign_in(seconds)

    def explain(self, destination: IPAddress) -> Explanation:
        """Which way packets to `destination` go."""
        explanation = explain(self.plan, destination, self.kill_switch)
        if explanation.way != "direct" and _is_own(destination):
            # The kernel's table of its own addresses comes before ours.
            words = f"{destination} is this machine's own address"
            return Explanation(destination, "direct", None, words)
        return explanation

    async def release(self) -> None:
        """Undo everything but the kill switch; the helper stays. Idempotent.

        Raises NetworkSetupFailed for what stays.
        """
        helper, tun, asked = self._helper, self._tun, self._asked
        self.plan = self.dns_plan = self.dns = self._tun = None
        self._asked = False
        try:
            if helper is not None and asked:
                await helper.detach()
        except HelperLost:
            self._left = True  # for `close`, or for the next helper
        except HelperEnded:
            pass  # which has undone it
        finally:
            if tun is not None:
                tun.close()

    async def close(self) -> None:
        """Undo everything, the kill switch last, and end the helper, or have it rest. Idempotent.

        Raises NetworkSetupFailed for what stays.
        """
        await self._forget(rest=self._resting)
        left, self._left, self.kill_switch = self._left, False, None
        if not left:
            return
        try:
            await (await Helper.start()).close()
        except QvpnError as error:
            raise NetworkSetupFailed(
                f"the network was not restored ({error.what})", "run qvpn unlock"
            ) from error

    @property
    def _running(self) -> Helper:
        if self._helper is None:
            raise HelperLost("the helper of qvpn does not run", "run qvpn up again")
        return self._helper

    async def _forget(self, rest: Resting | None = None) -> None:
        """Give up the helper and what it held; remember when that was left behind."""
        helper, self._helper = self._helper, None
        tun, self._tun = self._tun, None
        had, self._asked = self._asked or self.kill_switch is not None, False
        self.plan = self.dns_plan = self.dns = None
        try:
            if helper is not None:
                killed = helper.lost.done() and isinstance(helper.lost.result(), HelperLost)
                self._left = self._left or (killed and had)
                await (helper.close() if rest is None else rest.keep(helper))
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
