"""What went wrong, in words, and the one action that helps."""

from __future__ import annotations

from PySide6.QtCore import QProcess, Signal
from PySide6.QtGui import QGuiApplication
from PySide6.QtWidgets import QHBoxLayout, QPushButton, QWidget

from qvpn_core.client.states import State
from qvpn_core.client.status import Status
from qvpn_core.helper.errors import NetworkTaken
from qvpn_gui.remedies import Remedy, network_settings, remedy
from qvpn_gui.session_model import SessionModel
from qvpn_gui.versions import versions
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.texts import Dim, Heading
from qvpn_gui.words import Words, sentence


class ProblemCard(Card):
    """Shown while an error explains the state."""

    #: The user wants the block of the kill switch to end.
    release = Signal()
    #: The user does not want to wait for the next attempt.
    retry = Signal()
    #: The user wants to see the network's sign-in page.
    sign_in = Signal()
    #: The user wants a proxy instead of a tunnel.
    proxy = Signal()
    #: The user wants to paste a new invite.
    invite = Signal()

    def __init__(self, model: SessionModel, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._words = words
        self._title, self._details, self.button = Heading(), Dim(), QPushButton()
        self._remedy = Remedy.COPY
        self.rows.addWidget(self._title)
        self.rows.addWidget(self._details)
        line = QHBoxLayout()
        line.addWidget(self.button)
        line.addStretch(1)
        self.rows.addLayout(line)
        self.button.clicked.connect(self._act)
        model.changed.connect(self.refresh)
        self.refresh()

    @property
    def needed(self) -> bool:
        """Whether there is something to say."""
        status = self._model.status
        if status.state is State.CONNECTING:
            return False  # what was wrong before may not be so any more
        told = status.error is not None or status.other_user is not None
        return status.state is State.BLOCKED or told

    def refresh(self) -> None:
        """Show the latest error."""
        status = self._model.status
        blocked = status.state is State.BLOCKED
        other, reason = status.other_user, status.reason
        if other is not None:
            reason = NetworkTaken.reason
        self._remedy = remedy(reason, blocked=blocked, portal=status.portal is not None)
        told = status.error is not None or other is not None
        title = self._words.failure(reason) if told else self._words.state(status)
        self._title.setText(title)
        if other is not None:
            self._details.setText(self._words.other_user(other))
        elif status.portal is not None:
            self._details.setText(self._words.portal(status.portal))
        else:
            self._details.setText(sentence(status.error or self._words.meaning(status)))
        self.button.setText(
            {
                Remedy.RETRY: self.tr("Try &now"),
                Remedy.NETWORK: self.tr("&Network settings…"),
                Remedy.SIGN_IN: self.tr("Open the &sign-in page"),
                Remedy.RELEASE: self.tr("&Release the block"),
                Remedy.INVITE: self.tr("Use a new &invite…"),
                Remedy.PROXY: self.tr("Use a &proxy instead…"),
                Remedy.COPY: self.tr("Copy &details"),
            }[self._remedy]
        )
        # After a failure, trying again is the window's own large button.
        waiting = status.state is State.RECONNECTING
        self.button.setVisible(waiting or self._remedy is not Remedy.RETRY)

    def _act(self) -> None:
        match self._remedy:
            case Remedy.NETWORK:
                command = network_settings()
                if command is not None:
                    QProcess.startDetached(command[0], list(command[1:]))
            case Remedy.SIGN_IN:
                self.sign_in.emit()
            case Remedy.RELEASE:
                self.release.emit()
            case Remedy.INVITE:
                self.invite.emit()
            case Remedy.PROXY:
                self.proxy.emit()
            case Remedy.COPY:
                QGuiApplication.clipboard().setText(details(self._model.status))
                self.button.setText(self.tr("Copied"))
            case Remedy.RETRY:
                self.retry.emit()


def details(status: Status) -> str:
    """A failure for somebody who can help: what is shown, and which versions it happened with."""
    return "\n".join(
        (
            f"{status.state}: {status.error}",
            f"reason {status.reason}, gateway {status.gateway}, since {status.since}",
            versions(),
        )
    )
