"""Fields to type in."""

from __future__ import annotations

from PySide6.QtWidgets import QLineEdit, QToolButton


class ClearableLine(QLineEdit):
    """With a button that empties it, which has a name, unlike Qt's own."""

    def __init__(self) -> None:
        super().__init__()
        self.setClearButtonEnabled(True)
        for button in self.findChildren(QToolButton):
            button.setAccessibleName(self.tr("Clear"))
            button.setToolTip(self.tr("Clear"))
