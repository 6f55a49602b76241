"""A table that says what could be in it while nothing is."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QPainter, QPaintEvent
from PySide6.QtWidgets import QTableView, QWidget

from qvpn_gui import theme


class Table(QTableView):
    """Rows are chosen as a whole; `hint` stands in an empty one."""

    def __init__(self, hint: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._hint = hint
        self.setAccessibleDescription(hint)

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if self.model().rowCount() or not self._hint:
            return
        painter = QPainter(self.viewport())
        painter.setPen(theme.dim(self.palette()))
        inside = self.viewport().rect().adjusted(theme.MARGIN, 0, -theme.MARGIN, 0)
        flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
        painter.drawText(inside, int(flags), self._hint)
