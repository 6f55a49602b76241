"""The traffic of the last two minutes in both directions.

Received is an area and sent a line, so that they differ without colour. Time runs towards the edge
where reading ends. It draws numbers that it is given and counts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from PySide6.QtCore import QPointF, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QFontMetricsF,
    QPainter,
    QPaintEvent,
    QPen,
    QPixmap,
    QPolygonF,
)
from PySide6.QtWidgets import QLabel, QSizePolicy, QWidget

from qvpn_gui import theme

#: One sample: seconds on any clock, bits per second sent and received.
Point = tuple[float, float, float]

RECEIVED: Final = QColor("#3584e4")
SENT: Final = QColor("#b87c00")
SPAN: Final = 120.0  # seconds
#: The axis never ends below this, so that a few packets do not look like a flood.
_LEAST: Final = 10_000.0  # bits per second
_LEFT: Final = Qt.AlignmentFlag.AlignLeft
_RIGHT: Final = Qt.AlignmentFlag.AlignRight


def ceiling(peak: float) -> float:
    """The end of an axis for values up to `peak`: 1, 2 or 5 times a power of ten."""
    peak = max(peak, _LEAST)
    power = 10.0 ** math.floor(math.log10(peak))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= peak * 0.999)


class TrafficGraph(QLabel):
    """Give it points with `set_points`; `rate` and `span` are the words for the axes."""

    def __init__(
        self, rate: Callable[[float], str], span: str, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._rate = rate
        self._span = span
        self._points: Sequence[Point] = ()
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setPixmap(QPixmap(1, 1))  # so that a screen reader calls it an image
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        return QSize(320, 112)

    def minimumSizeHint(self) -> QSize:
        return QSize(160, 112)

    def set_points(self, points: Sequence[Point]) -> None:
        """Show these, the latest last."""
        self._points = points
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.save()
        mirrored = self.layoutDirection() is Qt.LayoutDirection.RightToLeft
        if mirrored:
            painter.translate(self.width(), 0)
            painter.scale(-1, 1)
        palette = self.palette()
        small = theme.scaled(self.font(), 0.8)
        head = QFontMetricsF(small).height() + 2  # the axis is named above it
        area = QRectF(self.rect()).adjusted(0, head, 0, -1)
        top = ceiling(max((max(sent, received) for _, sent, received in self._points), default=0))
        painter.setPen(QPen(theme.line(palette), 1))
        for share in (0.0, 0.5, 1.0):
            y = round(area.bottom() - share * area.height()) + 0.5
            painter.drawLine(QPointF(area.left(), y), QPointF(area.right(), y))
        if len(self._points) > 1:
            self._draw(painter, area, top)
        painter.restore()
        painter.setFont(small)
        painter.setPen(theme.dim(palette))
        painter.setLayoutDirection(Qt.LayoutDirection.LeftToRight)  # "50 Mbit/s" is
        sides = (_LEFT, _RIGHT) if not mirrored else (_RIGHT, _LEFT)
        for text, side in zip((self._rate(top), self._span), sides, strict=True):
            painter.drawText(QRectF(self.rect()), int(Qt.AlignmentFlag.AlignTop | side), text)

    def _draw(self, painter: QPainter, area: QRectF, top: float) -> None:
        now = self._points[-1][0]

        def at(when: float, value: float) -> QPointF:
            x = area.right() - (now - when) / SPAN * area.width()
            return QPointF(x, area.bottom() - min(1.0, value / top) * area.height())

        received = QPolygonF([at(when, value) for when, _, value in self._points])
        sent = QPolygonF([at(when, value) for when, value, _ in self._points])
        painter.setClipRect(area.adjusted(0, -2, 0, 1))
        fill = theme.seen(RECEIVED, self.palette())
        fill.setAlphaF(0.22)
        surface = QPolygonF(received)
        surface.append(QPointF(received.last().x(), area.bottom()))
        surface.append(QPointF(received.first().x(), area.bottom()))
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawPolygon(surface)
        painter.setBrush(Qt.BrushStyle.NoBrush)
        join = Qt.PenJoinStyle.RoundJoin
        for color, line in ((RECEIVED, received), (SENT, sent)):
            shown = theme.seen(color, self.palette())
            painter.setPen(QPen(shown, 1.8, Qt.PenStyle.SolidLine, Qt.PenCapStyle.RoundCap, join))
            painter.drawPolyline(line)


class Legend(QWidget):
    """The mark of one direction as the graph draws it."""

    def __init__(self, color: QColor, *, filled: bool, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._color = color
        self._filled = filled
        self.setFixedSize(14, 14)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        color = theme.seen(self._color, self.palette())
        painter.setPen(QPen(color, 1.8))
        if self._filled:
            fill = QColor(color)
            fill.setAlphaF(0.22)
            painter.setBrush(fill)
            painter.drawRoundedRect(QRectF(1.5, 2.5, 11, 9), 2, 2)
        else:
            painter.drawLine(QPointF(1, 7), QPointF(13, 7))
