"""The system bus, asked synchronously and within a time limit (D-Bus specification 0.38).

jeepney makes and parses the messages; the socket is handled here, because jeepney's own connection
waits for its first answer without limit. It refuses to start services, and takes the bus's address
from nobody: a root process does not follow its environment.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageFlag,
    MessageType,
    Parser,
    new_method_call,
)
from jeepney.auth import BEGIN, AuthenticationError, Authenticator

SOCKET: Final = "/run/dbus/system_bus_socket"
#: Seconds for everything that is done on one connection.
BUDGET: Final = 5.0
#: Bytes of the largest answer that anything here expects.
_MAX_ANSWER: Final = 1 << 20
#: The name of the error where there is no bus at all.
NO_BUS: Final = "no-bus"
#: Where a service is: for this network namespace, for another one, or nowhere.
Where = Literal["here", "elsewhere", "absent"]

_DBUS: Final = "org.freedesktop.DBus"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"


class BusError(Exception):
    """The bus is not there, too slow, or answered with an error; `name` is the D-Bus error's."""

    def __init__(self, message: str, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class Bus:
    """A connection to the system bus that ends `budget` seconds after it was made."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._socket = sock
        self._deadline = deadline
        self._parser = Parser()
        self._received = 0
        self._serial = 0

    @classmethod
    @contextmanager
    def connect(cls, budget: float = BUDGET) -> Iterator[Bus]:
        """Connect and log in. Raises BusError, as every call on the bus does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            bus = cls(sock, time.monotonic() + budget)
            with _failures():
                bus._limit()
                try:
                    sock.connect(SOCKET)
                except (FileNotFoundError, ConnectionRefusedError):
                    raise BusError("there is no system bus", NO_BUS) from None
                bus._log_in()
            bus._call(_DBUS, "/org/freedesktop/DBus", _DBUS, "Hello")
            yield bus

    def call(
        self, service: str, path: str, interface: str, method: str, signature: str = "", *body: Any
    ) -> tuple[Any, ...]:
        """The values that a method returns, a variant as (signature, value)."""
        with _failures():
            return self._call(service, path, interface, method, signature, *body)

    def get_all(self, service: str, path: str, interface: str) -> dict[str, Any]:
        """The properties of an object, without their signatures."""
        (found,) = self.call(service, path, _PROPERTIES, "GetAll", "s", interface)
        return {name: value for name, (_, value) in found.items()}

    def set(
        self, service: str, path: str, interface: str, name: str, value: tuple[str, Any]
    ) -> None:
        """Set a property to (signature, value)."""
        self.call(service, path, _PROPERTIES, "Set", "ssv", interface, name, value)

    def where(self, service: str) -> Where:
        """Whether a service serves our network namespace: the index of a link means nothing else.

        A service whose process cannot be seen is elsewhere.
        """
        pid = self._owner(service)
        if pid is None:
            return "absent"
        try:
            theirs = os.stat(f"/proc/{pid}/ns/net").st_ino
        except OSError:
            return "elsewhere"
        return "here" if theirs == os.stat("/proc/thread-self/ns/net").st_ino else "elsewhere"

    def _owner(self, service: str) -> int | None:
        try:
            (pid,) = self.call(
                _DBUS, "/org/freedesktop/DBus", _DBUS, "GetConnectionUnixProcessID", "s", service
            )
        except BusError as error:
            if error.name == "org.freedesktop.DBus.Error.NameHasNoOwner":
                return None
            raise
        return int(pid)

    def _log_in(self) -> None:
        """SASL EXTERNAL: the bus knows who we are from the socket."""
        self._socket.sendall(b"\0")
        login = Authenticator(inc_null_byte=False)
        for line in login:
            self._socket.sendall(line)
            self._limit()
            login.feed(self._receive())
        self._socket.sendall(BEGIN)

    def _call(
        self, service: str, path: str, interface: str, method: str, signature: str = "", *body: Any
    ) -> tuple[Any, ...]:
        call = new_method_call(
            DBusAddress(path, bus_name=service, interface=interface),
            method,
            signature or None,
            body,
        )
        call.header.flags |= MessageFlag.no_auto_start
        self._serial += 1
        with _failures():
            self._limit()
            self._socket.sendall(call.serialise(serial=self._serial))
            answer = self._answer()
        if answer.header.message_type is MessageType.error:
            text = str(answer.body[0]) if answer.body else "no reason given"
            name = str(answer.header.fields.get(HeaderFields.error_name, ""))
            raise BusError(" ".join(text.split())[:200], name)
        return tuple(answer.body)

    def _answer(self) -> Message:
        """The reply to the last call; signals that come before it are of no interest."""
        self._received = 0
        while True:
            try:
                message = self._parser.get_next_message()
            except Exception as error:  # jeepney checks by assertions, struct and decoding alike
                raise BusError("the system bus sent nonsense") from error
            if message is None:
                self._limit()
                self._parser.add_data(self._receive())
            elif message.header.fields.get(HeaderFields.reply_serial) == self._serial:
                return message

    def _receive(self) -> bytes:
        data = self._socket.recv(65536)
        self._received += len(data)
        if not data:
            raise BusError("the system bus closed the connection")
        if self._received > _MAX_ANSWER:
            raise BusError("the system bus sent more than anybody asked for")
        return data

    def _limit(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise BusError("the system bus does not answer in time") from None
    except (OSError, AuthenticationError) as error:
        raise BusError(f"the system bus cannot be used ({error})") from error
