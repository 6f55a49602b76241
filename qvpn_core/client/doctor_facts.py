"""Looking at this machine for ``qvpn doctor``: as its user, without root, within seconds.

It changes nothing and sends nothing but a few packets to the profile's own gateway, which any QUIC
server answers without a handshake (version negotiation, RFC 9000 section 6).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection

from qvpn_core.client import control, paths, profiles
from qvpn_core.client.doctor import NEEDED_PAYLOAD, QUIC_PAYLOAD, Facts, Way
from qvpn_core.client.idle import idle_status
from qvpn_core.client.profiles import Profile
from qvpn_core.client.status import Status
from qvpn_core.errors import QvpnError
from qvpn_core.helper import launch, rundir
from qvpn_core.net import killswitch
from qvpn_core.net.dns.bus import Bus, BusError
from qvpn_core.net.dns.detect import detect
from qvpn_core.net.names import CLIENT_TUN

_POLICY: Final = Path("/usr/share/polkit-1/actions/io.github.qvpn.policy")
_WATCHER: Final = "org.kde.StatusNotifierWatcher"
_BUS_PATIENCE: Final = 3.0
_POLKIT: Final = "org.freedesktop.PolicyKit1"
#: Far addresses to ask the kernel about; nothing is sent there.
_FAR: Final = ((4, "1.1.1.1"), (6, "2606:4700:4700::1111"))
#: A version that nobody speaks, so that every server answers with those it does (RFC 9000
#: section 15).
_NO_VERSION: Final = 0x1A2A3A4A
#: Seconds for an answer, and how often it is asked for each size.
_PATIENCE: Final = 1.0
_TRIES: Final = 2
# linux/in.h, linux/in6.h; not in Python's socket.
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE = 23, 3
_TIME_ERROR: Final = 5  # linux/timex.h


def gather(name: str | None = None) -> Facts:
    """Look. Blocks for some seconds at most. `name` is the profile whose gateway is asked."""
    status = _status()
    profile = _profile(name or status.profile)
    addresses = _resolve(profile) if profile is not None else ()
    resolver, resolver_error = _resolver()
    return Facts(
        now=datetime.now(UTC),
        status=status,
        root=os.geteuid() == 0,
        tun=Path("/dev/net/tun").exists(),
        helper=_helper(),
        polkit_action=_POLICY.exists(),
        polkit_running=_polkit(),
        kill_switch=killswitch.holding(),
        leftovers=tuple(_leftovers()),
        ways=tuple(Way(version, _source(version, far)) for version, far in _FAR),
        resolver=resolver,
        resolver_error=resolver_error,
        gateway=profile.gateway if profile is not None else None,
        gateway_addresses=addresses,
        answered=_answered(profile, addresses, status),
        newest_file=_newest_file(),
        synchronised=_synchronised(),
        tray=_tray(),
    )


def _status() -> Status:
    try:
        reply = control.ask(control.StatusRequest(), timeout=5)
    except QvpnError:
        return idle_status()
    return reply.status if isinstance(reply, control.StatusReply) else idle_status()


def _profile(name: str | None) -> Profile | None:
    try:
        known = profiles.names()
        chosen = name or (known[0] if known else None)
        return profiles.load(chosen) if chosen is not None else None
    except QvpnError:
        return None


def _helper() -> str:
    try:
        launch.command("session")
    except QvpnError as error:
        return error.what
    return ""


def _polkit() -> bool | None:
    try:
        with Bus.connect() as bus:
            names = bus.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                "ListActivatableNames",
            )[0]  # fmt: skip
            (owned,) = bus.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus",
                "NameHasOwner", "s", _POLKIT,
            )  # fmt: skip
    except BusError:
        return None
    return bool(owned) or _POLKIT in names


def _leftovers() -> Iterator[str]:
    if rundir.owner() is not None:
        return  # it lives
    if Path(f"/sys/class/net/{CLIENT_TUN}").exists():
        yield f"the device {CLIENT_TUN}"
    if (rundir.DIRECTORY / f"net-{rundir.namespace()}.journal").exists():
        yield "changes that were not undone"


def _source(version: int, far: str) -> str | None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((far, 9))
            return str(sock.getsockname()[0])
    except OSError:
        return None


def _resolver() -> tuple[str, str]:
    try:
        return detect().reason, ""
    except (QvpnError, OSError) as error:
        return "", str(error)


def _resolve(profile: Profile) -> tuple[str, ...]:
    with suppress(ValueError):
        return (str(ip_address(profile.host)),)
    try:
        found = socket.getaddrinfo(profile.host, profile.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def _answered(profile: Profile | None, addresses: tuple[str, ...], status: Status) -> int | None:
    """The largest payload that comes through to the gateway; see `Facts.answered`."""
    if profile is None or not addresses or status.transport is not None:
        return None
    largest = 0
    for size in (QUIC_PAYLOAD, NEEDED_PAYLOAD):
        if any(answers(address, profile.port, size) for address in addresses[:2]):
            largest = size
        else:
            break
    return largest


def answers(address: str, port: int, size: int) -> bool:
    """Whether a QUIC server answers a datagram of `size` bytes, sent whole or not at all."""
    mine = os.urandom(8)
    head = b"\xc0" + _NO_VERSION.to_bytes(4, "big") + b"\x08" + os.urandom(8) + b"\x08" + mine
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
            sock.connect((address, port))
            for _ in range(_TRIES):
                sock.send(head + bytes(size - len(head)))
                end = time.monotonic() + _PATIENCE
                while (left := end - time.monotonic()) > 0:
                    sock.settimeout(left)
                    try:
                        answer = sock.recv(2048)
                    except TimeoutError:
                        break
                    # Version 0, and our connection ID as its destination (RFC 8999 section 6).
                    if answer[1:5] == bytes(4) and answer[6 : 6 + len(mine)] == mine:
                        return True
        except OSError:
            return False
    return False


def _tray() -> bool | None:
    """Whether a panel takes StatusNotifier icons; root does not follow its environment to a bus."""
    if os.geteuid() == 0 or not os.environ.get("DBUS_SESSION_BUS_ADDRESS"):
        return None
    question = new_method_call(
        DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus"),
        "NameHasOwner",
        "s",
        (_WATCHER,),
    )
    try:
        with open_dbus_connection("SESSION") as bus:
            return bool(bus.send_and_get_reply(question, timeout=_BUS_PATIENCE).body[0])
    except Exception:  # whatever is wrong with a bus, there is no tray on it
        return None


def _newest_file() -> datetime | None:
    times = []
    for directory in (paths.config_dir(), paths.config_dir() / "profiles", Path(__file__).parent):
        with suppress(OSError):
            times.append(directory.stat().st_mtime)
    return datetime.fromtimestamp(max(times), UTC) if times else None


def _synchronised() -> bool | None:
    """What adjtimex(2) says; it needs no root while nothing is changed."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512))
        if state >= 0:
            return int(state) != _TIME_ERROR
    return None
