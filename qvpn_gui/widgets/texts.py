"""Labels in the few kinds that windows use."""

from __future__ import annotations

from typing import Final

from PySide6.QtCore import QEvent, QPointF, QSize, Qt
from PySide6.QtGui import QPainter, QPaintEvent, QPalette, QResizeEvent
from PySide6.QtWidgets import QLabel, QSizePolicy, QWidget

from qvpn_core.client.doctor import Verdict
from qvpn_gui import icons, theme

_MARK: Final = 16


class Text(QLabel):
    """Plain text that wraps; never markup, since parts of it may come from the network."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        self._align()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        if event.type() == QEvent.Type.LayoutDirectionChange:
            self._align()

    def setAlignment(self, alignment: Qt.AlignmentFlag) -> None:
        super().setAlignment(alignment)
        self._align()

    @property
    def mirrored(self) -> bool:
        """Whether the window is read from right to left."""
        return self.layoutDirection() is Qt.LayoutDirection.RightToLeft

    def _align(self) -> None:
        """Begin where the window's reading begins; Qt would ask each text, also an address."""
        if self.alignment() & Qt.AlignmentFlag.AlignHCenter:
            return
        rest = self.alignment() & Qt.AlignmentFlag.AlignVertical_Mask
        side = Qt.AlignmentFlag.AlignRight if self.mirrored else Qt.AlignmentFlag.AlignLeft
        super().setAlignment(rest | side | Qt.AlignmentFlag.AlignAbsolute)


class _Emphasised(Text):
    """In a larger or a heavier font, which follows the desktop's."""

    factor = 1.0

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        theme.emphasise(self, self.factor)

    def event(self, event: QEvent) -> bool:
        # The application's, which Qt does not pass to `changeEvent`: ours follows from it.
        if event.type() == QEvent.Type.ApplicationFontChange:
            theme.emphasise(self, self.factor)
        return super().event(event)


class Title(_Emphasised):
    """What a page or a state is called."""

    factor = 1.7


class Heading(_Emphasised):
    """What a part is called."""


class Dim(Text):
    """Secondary text."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self._colour()

    def event(self, event: QEvent) -> bool:
        # The application's, which Qt does not pass to `changeEvent`: ours follows from it.
        if event.type() == QEvent.Type.ApplicationPaletteChange:
            self._colour()
        return super().event(event)

    def _colour(self) -> None:
        self.setPalette(QPalette())
        palette = self.palette()
        palette.setColor(QPalette.ColorRole.WindowText, theme.dim(palette))
        self.setPalette(palette)


class Step(Dim):
    """One of several things that come one after the other; secondary until it is its turn."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        self._later = True
        super().__init__(text, parent)

    def set_later(self, later: bool) -> None:
        """Whether its turn is still to come."""
        if later != self._later:
            self._later = later
            self._colour()

    def _colour(self) -> None:
        if self._later:
            super()._colour()
        else:
            self.setPalette(QPalette())


class Value(Text):
    """A value that can be selected and copied, by mouse and by keyboard."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )


class OneLine(Dim):
    """Text of any length on one line; what does not fit is left out of its middle."""

    def __init__(
        self, text: str = "", parent: QWidget | None = None, *, secondary: bool = True
    ) -> None:
        self._secondary = secondary
        super().__init__(parent=parent)
        self._whole = text
        self.setWordWrap(False)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.setToolTip(text)
        self.setAccessibleName(text)
        self._fit()

    def _colour(self) -> None:
        if self._secondary:
            super()._colour()

    def sizeHint(self) -> QSize:
        return QSize(self.fontMetrics().horizontalAdvance(self._whole), super().sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        middle = Qt.TextElideMode.ElideMiddle
        self.setText(self.fontMetrics().elidedText(self._whole, middle, self.width()))


class Told(Text):
    """What became of something, with the mark of how it went before it; nothing when empty."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(parent=parent)
        self._kind: Verdict = "warning"
        self.tell(text)

    def tell(self, text: str, kind: Verdict = "warning") -> None:
        """Show a text under a mark; "unknown" has none."""
        self._kind = kind
        self.setText(text)
        self.setAccessibleName(text)
        room = _MARK + theme.SPACE if text and kind != "unknown" else 0
        self.setContentsMargins(*((0, 0, room, 0) if self.mirrored else (room, 0, 0, 0)))

    def paintEvent(self, event: QPaintEvent) -> None:
        super().paintEvent(event)
        if not self.text() or self._kind == "unknown":
            return
        inside = self.contentsRect()
        left = self.width() - _MARK if self.mirrored else 0
        above = self.fontMetrics().height() - _MARK
        if not self.alignment() & Qt.AlignmentFlag.AlignTop:
            above += max(0, inside.height() - self.heightForWidth(self.width()))
        drawing, color = theme.VERDICTS[self._kind]
        color = theme.seen(color, self.palette())
        drawn = icons.pixmap(drawing, _MARK, color, self.devicePixelRatioF())
        QPainter(self).drawPixmap(QPointF(left, inside.top() + above / 2), drawn)
