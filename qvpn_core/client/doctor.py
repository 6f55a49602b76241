"""What ``qvpn doctor`` makes of the facts: for each check a verdict, why, and what to do. Pure.

Each check is one small function of `Facts`, gathered by :mod:`qvpn_core.client.doctor_facts`. It
judges only what it was given, and a fact that could not be had is told as such, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

import msgspec

from qvpn_core.client.states import State
from qvpn_core.client.status import Status

#: `unknown` is for what could not be looked at, or has no meaning now.
Verdict = Literal["good", "unknown", "warning", "bad"]

#: IPv6 in the tunnel needs 1280 bytes (RFC 8200 section 5); what QUIC, UDP and IP add around them
#: (RFC 9000 section 17.3, RFC 9221 section 4) fits in this many bytes of UDP payload.
NEEDED_PAYLOAD: Final = 1330
#: The least that QUIC needs at all (RFC 9000 section 14).
QUIC_PAYLOAD: Final = 1200


_IDLE: Final = Status()


@dataclass(frozen=True, slots=True)
class Way:
    """How the kernel sends packets to a far address of an IP version, asked without sending any."""

    version: int
    #: The source address that it chose, None where there is no route.
    source: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found; None is for what could not be found out."""

    now: datetime
    status: Status = _IDLE
    root: bool = False
    tun: bool = True
    #: Why the helper cannot be started, "" when nothing speaks against it.
    helper: str = ""
    polkit_action: bool = True
    polkit_running: bool | None = True
    kill_switch: str | None = None
    #: Our things in the kernel that no living session owns.
    leftovers: tuple[str, ...] = ()
    ways: tuple[Way, ...] = ()
    #: Whom the resolver is, or why names cannot be set.
    resolver: str = ""
    resolver_error: str = ""
    #: The gateway's name and its addresses, None without a profile.
    gateway: str | None = None
    gateway_addresses: tuple[str, ...] = ()
    #: The largest UDP payload that the gateway answered; 0 for none, None when it was not asked.
    answered: int | None = None
    #: The latest moment that a file of ours was written.
    newest_file: datetime | None = None
    #: Whether the kernel says that something keeps the clock right.
    synchronised: bool | None = None
    #: Whether a panel takes icons; None without a desktop session.
    tray: bool | None = None


