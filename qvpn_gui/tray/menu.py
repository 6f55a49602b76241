"""The tray's menu: state, connect, profiles, routes, kill switch, window, quit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PySide6.QtCore import Signal
from PySide6.QtGui import QAction, QActionGroup
from PySide6.QtWidgets import QMenu, QWidget

from qvpn_core.client.states import KillSwitchMode, State
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.settings import Policy
from qvpn_gui.words import Words

#: An entry of a choice: its text, whether it holds, what choosing it does.
Choice = tuple[str, bool, Callable[[], None]]


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
        self._state.setEnabled(False)
        self._toggle = self.addAction("")
        self._toggle.triggered.connect(actions.toggle)
        self.addSeparator()
        self._profiles = _Choices(self.tr("&Profile"), self)
        self._routes = _Choices(self.tr("&Routes"), self)
        self._kill_switch = _Choices(self.tr("&Kill switch"), self)
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
        if status.state is State.BLOCKED:
            _set_text(self._toggle, self.tr("&Release the block"))
        elif self._model.wanted:
            _set_text(self._toggle, self.tr("&Disconnect"))
        else:
            _set_text(self._toggle, self.tr("&Connect"))
        self._toggle.setEnabled(chosen is not None and status.state is not State.DISCONNECTING)
        names = actions.profile_names()
        self._profiles.offer(
            [(name, name == chosen, _with(actions.choose, name)) for name in names]
        )
        self._profiles.menuAction().setVisible(len(names) > 1)
        self._offer_policies()
        self._offer_kill_switch()

    def _offer_policies(self) -> None:
        now = self._policy()
        self._routes.menuAction().setVisible(now is not None)
        if now is None:
            return
        recent = self._actions.recent_policies()
        everything = Policy("all")
        offered = list(dict.fromkeys((everything, now, *recent)))
        choices = [
            (self._policy_words(policy), policy == now, _with(self._actions.set_policy, policy))
            for policy in offered
        ]
        self._routes.offer(choices, (self.tr("&Choose…"), self.routes.emit))

    def _policy(self) -> Policy | None:
        """The route policy in force, or else the chosen profile's."""
        status = self._model.status
        if status.mode is not None:
            return Policy(status.mode, status.destinations, status.excluded)
        profile = self._actions.stored_profile()
        return Policy.of(profile.policy) if profile is not None else None

    def _policy_words(self, policy: Policy) -> str:
        words = self._words.policy(policy.mode, len(policy.destinations), len(policy.excluded))
        names = [*policy.destinations, *policy.excluded]
        if not names:
            return words
        return f"{words}: {names[0]}{', …' if len(names) > 1 else ''}"

    def _offer_kill_switch(self) -> None:
        profile = self._actions.stored_profile()
        self._kill_switch.menuAction().setVisible(profile is not None)
        if profile is None:
            return
        modes: list[tuple[KillSwitchMode, str]] = [
            ("off", self.tr("&Off")),
            ("on", self.tr("While &connected")),
            ("always", self.tr("&Always")),
        ]
        self._kill_switch.offer(
            [
                (text, mode == profile.kill_switch, _with(self._actions.set_kill_switch, mode))
                for mode, text in modes
            ]
        )


class _Choices(QMenu):
    """A submenu of which one entry holds."""

    def __init__(self, title: str, parent: QWidget) -> None:
        super().__init__(title, parent)
        self._offered: list[tuple[str, bool]] = []

    def offer(
        self, choices: Sequence[Choice], more: tuple[str, Callable[[], None]] | None = None
    ) -> None:
        """Show these choices, and below them a way to more."""
        offered = [(text, holds) for text, holds, _ in choices]
        if offered == self._offered:
            return
        self._offered = offered
        self.clear()
        group = QActionGroup(self)
        for text, holds, choose in choices:
            action = QAction(text, self, checkable=True, checked=holds)
            action.triggered.connect(choose)
            group.addAction(action)
            self.addAction(action)
        if more is not None:
            self.addSeparator()
            self.addAction(more[0]).triggered.connect(more[1])


def _with(call: Callable[..., None], value: object) -> Callable[[], None]:
    """`call` with a value, without the `checked` that Qt passes on."""
    return lambda *_: call(value)


def _set_text(action: QAction, text: str) -> None:
    if action.text() != text:
        action.setText(text)
