"""What a person sees who has no gateway yet: where to put the invite, and nothing else."""

from __future__ import annotations

from PySide6.QtCore import QPoint, Qt, Signal
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QVBoxLayout, QWidget

from qvpn_gui import icons, theme
from qvpn_gui.widgets.invite_form import InviteForm
from qvpn_gui.widgets.texts import Dim, Title
from qvpn_gui.words import Words


class FirstRunPage(QWidget):
    """`enrolled` carries the name of the first profile."""

    enrolled = Signal(str)

    def __init__(self, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.form = InviteForm(words)
        self.form.enrolled.connect(self.enrolled)
        title = Title(self.tr("Welcome"))
        title.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        text = Dim(
            self.tr(
                "Paste the invite you received from whoever runs your gateway. This device "
                "then makes a key of its own, which never leaves it."
            )
        )
        text.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(theme.MARGIN, theme.MARGIN, theme.MARGIN, theme.MARGIN)
        rows.setSpacing(theme.SPACE)
        rows.addStretch(2)
        rows.addWidget(_Logo(), alignment=Qt.AlignmentFlag.AlignHCenter)
        rows.addSpacing(theme.SPACE)
        rows.addWidget(title)
        rows.addWidget(text)
        rows.addSpacing(theme.MARGIN)
        rows.addWidget(self.form)
        rows.addStretch(3)


class _Logo(QWidget):
    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedSize(80, 80)

    def paintEvent(self, event: QPaintEvent) -> None:
        drawn = icons.pixmap(icons.APP, 80, ratio=self.devicePixelRatioF())
        QPainter(self).drawPixmap(QPoint(0, 0), drawn)
