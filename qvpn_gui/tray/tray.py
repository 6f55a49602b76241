"""The icon in the panel, whichever way the panel takes icons and whenever it comes.

Qt decides between StatusNotifier and XEmbed when an icon is made, and an icon made for one never
moves to the other. So the icon is made anew whenever a StatusNotifier host comes or goes; an XEmbed
tray that starts late is found by Qt itself.
"""

from __future__ import annotations

from typing import Final

from PySide6.QtCore import QObject, QTimer, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QSystemTrayIcon

from qvpn_core.client.states import State
from qvpn_gui import icons, theme
from qvpn_gui.session_model import SessionModel
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.words import Words

#: The name on the session bus of who collects StatusNotifier items.
WATCHER: Final = "org.kde.StatusNotifierWatcher"


class Tray(QObject):
    """`activated` is a click that wants the window."""

    activated = Signal()

    def __init__(
        self,
        model: SessionModel,
        menu: TrayMenu,
        words: Words,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._menu = menu
        self._words = words
        self._icon: QSystemTrayIcon | None = None
        #: Whether the icon was made while a StatusNotifier host was there.
        self._hosted = False
        self._shown = ""
        self._frame = 0
        self._timer = QTimer(self, interval=theme.FRAME)
        self._timer.timeout.connect(self._next)
        model.changed.connect(self._refresh)
        model.moved.connect(self._move)

    @staticmethod
    def available() -> bool:
        """Whether a panel takes icons now."""
        return QSystemTrayIcon.isSystemTrayAvailable()

    def host_changed(self, there: bool) -> None:
        """A StatusNotifier host is there, or not."""
        if there is not self._hosted:
            self._hosted = there
            self.renew()

    def renew(self) -> None:
        """Make the icon for the panel that is there now."""
        self.remove()
        self._icon = QSystemTrayIcon(self)
        self._icon.setContextMenu(self._menu)
        self._icon.activated.connect(self._clicked)
        self._move()
        self._icon.show()

    def remove(self) -> None:
        """Take the icon out of the panel."""
        if self._icon is not None:
            self._icon.hide()
            self._icon.deleteLater()
            self._icon = None
        self._shown = ""
        self._timer.stop()

    def _move(self) -> None:
        """Start or end the motion of the state, from its first drawing."""
        self._frame = 0
        if len(theme.DRAWINGS[self._model.state]) > 1 and self._icon is not None:
            self._timer.start()
        else:
            self._timer.stop()
        self._refresh()

    def _next(self) -> None:
        self._frame += 1
        self._refresh()

    def _refresh(self) -> None:
        if self._icon is None:
            return
        state = self._model.state
        drawings = theme.DRAWINGS[state]
        drawing = drawings[self._frame % len(drawings)]
        if (shown := f"{drawing} {state}") != self._shown:
            self._shown = shown
            self._icon.setIcon(_icon(drawing, state))
        tooltip = self._words.tooltip(self._model.status)
        if tooltip != self._icon.toolTip():
            self._icon.setToolTip(tooltip)

    def _clicked(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason in (
            QSystemTrayIcon.ActivationReason.Trigger,
            QSystemTrayIcon.ActivationReason.DoubleClick,
        ):
            self.activated.emit()


def _icon(drawing: str, state: State) -> QIcon:
    return icons.icon(drawing, theme.color(state))
