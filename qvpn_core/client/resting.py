"""A helper that waits between two tunnels of one process, so that the user is asked only once.

It holds nothing of the network meanwhile. It ends with this process and after a time of its own
(`qvpn_core.helper.process.REST`), and rests at all only where polkit keeps permissions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvpn_core.errors import QvpnError
from qvpn_core.helper.errors import NetworkTaken

if TYPE_CHECKING:  # whoever has one has imported it
    from qvpn_core.helper.client import Helper


class Resting:
    """At most one helper. All calls on the event loop that it was started on."""

    def __init__(self) -> None:
        self._helper: Helper | None = None
        self._over = False

    @property
    def ready(self) -> bool:
        """Whether one rests."""
        return self._helper is not None and not self._helper.lost.done()

    async def keep(self, helper: Helper) -> None:
        """Undo all that `helper` did, and have it rest if it may, else end.

        Raises NetworkSetupFailed for what stays.
        """
        if self._over or self.ready:
            await helper.close()
        elif await helper.rest():
            await self._give_up()  # the last one, whose end nobody has waited for
            self._helper = helper

    async def take(self) -> Helper | None:
        """The helper, to which the network belongs again; None when another has to be started.

        Raises NetworkTaken.
        """
        helper, self._helper = self._helper, None
        if helper is None:
            return None
        try:
            await helper.resume()
        except NetworkTaken:
            raise
        except QvpnError:  # it has ended meanwhile, or polkit does not want it any more
            return None
        return helper

    async def close(self) -> None:
        """End it; none rests from now on."""
        self._over = True
        await self._give_up()

    async def _give_up(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            await helper.hang_up()
