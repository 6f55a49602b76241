"""The words of the route dialog: what is odd about a line, where something goes, and why."""

from __future__ import annotations

from PySide6.QtCore import QObject, Qt
from PySide6.QtGui import QGuiApplication

from qvpn_core.client.explain import Way
from qvpn_core.client.profiles import LAN_WORD
from qvpn_core.client.route_list import Entry, Finding
from qvpn_core.client.route_preview import Answer, Row
from qvpn_core.net.plan import RouteReason


class RouteWords(QObject):
    """Texts; it decides nothing."""

    def way(self, way: Way) -> str:
        """Where a route leads, in a word or two."""
        return {
            "tunnel": self.tr("Tunnel"),
            "direct": self.tr("Direct"),
            "refused": self.tr("Blocked"),
        }[way]

    def reason(self, reason: RouteReason) -> str:
        """Why the planner made a route."""
        return {
            "advertised": self.tr("The gateway carries it"),
            "excluded": self.tr("Your list keeps it out"),
            "lan": self.tr("Your local network"),
            "local-scope": self.tr("Means this computer or its own link"),
            "no-family": self.tr("The tunnel lacks this IP version; directly it would leak"),
            "not-advertised": self.tr("The gateway does not carry it"),
        }[reason]

    def row(self, row: Row) -> tuple[str, str, str]:
        """A resulting route as cells."""
        return left_to_right(str(row.prefix)), self.way(row.way), self.reason(row.reason)

    def destination(self, entry: Entry) -> str:
        """A line's destination for a person."""
        return (
            self.tr("lan (your local network)")
            if entry.text == LAN_WORD
            else left_to_right(entry.text)
        )

    def finding(self, finding: Finding) -> str:
        """What is odd about a line."""
        other = finding.other
        return {
            "repeated": self.tr("This destination is listed twice."),
            "within": self.tr("{other} covers this already.").format(other=other),
            "both-ways": self.tr(
                "The same destination is listed the other way too ({other}): remove one."
            ).format(other=other),
            "no-effect": self.tr("Nothing in the list covers this, so it is no exception."),
            "not-found": self.tr("This name has no address now, so it has no effect."),
            "lan-in-tunnel": self.tr(
                "Your local network can be kept out of the tunnel, not sent into it."
            ),
            "not-carried": self.tr(
                "The gateway does not carry this: what belongs there will be blocked."
            ),
        }[finding.oddity]

    def answer(self, answer: Answer) -> str:
        """Where an address would go, and which line or rule says so."""
        sentence = {
            "tunnel": self.tr("{address} uses the tunnel"),
            "direct": self.tr("{address} goes directly"),
            "refused": self.tr("{address} is blocked"),
        }[answer.way].format(address=left_to_right(str(answer.address)))
        return f"{sentence}. {self._because(answer)}"

    def _because(self, answer: Answer) -> str:
        if answer.reason is None:
            if answer.way == "refused":
                return self.tr("Outside the tunnel, the kill switch blocks it.")
            if answer.rule is None and answer.entry is None:
                return self.tr("Nothing that uses the tunnel covers it.")
            return self.tr("It is this device's own address.")
        if answer.reason in ("advertised", "excluded", "not-advertised") and answer.entry:
            line = left_to_right(answer.entry.text)
            if answer.entry.comment:
                line += f" ({answer.entry.comment})"
            if answer.reason == "not-advertised":
                return self.tr("Your line {line} wants it, the gateway does not carry it.").format(
                    line=line
                )
            return self.tr("Your line {line} says so.").format(line=line)
        if answer.reason == "advertised":
            return self.tr("The gateway carries {rule}, and no line says otherwise.").format(
                rule=answer.rule
            )
        return f"{self.reason(answer.reason)} ({answer.rule})."


def left_to_right(text: str) -> str:
    """An address as it is written everywhere, also within words that are read from the right.

    By the marks of the Unicode Bidirectional Algorithm (UAX #9 section 2.4.2).
    """
    if QGuiApplication.layoutDirection() is not Qt.LayoutDirection.RightToLeft:
        return text
    return f"\u2066{text}\u2069"
