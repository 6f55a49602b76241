"""What each setting is called, what it is good for, and what its values mean. The only such place.

Types and defaults are declared where the values are kept: `qvpn_gui.settings.Settings` for the app,
`qvpn_core.client.profiles.Profile` for a gateway.
"""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import QObject


@dataclass(frozen=True, slots=True)
class Value:
    """A value that can be chosen: its name, and what choosing it means."""

    value: object
    name: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: `key` is the field's name. Two values, False and True, make a check box."""

    key: str
    name: str
    help: str
    values: tuple[Value, ...] = (Value(False, ""), Value(True, ""))


class SettingWords(QObject):
    """The tables."""

    def of_profile(self) -> tuple[Setting, ...]:
        """Settings of one gateway."""
        return (
            Setting(
                "kill_switch",
                self.tr("&Kill switch"),
                self.tr("What happens to the tunnel's traffic while the tunnel is down."),
                (
                    Value("off", self.tr("Off"), self.tr(
                        "When qvpn gives up on the connection, traffic goes directly to the "
                        "internet.")),
                    Value("on", self.tr("While connected"), self.tr(
                        "From the moment you connect until you disconnect, nothing leaves "
                        "outside the tunnel, even if qvpn crashes.")),
                    Value("always", self.tr("Always"), self.tr(
                        "Nothing leaves outside the tunnel, even after this computer "
                        "restarts, until you release the block.")),
                ),
            ),
            Setting(
                "lan",
                self.tr("Reach the &local network"),
                self.tr(
                    "Printers and other devices near you stay in reach, outside the tunnel. Leave "
                    "it off in networks that you do not trust."
                ),
            ),
            Setting(
                "dns",
                self.tr("Use the gateway's &name servers"),
                self.tr(
                    "The names of sites that you visit are looked up through the tunnel. "
                    "Otherwise, your network's name servers see them."
                ),
            ),
            Setting(
                "transport",
                self.tr("&Transport"),
                self.tr("How packets travel to the gateway."),
                (
                    Value("auto", self.tr("Automatic"), self.tr(
                        "QUIC where the network lets it through, else TLS.")),
                    Value("quic", self.tr("QUIC over UDP"), self.tr(
                        "The fastest; some networks block it.")),
                    Value("tls", self.tr("TLS over TCP"), self.tr(
                        "Slower; works almost everywhere.")),
                ),
            ),
        )  # fmt: skip

    def of_app(self) -> tuple[Setting, ...]:
        """Settings of the app."""
        return (
            Setting(
                "notifications",
                self.tr("Sho&w notifications"),
                self.tr("Only for changes that you did not cause yourself."),
            ),
            Setting(
                "language",
                self.tr("Lan&guage"),
                self.tr("Takes effect the next time qvpn starts."),
                (
                    Value("", self.tr("Same as the desktop")),
                    Value("en", "English"),
                    Value("de", "Deutsch"),
                    Value("zh_CN", "简体中文"),
                ),
            ),
            Setting(
                "log_level",
                self.tr("L&og"),
                self.tr("How much is recorded to help find the cause of a problem."),
                (
                    Value("warning", self.tr("Problems only")),
                    Value("info", self.tr("Normal")),
                    Value("debug", self.tr("Everything")),
                ),
            ),
        )
