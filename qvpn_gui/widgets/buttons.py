"""Buttons that a palette alone does not give: the large one, rows that lead somewhere, menus.

The ring of the keyboard's focus is drawn where the keyboard brought it.
"""

from __future__ import annotations

from PySide6.QtCore import QEvent, QPoint, QPointF, QRect, QRectF, QSize, Qt
from PySide6.QtGui import (
    QColor,
    QFocusEvent,
    QPainter,
    QPaintEvent,
    QPalette,
    QPen,
    QTransform,
)
from PySide6.QtWidgets import (
    QAbstractButton,
    QMenu,
    QPushButton,
    QSizePolicy,
    QToolButton,
    QWidget,
)

from qvpn_gui import icons, theme

_BY_KEYBOARD = (
    Qt.FocusReason.TabFocusReason,
    Qt.FocusReason.BacktabFocusReason,
    Qt.FocusReason.ShortcutFocusReason,
)


class LargeButton(QPushButton):
    """The one thing to do in a window. Filled in the accent colour, or quiet."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.quiet = False
        self._ring = False
        self.setMinimumSize(220, 46)
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        theme.emphasise(self, 1.15)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)  # repainted as the pointer comes and goes

    def set_quiet(self, quiet: bool) -> None:
        """Quiet buttons do not ask to be pressed."""
        if quiet != self.quiet:
            self.quiet = quiet
            self.update()

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ApplicationFontChange:
            theme.emphasise(self, 1.15)
        return super().event(event)

    def sizeHint(self) -> QSize:
        text = self.fontMetrics().horizontalAdvance(self.text())
        return QSize(max(220, text + 56), max(46, self.fontMetrics().height() + 22))

    def focusInEvent(self, event: QFocusEvent) -> None:
        self._ring = event.reason() in _BY_KEYBOARD
        super().focusInEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette = self.palette()
        if self.quiet or not self.isEnabled():
            active = palette.color(QPalette.ColorGroup.Active, QPalette.ColorRole.WindowText)
            fill = theme.mixed(palette.window().color(), active, 0.10 if self.isEnabled() else 0.07)
            text = active if self.isEnabled() else theme.mixed(active, fill, 0.42)
        else:
            fill = theme.accent(palette)
            text = QColor("white")
        if self.isDown():
            fill = fill.darker(115)
        elif self.underMouse() and self.isEnabled():
            fill = theme.mixed(fill, palette.windowText().color(), 0.08)
        shape = QRectF(self.rect()).adjusted(2.5, 2.5, -2.5, -2.5)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(fill)
        painter.drawRoundedRect(shape, theme.RADIUS, theme.RADIUS)
        if self._ring and self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(palette.windowText().color(), 1.5))
            painter.drawRoundedRect(
                shape.adjusted(-1.5, -1.5, 1.5, 1.5), theme.RADIUS + 1.5, theme.RADIUS + 1.5
            )
        painter.setPen(text)
        painter.setFont(self.font())
        painter.drawText(
            self.rect(),
            int(Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextShowMnemonic),
            self.text(),
        )


class MenuButton(QToolButton):
    """A flat button that opens a menu below it, without the style's own arrow."""

    def __init__(self, menu: QMenu, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._menu = menu
        self._factor = 0.0
        self.setAutoRaise(True)
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.clicked.connect(self._open)

    def emphasise(self, factor: float) -> None:
        """Write the text larger and heavier than the desktop's, whatever that is."""
        self._factor = factor
        theme.emphasise(self, factor)

    def event(self, event: QEvent) -> bool:
        if event.type() == QEvent.Type.ApplicationFontChange and self._factor:
            theme.emphasise(self, self._factor)
        return super().event(event)

    def _open(self) -> None:
        # Towards the middle of the window, wherever the button is.
        centre = self.mapTo(self.window(), self.rect().center())
        below = self.rect().bottomLeft()
        if centre.x() > self.window().width() // 2:
            below = self.rect().bottomRight() - QPoint(self._menu.sizeHint().width() - 1, 0)
        self._menu.popup(self.mapToGlobal(below))


class RowButton(QAbstractButton):
    """A row that says how something is set, and leads to where it is changed."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._value = ""
        self._ring = False
        self.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setCursor(Qt.CursorShape.PointingHandCursor)
        self.setAttribute(Qt.WidgetAttribute.WA_Hover)  # repainted as the pointer comes and goes

    def set_row(self, label: str, value: str) -> None:
        """What is set, and how."""
        self.setText(label)
        self._value = value
        self.setAccessibleName(f"{label.replace('&', '')}: {value}")
        self.updateGeometry()
        self.update()

    @property
    def value(self) -> str:
        """How it is set."""
        return self._value

    def sizeHint(self) -> QSize:
        metrics = self.fontMetrics()
        width = metrics.horizontalAdvance(self.text() + self._value) + 64
        return QSize(width, metrics.height() + 20)

    def minimumSizeHint(self) -> QSize:
        return QSize(160, self.sizeHint().height())

    def focusInEvent(self, event: QFocusEvent) -> None:
        self._ring = event.reason() in _BY_KEYBOARD
        super().focusInEvent(event)

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette = self.palette()
        if self.underMouse() or self.isDown():
            share = 0.12 if self.isDown() else 0.06
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(theme.mixed(theme.card(palette), palette.windowText().color(), share))
            painter.drawRoundedRect(QRectF(self.rect()), 6, 6)
        if self._ring and self.hasFocus():
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QPen(theme.accent(palette), 1.5))
            painter.drawRoundedRect(QRectF(self.rect()).adjusted(1, 1, -1, -1), 6, 6)
        mirrored = self.layoutDirection() is Qt.LayoutDirection.RightToLeft
        inner = self.rect().adjusted(8, 0, -8, 0)
        chevron = icons.pixmap("chevron", 12, theme.dim(palette), self.devicePixelRatioF())
        at = QRect(inner.right() - 11, inner.center().y() - 5, 12, 12)
        if mirrored:
            chevron = chevron.transformed(QTransform.fromScale(-1, 1))
        painter.drawPixmap(QPointF(_visual(at, inner, mirrored).topLeft()), chevron)
        words = inner.adjusted(0, 0, -20, 0)
        flags = Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextShowMnemonic
        # The painter mirrors these itself.
        leading, trailing = Qt.AlignmentFlag.AlignLeft, Qt.AlignmentFlag.AlignRight
        painter.setPen(palette.windowText().color())
        painter.drawText(_visual(words, inner, mirrored), int(flags | leading), self.text())
        label = self.fontMetrics().horizontalAdvance(self.text()) + 16
        rest = words.adjusted(label, 0, 0, 0)
        value = self.fontMetrics().elidedText(
            self._value, Qt.TextElideMode.ElideRight, rest.width()
        )
        painter.setPen(theme.dim(palette))
        painter.drawText(
            _visual(rest, inner, mirrored), int(Qt.AlignmentFlag.AlignVCenter | trailing), value
        )


def _visual(rect: QRect, around: QRect, mirrored: bool) -> QRect:
    """Where `rect` is in a language that is read from right to left."""
    if not mirrored:
        return rect
    return QRect(
        around.left() + around.right() - rect.right(), rect.y(), rect.width(), rect.height()
    )
