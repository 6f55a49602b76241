"""Opens the windows that most starts do not open: routes, settings, diagnostics.

Each is made when it is first wanted and kept; opening it again raises it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject
from PySide6.QtGui import QAction, QKeySequence
from PySide6.QtWidgets import QDialog

from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.tray.menu import TrayMenu
from qvpn_gui.window.main_window import MainWindow

if TYPE_CHECKING:
    from qvpn_gui.dialogs.diagnostics import DiagnosticsDialog
    from qvpn_gui.dialogs.proxy import ProxyDialog
    from qvpn_gui.dialogs.routes import RoutesDialog
    from qvpn_gui.dialogs.settings import SettingsDialog


class Opener(QObject):
    """Knows where in the window and in the tray's menu each is asked for."""

    def __init__(
        self, model: SessionModel, actions: Actions, window: MainWindow, menu: TrayMenu
    ) -> None:
        super().__init__(window)
        self._model = model
        self._actions = actions
        self._window = window
        self._routes: RoutesDialog | None = None
        self._proxy: ProxyDialog | None = None
        self._settings: SettingsDialog | None = None
        self._diagnostics: DiagnosticsDialog | None = None
        window.session.routes.connect(self.routes)
        menu.routes.connect(self.routes)
        window.session.proxy.connect(self.proxy)
        preferences = QKeySequence(QKeySequence.StandardKey.Preferences)
        self._entry(self.tr("What uses the &tunnel…"), self.routes)
        self._entry(self.tr("&Connect as…"), self.proxy)
        self._entry(self.tr("&Settings…"), self.settings, preferences)
        self._entry(self.tr("&Diagnostics…"), self.diagnostics)

    def routes(self) -> RoutesDialog:
        """What uses the tunnel."""
        from qvpn_gui.dialogs.routes import RoutesDialog

        if self._routes is None:
            self._routes = RoutesDialog(self._model, self._actions, self._window)
        if not self._routes.isVisible():
            self._routes.start()
        _present(self._routes)
        return self._routes

    def proxy(self) -> ProxyDialog:
        """A tunnel or a proxy for the chosen profile."""
        from qvpn_gui.dialogs.proxy import ProxyDialog

        if self._proxy is None:
            self._proxy = ProxyDialog(self._actions, self._window)
        if not self._proxy.isVisible():
            self._proxy.start()
        _present(self._proxy)
        return self._proxy

    def settings(self) -> SettingsDialog:
        """Settings of the app and of the chosen profile."""
        from qvpn_gui.dialogs.settings import SettingsDialog

        if self._settings is None:
            self._settings = SettingsDialog(self._actions, self._window)
        _present(self._settings)
        return self._settings

    def diagnostics(self) -> DiagnosticsDialog:
        """What `qvpn doctor` finds, the log, and the report."""
        from qvpn_gui.dialogs.diagnostics import DiagnosticsDialog

        if self._diagnostics is None:
            self._diagnostics = DiagnosticsDialog(self._actions, self._window)
        if not self._diagnostics.isVisible():
            self._diagnostics.start()
        _present(self._diagnostics)
        return self._diagnostics

    def _entry(
        self, text: str, call: Callable[[], QDialog], shortcut: QKeySequence | None = None
    ) -> None:
        action = QAction(text, self._window)
        if shortcut is not None:
            action.setShortcut(shortcut)
        action.triggered.connect(lambda _checked: call())
        self._window.menu.insertAction(self._window.end_of_menu, action)
        self._window.addAction(action)


def _present(dialog: QDialog) -> None:
    dialog.show()
    dialog.raise_()
    dialog.activateWindow()