class Finding(msgspec.Struct, frozen=True):
    """A check's result. `check` is a stable word for programs."""

    check: str
    verdict: Verdict
    #: What was found, and what to do about it; neither with a trailing full stop.
    words: str
    remedy: str = ""


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Every check, in the order in which a person would go through them."""
    return tuple(Finding(name, *check(facts)) for name, check in CHECKS.items())


_Result = tuple[Verdict, str, str]


def _good(words: str) -> _Result:
    return "good", words, ""


def _unknown(words: str) -> _Result:
    return "unknown", words, ""


def _helper(facts: Facts) -> _Result:
    if facts.root:
        return _good("you are root, no permission is needed")
    if facts.helper:
        return "bad", facts.helper, "install qvpn's package again"
    return _good("the helper is installed")


def _polkit(facts: Facts) -> _Result:
    if facts.root:
        return _good("not needed by root")
    if not facts.polkit_action:
        words = "polkit does not know qvpn's actions, so nobody is asked for permission"
        return "bad", words, "install qvpn's package again"
    if facts.polkit_running is None:
        return "warning", "the system bus cannot be asked for polkit", "is dbus running?"
    if not facts.polkit_running:
        return "warning", "polkit does not run yet", "install polkitd, if connecting fails"
    return _good("polkit runs and knows qvpn's actions")


def _tun(facts: Facts) -> _Result:
    if facts.tun:
        return _good("/dev/net/tun is there")
    return "bad", "/dev/net/tun is missing", "load it: modprobe tun; in a container, pass it in"


def _clock(facts: Facts) -> _Result:
    if facts.newest_file is not None and facts.newest_file > facts.now:
        words = f"the clock says {facts.now:%Y-%m-%d %H:%M}, files here are younger than that"
        return "bad", words, "set the clock: certificates and invites look expired or not yet valid"
    if facts.synchronised is False:
        return "warning", "nothing keeps the clock right", "turn on network time (timedatectl)"
    return _good(f"the clock says {facts.now:%Y-%m-%d %H:%M} UTC")


def _leftovers(facts: Facts) -> _Result:
    if facts.leftovers:
        words = f"a session that ended badly left {', '.join(facts.leftovers)}"
        return "bad", words, "remove it: qvpn unlock"
    return _good("nothing is left of an earlier session")


def _kill_switch(facts: Facts) -> _Result:
    if facts.kill_switch is None:
        return _good("no kill switch holds")
    if facts.status.state is State.CONNECTED:
        return _good(f"it holds ({facts.kill_switch}) beside the tunnel")
    words = f"it holds ({facts.kill_switch}) and blocks what belongs in the tunnel"
    return "warning", words, "connect, or release it: qvpn unlock"


def _leak(facts: Facts) -> _Result:
    status = facts.status
    if status.state is not State.CONNECTED:
        return _unknown("no tunnel is up")
    own = {address.partition("/")[0] for address in status.addresses}
    whole = {6 if ":" in prefix else 4 for prefix in status.routes if prefix.endswith("/0")}
    beside = [way for way in facts.ways if way.source is not None and way.source not in own]
    for way in beside:
        if status.mode == "only":
            continue
        if way.version in whole or whole:
            words = f"IPv{way.version} goes beside the tunnel, from {way.source}"
            return "bad", words, "reconnect; if it stays, report it: qvpn doctor --report FILE"
    if status.mode == "only" or not whole:
        return _good("the tunnel is not meant for everything, and what it is for uses it")
    return _good("what belongs in the tunnel uses it, in IPv4 and IPv6")


def _dns(facts: Facts) -> _Result:
    if facts.resolver_error:
        return "warning", facts.resolver_error, ""
    if facts.gateway is not None and not facts.gateway_addresses:
        words = f"the gateway's name {facts.gateway} has no address"
        return "bad", words, "check this machine's name servers, and the spelling in the profile"
    return _good(facts.resolver or "names are resolved")


def _udp(facts: Facts) -> _Result:
    if facts.status.state is State.CONNECTED and facts.status.transport == "quic":
        return _good("the tunnel runs over it")
    if facts.answered is None:
        known = facts.gateway is not None
        return _unknown("the gateway has no address to ask" if known else "there is no profile yet")
    if facts.answered == 0:
        words = f"{facts.gateway} does not answer QUIC"
        return "bad", words, "try another network; where UDP is blocked: qvpn up --transport tls"
    return _good(f"{facts.gateway} answers QUIC")


def _mtu(facts: Facts) -> _Result:
    status = facts.status
    if status.state is State.CONNECTED and status.mtu:
        if status.mtu < 1280:
            words = f"the tunnel carries {status.mtu} bytes, IPv6 needs 1280"
            return "warning", words, "try another network"
        return _good(f"the tunnel carries packets of {status.mtu} bytes")
    if not facts.answered:
        asked = "no gateway was asked" if facts.answered is None else "the gateway did not answer"
        return _unknown(asked)
    if facts.answered < NEEDED_PAYLOAD:
        words = f"the path to the gateway carries {facts.answered} bytes, {NEEDED_PAYLOAD} did not"
        return "warning", words + " come back", "IPv6 may not fit: try another network"
    return _good("the path to the gateway carries large enough packets")


def _tray(facts: Facts) -> _Result:
    if facts.tray is None:
        return _unknown("there is no desktop session here")
    if not facts.tray:
        words = "no panel takes StatusNotifier icons"
        remedy = "GNOME needs the extension AppIndicator; the window works without it"
        return "warning", words, remedy
    return _good("a panel takes icons")


#: In this order; the names are part of ``qvpn doctor --json``.
CHECKS: Final[dict[str, Callable[[Facts], _Result]]] = {
    "helper": _helper,
    "polkit": _polkit,
    "tun": _tun,
    "clock": _clock,
    "leftovers": _leftovers,
    "kill-switch": _kill_switch,
    "dns": _dns,
    "udp": _udp,
    "mtu": _mtu,
    "leak": _leak,
    "tray": _tray,
}
