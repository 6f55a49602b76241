"""A settings portal: ``python -m tests.gui.portal JSON`` serves settings, by namespace and key.

It takes its name on the session bus and says ``ready``. For each line of its input, ``NAMESPACE KEY
JSON``, it changes a setting as a desktop would. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

_NAME = "org.freedesktop.portal.Desktop"
_PATH = "/org/freedesktop/portal/desktop"
_INTERFACE = "org.freedesktop.portal.Settings"


def variant(value: Any) -> Variant:
    """A setting in the type that portals give it."""
    match value:
        case bool() | int():
            return Variant("u", int(value))
        case float():
            return Variant("d", value)
        case str():
            return Variant("s", value)
        case _:
            return Variant("(ddd)", [float(part) for part in value])


async def main() -> None:
    """Serve until the input ends."""
    settings: dict[str, dict[str, Any]] = json.loads(sys.argv[1])
    bus = await MessageBus().connect()

    def answer(message: Message) -> Message | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "ReadAll":
            return None
        found = {
            space: {key: variant(value) for key, value in keys.items()}
            for space, keys in settings.items()
            if space in message.body[0]
        }
        return Message.new_method_return(message, "a{sa{sv}}", [found])

    bus.add_message_handler(answer)
    await bus.request_name(_NAME)
    print("ready", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := (await lines.readline()).decode():
        space, key, value = line.split(" ", 2)
        settings.setdefault(space, {})[key] = json.loads(value)
        body = [space, key, variant(json.loads(value))]
        await bus.send(Message.new_signal(_PATH, _INTERFACE, "SettingChanged", "ssv", body))
        print("changed", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
