"""Where proxies and forwards listen, and where that leads: as people write it, read and checked.

Used for command lines and for profiles. Pure: whether an address can be had is found out by binding
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

from qvpn_core.errors import UsageError
from qvpn_core.masque.target import Target, make_target
from qvpn_core.transport.interface import Address

DEFAULT_SOCKS: Final = "127.0.0.1:1080"
LOOPBACK: Final = "127.0.0.1"
#: Forwards of a profile; each is a socket.
MAX_FORWARDS: Final = 64

_ADDRESS = r"(?:\[(?P<{0}6>[^\[\]]+)\]|(?P<{0}>[^\[\]:]+))"
_LISTEN = re.compile(rf"{_ADDRESS.format('at')}:(?P<port>[0-9]{{1,5}})")
_FORWARD = re.compile(
    rf"(?:{_ADDRESS.format('at')}:)?(?P<port>[0-9]{{1,5}}):"
    rf"{_ADDRESS.format('to')}:(?P<to_port>[0-9]{{1,5}})"
)

ProxyKind = Literal["socks", "http", "forward"]


@dataclass(frozen=True, slots=True)
class Listener:
    """A place to listen at; `target` is where a forward leads."""

    kind: ProxyKind
    listen: Address
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """A profile's proxies. Addresses are ADDR:PORT; empty for none."""

    #: Serve these instead of a tunnel.
    enabled: bool = False
    socks: str = DEFAULT_SOCKS
    http: str = ""
    #: Each [ADDR:]PORT:HOST:PORT.
    forwards: tuple[str, ...] = ()

    def listeners(self) -> tuple[Listener, ...]:
        """Where to listen; at loopback only. Raises UsageError for what cannot be meant."""
        found: list[Listener] = []
        if self.socks:
            found.append(Listener("socks", parse_listen(self.socks)))
        if self.http:
            found.append(Listener("http", parse_listen(self.http)))
        if len(self.forwards) > MAX_FORWARDS:
            raise UsageError(f"there are more than {MAX_FORWARDS} forwards", "use a proxy")
        found += [parse_forward(text) for text in self.forwards]
        taken: set[Address] = set()
        for listener in found:
            if listener.listen[1] and listener.listen in taken:
                raise UsageError(
                    f"{format_address(listener.listen)} is used twice", "choose another port"
                )
            taken.add(listener.listen)
        if self.enabled and not found:
            raise UsageError("there is no proxy and no forward", f"listen at {DEFAULT_SOCKS}")
        return tuple(found)


def parse_listen(text: str, *, share: bool = False) -> Address:
    """`ADDR:PORT` of this machine; with `share`, also where others reach it. Raises UsageError."""
    parts = _LISTEN.fullmatch(text)
    if parts is None:
        raise UsageError(f"{text!r} is no address to listen at", f"write it as {DEFAULT_SOCKS}")
    return _checked(text, parts["at6"] or parts["at"], int(parts["port"]), share)


def parse_forward(text: str, *, share: bool = False) -> Listener:
    """`[ADDR:]PORT:HOST:PORT`: where to listen, and where that leads. Raises UsageError."""
    parts = _FORWARD.fullmatch(text)
    try:
        if parts is None:
            raise ValueError
        target = make_target(parts["to6"] or parts["to"], int(parts["to_port"]))
    except ValueError:
        raise UsageError(
            f"{text!r} is no forward", "write LOCAL:HOST:PORT, such as 2222:host.example.org:22"
        ) from None
    host = parts["at6"] or parts["at"] or LOOPBACK
    return Listener("forward", _checked(text, host, int(parts["port"]), share), target)


def format_address(address: Address) -> str:
    """ADDR:PORT as programs are told it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _checked(text: str, host: str, port: int, share: bool) -> Address:
    try:
        address = ip_address(host)
    except ValueError:
        raise UsageError(
            f"{text!r}: {host!r} is no address of this machine", f"write {LOOPBACK}"
        ) from None
    if port > 0xFFFF:
        raise UsageError(f"{text!r}: there is no port {port}", "ports are 1 to 65535")
    if not address.is_loopback and not share:
        raise UsageError(
            f"{text!r} is open to other machines, which would act as this device",
            f"use {LOOPBACK}; qvpn proxy and qvpn forward can with --share",
        )
    return str(address), port
