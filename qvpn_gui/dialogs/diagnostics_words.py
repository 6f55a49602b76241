"""The words of diagnostics: what each check is about, and how it went."""

from __future__ import annotations

from PySide6.QtCore import QObject

from qvpn_core.client.doctor import Finding, Verdict


class DiagnosticsWords(QObject):
    """Texts; the core's own lines are shown below them as details."""

    def check(self, finding: Finding) -> str:
        """What a check is about."""
        return {
            "helper": self.tr("The helper that changes the network"),
            "polkit": self.tr("Asking for permission"),
            "tun": self.tr("Tunnel device"),
            "clock": self.tr("Clock"),
            "leftovers": self.tr("Leftovers of earlier sessions"),
            "kill-switch": self.tr("Kill switch"),
            "dns": self.tr("Names (DNS)"),
            "udp": self.tr("Reaching the gateway over UDP"),
            "mtu": self.tr("Packet size"),
            "leak": self.tr("Traffic outside the tunnel"),
            "tray": self.tr("Icon in the panel"),
        }.get(finding.check, finding.check)

    def verdict(self, verdict: Verdict) -> str:
        """How it went."""
        return {
            "good": self.tr("Good"),
            "unknown": self.tr("Not known"),
            "warning": self.tr("Needs attention"),
            "bad": self.tr("Problem"),
        }[verdict]

    def summary(self, findings: tuple[Finding, ...]) -> str:
        """All checks in a sentence."""
        bad = sum(finding.verdict == "bad" for finding in findings)
        warnings = sum(finding.verdict == "warning" for finding in findings)
        if bad:
            return self.tr("%n problem(s) found.", "", bad)
        if warnings:
            return self.tr("No problem found, %n thing(s) to look at.", "", warnings)
        return self.tr("No problem found.")
