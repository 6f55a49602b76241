"""One glance: am I protected, by which gateway, since when; one button; then the details."""

from __future__ import annotations

from itertools import pairwise

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import QPushButton, QVBoxLayout, QWidget

from qvpn_core.client.states import State
from qvpn_gui import theme
from qvpn_gui.actions import Actions
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.buttons import LargeButton, RowButton
from qvpn_gui.widgets.card import Card, Separator
from qvpn_gui.widgets.state_icon import StateIcon
from qvpn_gui.widgets.texts import Dim, Text, Title
from qvpn_gui.window.details_card import DetailsCard
from qvpn_gui.window.kill_switch_menu import KillSwitchMenu
from qvpn_gui.window.problem_card import ProblemCard
from qvpn_gui.window.progress_card import ProgressCard
from qvpn_gui.window.proxy_card import ProxyCard
from qvpn_gui.window.traffic_card import TrafficCard
from qvpn_gui.words import Words, sentence

_ATTEMPTS = frozenset({State.CONNECTING, State.RECONNECTING})


class SessionPage(QWidget):
    """Follows the model; says what the user wants by signals and through `Actions`."""

    #: The user wants to see or change which destinations use the tunnel.
    routes = Signal()
    #: The user wants to choose between a tunnel and a proxy.
    proxy = Signal()
    #: The user wants to paste a new invite.
    invite = Signal()

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
        self._icon = StateIcon(72)
        self.title, self.meaning, self.where = Title(), Text(), Dim()
        self.button = LargeButton()
        self.problem = ProblemCard(model, words)
        self.progress = ProgressCard(model, words)
        self.traffic = TrafficCard(model, words)
        self.details = DetailsCard(model, words)
        self.proxies = ProxyCard(model, words)
        self._ordered: list[QPushButton] = []
        self.connection_row = RowButton()
        self.route_row = RowButton()
        self.kill_switch_row = RowButton()
        self._kill_switch = KillSwitchMenu(actions, self)
        self._choices = Card()
        self._build()
        self.button.clicked.connect(actions.toggle)
        self.problem.release.connect(actions.release)
        self.problem.retry.connect(actions.retry)
        self.problem.sign_in.connect(actions.sign_in)
        self.problem.invite.connect(self.invite)
        self.problem.proxy.connect(self.proxy)
        self.connection_row.clicked.connect(self.proxy)
        self.route_row.clicked.connect(self.routes)
        self.kill_switch_row.clicked.connect(self._choose_kill_switch)
        model.changed.connect(self.refresh)
        actions.profiles_changed.connect(self.refresh)
        self.refresh()

    def _build(self) -> None:
        centre = Qt.AlignmentFlag.AlignHCenter
        for text in (self.title, self.meaning, self.where):
            text.setAlignment(centre)
        self._choices.rows.setContentsMargins(8, 6, 8, 6)
        self._choices.rows.setSpacing(4)
        #: What has a meaning for a tunnel only.
        self._of_tunnel = (self.route_row, Separator(), self.kill_switch_row, Separator())
        for row in (*self._of_tunnel, self.connection_row):
            self._choices.rows.addWidget(row)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.MARGIN, theme.SPACE, theme.MARGIN, theme.MARGIN - theme.SPACE)
        rows.setSpacing(theme.SPACE)
        rows.addWidget(self._icon, alignment=centre)
        rows.addSpacing(theme.SPACE)
        rows.addWidget(self.title)
        rows.addWidget(self.meaning)
        rows.addWidget(self.where)
        rows.addSpacing(theme.SPACE)
        rows.addWidget(self.button, alignment=centre)
        rows.addSpacing(theme.SPACE * 2)
        for card in (
            self.problem, self.progress, self.proxies, self.traffic, self._choices, self.details,
        ):  # fmt: skip
            rows.addWidget(card)
        rows.addStretch(1)

    def refresh(self) -> None:
        """Show the latest status."""
        model, words = self._model, self._words
        status = model.status
        self._icon.set_state(status.state)
        self.title.setText(words.state(status))
        self.meaning.setText(words.meaning(status))
        self.where.setText(self._where())
        self.button.setText(
            self.tr("Please wait…") if status.state is State.DISCONNECTING
            else self.tr("&Cancel") if status.state is State.CONNECTING
            else self.tr("&Disconnect") if model.wanted
            else self.tr("&Try again") if status.state in (State.FAILED, State.BLOCKED)
            else self.tr("&Connect")
        )  # fmt: skip
        self.button.set_quiet(model.wanted or status.state is State.DISCONNECTING)
        self.button.setEnabled(self._actions.profile is not None)
        self.problem.setVisible(self.problem.needed)
        proxied = bool(status.proxies)
        attempt = status.state in _ATTEMPTS and not proxied
        self.progress.setVisible(attempt and not self.problem.needed)
        self.proxies.setVisible(proxied and status.state in (*_ATTEMPTS, State.CONNECTED))
        if self.proxies.buttons is not self._ordered:
            # New buttons would come last in the order of Tab.
            self._ordered = self.proxies.buttons
            order = (
                self.button, self.problem.button, *self._ordered,
                self.route_row, self.kill_switch_row, self.connection_row,
            )  # fmt: skip
            for before, after in pairwise(order):
                QWidget.setTabOrder(before, after)
        up = status.state is State.CONNECTED and not proxied
        self.traffic.setVisible(up)
        self.details.setVisible(up)
        self._show_choices()

    def _choose_kill_switch(self) -> None:
        row = self.kill_switch_row
        self._kill_switch.popup(row.mapToGlobal(row.rect().bottomLeft()))

    def _where(self) -> str:
        status = self._model.status
        if status.state is State.CONNECTED and status.since:
            return f"{status.gateway}, {self._words.since(status.since)}"
        if status.gateway and status.state is not State.DISCONNECTED:
            return status.gateway
        profile = self._actions.stored_profile()
        if profile is not None:
            return profile.gateway
        damage = self._actions.damage()
        return sentence(str(damage)) if damage is not None else ""

    def _show_choices(self) -> None:
        status = self._model.status
        profile = self._actions.stored_profile()
        if self._model.wanted:
            proxied = bool(status.proxies)
        else:
            proxied = profile is not None and profile.proxy.enabled
        self.connection_row.set_row(
            self.tr("Connect &as"), self.tr("Proxy only") if proxied else self.tr("Tunnel")
        )
        for part in self._of_tunnel:
            part.setVisible(not proxied)
        if proxied:
            self._choices.show()
            return
        if status.mode is not None:
            mode, only, besides = status.mode, len(status.destinations), len(status.excluded)
        elif profile is not None:
            policy = profile.policy
            mode, only, besides = policy.mode, len(policy.destinations), len(policy.excluded)
        else:
            self._choices.hide()
            return
        self._choices.show()
        self.route_row.set_row(
            self.tr("&What uses the tunnel"), self._words.policy(mode, only, besides)
        )
        self.kill_switch_row.set_row(self.tr("&Kill switch"), self._kill_switch.present)
