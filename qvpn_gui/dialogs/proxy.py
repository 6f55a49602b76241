"""How a profile connects: as a tunnel, or as proxies for the programs that are set up for them.

It holds no logic: `qvpn_core.client.proxy.options` reads and judges what is typed.
"""

from __future__ import annotations

from dataclasses import replace

from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import (
    QButtonGroup,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLineEdit,
    QPlainTextEdit,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client.proxy.options import DEFAULT_SOCKS, ProxyOptions
from qvpn_core.errors import UsageError
from qvpn_gui import theme
from qvpn_gui.actions import Actions
from qvpn_gui.widgets.texts import Dim, Told
from qvpn_gui.words import sentence

_LINES = 4


class ProxyDialog(QDialog):
    """Open it with `start`, which shows the chosen profile."""

    def __init__(self, actions: Actions, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._actions = actions
        self._name = ""
        self._before = ProxyOptions()
        self.tunnel = QRadioButton(self.tr("&Tunnel"))
        self.proxy = QRadioButton(self.tr("&Proxy only (no administrator rights)"))
        self.socks, self.http, self.forwards = QLineEdit(), QLineEdit(), QPlainTextEdit()
        self.verdict = Told()
        self._buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel
        )
        self.ok = self._buttons.button(QDialogButtonBox.StandardButton.Ok)
        self._form = QWidget()
        self._build()
        self.proxy.toggled.connect(self._check)
        for field in (self.socks, self.http, self.forwards):
            field.textChanged.connect(self._check)
        self._buttons.accepted.connect(self._apply)
        self._buttons.rejected.connect(self.reject)

    def _build(self) -> None:
        choice = QButtonGroup(self)
        for button in (self.tunnel, self.proxy):
            choice.addButton(button)
        self.socks.setPlaceholderText(self.tr("none; for example {address}").format(
            address=DEFAULT_SOCKS))  # fmt: skip
        self.http.setPlaceholderText(self.tr("none; for example {address}").format(
            address="127.0.0.1:3128"))  # fmt: skip
        self.forwards.setPlaceholderText("2222:host.example.org:22")
        self.forwards.setTabChangesFocus(True)
        self.forwards.setFixedHeight(_LINES * self.fontMetrics().lineSpacing() + 16)
        form = QFormLayout(self._form)
        form.setContentsMargins(theme.MARGIN, 0, 0, 0)
        form.addRow(self.tr("&SOCKS proxy at"), self.socks)
        form.addRow(self.tr("&HTTP proxy at"), self.http)
        form.addRow(self.tr("&Forwards"), self.forwards)
        form.addRow(
            Dim(
                self.tr(
                    "One per line: a port of this computer, then the host and port behind the "
                    "gateway that it leads to."
                )
            )
        )
        self.verdict.setMinimumHeight(2 * self.fontMetrics().lineSpacing())
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.SPACE * 2)
        rows.setSpacing(theme.SPACE)
        rows.addWidget(self.tunnel)
        rows.addWidget(_below(self.tr(
            "For all programs, or for the destinations that you choose.")))  # fmt: skip
        rows.addWidget(self.proxy)
        rows.addWidget(_below(self.tr(
            "Only for programs that you set up for it; everything else on this computer goes "
            "directly.")))  # fmt: skip
        rows.addWidget(self._form)
        rows.addWidget(self.verdict)
        rows.addStretch(1)
        rows.addWidget(self._buttons)
        self.setMinimumWidth(440)

    def start(self) -> None:
        """Show what the chosen profile has."""
        profile = self._actions.stored_profile()
        self._name = profile.name if profile is not None else ""
        self._before = profile.proxy if profile is not None else ProxyOptions()
        self.setWindowTitle(self.tr("Connect as: {name}").format(name=self._name))
        self.setEnabled(profile is not None)
        chosen = self.proxy if self._before.enabled else self.tunnel
        chosen.setChecked(True)
        chosen.setFocus()
        self.socks.setText(self._before.socks)
        self.http.setText(self._before.http)
        self.forwards.setPlainText("\n".join(self._before.forwards))
        self._check()

    @property
    def options(self) -> ProxyOptions:
        """What is typed, as it is typed."""
        if not self.proxy.isChecked():
            return replace(self._before, enabled=False)
        lines = (line.strip() for line in self.forwards.toPlainText().splitlines())
        return ProxyOptions(
            True,
            self.socks.text().strip(),
            self.http.text().strip(),
            tuple(line for line in lines if line),
        )

    def _check(self) -> None:
        self._form.setEnabled(self.proxy.isChecked())
        try:
            self.options.listeners()
        except UsageError as error:
            self.verdict.tell(sentence(str(error)))
            self.ok.setEnabled(False)
        else:
            self.verdict.tell("")
            self.ok.setEnabled(True)
        self._fit()

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        """Stay high enough for texts that wrap, which Qt's least size leaves out."""
        layout = self.layout()
        if layout is not None:
            self.setMinimumHeight(layout.totalHeightForWidth(self.width()))

    def _apply(self) -> None:
        self._actions.set_proxy(self._name, self.options)
        self.accept()


def _below(text: str) -> Dim:
    label = Dim(text)
    label.setContentsMargins(theme.MARGIN, 0, 0, theme.SPACE)
    return label
