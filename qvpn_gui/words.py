"""The app's words for states, stages, failures, amounts and times, in the user's language.

The core's own lines are English and exact; they are shown as details below the words from here.
It decides nothing: what to do about a failure is in `remedies.py`.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from PySide6.QtCore import QDateTime, QLocale, QObject

from qvpn_core.client.control import RefusedByAgent
from qvpn_core.client.planner import RouteMode
from qvpn_core.client.states import State
from qvpn_core.client.status import Proxy, Stage, Status
from qvpn_core.errors import QvpnError

STAGES: Final[tuple[Stage, ...]] = (
    "permission",
    "resolving",
    "handshake",
    "authenticating",
    "addresses",
    "routes",
)
#: States that mean something else for a proxy.
_PROXIED: Final = frozenset(
    {State.CONNECTING, State.CONNECTED, State.RECONNECTING, State.DISCONNECTING}
)
#: One of `qvpn_core.client.explain.warnings`.
_OUT_OF_REACH: Final = re.compile(
    r"(?P<network>\S+) on (?P<link>\S+) is out of reach: to keep it, leave the LAN "
    r"out of the tunnel \(--except lan\)"
)
_EVERYTHING: Final = frozenset({"0.0.0.0/0", "::/0"})


class Words(QObject):
    """Texts; made once and asked by everybody."""

    def state(self, status: Status) -> str:
        """The state in a word or two."""
        match status.state:
            case State.DISCONNECTED:
                return self.tr("Not connected")
            case State.CONNECTING:
                return self.tr("Connecting…")
            case State.CONNECTED:
                return self.tr("Protected") if protects(status) else self.tr("Connected")
            case State.RECONNECTING:
                return self.tr("Reconnecting…")
            case State.DISCONNECTING:
                return self.tr("Disconnecting…")
            case State.BLOCKED:
                return self.tr("Blocked")
            case State.FAILED:
                return self.tr("Connection failed")

    def meaning(self, status: Status) -> str:
        """What the state means for the traffic of this machine, in one sentence."""
        if status.proxies and status.state in _PROXIED:
            return self._proxied(status.state)
        match status.state:
            case State.DISCONNECTED | State.FAILED if status.other_user:
                return self.tr("The tunnel of {user} decides where your traffic goes.").format(
                    user=status.other_user
                )
            case State.DISCONNECTED | State.FAILED:
                return self.tr("Your traffic goes directly to the internet.")
            case State.CONNECTING if status.stage == "permission":
                return self.tr("Waiting for your permission.")
            case State.CONNECTING:
                return self.tr("Setting up the tunnel.")
            case State.CONNECTED:
                return self._covered(status)
            case State.RECONNECTING:
                return self.tr("Traffic for the tunnel waits. Nothing leaves outside it.")
            case State.DISCONNECTING:
                return self.tr("Putting your network back as it was.")
            case State.BLOCKED:
                return self.tr("The kill switch lets nothing out until you decide.")

    def _proxied(self, state: State) -> str:
        match state:
            case State.CONNECTED:
                return self.tr("Programs that use the proxy reach the gateway, others go directly.")
            case State.RECONNECTING:
                return self.tr("Programs that use the proxy have to wait.")
            case State.DISCONNECTING:
                return self.tr("Ending the proxy.")
        return self.tr("Connecting to the gateway.")

    def _covered(self, status: Status) -> str:
        if status.mode == "only":
            return self.tr("%n network(s) use the tunnel, the rest goes directly.", "",
                           len(status.destinations))  # fmt: skip
        if not protects(status):
            return self.tr("What the gateway carries uses the tunnel, the rest goes directly.")
        if status.excluded:
            return self.tr("All traffic uses the tunnel, except %n network(s).", "",
                           len(status.excluded))  # fmt: skip
        return self.tr("All traffic uses the tunnel.")

    def tooltip(self, status: Status) -> str:
        """For the tray: the state, and which gateway since when."""
        lines = [f"qvpn: {self.state(status)}"]
        if status.gateway and status.state is not State.DISCONNECTED:
            lines.append(status.gateway)
        if status.since and status.state is State.CONNECTED:
            lines.append(self.since(status.since))
        return "\n".join(lines)

    def since(self, when: str) -> str:
        """Since when a state lasts: the hour, on other days the day too."""
        moment = QDateTime.fromSecsSinceEpoch(int(datetime.fromisoformat(when).timestamp()))
        locale = QLocale()
        hour = locale.toString(moment.time(), QLocale.FormatType.ShortFormat)
        if moment.date() == QDateTime.currentDateTime().date():
            return self.tr("since {time}").format(time=hour)
        day = locale.toString(moment.date(), QLocale.FormatType.ShortFormat)
        return self.tr("since {day}, {time}").format(day=day, time=hour)

    def stage(self, stage: Stage) -> str:
        """What an attempt is at."""
        return {
            "permission": self.tr("Ask for your permission"),
            "resolving": self.tr("Find the gateway"),
            "handshake": self.tr("Agree on encryption"),
            "authenticating": self.tr("Identify this device"),
            "addresses": self.tr("Receive addresses"),
            "routes": self.tr("Set up routes"),
        }[stage]

    def warning(self, line: str) -> str:
        """What is good to know, with the app's own switch in place of the command line's."""
        lost = _OUT_OF_REACH.fullmatch(line)
        if lost is None:
            return sentence(line)
        return self.tr(
            "{network} on {link} is out of reach. To keep it, switch on “Reach the local network” "
            "in the settings."
        ).format(**lost.groupdict())

    def failure(self, reason: str | None) -> str:
        """What went wrong, by the slug of an error."""
        return {
            "name-not-resolved": self.tr("The gateway's name was not found"),
            "unreachable": self.tr("The gateway does not answer"),
            "no-network": self.tr("This computer has no network connection"),
            "captive-portal": self.tr("This network wants you to sign in"),
            "certificate": self.tr("This may not be your gateway"),
            "authentication": self.tr("The gateway does not know this device"),
            "refused": self.tr("The gateway refused the connection"),
            "path-mtu": self.tr("This network cannot carry the tunnel"),
            "tunnel-lost": self.tr("The connection was lost"),
            "stream-reset": self.tr("The connection was lost"),
            "protocol": self.tr("The gateway broke the rules of the protocol"),
            "device-key": self.tr("This device's key is not available"),
            "permission": self.tr("Permission is missing"),
            "tun-unavailable": self.tr("The tunnel device is not available"),
            "dns-setup": self.tr("Name servers could not be set"),
            "helper-missing": self.tr("qvpn's helper is not installed"),
            "polkit-missing": self.tr("No service that grants permission is running"),
            "polkit-agent-missing": self.tr("No program can ask you for permission"),
            "not-authorized": self.tr("Permission was not given"),
            "helper-failed": self.tr("qvpn's helper did not start"),
            "helper-version": self.tr("The app and its helper are of different versions"),
            "helper-lost": self.tr("qvpn's helper has ended"),
            "helper-ended": self.tr("Somebody ended the session"),
            "network-taken": self.tr("Another tunnel is up on this computer"),
            "not-allowed": self.tr("This is not allowed"),
            "network-setup": self.tr("This computer's network could not be set up"),
            "port-in-use": self.tr("Another program listens at this address"),
            "usage": self.tr("This cannot be done"),
            "agent": self.tr("This cannot be done"),
            "agent-silent": self.tr("The running session does not answer"),
            "agent-gone": self.tr("The session ended unexpectedly"),
            "invite-missing": self.tr("There is no invite in this text"),
            "invite-several": self.tr("There are several invites in this text"),
            "invite-truncated": self.tr("The invite is cut off"),
            "invite-altered": self.tr("The invite was changed on its way"),
            "invite-version": self.tr("The invite is for a newer qvpn"),
            "invite-expired": self.tr("The invite has expired"),
            "enrolment-refused": self.tr("The gateway refused the invite"),
            "internal": self.tr("qvpn has a defect"),
        }.get(reason or "", self.tr("The connection failed"))

    def other_user(self, user: str) -> str:
        """What to do about another user's tunnel."""
        return self.tr(
            "{user} is connected on this computer. Ask {user} to disconnect; an administrator can "
            "end it with: qvpn unlock"
        ).format(user=user)

    def portal(self, address: str) -> str:
        """What to do about a network that wants a sign-in first."""
        return self.tr(
            "Sign in at {address}. qvpn lets your browser out for that and connects afterwards."
        ).format(address=address)

    def proxy(self, proxy: Proxy) -> str:
        """What is served at an address."""
        match proxy.kind:
            case "socks":
                return self.tr("SOCKS proxy")
            case "http":
                return self.tr("HTTP proxy")
            case "forward":
                return self.tr("To {target}").format(target=proxy.target)

    def problem(self, error: QvpnError) -> str:
        """A failure in words, and the core's line about it."""
        # What an agent refused has a reason of the agent's own.
        reason = error.cause if isinstance(error, RefusedByAgent) else error.reason
        return f"{self.failure(reason)}: {error}"

    def policy(self, mode: RouteMode, destinations: int, excluded: int) -> str:
        """A route policy in a few words, by how many networks it names."""
        if mode == "only":
            words = self.tr("Only %n network(s)", "", destinations)
        else:
            words = self.tr("Everything")
        if not excluded:
            return words
        return self.tr("{what}, except {count}").format(what=words, count=excluded)

    def rate(self, bits: float) -> str:
        """Bits per second, to three digits."""
        value, unit = _scaled(bits)
        return f"{_number(value, unit == 'bit/s')} {unit}"

    def round_rate(self, bits: float) -> str:
        """Bits per second that are 1, 2 or 5 times a power of ten: the end of an axis."""
        value, unit = _scaled(bits)
        return f"{_number(value, whole=True)} {unit}"

    def size(self, count: int) -> str:
        """Bytes."""
        return QLocale().formattedDataSize(count, 1, QLocale.DataSizeFormat.DataSizeSIFormat)

    def milliseconds(self, value: float) -> str:
        """A round trip."""
        return self.tr("{number} ms").format(number=_number(value, whole=False))

    def share(self, value: float) -> str:
        """A share of 1 as per cent; what is too little to show is not shown as nothing."""
        percent = 100 * value
        if 0 < percent < 0.1:
            return self.tr("below {number} %").format(number=QLocale().toString(0.1, "f", 1))
        return self.tr("{number} %").format(number=QLocale().toString(percent, "f", 1))


def sentence(line: str) -> str:
    """One of the core's lines, which start small, as a sentence; the name stays small."""
    if line.startswith("qvpn"):
        return line
    return line[:1].upper() + line[1:]


def protects(status: Status) -> bool:
    """Whether the tunnel is meant for everything and carries all of an IP version."""
    return status.mode != "only" and not _EVERYTHING.isdisjoint(status.routes)


def _scaled(bits: float) -> tuple[float, str]:
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits < 999.5:
            return bits, unit
        bits /= 1000
    return bits, "Gbit/s"


def _number(value: float, whole: bool) -> str:
    decimals = 0 if whole or value >= 100 or value == 0 else 1 if value >= 10 else 2
    return QLocale().toString(float(value), "f", decimals)
