"""How far an attempt to connect has come."""

from __future__ import annotations

from PySide6.QtCore import QPoint
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QWidget

from qvpn_core.client.states import State
from qvpn_core.client.status import Stage
from qvpn_gui import icons, theme
from qvpn_gui.session_model import SessionModel
from qvpn_gui.widgets.card import Card
from qvpn_gui.widgets.texts import Step
from qvpn_gui.words import STAGES, Words


class _Mark(QWidget):
    """Done, at it, or not yet."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedSize(16, 16)
        self.done: bool | None = False  # None: at it

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        if self.done:
            color = theme.seen(theme.color(State.CONNECTED), self.palette())
            drawn = icons.pixmap("check", 16, color, self.devicePixelRatioF())
            painter.drawPixmap(QPoint(0, 0), drawn)
            return
        at_it = self.done is None
        present = theme.seen(theme.color(State.CONNECTING), self.palette())
        painter.setPen(present if at_it else theme.dim(self.palette()))
        if at_it:
            painter.setBrush(present)
        radius = 4.0 if at_it else 3.0
        painter.drawEllipse(self.rect().center().toPointF(), radius, radius)


class ProgressCard(Card):
    """The stages in their order, of which one is the present."""

    def __init__(self, model: SessionModel, words: Words, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._words = words
        self._lines: dict[Stage, tuple[_Mark, Step]] = {}
        for stage in STAGES:
            mark, text = _Mark(), Step()
            line = QHBoxLayout()
            line.setSpacing(12)
            line.addWidget(mark)
            line.addWidget(text, 1)
            self.rows.addLayout(line)
            self._lines[stage] = mark, text
        model.changed.connect(self.refresh)
        self.refresh()

    def refresh(self) -> None:
        """Show the latest stage."""
        stage = self._model.status.stage
        present = STAGES.index(stage) if stage is not None else -1
        for index, (name, (mark, text)) in enumerate(self._lines.items()):
            mark.done = None if index == present else index < present
            mark.update()
            words = self._words.stage(name)
            text.setText(words)
            text.set_later(index > present)
            state = (
                self.tr("now") if mark.done is None
                else self.tr("done") if mark.done
                else self.tr("not yet")
            )  # fmt: skip
            text.setAccessibleName(f"{words}: {state}")
