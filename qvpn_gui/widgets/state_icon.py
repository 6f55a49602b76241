"""A state's drawing, moving while the state is one that passes."""

from __future__ import annotations

from PySide6.QtCore import QPoint, QTimer
from PySide6.QtGui import QHideEvent, QPainter, QPaintEvent, QShowEvent
from PySide6.QtWidgets import QWidget

from qvpn_core.client.states import State
from qvpn_gui import icons, theme


class StateIcon(QWidget):
    """Shows `theme.DRAWINGS` of a state; moves only while it is seen."""

    def __init__(self, size: int, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setFixedSize(size, size)
        self._state = State.DISCONNECTED
        self._frame = 0
        self._timer = QTimer(self, interval=theme.FRAME)
        self._timer.timeout.connect(self._next)

    def set_state(self, state: State) -> None:
        """Show another state."""
        if state is not self._state:
            self._state = state
            self._frame = 0
            self._move()
            self.update()

    def _move(self) -> None:
        if self.isVisible() and len(theme.DRAWINGS[self._state]) > 1:
            self._timer.start()
        else:
            self._timer.stop()

    def _next(self) -> None:
        self._frame = (self._frame + 1) % len(theme.DRAWINGS[self._state])
        self.update()

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self._move()

    def hideEvent(self, event: QHideEvent) -> None:
        super().hideEvent(event)
        self._move()

    def paintEvent(self, event: QPaintEvent) -> None:
        drawn = icons.pixmap(
            theme.DRAWINGS[self._state][self._frame],
            self.width(),
            theme.seen(theme.color(self._state), self.palette()),
            self.devicePixelRatioF(),
        )
        QPainter(self).drawPixmap(QPoint(0, 0), drawn)
