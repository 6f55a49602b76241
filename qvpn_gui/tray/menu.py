"""The tray's menu: state, connect, profiles, routes, kill switch, window, quit."""

from __future__ import annotations

from PySide6.QtCore import Signal
from PySide6.QtGui import QAction
from PySide6.QtWidgets import QMenu, QWidget

from qvpn_core.client.states import State
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Policy
from qvpn_gui.widgets.choices import Choices, with_value
from qvpn_gui.window.kill_switch_menu import KillSwitchMenu
from qvpn_gui.words import Words


class TrayMenu(QMenu):
    """Follows the model; changes only what changed, since every change crosses the bus."""

    open_window = Signal()
    routes = Signal()
    quit = Signal()

    def __init__(
        self,
        model: SessionModel,
        actions: Actions,
        words: Words,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._model = model
        self._actions = actions
        self._words = words
        self._state = self.addAction("")
        # A greyed-out line could hardly be read; this one leads to where there is more.
        self._state.triggered.connect(self.open_window)
        self._toggle = self.addAction("")
        self._toggle.triggered.connect(actions.toggle)
        self._sign_in = self.addAction(self.tr("Open the &sign-in page"))
        self._sign_in.triggered.connect(actions.sign_in)
        self._release = self.addAction(self.tr("Release the &block"))
        self._release.triggered.connect(actions.release)
        self.addSeparator()
        self._profiles = Choices(self.tr("&Profile"), self)
        self._routes = Choices(self.tr("&Routes"), self)
        self._kill_switch = KillSwitchMenu(actions, self)
        for choices in (self._profiles, self._routes, self._kill_switch):
            self.addMenu(choices)
        self.addSeparator()
        self.addAction(self.tr("&Open qvpn")).triggered.connect(self.open_window)
        self.addAction(self.tr("&Quit")).triggered.connect(self.quit)
        model.changed.connect(self.refresh)
        actions.profiles_changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the latest status and profiles."""
        status, actions = self._model.status, self._actions
        chosen = actions.profile
        line = self._words.state(status)
        if status.gateway and status.state is not State.DISCONNECTED:
            line += f": {status.gateway}"
        if status.state is State.CONNECTED and status.since:
            line += f", {self._words.since(status.since)}"
        _set_text(self._state, line)
        blocked = status.state is State.BLOCKED
        self._release.setVisible(blocked)
        self._sign_in.setVisible(status.portal is not None)
        if self._model.wanted:
            _set_text(self._toggle, self.tr("&Disconnect"))
        elif blocked or status.state is State.FAILED:
            _set_text(self._toggle, self.tr("&Try again"))
        else:
            _set_text(self._toggle, self.tr("&Connect"))
        self._toggle.setEnabled(chosen is not None and status.state is not State.DISCONNECTING)
        names = actions.profile_names()
        self._profiles.offer(
            [(name, name == chosen, with_value(actions.choose, name)) for name in names]
        )
        self._profiles.menuAction().setVisible(len(names) > 1)
        self._offer_policies()
        profile = actions.stored_profile()
        tunnelled = profile is not None and not (profile.proxy.enabled or status.proxies)
        self._kill_switch.menuAction().setVisible(tunnelled)

    def _offer_policies(self) -> None:
        now = self._policy()
        self._routes.menuAction().setVisible(now is not None)
        if now is None:
            return
        recent = self._actions.recent_policies()
        everything = Policy("all")
        offered = list(dict.fromkeys((everything, now, *recent)))
        choices = [
            (
                self._policy_words(policy),
                policy == now,
                with_value(self._actions.set_policy, policy),
            )
            for policy in offered
        ]
        self._routes.offer(choices, (self.tr("&Choose…"), self.routes.emit))

    def _policy(self) -> Policy | None:
        """The route policy in force, or else the chosen profile's."""
        status = self._model.status
        if status.mode is not None:
            return Policy(status.mode, status.destinations, status.excluded)
        profile = self._actions.stored_profile()
        if profile is None or profile.proxy.enabled or status.proxies:
            return None
        return Policy.of(profile.policy)

    def _policy_words(self, policy: Policy) -> str:
        words = self._words.policy(policy.mode, len(policy.destinations), len(policy.excluded))
        names = [*policy.destinations, *policy.excluded]
        if not names:
            return words
        return f"{words}: {names[0]}{', …' if len(names) > 1 else ''}"


def _set_text(action: QAction, text: str) -> None:
    if action.text() != text:
        action.setText(text)
