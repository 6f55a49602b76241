"""The desktop's session bus: who owns a name, notifications, the portal's settings. Optional.

Neither a protocol of ours nor a network: `org.freedesktop.DBus`, `org.freedesktop.Notifications`
(Desktop Notifications Specification 1.2) and `org.freedesktop.portal.Settings`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # imported after the window is there
    from dbus_fast import Message
    from dbus_fast.aio import MessageBus

log = logging.getLogger("qvpn.app")

_BUS: Final = "org.freedesktop.DBus"
_NOTIFICATIONS: Final = "org.freedesktop.Notifications"
_PATH: Final = "/org/freedesktop/Notifications"
_PORTAL: Final = "org.freedesktop.portal.Desktop"
_PORTAL_PATH: Final = "/org/freedesktop/portal/desktop"
_SETTINGS: Final = "org.freedesktop.portal.Settings"
#: Settings by namespace and key.
Settings = Mapping[str, Mapping[str, Any]]
_PATIENCE: Final = 5.0  # seconds for a service of the desktop to answer


class SessionBus:
    """The bus; every call on one that is not there does nothing."""

    def __init__(self) -> None:
        self._bus: MessageBus | None = None
        self._owners: dict[str, Callable[[bool], None]] = {}
        self._shown = 0
        self._settings: tuple[frozenset[str], Callable[[Settings], None]] | None = None
        #: Called when the user clicks a notification of ours.
        self.on_activated: Callable[[], None] = lambda: None

    async def connect(self) -> None:
        """Find the bus, if the session has one."""
        from dbus_fast import BusType
        from dbus_fast.aio import MessageBus

        bus: MessageBus | None = None
        try:
            bus = MessageBus(bus_type=BusType.SESSION)
            async with asyncio.timeout(_PATIENCE):
                await bus.connect()
        except Exception as error:  # whatever is wrong with a bus, the app works without one
            log.info("no session bus: %s", error)
            if bus is not None:
                bus.disconnect()
            return
        self._bus = bus
        bus.add_message_handler(self._heard)
        await self._match(f"type='signal',interface='{_NOTIFICATIONS}',member='ActionInvoked'")

    def close(self) -> None:
        """Leave the bus; what it shows of ours goes away."""
        if self._bus is not None:
            self._bus.disconnect()
            self._bus = None

    async def watch_owner(self, name: str, changed: Callable[[bool], None]) -> None:
        """Call `changed` now, and whenever somebody takes or leaves `name`, with whether it is."""
        self._owners[name] = changed
        await self._match(
            f"type='signal',sender='{_BUS}',interface='{_BUS}',member='NameOwnerChanged',arg0='{name}'"
        )
        owned = await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "NameHasOwner", "s", [name])
        changed(bool(owned and owned[0]))

    async def watch_settings(
        self, spaces: Sequence[str], changed: Callable[[Settings], None]
    ) -> None:
        """Call `changed` now with the portal's settings, and with each that changes."""
        self._settings = (frozenset(spaces), changed)
        await self._match(f"type='signal',interface='{_SETTINGS}',member='SettingChanged'")
        arguments = [list(spaces)]
        reply = await self._call(_PORTAL, _PORTAL_PATH, _SETTINGS, "ReadAll", "as", arguments)
        if reply:
            found = {
                space: {key: _plain(value) for key, value in keys.items()}
                for space, keys in reply[0].items()
            }
            changed(found)

    async def notify(self, title: str, text: str, *, urgent: bool) -> None:
        """Show a notification in place of our last one."""
        from dbus_fast import Variant

        hints = {
            "urgency": Variant("y", 2 if urgent else 1),
            "desktop-entry": Variant("s", "io.github.qvpn"),
            "category": Variant("s", "network"),
        }
        arguments = [
            "qvpn", self._shown, "io.github.qvpn", title, text, ["default", title], hints, -1,
        ]  # fmt: skip
        reply = await self._call(
            _NOTIFICATIONS, _PATH, _NOTIFICATIONS, "Notify", "susssasa{sv}i", arguments
        )
        self._shown = reply[0] if reply else 0

    async def withdraw(self) -> None:
        """Take back what is shown: it is no longer true."""
        shown, self._shown = self._shown, 0
        if shown:
            await self._call(
                _NOTIFICATIONS, _PATH, _NOTIFICATIONS, "CloseNotification", "u", [shown]
            )

    async def _match(self, rule: str) -> None:
        await self._call(_BUS, "/org/freedesktop/DBus", _BUS, "AddMatch", "s", [rule])

    async def _call(
        self, service: str, path: str, interface: str, member: str, signature: str, body: list[Any]
    ) -> list[Any] | None:
        if self._bus is None:
            return None
        from dbus_fast import Message, MessageType

        message = Message(
            destination=service,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
        )
        try:
            async with asyncio.timeout(_PATIENCE):
                reply = await self._bus.call(message)
        except (TimeoutError, EOFError, OSError) as error:
            log.info("%s does not answer: %r", service, error)
            return None
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            log.info("%s.%s failed: %s", service, member, reply and reply.body)
            return None
        return list(reply.body)

    def _heard(self, message: Message) -> None:
        from dbus_fast import MessageType

        if message.message_type is not MessageType.SIGNAL:
            return
        if message.member == "NameOwnerChanged" and message.body[0] in self._owners:
            self._owners[message.body[0]](bool(message.body[2]))
        elif message.member == "SettingChanged" and self._settings is not None:
            spaces, changed = self._settings
            space, key, value = message.body
            if space in spaces:
                changed({space: {key: _plain(value)}})
        elif message.member == "ActionInvoked" and message.body[0] == self._shown:
            self.on_activated()


def _plain(value: Any) -> Any:
    """What a variant holds, however often it was wrapped."""
    while hasattr(value, "signature") and hasattr(value, "value"):
        value = value.value
    return value
