"""Where programs find the proxies and forwards, to be copied into their settings."""

from __future__ import annotations

from PySide6.QtCore import QTimer
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QGridLayout, QPushButton, QWidget

from qvpn_core.client.status import Proxy
from qvpn_gui import theme
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.choices import with_value
from qvpn_gui.widgets.texts import Dim, OneLine
from qvpn_gui.words import Words

_COPIED_MS = 1500


class ProxyCard(Card):
    """A line for each place that is listened at."""

    def __init__(self, model: SessionModel, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._words = words
        self._shown: tuple[Proxy, ...] = ()
        self._lines = QWidget()
        self.buttons: list[QPushButton] = []
        self.rows.addWidget(self._lines)
        self.rows.addWidget(Dim(self.tr("Enter these in the network settings of your programs.")))
        model.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the latest proxies."""
        proxies = self._model.status.proxies
        if proxies == self._shown:
            return
        self._shown = proxies
        lines = QWidget()
        grid = QGridLayout(lines)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(theme.SPACE + 4)
        grid.setColumnStretch(0, 1)
        self.buttons = [self._add(grid, row, proxy) for row, proxy in enumerate(proxies)]
        self.rows.replaceWidget(self._lines, lines)
        self._lines.deleteLater()
        self._lines = lines

    def _add(self, grid: QGridLayout, row: int, proxy: Proxy) -> QPushButton:
        words = self._words.proxy(proxy)
        name, value = OneLine(words), OneLine(proxy.listen, secondary=False)
        button = QPushButton(self.tr("Copy"))
        value.setAccessibleName(self.tr("{name}: {value}").format(name=words, value=proxy.listen))
        button.setAccessibleName(self.tr("Copy {address}").format(address=proxy.listen))
        button.clicked.connect(with_value(self._copy, row))
        grid.addWidget(name, 2 * row, 0)
        grid.addWidget(value, 2 * row + 1, 0)
        grid.addWidget(button, 2 * row, 1, 2, 1)
        return button

    def _copy(self, row: int) -> None:
        QGuiApplication.clipboard().setText(self._shown[row].listen)
        button = self.buttons[row]
        button.setText(self.tr("Copied"))
        QTimer.singleShot(_COPIED_MS, button, lambda: button.setText(self.tr("Copy")))
