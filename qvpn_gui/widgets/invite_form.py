"""From an invite to a profile: paste it, drop it, or open the file that it came in.

Used by the first-run page and by the window of profiles. Reading invites and enrolling is the
core's; the enrolment runs in a thread, since a password store may take its time.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PySide6.QtCore import QDateTime, QEvent, QLocale, Qt, Signal
from PySide6.QtGui import QDragEnterEvent, QDropEvent, QKeyEvent
from PySide6.QtWidgets import (
    QFileDialog,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from qvpn_core.client import profiles
from qvpn_core.client.doctor import Verdict
from qvpn_core.errors import QvpnError
from qvpn_gui import theme
from qvpn_gui.widgets.buttons import LargeButton
from qvpn_gui.widgets.texts import Dim, Text, Told
from qvpn_gui.words import Words, sentence

if TYPE_CHECKING:  # brings cryptography, which most starts do not need
    from qvpn_core.auth.invite import Invite

_MAX_TEXT = 64 << 10  # characters; a whole mail may be dropped


class InviteForm(QWidget):
    """`enrolled` carries the name of the new profile."""

    enrolled = Signal(str)

    def __init__(self, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._words = words
        self._invite: Invite | None = None
        self._task: asyncio.Task[None] | None = None
        self.setAcceptDrops(True)
        self.text = _Paste()
        self.name = QLineEdit()
        self.open = QPushButton(self.tr("&Open a file…"))
        self.add = LargeButton()
        self.verdict = Told()
        self._build()
        self.text.textChanged.connect(self._read)
        self.text.submitted.connect(self.add.click)
        self.name.textChanged.connect(self._show)
        self.name.returnPressed.connect(self.add.click)
        self.open.clicked.connect(self._open)
        self.add.clicked.connect(self._enrol)
        self._read()

    def _build(self) -> None:
        self.text.setPlaceholderText(self.tr("qvpn://…"))
        self.text.setAccessibleName(self.tr("Invite"))
        self.text.setTabChangesFocus(True)
        self.text.setAcceptDrops(False)  # the form takes drops, also of files
        label = Text(self.tr("&Name on this computer"))
        label.setBuddy(self.name)
        self._name_row = QWidget()
        row = QVBoxLayout(self._name_row)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(label)
        row.addWidget(self.name)
        self._measure()
        self.verdict.setAlignment(Qt.AlignmentFlag.AlignTop)
        files = QHBoxLayout()
        files.addWidget(Dim(self.tr("You can also drop a file here.")), 1)
        files.addWidget(self.open)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(theme.SPACE + 4)
        rows.addWidget(self.text)
        rows.addLayout(files)
        rows.addWidget(self.verdict)
        rows.addWidget(self._name_row)
        rows.addSpacing(theme.SPACE)
        rows.addWidget(self.add, alignment=Qt.AlignmentFlag.AlignHCenter)

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self._measure()

    def _measure(self) -> None:
        line = self.fontMetrics().lineSpacing()
        self.text.setFixedHeight(4 * line + 24)
        self.verdict.setMinimumHeight(2 * line + 4)

    def clear(self) -> None:
        """Start afresh."""
        self.text.clear()
        self.name.clear()

    def read_file(self, path: Path) -> None:
        """Take the invite from a file, which may be a whole mail."""
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_TEXT).decode(errors="replace")
        except OSError as error:
            why = error.strerror or ""
            self._say(self.tr("{file} cannot be read: {why}").format(file=path.name, why=why))
            return
        self.text.setPlainText(text)

    def _open(self) -> None:
        name, _ = QFileDialog.getOpenFileName(self, self.tr("Open an invite"))
        if name:
            self.read_file(Path(name))

    def _read(self) -> None:
        """See what was pasted."""
        text = self.text.toPlainText()[:_MAX_TEXT]
        self._invite = None
        if not text.strip():
            self._show()
            return
        from qvpn_core.auth.invite_text import find_invite

        try:
            invite = find_invite(text)
            invite.check_expiry(time.time())
        except QvpnError as error:
            self._show(error)
            return
        self._invite = invite
        if not self.name.isModified():
            self.name.setText(invite.gateways[0].host.replace(":", "-"))
        self._show()

    def _show(self, error: QvpnError | str | None = None) -> None:
        busy = self._task is not None
        invite = self._invite
        if isinstance(error, QvpnError):
            self._say(f"{self._words.failure(error.reason)}\n{sentence(str(error))}")
        elif invite is not None and not busy:
            self._say(self._about(invite), "good")
        elif busy:
            self._say(self.tr("Registering this device with the gateway…"), "unknown")
        else:
            self._say("")
        self._name_row.setVisible(invite is not None)
        self.add.setText(self.tr("Adding…") if busy else self.tr("&Add this gateway"))
        self.add.setEnabled(invite is not None and not busy)
        for part in (self.text, self.name, self.open):
            part.setEnabled(not busy)

    def _about(self, invite: Invite) -> str:
        gateway = invite.gateways[0]
        host = profiles.join_host_port(gateway.host, gateway.port)
        if invite.expires is None:
            return self.tr("Invite to {gateway}.").format(gateway=host)
        expires = QDateTime.fromSecsSinceEpoch(invite.expires)
        when = QLocale().toString(expires, QLocale.FormatType.ShortFormat)
        return self.tr("Invite to {gateway}, good until {when}.").format(gateway=host, when=when)

    def _say(self, text: str, kind: Verdict = "bad") -> None:
        self.verdict.tell(text, kind)

    def _enrol(self) -> None:
        if self._invite is not None and self._task is None:
            work = self._enrolment(self.text.toPlainText()[:_MAX_TEXT], self.name.text().strip())
            self._task = asyncio.get_running_loop().create_task(work)
            self._show()

    async def _enrolment(self, text: str, name: str) -> None:
        failure: QvpnError | None = None
        try:
            await asyncio.to_thread(_enrol, text, name)
        except QvpnError as error:
            failure = error
        finally:
            self._task = None
        if failure is not None:
            self._show(failure)
            return
        self.clear()
        self.enrolled.emit(name)

    def dragEnterEvent(self, event: QDragEnterEvent) -> None:
        if event.mimeData().hasUrls() or event.mimeData().hasText():
            event.acceptProposedAction()

    def dropEvent(self, event: QDropEvent) -> None:
        data = event.mimeData()
        local = [url.toLocalFile() for url in data.urls() if url.isLocalFile()]
        if local:
            self.read_file(Path(local[0]))
        else:
            self.text.setPlainText(data.text())
        event.acceptProposedAction()


class _Paste(QPlainTextEdit):
    """Several lines, since mail programs wrap links; Return submits."""

    submitted = Signal()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        if event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.submitted.emit()
        else:
            super().keyPressEvent(event)


def _enrol(text: str, name: str) -> None:
    """Enrol on a loop of this thread's own."""
    from qvpn_core.client import enrolling

    asyncio.run(enrolling.enrol(text, name or None))
