"""Labels in the few kinds that windows use."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QPalette
from PySide6.QtWidgets import QLabel, QWidget

from qvpn_gui import theme


class Text(QLabel):
    """Plain text that wraps; never markup, since parts of it may come from the network."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)


class Title(Text):
    """What a page or a state is called."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setFont(theme.scaled(self.font(), 1.7, bold=True))


class Heading(Text):
    """What a part is called."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setFont(theme.scaled(self.font(), 1.0, bold=True))


class Dim(Text):
    """Secondary text."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self._colour()

    def changeEvent(self, event: QEvent) -> None:
        super().changeEvent(event)
        # The desktop's, not ours: ours follows from it.
        if event.type() == QEvent.Type.ApplicationPaletteChange:
            self._colour()

    def _colour(self) -> None:
        self.setPalette(QPalette())
        palette = self.palette()
        palette.setColor(QPalette.ColorRole.WindowText, theme.dim(palette))
        self.setPalette(palette)


class Value(Text):
    """A value that can be selected and copied, by mouse and by keyboard."""

    def __init__(self, text: str = "", parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setTextInteractionFlags(
            Qt.TextInteractionFlag.TextSelectableByMouse
            | Qt.TextInteractionFlag.TextSelectableByKeyboard
        )
